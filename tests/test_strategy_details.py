"""Where a strategy could differ from its paper without anybody noticing: starts, modes, scales, layers of unusual kinds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from automl_tl_plugins.strategies import gradual_unfreezing
from automl_tl_plugins.strategies._losses import divergence
from automl_tl_plugins.strategies._retaining import _rows
from automl_tl_plugins.strategies._untrained import untrained
from automl_tl_plugins.strategies.lora import targets
from automl_tl_plugins.strategies.rehearsal import _with_means
from automl_tl_plugins.strategies.trades import Trades
from small import QUICK, digits
from timm.layers import Conv2dSame, StdConv2d
from torch import nn

from automl_tl import Batch, Candidate, Classifier, Fitted, Job, Task
from automl_tl.adapters import Grown
from automl_tl.backbones import build, catalogue
from automl_tl.device import channels_last, device
from automl_tl.errors import TrialError
from automl_tl.inference import prepare
from automl_tl.norms import norms_of, unmoved
from automl_tl.records import TRAIN, VALIDATION
from automl_tl.registry import strategies
from automl_tl.space import defaults
from automl_tl.testing import task_for
from automl_tl.trials import Limits, job_of, run_trial


def job_for(task: Task, folder: Path, strategy: str = "fine-tuning") -> Job:
    candidate = Candidate(QUICK, strategy, defaults(strategies()[strategy].space))
    return job_of(task, candidate, catalogue()[QUICK], seed=0, folder=folder)


# Adversarial training


def test_statistics_stay_where_they_are_but_gradients_flow() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    before = net[1].running_mean.clone()
    with unmoved(net):
        net(torch.ones(2, 3, 8, 8) * torch.arange(2).reshape(2, 1, 1, 1)).square().sum().backward()
    torch.testing.assert_close(net[1].running_mean, before)
    assert net[0].weight.grad is not None
    net(torch.ones(2, 3, 8, 8))
    assert not torch.allclose(net[1].running_mean, before)


def test_trades_moves_the_norms_once_by_clean_images_and_once_by_changed_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it attacks where its answers are those of the network in use: without a change there is nothing to gain."""
    task = task_for(frozenset({"epsilon"}))
    strategy = Trades({**defaults(Trades.space), "norms": "moving"}, catalogue()[QUICK])
    seen: dict[str, object] = {}

    def train(job: Job, values: object, harden: object) -> None:
        def plain(model: Classifier, batch: Batch) -> torch.Tensor:
            return nn.functional.cross_entropy(model(batch.images).float(), batch.labels)

        head = nn.Linear(catalogue()[QUICK].num_features, len(task.classes))
        model = channels_last(Classifier(build(catalogue()[QUICK]), head)).train()
        chosen = task.part(TRAIN)[:16]
        batch = Batch(prepare(job.pixels.array[chosen], job.backbone), torch.from_numpy(task.labels[chosen]).to(device()))
        norm = norms_of(model)[0]
        entered: list[torch.Tensor] = []
        norm.register_forward_pre_hook(lambda layer, inputs: entered.append(inputs[0]) if layer.training else None)
        expected, momentum = norm.running_mean.clone(), norm.momentum  # type: ignore[union-attr]
        harden(plain)(model, batch)  # type: ignore[operator]
        for values_in in (entered[1], entered[2]):
            expected = expected * (1 - momentum) + values_in.float().mean((0, 2, 3)) * momentum  # type: ignore[operator]
        torch.testing.assert_close(norm.running_mean, expected, rtol=1e-4, atol=1e-5)
        assert len(entered) == 3, "clean, clean and changed; the attack sees the network in use"
        seen["done"] = True

    monkeypatch.setattr("automl_tl_plugins.strategies._adversarial.train", train)
    strategy.run(job_for(task, tmp_path))
    assert seen
    logits = torch.tensor([[2.0, 1.0]])
    assert float(divergence(logits, logits)) == 0.0


# Layers of unusual kinds


def test_pairs_beside_kernels_that_pad_by_the_size_of_what_comes_in() -> None:
    network = timm.create_model("tf_mobilenetv3_small_minimal_100", num_classes=0)
    assert any(isinstance(layer, Conv2dSame) for layer in network.modules())
    images = torch.randn(2, 3, 63, 63)
    before = network.eval()(images)
    grown = Grown(network, [2]).eval()
    with torch.no_grad():
        both = grown(images)
    torch.testing.assert_close(both[:, : before.shape[1]], before)
    torch.testing.assert_close(both[:, before.shape[1] : -2], before)  # a new pair adds nothing yet


def test_attention_that_computes_with_its_weights_itself_can_grow() -> None:
    network = timm.create_model("eva02_tiny_patch14_224", num_classes=0, depth=1).eval()
    with torch.no_grad():
        assert Grown(network, [2]).eval()(torch.randn(1, 3, 224, 224)).shape[1] == 2 * network.num_features + 2


def test_kernels_that_are_standardised_get_no_low_rank_ones() -> None:
    """What is added into W before it is standardised is another function than W x + B A x."""
    mixed = nn.Sequential(StdConv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Linear(4, 4))
    assert targets(mixed) == ["1", "3"]
    with pytest.raises(TrialError, match="no matrix or kernel"):
        targets(nn.Sequential(StdConv2d(3, 8, 3)))


def test_low_rank_kernels_are_of_the_named_layers_alone() -> None:
    """In SK-ResNet `conv1` is a kernel, and `layer1.0.conv1` is a module of many."""
    network, lora = timm.create_model("skresnet18", num_classes=0), strategies()["lora"]
    names = targets(network)
    strategy = lora(defaults(lora.space), catalogue()[QUICK])
    strategy.probed = nn.Linear(network.num_features, 2)  # type: ignore[attr-defined]
    adapted = strategy.build(network, 2).backbone.get_submodule("base_model.model")
    assert [name for name, layer in adapted.named_modules() if hasattr(layer, "lora_A")] == names


def test_a_scalar_has_no_rows() -> None:
    assert float(_rows(torch.tensor(2.0), torch.tensor(1.0))) == 2.0
    assert _rows(torch.ones(5, 2), torch.ones(3, 2)).shape == (3, 2)


# Few images, few classes


@pytest.mark.parametrize("strategy", ["nearest-mean", "lda"])
def test_one_image_a_class_is_no_reason_to_be_sure(strategy: str, tmp_path: Path) -> None:
    task = digits(240)
    first = np.concatenate([task.part(TRAIN)[task.labels[task.part(TRAIN)] == label][:1] for label in range(len(task.classes))])
    task = replace(task, splits={**task.splits, TRAIN: np.sort(first)})
    candidate = Candidate(QUICK, strategy, defaults(strategies()[strategy].space))
    trial, fitted = run_trial(task, candidate, catalogue()[QUICK], seed=0, folder=tmp_path)
    assert fitted is not None, trial.error
    wrong = fitted.probabilities.argmax(1) != task.labels[task.part(VALIDATION)]
    assert wrong.any()
    assert fitted.probabilities.max(1)[wrong].mean() < 0.99
    assert trial.validation["log_loss"] < 5


def test_nearest_means_need_images_of_every_class(tmp_path: Path) -> None:
    task = digits(120, classes=3)
    whole = job_for(task, tmp_path)
    some = task.part(TRAIN)[task.labels[task.part(TRAIN)] != 2]
    partial = replace(whole, task=replace(task, splits={**task.splits, TRAIN: some}))
    model = Classifier(build(catalogue()[QUICK]), nn.Linear(catalogue()[QUICK].num_features, 3))
    fitted = _with_means(partial, Fitted(model, [], np.full((len(task.part(VALIDATION)), 3), 1 / 3, np.float32)))
    assert fitted.model is model
    assert fitted.notes == ("classified by the trained head: no image of 1 classes was kept",)
    assert "no image" not in " ".join(_with_means(whole, replace(fitted, notes=())).notes)


# From scratch


class Attentive(nn.Module):
    """Parts that torch resets by another name, and, if it has one, a token that nothing resets."""

    def __init__(self, *, token: bool) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(8, 2, 16)
        self.token = nn.Parameter(torch.ones(1, 8)) if token else None


def test_nothing_that_was_learnt_is_left_from_scratch() -> None:
    unknown = replace(catalogue()[QUICK], architecture="", name="theirs")
    net = Attentive(token=False)
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters() if parameter.ndim > 1}
    anew = untrained(net, unknown)
    assert not [name for name, parameter in anew.named_parameters() if name in before and torch.equal(parameter, before[name])]
    with pytest.raises(TrialError, match="theirs: token keeps what it learnt"):
        untrained(Attentive(token=True), unknown)


# Gradual unfreezing


def climb(folder: Path, task: Task, **limits: Any) -> tuple[Fitted, list[int]]:
    """With moving norms, two epochs a stage; and before which stages the norms adopted the task's statistics."""
    values = {**defaults(strategies()["gradual-unfreezing"].space), "norms": "moving", "epochs": 2}
    candidate, adopted = Candidate(QUICK, "gradual-unfreezing", values), []
    job = job_of(task, candidate, catalogue()[QUICK], seed=0, folder=folder, limits=Limits(**limits))
    strategy = strategies()["gradual-unfreezing"](values, job.backbone)
    adopting = gradual_unfreezing.adopting

    def watched(*rest: Any) -> Job:
        adopted.append(strategy.depth)
        return adopting(*rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradual_unfreezing, "adopting", watched)
        return strategy.run(job), adopted


@pytest.mark.slow
def test_a_climb_that_is_stopped_between_stages_begins_no_other(tmp_path: Path) -> None:
    """What the next stage would begin with costs passes through all images, and is no model that was trained."""
    task = digits()
    first, adopted = climb(tmp_path, task, stop_after=2)
    assert not first.complete
    assert adopted == [1]
    assert [point.epoch for point in first.curve] == [0, 1, 2]
    late, adopted = climb(tmp_path, task, deadline=0.0)
    assert not late.complete
    assert adopted == [], "what a stage began with is in its checkpoint"
    np.testing.assert_array_equal(late.probabilities, first.probabilities)
    whole, adopted = climb(tmp_path, task)
    once, _ = climb(tmp_path / "once", task)
    assert whole.complete
    assert 1 not in adopted
    assert [(point.epoch, point.score, point.note) for point in whole.curve] == [
        (point.epoch, point.score, point.note) for point in once.curve
    ]
    np.testing.assert_array_equal(whole.probabilities, once.probabilities)
