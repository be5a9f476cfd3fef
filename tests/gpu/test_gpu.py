"""What only an accelerator can show. `make test-all` runs these where there is one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from automl_tl import Batch, Candidate, Strategy, Task, checkpoint, fit, load_task, loop
from automl_tl.along import Along
from automl_tl.backbones import build, catalogue
from automl_tl.batches import batches
from automl_tl.device import device, hardware, precision
from automl_tl.features import extract
from automl_tl.fetching import ahead, in_batches
from automl_tl.pixels import decode
from automl_tl.records import TRAIN
from automl_tl.registry import strategies
from automl_tl.space import defaults
from automl_tl.trials import Limits, job_of, run_trial

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and there is none here"),
]
BACKBONE = "resnet10t_40.tiny_imagenet_64"


def pictures(first: int = 0) -> tuple[list[np.ndarray], list[int]]:
    digits = load_digits()
    chosen = slice(first, first + 600)
    return [np.uint8(image * 15) for image in digits.images[chosen]], digits.target[chosen].tolist()


def task() -> Task:
    return load_task(pictures(), test=0.2)


def test_training_takes_the_device_and_its_precision(tmp_path: Path) -> None:
    backbone = catalogue()[BACKBONE]
    assert device().type == "cuda"
    assert precision(build(backbone)) in (torch.bfloat16, torch.float16)
    candidate = Candidate(BACKBONE, "fine-tuning", {**defaults(strategies()["fine-tuning"].space), "epochs": 8})
    trial, fitted = run_trial(task(), candidate, backbone, seed=0, folder=tmp_path)
    assert fitted is not None, trial.error
    assert trial.validation["accuracy"] > 0.9
    assert trial.memory_mb > 10
    assert hardware() in str(trial.provenance["hardware"])


def test_stopped_and_taken_up_again_predicts_nearly_the_same(tmp_path: Path) -> None:
    """Not bit for bit: sums on a GPU have no fixed order."""
    backbone, small = catalogue()[BACKBONE], task()
    candidate = Candidate(BACKBONE, "fine-tuning", {**defaults(strategies()["fine-tuning"].space), "epochs": 6})
    _, whole = run_trial(small, candidate, backbone, seed=0, folder=tmp_path / "a")
    run_trial(small, candidate, backbone, seed=0, folder=tmp_path / "b", limits=Limits(stop_after=3))
    _, resumed = run_trial(small, candidate, backbone, seed=0, folder=tmp_path / "b")
    assert whole is not None
    assert resumed is not None
    agree = (whole.probabilities.argmax(1) == resumed.probabilities.argmax(1)).mean()
    assert agree > 0.95


def test_half_precision_scales_its_gradients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on GPUs without bf16, which on those with it is asked for here. The scale is part of the checkpoint."""
    monkeypatch.setattr(loop, "precision", lambda net: torch.float16)
    backbone, small = catalogue()[BACKBONE], task()
    candidate = Candidate(BACKBONE, "fine-tuning", {**defaults(strategies()["fine-tuning"].space), "epochs": 6})
    run_trial(small, candidate, backbone, seed=0, folder=tmp_path, limits=Limits(stop_after=3))
    assert checkpoint.load(tmp_path / loop.CHECKPOINT)[1]["scaler"]["scale"] > 1
    trial, _ = run_trial(small, candidate, backbone, seed=0, folder=tmp_path)
    assert trial.validation["accuracy"] > 0.9


def test_features_agree_with_those_of_the_processor() -> None:
    backbone, small = catalogue()[BACKBONE], task()
    pixels = decode(small, backbone.input_size, interpolation=backbone.interpolation, crop_pct=backbone.crop_pct)
    found = extract(small, backbone, pixels, lambda head: build(backbone, head=head)).values
    net = build(backbone)
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (backbone.mean, backbone.std))
    some = small.part(TRAIN)[:64]
    images = torch.from_numpy(pixels.array[some]).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        expected = net((images - mean) / std).numpy()
    error = np.linalg.norm(found[some] - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert error.max() < 0.05


def test_batches_are_made_ahead_as_they_would_be_made_in_turn(tmp_path: Path) -> None:
    """Many short epochs, each with the device busy: a batch that is used before it is whole would differ."""
    backbone, small = catalogue()[BACKBONE], task()
    hyperparameters = {"batch_size": 32, "augmentation": "strong", "mixup": 0.2, "randaugment": 5}
    strategy = Strategy(hyperparameters, backbone)
    job = job_of(small, Candidate(BACKBONE, "fine-tuning", hyperparameters), backbone, seed=0, folder=tmp_path)
    busy = torch.randn(2048, 2048, device=device())
    for epoch in range(20):
        in_turn = list(batches(strategy, job, epoch))
        torch.cuda.synchronize()
        made = ahead(batches(strategy, job, epoch), Batch.tensors)
        for expected, batch in zip(in_turn, made, strict=True):
            images = batch.images * 1
            for _ in range(5):
                busy @ busy
            assert torch.equal(images, expected.images)
            assert torch.equal(batch.labels, expected.labels)


def test_images_reach_the_device_and_results_come_back_in_order() -> None:
    images = np.arange(100, dtype=np.uint8).repeat(8 * 8 * 3).reshape(100, 8, 8, 3)
    index = np.random.default_rng(0).permutation(100)
    found = in_batches(images, index, 7, lambda batch: (batch.float().mean((1, 2, 3)), batch[:, 0, 0, 0]))
    assert torch.cat([means for means, _ in found]).tolist() == index.tolist()
    assert torch.cat([firsts for _, firsts in found]).tolist() == index.tolist()


@pytest.mark.parametrize("source", [False, True], ids=["alone", "with a source"])
def test_a_fit_ends_with_its_report(tmp_path: Path, source: bool) -> None:
    """What comes after the training - comparing, drawing, describing - finds its networks on the device, too."""
    along = Along(source=pictures(600)) if source else None
    chosen = {"backbones": [BACKBONE], "strategies": ["fine-tuning"]}
    outcome = fit(pictures(), budget="1 trials + 4 epochs", out=tmp_path / "run", along=along, **chosen)  # type: ignore[arg-type]
    assert (outcome.folder / "report.html").exists()
