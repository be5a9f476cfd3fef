"""What batch norms see, against torch's own running statistics."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from automl_tl_plugins.strategies._probe import begin
from small import QUICK, arrays, digits
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from automl_tl import Candidate
from automl_tl.backbones import build, catalogue
from automl_tl.data import load_task
from automl_tl.device import channels_last
from automl_tl.fetching import fetched, in_batches
from automl_tl.inference import laid_out, prepare
from automl_tl.norms import norm_statistics, norms_of
from automl_tl.pixels import decode
from automl_tl.profiling import profile_task
from automl_tl.records import TRAIN, Norms, Task, Trial
from automl_tl.registry import strategies
from automl_tl.space import Value, defaults
from automl_tl.strategy import Fitted
from automl_tl.trials import Limits, job_of, run_trial


def seen_by(name: str, task: Task, index: np.ndarray) -> Norms | None:
    backbone = catalogue()[name]
    pixels = decode(task, backbone.input_size, interpolation=backbone.interpolation, crop_pct=backbone.crop_pct)
    return norm_statistics(task, backbone, pixels, lambda: build(backbone), index=index)


def test_statistics_are_those_that_torch_would_keep() -> None:
    """One pass in training mode with momentum 1 leaves the first batch norm with the statistics of just these images."""
    task, backbone = digits(40), catalogue()[QUICK]
    index = task.part(TRAIN)
    norms = seen_by(QUICK, task, index)
    assert norms is not None
    net = build(backbone)
    layers = [layer for layer in net.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert len(norms.layer) == sum(layer.num_features for layer in layers)
    kept = np.concatenate([layer.running_mean.numpy() for layer in layers])
    np.testing.assert_allclose(norms.source_mean, kept)
    first = layers[0]
    first.train().momentum = 1.0
    pixels = decode(task, backbone.input_size, interpolation=backbone.interpolation, crop_pct=backbone.crop_pct)
    with torch.inference_mode():
        net(prepare(pixels.array[index], backbone))
    here = norms.layer == 0
    np.testing.assert_allclose(norms.mean[here], first.running_mean.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(norms.variance[here], first.running_var.numpy(), rtol=1e-3, atol=1e-6)


class NoDoubles(TorchDispatchMode):
    """As Apple's devices compute: without double precision."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        assert not isinstance(found, torch.Tensor) or found.dtype != torch.float64, f"{func} in double precision"
        return found


def test_statistics_are_taken_where_there_are_no_doubles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor do pieces of a batch, where memory does not suffice for the whole, make them others."""
    task, backbone = digits(40), catalogue()[QUICK]
    index = task.part(TRAIN)[1:]
    pixels = decode(task, backbone.input_size, interpolation=backbone.interpolation, crop_pct=backbone.crop_pct)
    whole = norm_statistics(task, backbone, pixels, lambda: build(backbone), index=index)
    assert whole is not None
    passed: list[int] = []

    def scarce(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        passed.append(len(inputs[0]))
        if len(inputs[0]) > 16:
            raise torch.OutOfMemoryError

    def made() -> nn.Module:
        net = build(backbone)
        [*net.modules()][-1].register_forward_pre_hook(scarce)  # by now batch norms have been told of what is thrown away
        return net

    monkeypatch.setattr("automl_tl.norms.BATCH", 32)
    other = replace(backbone, digest="counts as another network, so that nothing is found in the cache")
    monkeypatch.setattr("automl_tl.norms.in_batches", lambda *given: _under(NoDoubles(), in_batches, *given))
    pieces = norm_statistics(task, other, pixels, made, index=index)
    assert pieces is not None
    assert passed[0] > 16 >= max(passed[1:])
    np.testing.assert_allclose(pieces.mean, whole.mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(pieces.variance, whole.variance, rtol=1e-4, atol=1e-6)


def _under(mode: TorchDispatchMode, run: Any, *given: Any) -> Any:
    with mode:
        return run(*given)


def test_networks_without_batch_norms_have_none() -> None:
    without = [b.name for b in catalogue().values() if b.family in ("vit", "convnext")]
    assert without
    task = digits(40)
    assert [seen_by(name, task, task.part(TRAIN)) for name in without] == [None] * len(without)


def test_dark_ink_on_paper_is_more_familiar_to_the_network_of_handwriting() -> None:
    """And the profile says so; light on black is strange to it."""
    images, labels = arrays(120)
    inked = load_task(([255 - image for image in images], labels), name="ink", test=0.25)
    scores = [
        profile_task(task, catalogue(), look=(QUICK,)).transferability[QUICK]["batch-norm"] for task in (inked, digits(120))
    ]
    assert scores[1] < scores[0] < 0


def test_statistics_are_kept() -> None:
    """The second time no network is built."""
    task, backbone = digits(40), catalogue()[QUICK]
    first = seen_by(QUICK, task, task.part(TRAIN))
    pixels = decode(task, backbone.input_size, interpolation=backbone.interpolation, crop_pct=backbone.crop_pct)
    again = norm_statistics(task, backbone, pixels, lambda: pytest.fail("built again"), index=task.part(TRAIN))
    assert first is not None
    assert again is not None
    np.testing.assert_array_equal(first.mean, again.mean)


def test_moving_norms_adopt_the_task_before_the_head_is_fitted(tmp_path: Path) -> None:
    """A head that was fitted to the source's statistics loses its way once batches are normalised by their own."""
    task, backbone = digits(), catalogue()[QUICK]
    candidate = Candidate(QUICK, "fine-tuning", {**defaults(strategies()["fine-tuning"].space), "norms": "moving"})
    job = job_of(task, candidate, backbone, seed=0, folder=tmp_path, report=lambda point: False)

    def loss_of_a_batch(net: nn.Module, head: nn.Module) -> float:
        part = task.part(TRAIN)[:: len(task.part(TRAIN)) // 64][:64]
        images = laid_out(next(fetched(job.pixels.array, [part])), backbone)
        with torch.no_grad():
            logits = channels_last(head)(channels_last(net).train()(images))
        return float(nn.functional.cross_entropy(logits, torch.from_numpy(task.labels[part]).to(logits.device)))

    still_job, still_head = begin(job, norms="still")
    assert (still_job.build_backbone, still_job.features) == (job.build_backbone, job.features)
    before = loss_of_a_batch(job.build_backbone(), still_head)
    moving_job, moving_head = begin(job, norms="moving")
    net = moving_job.build_backbone()
    adopted = [layer.running_mean.clone() for layer in norms_of(net) if layer.running_mean is not None]
    assert loss_of_a_batch(net, moving_head) < 0.5 * before
    known = [layer.running_mean for layer in norms_of(build(backbone)) if layer.running_mean is not None]
    assert not any(torch.allclose(one, other, rtol=0.01, atol=0.01) for one, other in zip(adopted, known, strict=True))


WITH_NORMS = [name for name, strategy in strategies().items() if "norms" in strategy.space and not strategy.needs]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in ("fine-tuning", "l2-sp") else pytest.mark.slow) for name in WITH_NORMS]
)
def test_every_strategy_with_moving_norms_begins_where_its_head_fits(name: str, tmp_path: Path) -> None:
    """With heads that were fitted to the source's statistics these losses are 195 and more."""
    values = {**defaults(strategies()[name].space), "norms": "moving"}
    trial, _ = run_trial(
        digits(), Candidate(QUICK, name, values), catalogue()[QUICK], seed=0, folder=tmp_path, limits=Limits(stop_after=1.0)
    )
    (first, *_) = [point.loss for point in trial.curve if point.loss is not None]
    assert first < 2.0  # of which the penalty of L2-SP is one


def trained_with_moving_norms(name: str, folder: Path, **values: Value) -> tuple[Trial, Fitted]:
    values = {**defaults(strategies()[name].space), "norms": "moving", **values}
    trial, fitted = run_trial(digits(), Candidate(QUICK, name, values), catalogue()[QUICK], seed=0, folder=folder)
    assert fitted is not None, trial.error
    return trial, fitted


def test_frozen_norms_stay_as_pretrained(tmp_path: Path) -> None:
    """Those below the last blocks: what they feed on has not changed, so the source's statistics are right."""
    _, fitted = trained_with_moving_norms("last-blocks", tmp_path, blocks=2, epochs=3)
    moved = [
        not torch.equal(one.running_mean.cpu(), other.running_mean)
        for one, other in zip(norms_of(fitted.model), norms_of(build(catalogue()[QUICK])), strict=True)
        if one.running_mean is not None and other.running_mean is not None
    ]
    assert moved == sorted(moved)
    assert set(moved) == {False, True}


def test_each_stage_of_a_climb_with_moving_norms_begins_where_its_head_fits(tmp_path: Path) -> None:
    trial, fitted = trained_with_moving_norms("gradual-unfreezing", tmp_path, epochs=2)
    stages = {point.note for point in trial.curve}
    assert len(stages) > 2, "it went on after the first"
    assert all(point.loss < 2.0 for point in trial.curve if point.loss is not None)
    assert trial.note == fitted.notes[0]
    assert trial.note.endswith("groups of layers trained")


def test_what_is_begun_with_is_not_what_is_trained(tmp_path: Path) -> None:
    """Gradual unfreezing builds anew at each stage, and goes back to what it had."""
    values = {**defaults(strategies()["gradual-unfreezing"].space), "norms": "moving"}
    job = job_of(digits(), Candidate(QUICK, "gradual-unfreezing", values), catalogue()[QUICK], seed=0, folder=tmp_path)
    begun, _ = begin(job, norms="moving")
    one, other = begun.build_backbone(), begun.build_backbone()
    with torch.no_grad():
        next(one.parameters()).zero_()
    assert next(other.parameters()).abs().sum() > 0


def test_networks_without_batch_norms_begin_as_ever(tmp_path: Path) -> None:
    name = "convnext_24.fractals_64"
    candidate = Candidate(name, "fine-tuning", {**defaults(strategies()["fine-tuning"].space), "norms": "moving"})
    job = job_of(digits(), candidate, catalogue()[name], seed=0, folder=tmp_path, report=lambda point: False)
    begun, _ = begin(job, norms="moving")
    assert (begun.build_backbone, begun.features) == (job.build_backbone, job.features)
