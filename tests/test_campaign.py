"""Filling the history: small plans on real images, with real worker processes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from small import QUICK, TINY

from automl_tl import model
from automl_tl.backbones import catalogue
from automl_tl.campaign import Plan, TaskPlan, _gaps, build_history, make_task, read_plan, sample_candidates
from automl_tl.errors import AutomlError, InputError
from automl_tl.history import open_history
from automl_tl.images import read_image
from automl_tl.objectives import ACCURACY, ADAPTATION, FEDERATION, RETENTION, ROBUSTNESS
from automl_tl.records import SOURCE, TARGET, TEST, TRAIN, VALIDATION
from automl_tl.registry import strategies
from automl_tl.space import defaults
from automl_tl.testing import task_for

DIGITS = TaskPlan("few digits", "digits", "digits", per_class=8, most_judged=60)
PLAN = Plan((DIGITS,), trials=3, strategies=("linear-probe",), backbones=(TINY, QUICK))


def test_a_task_of_fewer_classes_and_images() -> None:
    task = make_task(Path("."), replace(DIGITS, classes=4, seed=5))
    assert len(task.classes) == 4
    assert np.bincount(task.labels[task.part("train")]).tolist() == [8] * 4
    for split in ("validation", "test"):
        judged = task.labels[task.part(split)]
        assert 50 <= len(judged) <= 64
        assert set(judged.tolist()) == {0, 1, 2, 3}
    assert make_task(Path("."), replace(DIGITS, classes=4, seed=5)).fingerprint == task.fingerprint
    assert make_task(Path("."), replace(DIGITS, classes=4, seed=6)).fingerprint != task.fingerprint


def test_copies_are_tasks_of_their_own_with_the_same_labels() -> None:
    plain = make_task(Path("."), DIGITS)
    grey, noisy = (make_task(Path("."), replace(DIGITS, copy=how)) for how in ("grey", "gaussian noise 3"))
    assert grey.fingerprint == plain.fingerprint, "digits have no colour to lose"
    assert noisy.fingerprint != plain.fingerprint
    for copy in (grey, noisy):
        np.testing.assert_array_equal(copy.labels, plain.labels)
        assert copy.splits.keys() == plain.splits.keys()
    before, after = (np.asarray(read_image(task.images[0])).astype(float) for task in (plain, noisy))
    assert 5 < np.abs(after - before).mean() < 100
    assert make_task(Path("."), replace(DIGITS, copy="gaussian noise 3")).fingerprint == noisy.fingerprint
    with pytest.raises(InputError, match="rain 3"):
        make_task(Path("."), replace(DIGITS, copy="rain 3"))


def test_labels_of_one_domain_and_images_of_another() -> None:
    """Digits, and copies of other digits with less contrast and without labels."""
    plan = replace(DIGITS, copy="contrast 3", source="digits")
    task = make_task(Path("."), plan)
    assert (task.name, task.objective) == ("few digits", ADAPTATION)
    train, target, test = (task.part(split) for split in (TRAIN, TARGET, TEST))
    assert np.bincount(task.labels[train]).tolist() == [8] * 10
    assert len(target) == 80
    assert set(task.labels[target].tolist()) == {-1}, "nobody gave these"
    assert set(task.labels[test].tolist()) == set(range(10))
    assert not {task.where[i] for i in train} & {task.where[i] for i in target}
    plain, pale = make_task(Path("."), DIGITS), make_task(Path("."), replace(DIGITS, copy="contrast 3"))
    assert set(task.hashes[train]) <= set(plain.hashes), "as they are"
    assert set(task.hashes[test]) <= set(pale.hashes), "copies"
    with pytest.raises(InputError, match="few digits: source and location are one; say with per_class how many"):
        make_task(Path("."), replace(plan, per_class=None))
    chosen = sample_candidates(Plan((plan,), trials=60, most_multiply_adds=1e15), task, catalogue())
    found = {candidate.strategy for candidate in chosen}
    assert {"dan", "dann", "deep-coral", "mcc", "adabn", "fine-tuning"} <= found
    assert "pgd" not in found


def test_a_few_images_of_some_classes_and_images_of_others() -> None:
    """Four digits, three images of each, and all images of the other six."""
    plan = replace(DIGITS, classes=4, per_class=3, others="digits")
    task = make_task(Path("."), plan)
    assert (task.name, task.objective, len(task.classes)) == ("few digits", ACCURACY, 4)
    train, source, test = (task.part(split) for split in (TRAIN, SOURCE, TEST))
    assert np.bincount(task.labels[train]).tolist() == [3] * 4
    assert len(np.unique(task.labels[source])) == 6
    assert len(source) > 500
    assert not set(task.hashes[source]) & set(task.hashes[np.concatenate([train, task.part(VALIDATION), test])])
    chosen = sample_candidates(Plan((plan,), trials=60, most_multiply_adds=1e15), task, catalogue())
    assert {"prototypical", "nearest-mean", "fine-tuning"} <= {candidate.strategy for candidate in chosen}


def test_images_of_clients_and_images_that_are_attacked() -> None:
    """Each is tried with the strategies made for it, and has what `fit` gives for the same words."""
    shared = make_task(Path("."), replace(DIGITS, clients=3, skew=0.5))
    assert shared.objective == FEDERATION
    assert shared.clients is not None
    assert set(shared.clients[shared.part(TRAIN)]) == {0, 1, 2}
    attacked = make_task(Path("."), replace(DIGITS, robust="8/255"))
    assert (attacked.objective, attacked.epsilon) == (ROBUSTNESS, 8 / 255)
    for task, names in (
        (shared, {"fedavg", "fedprox", "federated-distillation", "dp-fedavg"}),
        (attacked, {"pgd", "trades", "fast-adversarial"}),
    ):
        chosen = sample_candidates(Plan((DIGITS,), trials=30, most_multiply_adds=1e15), task, catalogue())
        assert {candidate.strategy for candidate in chosen} == names
    with pytest.raises(InputError, match="few digits: robust: expected a number"):
        make_task(Path("."), replace(DIGITS, robust="much"))


def test_what_goes_on_from_an_earlier_model_has_its_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("automl_tl.history._add_shipped", lambda history: None)
    earlier = Path(task_for(frozenset({"earlier model"})).earlier)
    plan = replace(DIGITS, after=earlier.name)
    task = make_task(earlier.parent, plan)
    assert (task.objective, task.earlier) == (RETENTION, str(earlier))
    assert set(model.load(earlier).classes) <= set(task.classes)
    with open_history() as history:
        units = _gaps(Plan((plan,), trials=20, most_multiply_adds=1e15), earlier.parent, history)
    (profiled, *trials) = units
    (name,) = profiled.look
    assert name == model.load(earlier).backbone.name
    assert {unit.candidate.backbone for unit in trials if unit.candidate} == {name}
    assert {"ewc", "lwf"} <= {unit.candidate.strategy for unit in trials if unit.candidate}
    with pytest.raises(InputError, match="nowhere"):
        make_task(earlier.parent, replace(DIGITS, after="nowhere"))


def test_candidates_are_sampled_from_everything_by_seed() -> None:
    task, backbones = make_task(Path("."), DIGITS), catalogue()
    wide = Plan((DIGITS,), trials=24, most_multiply_adds=1e15)
    chosen = sample_candidates(wide, task, backbones)
    assert chosen == sample_candidates(wide, task, backbones)
    assert chosen != sample_candidates(replace(wide, seed=1), task, backbones)
    assert chosen[:10] == sample_candidates(replace(wide, trials=10), task, backbones), "a larger plan only adds"
    assert len({candidate.id for candidate in chosen}) == 24
    embedded = {name for name, backbone in backbones.items() if backbone.zoo == "embedded"}
    assert {candidate.backbone for candidate in chosen} >= embedded
    assert len({candidate.strategy for candidate in chosen}) >= 8
    known = strategies()
    assert not any(known[candidate.strategy].needs for candidate in chosen), "the task brings nothing but its images"


def test_a_share_of_nothing_asks_for_nothing() -> None:
    plan = Plan((DIGITS,), trials=20, strategies=("lda", "linear-probe"), shares={"linear-probe": 0.0})
    chosen = sample_candidates(plan, make_task(Path("."), DIGITS), catalogue())
    assert {candidate.strategy for candidate in chosen} == {"lda"}
    assert sample_candidates(replace(plan, strategies=("linear-probe",)), make_task(Path("."), DIGITS), catalogue()) == []


def test_contrasts_change_only_what_the_plan_names() -> None:
    task, backbones = make_task(Path("."), DIGITS), catalogue()
    settings = {"epochs": (12, 24), "norms": ("still", "moving"), "penalty": (0.1, 1.0)}
    only = ("resnet10t_24.tiny_imagenet_64",)
    plan = Plan(
        (DIGITS,), trials=99, most_multiply_adds=1e15, strategies=("fine-tuning", "lda"), backbones=only, settings=settings
    )
    chosen = sample_candidates(plan, task, backbones)
    tuned = [candidate.hyperparameters for candidate in chosen if candidate.strategy == "fine-tuning"]
    plain = defaults(strategies()["fine-tuning"].space)
    assert sorted((values["epochs"], values["norms"]) for values in tuned) == [
        (12, "moving"),
        (12, "still"),
        (24, "moving"),
        (24, "still"),
    ]
    assert all({**values, "epochs": plain["epochs"], "norms": plain["norms"]} == plain for values in tuned)
    assert [c.hyperparameters for c in chosen if c.strategy == "lda"] == [defaults(strategies()["lda"].space)], (
        "knows none of them"
    )


def test_a_setting_outside_its_range_is_named() -> None:
    plan = Plan((DIGITS,), trials=1, strategies=("fine-tuning",), settings={"epochs": (0,)})
    with pytest.raises(InputError, match="epochs"):
        sample_candidates(plan, make_task(Path("."), DIGITS), catalogue())


@pytest.mark.slow
def test_only_gaps_are_filled() -> None:
    said: list[str] = []
    with open_history() as history:
        before = history.known().keys()
        assert build_history(replace(PLAN, trials=2), Path("."), history, workers=1, say=said.append) == 2
        assert "2 trials and 1 profiles to run" in said[0]
        assert build_history(PLAN, Path("."), history, workers=1, say=said.append) == 1
        assert build_history(PLAN, Path("."), history, workers=1, say=said.append) == 0
        trials = [history.trial(id_) for id_ in history.known().keys() - before]
        assert {trial.status for trial in trials} == {"finished"}
        assert all(trial.test["accuracy"] > 0.3 for trial in trials)
        fingerprint = trials[0].task
        assert set(history.profiles()[fingerprint].transferability) == {TINY, QUICK}
        assert history.tasks()[fingerprint].source_dataset == "digits"


def test_what_two_plans_have_in_common_is_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Digits have no colour to lose: their grey copies are the same images."""
    monkeypatch.setattr("automl_tl.history._add_shipped", lambda history: None)
    both = replace(PLAN, tasks=(DIGITS, replace(DIGITS, name="grey digits", copy="grey")))
    with open_history() as history:
        units = _gaps(both, Path("."), history)
        assert units == _gaps(PLAN, Path("."), history)
    assert len(units) == 1 + PLAN.trials


@pytest.mark.slow
def test_workers_end_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    plan = {"tasks": [vars(DIGITS)], "trials": 30, "strategies": ["from-scratch"], "backbones": [QUICK]}
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan))
    line = [sys.executable, "-m", "automl_tl.cli", "history", "build", str(path), "--data", str(tmp_path), "--workers", "2"]
    environment = {**os.environ, "AUTOML_TL_HOME": str(tmp_path / "home")}
    process = subprocess.Popen(line, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    parent, deadline = psutil.Process(process.pid), time.monotonic() + 120
    workers: list[psutil.Process] = []
    while len(workers) < 2 and time.monotonic() < deadline:
        time.sleep(0.2)
        workers = [child for child in parent.children() if "spawn_main" in " ".join(child.cmdline())]
    time.sleep(6)  # until they have set out
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert len(workers) == 2
    assert alive == []


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"strategies": ("linear-prob",)}, "unknown strategy 'linear-prob'; did you mean 'linear-probe'?"),
        ({"shares": {"lad": 2.0}}, "unknown strategy 'lad'; did you mean 'lda'?"),
        ({"settings": {"epoch": (1, 2)}}, "settings: no strategy of the plan has a hyperparameter 'epoch'"),
    ],
)
def test_a_name_that_nobody_knows_is_named(changed: dict[str, Any], words: str) -> None:
    """Before, nothing was run, or all at the defaults, without a word."""
    with open_history() as history, pytest.raises(AutomlError, match=re.escape(words)):
        _gaps(replace(PLAN, **changed), Path("."), history)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"tasks": [{"nom": "a"}], "trials": 1}',
        '{"tasks": [], "trials": 1, "x": 2}',
        '{"tasks": [], "trials": "1"}',
        '{"tasks": [], "trials": 1, "shares": {"knn": "many"}}',
        '{"tasks": [{"name": "a", "location": "digits", "source_dataset": "digits", "classes": "4"}], "trials": 1}',
    ],
)
def test_a_plan_that_is_none_is_said(text: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"plan\.json"):
        read_plan(path)


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[1] / "metadb").glob("plan*.json")), ids=lambda path: path.stem)
def test_the_committed_plans_can_be_read(path: Path) -> None:
    plan = read_plan(path)
    assert len({task.name for task in plan.tasks}) == len(plan.tasks) >= 5
    assert len({task.source_dataset for task in plan.tasks}) >= 5
    assert {*plan.strategies, *plan.shares} <= set(strategies())
    assert set(plan.settings) <= {name for strategy in strategies().values() for name in strategy.space}
