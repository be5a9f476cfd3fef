"""Each built-in strategy does what its paper says, on real images."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from automl_tl_plugins.strategies._probe import PATH, begin, fit_probe
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from small import QUICK, digits

from automl_tl import Batch, Candidate, Classifier, Features, Fitted, Job, Strategy, Task, Trial, loop
from automl_tl.backbones import build, catalogue
from automl_tl.layers import layer_groups, still_norms
from automl_tl.profiling import task_features
from automl_tl.registry import strategies
from automl_tl.space import defaults
from automl_tl.trials import Limits, job_of, run_trial


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


@pytest.mark.parametrize("norms", ["still", "moving"])
def test_what_training_begins_with_counts_as_its_own_and_features_do_not(
    norms: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, kept = 0.0, list[Features]()

    def ticks() -> float:
        nonlocal clock
        clock += 1
        return clock

    def features() -> Features:
        nonlocal clock
        if not kept:
            clock += 1000
            kept.append(task_features(digits(), catalogue()[QUICK]))
        return kept[0]

    job = job_of(digits(), Candidate(QUICK, "fine-tuning", {}), catalogue()[QUICK], seed=0, folder=tmp_path)
    monkeypatch.setattr(time, "perf_counter", ticks)
    begun, _ = begin(replace(job, features=features), norms=norms)
    assert 0 < begun.spent < 1000


def test_what_training_begins_with_is_in_the_seconds_of_a_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(self: Strategy, job: Job) -> Fitted:
        self.probed = begin(job, norms="still")[1]  # type: ignore[attr-defined]
        return loop.fit(self, replace(job, spent=1000.0))

    monkeypatch.setattr(strategies()["fine-tuning"], "run", slow)
    candidate, backbone = Candidate(QUICK, "fine-tuning", {"epochs": 3}), catalogue()[QUICK]
    stopped, _ = run_trial(digits(), candidate, backbone, seed=0, folder=tmp_path, limits=Limits(stop_after=1))
    limits = Limits(deadline=time.monotonic() + 500)
    whole, _ = run_trial(digits(), candidate, backbone, seed=0, folder=tmp_path, limits=limits)
    assert stopped.curve == whole.curve[:1]
    assert [point.seconds > 1000 for point in whole.curve] == [True] * 3, "no epoch is expected to take that long"
    assert whole.seconds < 2000, "once, however often it is paused"


@pytest.mark.parametrize(
    ("strategy", "values"),
    [
        ("linear-probe", {}),
        ("fine-tuning", {"epochs": 3}),
        ("gradual-unfreezing", {"epochs": 1}),
        ("from-scratch", {"epochs": 5}),
        ("knn", {}),
        ("nearest-mean", {}),
        ("lda", {}),
    ],
)
def test_labels_of_test_images_change_no_model(tmp_path: Path, strategy: str, values: dict[str, Any]) -> None:
    """To the last weight; that they change no prediction, the conformance kit sees for every strategy."""
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


# Other classifiers of frozen features


def test_the_nearest_mean_is_the_nearest(tmp_path: Path) -> None:
    task = digits()
    values, labels = task_features(task, catalogue()[QUICK]).values, task.labels
    train, validation = task.part("train"), task.part("validation")
    _, fitted = trained(task, "nearest-mean", tmp_path, features="raw")
    means = np.stack([values[train][labels[train] == label].mean(axis=0) for label in range(10)])
    expected = np.linalg.norm(values[validation][:, None] - means, axis=2).argmin(axis=1)
    np.testing.assert_array_equal(fitted.probabilities.argmax(1), expected)


def test_lda_is_that_of_scikit_learn_with_its_shrinkage(tmp_path: Path) -> None:
    """Theirs takes the mean of each class's covariance, ours one covariance around the class means; the directions agree."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    task = digits()
    values, labels = task_features(task, catalogue()[QUICK]).values, task.labels
    train, validation = task.part("train"), task.part("validation")
    _, fitted = trained(task, "lda", tmp_path)
    shrinkage = float(fitted.notes[0].split()[-1])
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(values[train], labels[train])
    same = theirs.predict(values[validation]) == fitted.probabilities.argmax(1)
    assert same.mean() > 0.9


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_neighbours_are_those_of_scikit_learn(tmp_path: Path, distance: str) -> None:
    from sklearn.neighbors import KNeighborsClassifier

    task = digits()
    values, labels = task_features(task, catalogue()[QUICK]).values, task.labels
    train, validation = task.part("train"), task.part("validation")
    _, fitted = trained(task, "knn", tmp_path, neighbours=5, distance=distance)
    theirs = KNeighborsClassifier(5, metric=distance).fit(values[train].astype(np.float16), labels[train])
    shares = theirs.predict_proba(values[validation])
    np.testing.assert_allclose(fitted.probabilities, (5 * shares + 0.1) / 6, atol=1e-5)


def test_k_is_chosen_on_validation_images_and_the_size_is_said(tmp_path: Path) -> None:
    chosen, _ = trained(digits(), "knn", tmp_path / "chosen")
    each = [trained(digits(), "knn", tmp_path / str(k), neighbours=k, distance="cosine")[0] for k in (1, 5, 20)]
    assert chosen.validation["accuracy"] >= max(trial.validation["accuracy"] for trial in each)
    assert "kept feature vectors" in chosen.curve[0].note
    assert chosen.curve[0].note.endswith("MB")


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
    _, fitted = trained(digits(), "gradual-unfreezing", tmp_path, epochs=2)
    notes = [point.note for point in fitted.curve[:-1]]  # that of the last says what was found
    depths = [int(note.split()[0]) if note[0].isdigit() else 0 for note in notes]
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
    only_fine = timm.create_model("rdnet_tiny", num_classes=0)
    assert sum(len(group) for group in layer_groups(only_fine)) == len(list(only_fine.parameters()))


# Parts of the network


def moved_names(fitted: Fitted, pretrained: dict[str, torch.Tensor]) -> set[str]:
    named = fitted.model.backbone.named_parameters()  # type: ignore[union-attr, operator]
    return {name for name, parameter in named if not torch.equal(parameter.detach().float(), pretrained[name])}


@pytest.mark.parametrize("blocks", [1, 3])
def test_only_the_last_blocks_move(tmp_path: Path, pretrained: dict[str, torch.Tensor], blocks: int) -> None:
    _, fitted = trained(digits(), "last-blocks", tmp_path, blocks=blocks, epochs=3)
    net = fitted.model.backbone
    names = {parameter: name for name, parameter in net.named_parameters()}  # type: ignore[union-attr, operator]
    expected = {names[parameter] for group in layer_groups(net)[-blocks:] for parameter in group}  # type: ignore[arg-type]
    assert moved_names(fitted, pretrained) == expected


def test_only_biases_and_norms_move(tmp_path: Path, pretrained: dict[str, torch.Tensor]) -> None:
    _, fitted = trained(digits(), "bias-norm", tmp_path, epochs=3)
    moved = moved_names(fitted, pretrained)
    assert moved == {name for name, tensor in fitted.model.backbone.named_parameters() if tensor.ndim == 1}  # type: ignore[union-attr, operator]
    share = sum(pretrained[name].numel() for name in moved) / sum(tensor.numel() for tensor in pretrained.values())
    assert share < 0.05


def test_rates_fall_layer_by_layer() -> None:
    known = strategies()["layerwise-decay"]
    strategy = known({**defaults(known.space), "decay": 0.5}, catalogue()[QUICK])
    model = Classifier(build(catalogue()[QUICK]), torch.nn.Linear(2, 2))
    groups = list(strategy.param_groups(model))
    assert [factor for factor, _ in groups] == [0.5**below for below in range(len(groups))]
    assert groups[0][1][0] is model.head.weight
    assert groups[-1][1][0] is next(model.backbone.parameters()), "the stem is the slowest"
    assert sum(len(parameters) for _, parameters in groups) == len(list(model.parameters()))


def test_l2_sp_keeps_the_weights_near_their_start(tmp_path: Path, pretrained: dict[str, torch.Tensor]) -> None:
    def distance(alpha: float) -> float:
        _, fitted = trained(digits(), "l2-sp", tmp_path / str(alpha), alpha=alpha, epochs=3)
        own = weights(fitted)
        return sum(
            float((own[name] - tensor).square().sum()) for name, tensor in pretrained.items() if tensor.is_floating_point()
        )

    near, far = distance(1.0), distance(1e-4)
    assert near < 0.8 * far


@torch.no_grad()
def test_l2_sp_by_hand() -> None:
    known = strategies()["l2-sp"]
    strategy = known({**defaults(known.space), "alpha": 0.2, "beta": 0.4}, catalogue()[QUICK])
    strategy.probed = torch.nn.Linear(catalogue()[QUICK].num_features, 3)  # type: ignore[attr-defined]
    model = strategy.build(build(catalogue()[QUICK]), 3).eval()
    size = catalogue()[QUICK].input_size
    batch = Batch(torch.zeros(2, 3, size, size), torch.tensor([0, 1]))
    head = sum(float(parameter.detach().square().sum()) for parameter in model.head.parameters())
    plain = float(torch.nn.functional.cross_entropy(model(batch.images), batch.labels))
    assert float(strategy.loss(model, batch)) == pytest.approx(plain + 0.2 * head, rel=1e-5), "nothing has moved yet"
    next(model.backbone.parameters()).add_(0.5)
    away = 0.25 * next(model.backbone.parameters()).numel()
    plain = float(torch.nn.functional.cross_entropy(model(batch.images), batch.labels))
    assert float(strategy.loss(model, batch)) == pytest.approx(plain + 0.1 * away + 0.2 * head, rel=1e-5)


def test_lora_trains_little_and_leaves_the_plain_network(tmp_path: Path, pretrained: dict[str, torch.Tensor]) -> None:
    pytest.importorskip("peft")
    _, fitted = trained(digits(), "lora", tmp_path, epochs=3, rank=2)
    after = weights(fitted)
    assert after.keys() == pretrained.keys(), "merged: no adapter is left"
    moved = moved_names(fitted, pretrained)
    assert moved == {name for name, tensor in fitted.model.backbone.named_parameters() if tensor.ndim > 1}  # type: ignore[union-attr, operator]
    for name in moved:
        change = (after[name] - pretrained[name]).flatten(1)
        if min(change.shape) > 4 and pretrained[name].shape[-1] == 1:  # of a 3×3 kernel, only the unfolded factors are low
            assert int(torch.linalg.matrix_rank(change, rtol=1e-3)) <= 2, name
    (note,) = fitted.notes
    assert int(note.split()[0].replace(",", "")) < 0.2 * catalogue()[QUICK].params


@pytest.mark.parametrize("architecture", ["vit_tiny_patch16_224", "resnet10t", "convnext_atto", "mobilenetv3_small_050"])
def test_lora_names_its_targets_exactly(architecture: str) -> None:
    pytest.importorskip("peft")
    import timm
    from automl_tl_plugins.strategies.lora import targets

    net = timm.create_model(architecture, num_classes=0)
    layers = dict(net.named_modules())
    for name in targets(net):
        assert type(layers[name]) in (torch.nn.Linear, torch.nn.Conv2d)
    assert targets(net)


def test_what_is_frozen_costs_less() -> None:
    """Multiply-adds of 100 images at the same epochs."""
    backbone, known = catalogue()[QUICK], strategies()

    def work(name: str, **values: Any) -> float:
        return known[name].cost(backbone, 100, {**defaults(known[name].space), **values})

    forward = 100 * backbone.macs
    assert forward < work("nearest-mean") < 1.1 * forward
    assert forward < work("linear-probe", penalty=0.001) < work("linear-probe") < 1.1 * forward < work("bias-norm", epochs=1)
    assert work("knn", neighbours=5, distance="cosine") < work("knn", neighbours=5) < work("knn"), "each head is judged"
    assert work("last-blocks", epochs=5, blocks=1) < work("last-blocks", epochs=5, blocks=4) < work("fine-tuning", epochs=5)
    assert work("bias-norm", epochs=5) < work("lora", epochs=5) < work("layerwise-decay", epochs=5) < work("l2-sp", epochs=5)


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


@pytest.mark.parametrize("name", [name for name, backbone in catalogue().items() if backbone.zoo == "embedded"])
def test_low_rank_pairs_fit_every_embedded_network(name: str) -> None:
    """Strides, groups and dilations differ: the adapted network starts as the pretrained one."""
    from automl_tl_plugins.strategies.lora import LowRank

    backbone = catalogue()[name]
    strategy = LowRank(defaults(LowRank.space), backbone)
    strategy.probed = torch.nn.Linear(backbone.num_features, 3)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    plain, adapted = build(backbone), strategy.build(build(backbone), 3).eval()
    assert torch.allclose(strategy.probed(plain(images)), adapted(images), atol=1e-5)
    trained = sum(parameter.numel() for parameter in adapted.backbone.parameters() if parameter.requires_grad)
    assert 0 < trained < 0.5 * backbone.params
