"""Domain adaptation, few-shot and adversarial training: what each strategy changes, on real images."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from automl_tl_plugins.strategies import dann, prototypical
from automl_tl_plugins.strategies._adversarial import BASES, base_values
from automl_tl_plugins.strategies.prototypical import draw_episode, episode_loss
from small import QUICK

from automl_tl import Candidate, Fitted, Task, Trial
from automl_tl.backbones import build, catalogue
from automl_tl.batches import batches
from automl_tl.candidates import propose
from automl_tl.evaluation.domains import gap_of
from automl_tl.inference import prepare
from automl_tl.model import Model
from automl_tl.norms import norms_of
from automl_tl.objectives import brings, harden
from automl_tl.pixels import pixels_of
from automl_tl.profiling import profile_task
from automl_tl.records import TARGET, TEST, TRAIN
from automl_tl.registry import strategies
from automl_tl.report.domains import domain_map, gap_maps
from automl_tl.space import defaults
from automl_tl.testing import smallest_backbone, task_for
from automl_tl.trials import Limits, job_of, judge_on_test, run_trial

ALIGNING = ("deep-coral", "dan", "dann", "mcc")


def trained(task: Task, strategy: str, folder: Path, **values: Any) -> tuple[Trial, Fitted]:
    candidate = Candidate(QUICK, strategy, {**defaults(strategies()[strategy].space), **values})
    trial, fitted = run_trial(task, candidate, catalogue()[QUICK], seed=0, folder=folder)
    assert fitted is not None, trial.error
    return trial, fitted


@pytest.fixture(scope="module")
def shift() -> Task:
    """Digits, and unlabelled noisy negatives of such digits."""
    return task_for(frozenset({"target"}))


def test_statistics_of_the_target_replace_the_sources(shift: Task, tmp_path: Path) -> None:
    """Each norm's mean is that of what enters it, averaged over the target's images; the weights are those of training."""
    trial, fitted = trained(shift, "adabn", tmp_path, epochs=3)
    assert trial.curve[-1].note == "statistics of the target"
    first = norms_of(fitted.model)[0]
    entered = []
    handle = first.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0].mean((0, 2, 3))))
    images = prepare(pixels_of(shift, catalogue()[QUICK]).array[shift.part(TARGET)], catalogue()[QUICK])
    with torch.no_grad():
        fitted.model(images)
    handle.remove()
    torch.testing.assert_close(first.running_mean, entered[0].float(), rtol=0.05, atol=0.05)
    assert not torch.allclose(first.running_mean, norms_of(build(catalogue()[QUICK]))[0].running_mean, rtol=0.05, atol=0.05)  # type: ignore[arg-type]


def test_the_domain_head_is_gone_from_the_trained_model(shift: Task, tmp_path: Path) -> None:
    _, fitted = trained(shift, "dann", tmp_path, epochs=3, augmentation="none")
    assert not any("adversary" in name for name in fitted.model.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("pieces", [1, 2])
def test_the_adversary_grows_by_the_batches_that_are_seen(
    pieces: int, shift: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where memory suffices for half a batch only; the last, smaller batch of an epoch is one, too."""
    done: list[float] = []
    monkeypatch.setattr(dann, "adversary_strength", lambda share: done.append(share) or 0.5)
    values = {**defaults(strategies()["dann"].space), "epochs": 3, "augmentation": "none"}
    one = job_of(shift, Candidate(QUICK, "dann", values), catalogue()[QUICK], seed=0, folder=tmp_path)
    one.room.pieces = pieces
    strategy = strategies()["dann"](values, one.backbone)
    strategy.run(one)
    steps = 3 * math.ceil(len(shift.part(TRAIN)) / 32)
    assert len(shift.part(TRAIN)) % 32 > 4
    assert done == [part / pieces / steps for part in range(steps * pieces)]


def test_target_images_beside_a_smaller_batch_are_drawn_from_all(shift: Task, tmp_path: Path) -> None:
    """Not the first ones of as many as a whole batch has, whose images lie in the order of the task, class by class."""
    few = replace(shift, splits={**shift.splits, TRAIN: shift.part(TRAIN)[:8]})
    values = {**defaults(strategies()["mcc"].space), "augmentation": "none", "batch_size": 64}
    one = job_of(few, Candidate(QUICK, "mcc", values), catalogue()[QUICK], seed=0, folder=tmp_path)
    late = prepare(one.pixels.array[few.part(TARGET)[-40:]], one.backbone).mean((1, 2, 3))
    found = [batch.target for epoch in range(20) for batch in batches(strategies()["mcc"](values, one.backbone), one, epoch)]
    assert all(images is not None and len(images) == 8 for images in found)
    told = torch.cat([images.mean((1, 2, 3)) for images in found if images is not None])
    share = float(torch.isclose(told[:, None], late[None], atol=1e-6, rtol=0).any(1).float().mean())
    assert share == pytest.approx(40 / len(few.part(TARGET)), abs=0.1)


@pytest.mark.parametrize("name", [*(pytest.param(n, marks=pytest.mark.slow) for n in ALIGNING[:-1]), ALIGNING[-1]])
def test_what_aligns_with_moving_norms_begins_where_its_head_fits(name: str, shift: Task, tmp_path: Path) -> None:
    """With a head that was fitted to the source's statistics these losses are 500."""
    values = {**defaults(strategies()[name].space), "norms": "moving", "augmentation": "none"}
    candidate, network, limits = Candidate(QUICK, name, values), catalogue()[QUICK], Limits(stop_after=1.0)
    trial, _ = run_trial(shift, candidate, network, seed=0, folder=tmp_path, limits=limits)
    assert trial.curve[0].loss is not None
    assert trial.curve[0].loss < 4.0


@pytest.mark.slow
def test_target_images_are_not_fetched_for_who_does_not_look_at_them(
    shift: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what is trained is the same."""
    adabn, found = strategies()["adabn"], []
    for beside in (adabn.target_beside, True):
        monkeypatch.setattr(adabn, "target_beside", beside)
        values = {**defaults(adabn.space), "epochs": 3}
        one = job_of(shift, Candidate(QUICK, "adabn", values), catalogue()[QUICK], seed=0, folder=tmp_path / str(beside))
        assert (next(batches(adabn(values, one.backbone), one, 0)).target is not None) == beside
        found.append(trained(shift, "adabn", tmp_path / str(beside), epochs=3)[1].model.state_dict())
    assert len(found) == 2
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


@pytest.mark.slow
def test_hidden_labels_of_the_target_change_no_model(shift: Task, tmp_path: Path) -> None:
    labels = shift.labels.copy()
    labels[shift.part(TARGET)] = 1
    kept = replace(shift, labels=labels)
    kept = replace(kept, splits={**kept.splits, TRAIN: np.setdiff1d(kept.part(TRAIN), kept.part(TARGET))})
    same = replace(shift, splits=kept.splits)
    (_, one), (_, other) = trained(same, "mcc", tmp_path / "a", epochs=3), trained(kept, "mcc", tmp_path / "b", epochs=3)
    np.testing.assert_array_equal(one.probabilities, other.probabilities)


def test_only_what_suits_is_proposed(shift: Task) -> None:
    one = {QUICK: catalogue()[QUICK]}

    def names(met: frozenset[str], required: frozenset[str] = frozenset()) -> set[str]:
        return {candidate.strategy for candidate in propose(one, strategies(), seed=0, met=met, required=required)}

    assert not {*ALIGNING, "adabn", "prototypical", "pgd"} & names(frozenset())
    assert {*ALIGNING, "adabn", "fine-tuning"} <= names(brings(shift))
    assert names(frozenset({"epsilon"}), frozenset({"epsilon"})) == {"pgd", "trades", "fast-adversarial"}


def test_a_base_that_needs_a_target_is_proposed_where_there_is_one() -> None:
    one, epsilon = {QUICK: catalogue()[QUICK]}, frozenset({"epsilon"})

    def bases(met: frozenset[str]) -> set[object]:
        found = propose(one, strategies(), seed=0, per_pair=100, met=met, required=epsilon, only_strategies=["pgd"])
        return {candidate.hyperparameters["base"] for candidate in found}

    assert "dann" not in bases(epsilon)
    assert {"dann", "fine-tuning"} <= bases(epsilon | {"target"})


# Adversarial training


def test_shared_hyperparameters_reach_the_base_within_its_ranges() -> None:
    values = {**defaults(strategies()["pgd"].space), "base": "gradual-unfreezing", "epochs": 30, "rate": 3e-3, "batch_size": 128}
    found = base_values(values)
    assert (found["epochs"], found["rate"], found["batch_size"]) == (10, 3e-3, 32)
    assert isinstance(found["epochs"], int)


def test_what_is_only_named_alike_is_the_bases_own() -> None:
    """The weight of TRADES is of its own term, those of the strategies that align domains of theirs."""
    values = defaults(strategies()["trades"].space)
    for base in ("dann", "dan", "deep-coral", "mcc"):
        assert base_values({**values, "base": base})["weight"] == defaults(strategies()[base].space)["weight"]
    assert base_values({**values, "cycles": 2})["cycles"] == 2, "another cycle trains on"
    assert "cycles" not in base_values(values)


@pytest.mark.slow
def test_training_on_attacked_images_withstands_attacks(tmp_path: Path) -> None:
    """On few digits: fine-tuning and adversarial training meet the same judges, at a change that matters."""
    task = harden(task_for(frozenset()), 8 / 255)
    backbone, values = catalogue()[QUICK], {"epochs": 8, "augmentation": "none"}
    plain, _ = trained(task, "fine-tuning", tmp_path / "a", **values)
    robust, fitted = trained(task, "pgd", tmp_path / "b", steps=3, rate=4e-3, **values)
    assert (robust.score or 0) > (plain.score or 0) + 0.3
    few = replace(task, splits={**task.splits, TEST: task.part(TEST)[:16]})
    scores = judge_on_test(few, backbone, fitted.model)
    assert scores["robust_accuracy"] <= scores["pgd_accuracy"] <= scores["attacked_clean_accuracy"]
    assert scores["attacked_images"] == 16


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "base"),
    [*(("fast-adversarial", base) for base in BASES), *product(("pgd", "trades"), ("gradual-unfreezing", "lora", "dann"))],
)
def test_every_base_trains_under_attack(strategy: str, base: str, tmp_path: Path) -> None:
    task = task_for(frozenset({"epsilon"}) | strategies()[base].needs)
    trial, _ = trained(task, strategy, tmp_path, base=base, epochs=3)
    assert trial.score is not None


# Few-shot


def test_an_episode_holds_ways_and_shots() -> None:
    classes = [np.arange(10 * number, 10 * number + count) for number, count in enumerate((6, 9, 10))]
    index, ways, shots = draw_episode(classes, 5, 4, np.random.default_rng(0))
    assert (ways, shots) == (3, 4)
    assert len(index) == len(set(index.tolist())) == 3 * (4 + 2), "the smallest class has two left to ask about"
    assert sorted(set((index.reshape(3, -1) // 10)[:, 0].tolist())) == [0, 1, 2]


def test_an_episode_is_easy_where_classes_lie_apart() -> None:
    centres = torch.eye(3) * 20
    features = centres.repeat_interleave(4, 0) + 0.1 * torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    assert float(episode_loss(features, 3, 2)) < 1e-3
    mixed = torch.zeros(12, 3)
    assert float(episode_loss(mixed, 3, 2)) == pytest.approx(np.log(3), rel=1e-5)


@pytest.mark.slow
def test_episodes_are_in_fp32_where_others_train_in_fp16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for dtype in (torch.float16, torch.float32):
        monkeypatch.setattr(prototypical, "precision", lambda net, dtype=dtype: dtype)
        task = task_for(strategies()["prototypical"].needs)
        _, fitted = trained(task, "prototypical", tmp_path / str(dtype), epochs=2, episodes=10, ways=3, shots=1)
        found.append(fitted.model.state_dict())
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


# What is told


def test_the_profile_describes_the_target_and_the_gap(shift: Task) -> None:
    backbones = catalogue()
    found, source_alone = profile_task(shift, backbones), profile_task(task_for(frozenset()), backbones)
    assert found.meta["brightness"] > source_alone.meta["brightness"] + 0.2, "negatives are bright"
    assert found.meta["gap_frechet"] > 0
    assert found.meta["gap_mmd2"] > 0.05
    assert not any(name.startswith("gap_") for name in source_alone.meta)
    labels = shift.labels.copy()
    labels[shift.part(TEST)] = 0
    assert profile_task(replace(shift, labels=labels), backbones).meta == found.meta


def test_the_gap_of_a_domain_with_itself_is_small(shift: Task) -> None:
    backbone = smallest_backbone()
    images, net = pixels_of(shift, backbone).array, build(backbone)
    train, target = shift.part(TRAIN), shift.part(TARGET)
    apart = gap_of(net, images, {"source": train[::2], "target": target}, backbone)
    within = gap_of(net, images, {"source": train[::2], "target": train[1::2]}, backbone)
    for name in ("frechet", "mmd2"):
        assert within[name] < apart[name]


def test_the_map_shows_the_images_that_distances_are_taken_of(shift: Task) -> None:
    found = domain_map(shift, profile_task(shift, {}).distances)
    assert found is not None
    assert len(found.groups["this task"]) == len(shift.part(TARGET)) < len(shift.part(TRAIN))


@pytest.mark.slow
def test_the_report_shows_both_domains_before_and_after(shift: Task, tmp_path: Path) -> None:
    trial, fitted = trained(shift, "deep-coral", tmp_path, epochs=3)
    backbone = catalogue()[QUICK]
    before, after = gap_maps(shift, Model(fitted.model, backbone, trial.candidate, shift.classes, {}))  # type: ignore[arg-type]
    assert (before.when, after.when) == ("before training", "after training")
    for one in (before, after):
        assert set(one.groups) == {"labelled domain", "target"}
        assert {"frechet", "mmd2", "coral"} <= set(one.distances)
    assert after.distances["frechet"] != before.distances["frechet"]
    alone = replace(shift, splits={TRAIN: shift.part(TRAIN)})
    assert gap_maps(alone, Model(fitted.model, backbone, trial.candidate, (), {})) == []  # type: ignore[arg-type]
