"""Each built-in strategy does what its paper says, on real images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from automl_tl_plugins.strategies._layers import layer_groups, still_norms
from automl_tl_plugins.strategies._probe import PATH, fit_probe
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from small import QUICK, digits

from automl_tl import Candidate, Fitted, Task, Trial
from automl_tl.backbones import build, catalogue
from automl_tl.profiling import task_features
from automl_tl.registry import strategies
from automl_tl.space import defaults
from automl_tl.trials import Limits, run_trial


def trained(task: Task, strategy: str, folder: Path, **values: Any) -> tuple[Trial, Fitted]:
    candidate = Candidate(QUICK, strategy, {**defaults(strategies()[strategy].space), **values})
    trial, fitted = run_trial(task, candidate, catalogue()[QUICK], seed=0, folder=folder)
    assert fitted is not None, trial.error
    return trial, fitted


def weights(fitted: Fitted) -> dict[str, torch.Tensor]:
    return {name: tensor.float() for name, tensor in fitted.model.backbone.state_dict().items()}  # type: ignore[union-attr, operator]


@pytest.fixture(scope="module")
def pretrained() -> dict[str, torch.Tensor]:
    return {name: tensor.float() for name, tensor in build(catalogue()[QUICK]).state_dict().items()}


# All


@pytest.mark.parametrize(
    ("strategy", "values"),
    [
        ("linear-probe", {}),
        ("fine-tuning", {"epochs": 3}),
        ("gradual-unfreezing", {"epochs": 1}),
        ("from-scratch", {"epochs": 5}),
    ],
)
def test_labels_of_test_images_change_no_model(tmp_path: Path, strategy: str, values: dict[str, Any]) -> None:
    task = digits()
    labels = task.labels.copy()
    labels[task.part("test")] = (labels[task.part("test")] + 1) % 10
    _, honest = trained(task, strategy, tmp_path / "a", **values)
    _, corrupted = trained(replace(task, labels=labels), strategy, tmp_path / "b", **values)
    np.testing.assert_array_equal(corrupted.probabilities, honest.probabilities)
    before, after = (fitted.model.state_dict() for fitted in (honest, corrupted))
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


# Linear probe


@pytest.mark.parametrize("penalty", [0.1, 0.001])
def test_the_probe_is_the_logistic_regression_of_scikit_learn(penalty: float) -> None:
    task = digits()
    values, labels = task_features(task, catalogue()[QUICK]).values, task.labels
    train, validation = task.part("train"), task.part("validation")
    probe = fit_probe(values[train], labels[train], values[validation], labels[validation], 10, path=(penalty,))
    scaler = StandardScaler().fit(values[train])
    theirs = LogisticRegression(C=1 / (penalty * len(train)), max_iter=5000, tol=1e-8)
    theirs.fit(scaler.transform(values[train]), labels[train])
    expected = theirs.predict_proba(scaler.transform(values[validation]))
    np.testing.assert_allclose(probe.probabilities(values[validation]), expected, atol=0.02)


def test_the_penalty_is_chosen_on_validation_images() -> None:
    task = digits()
    values, labels = task_features(task, catalogue()[QUICK]).values, task.labels
    train, validation = task.part("train"), task.part("validation")
    chosen = fit_probe(values[train], labels[train], values[validation], labels[validation], 10)
    each = [fit_probe(values[train], labels[train], values[validation], labels[validation], 10, path=(p,)).score for p in PATH]
    assert chosen.score >= max(each) - 0.03
    assert chosen.penalty in PATH


def test_a_probe_leaves_the_backbone_alone(tmp_path: Path, pretrained: dict[str, torch.Tensor]) -> None:
    trial, fitted = trained(digits(), "linear-probe", tmp_path)
    assert all(torch.equal(tensor, pretrained[name]) for name, tensor in weights(fitted).items())
    assert "L2 penalty" in trial.curve[0].note


# Fine-tuning


def test_fine_tuning_starts_from_the_probe(tmp_path: Path) -> None:
    """Stopped before its first epoch, it predicts what the probe predicts."""
    _, probe = trained(digits(), "linear-probe", tmp_path / "a")
    candidate = Candidate(QUICK, "fine-tuning", defaults(strategies()["fine-tuning"].space))
    limits = Limits(stop_after=0)
    _, tuned = run_trial(digits(), candidate, catalogue()[QUICK], seed=0, folder=tmp_path / "b", limits=limits)
    assert tuned is not None
    assert not tuned.complete
    assert (probe.probabilities.argmax(1) == tuned.probabilities.argmax(1)).mean() > 0.95  # features in bf16, and again


@pytest.mark.parametrize("norms", ["still", "moving"])
def test_batch_norms_keep_their_statistics_or_do_not(tmp_path: Path, pretrained: dict[str, torch.Tensor], norms: str) -> None:
    _, fitted = trained(digits(), "fine-tuning", tmp_path, norms=norms, epochs=3)
    after = weights(fitted)
    assert {torch.equal(after[name], pretrained[name]) for name in after if name.endswith("running_mean")} == {norms == "still"}


def test_fine_tuning_moves_every_layer(tmp_path: Path, pretrained: dict[str, torch.Tensor]) -> None:
    _, fitted = trained(digits(), "fine-tuning", tmp_path, epochs=3)
    moved = [name for name, p in fitted.model.backbone.named_parameters() if not torch.equal(p.float(), pretrained[name])]  # type: ignore[union-attr, operator]
    assert len(moved) == sum(1 for _ in fitted.model.backbone.named_parameters())  # type: ignore[union-attr, operator]


# Gradual unfreezing


def test_unfreezing_goes_from_the_top_and_stops_where_it_does_not_pay(
    tmp_path: Path, pretrained: dict[str, torch.Tensor]
) -> None:
    trial, fitted = trained(digits(), "gradual-unfreezing", tmp_path, epochs=2)
    depths = [int(point.note.split()[0]) if point.note[0].isdigit() else 0 for point in trial.curve]
    assert depths[0] == 0, "first the head alone"
    assert depths == sorted(depths), "then one more group of layers at a time"
    assert set(depths) == set(range(max(depths) + 1))
    (note,) = fitted.notes
    kept, stages = int(note.split()[0]), int(note.split()[2])
    assert max(depths) == min(kept + 1, stages), "one stage that did not pay ends the climb"
    names = {parameter: name for name, parameter in fitted.model.backbone.named_parameters()}  # type: ignore[union-attr, operator]
    groups = layer_groups(fitted.model.backbone)  # type: ignore[arg-type]
    assert len(groups) == stages
    for position, group in enumerate(groups):
        moved = [not torch.equal(parameter.float(), pretrained[names[parameter]]) for parameter in group]
        assert any(moved) == (position >= stages - kept), "what did not pay is rolled back"


def test_unfreezing_is_never_worse_than_its_head(tmp_path: Path) -> None:
    trial, _ = trained(digits(), "gradual-unfreezing", tmp_path, epochs=1)
    assert trial.validation["accuracy"] >= trial.curve[0].score


def test_statistics_of_frozen_norms_stay() -> None:
    net = build(catalogue()[QUICK])
    norms = [layer for layer in net.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    net.requires_grad_(False)
    norms[-1].weight.requires_grad_(True)
    still_norms(net.train(), only_frozen=True)
    assert [layer.training for layer in norms] == [False] * (len(norms) - 1) + [True]
    still_norms(net.train(), only_frozen=False)
    assert not any(layer.training for layer in norms)


def test_layer_groups_go_from_the_stem_to_the_top() -> None:
    net = build(catalogue()[QUICK])
    groups = layer_groups(net)
    assert 2 <= len(groups) <= 6
    assert sum(len(group) for group in groups) == len(list(net.parameters()))
    names = {parameter: name for name, parameter in net.named_parameters()}
    assert "conv1" in names[groups[0][0]]
    assert "layer4" in names[groups[-1][-1]]


# From scratch


def test_from_scratch_starts_from_random_weights(tmp_path: Path, pretrained: dict[str, torch.Tensor]) -> None:
    _, fitted = trained(digits(), "from-scratch", tmp_path, epochs=5, rate=3e-4)
    convolutions = [name for name, tensor in pretrained.items() if tensor.ndim == 4]
    own = weights(fitted)
    for name in convolutions:
        a, b = own[name].flatten(), pretrained[name].flatten()
        if len(a) > 1000:
            assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 0.2, name


def test_pretrained_beats_random_on_few_images(tmp_path: Path) -> None:
    """What transfer is for: a hundred characters, a network that has seen other characters."""
    task = digits(140)
    transferred, _ = trained(task, "fine-tuning", tmp_path / "a", epochs=5)
    scratch, _ = trained(task, "from-scratch", tmp_path / "b", epochs=5)
    assert transferred.validation["accuracy"] > scratch.validation["accuracy"]
