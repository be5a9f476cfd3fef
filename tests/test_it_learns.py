"""What is recorded today changes what is advised tomorrow, through the database and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from synthetic import STRATEGIES, World

from automl_tl import Candidate, Ranking, Task, Trial
from automl_tl.candidates import propose
from automl_tl.cost import CostModel
from automl_tl.experience import Experience
from automl_tl.history import History, open_history
from automl_tl.ranker import rank as rank_
from automl_tl.ranker import ranker_for
from automl_tl.records import trial_id

NEW = "task0-0"
"""The task that advice is asked for; of its source dataset nothing is known."""


def finished(task: str, candidate: Candidate, score: float, seed: int = 0) -> Trial:
    scores, provenance = {"accuracy": score}, {"speed": 1e10}
    id_ = trial_id(task, candidate, seed)
    return Trial(id_, task, candidate, seed, "finished", (), scores, {}, 2.0, 300.0, provenance=provenance)


@pytest.fixture(scope="module")
def world() -> World:
    return World(sources=5, tasks_each=2, backbones=6, trials=14)


@pytest.fixture
def history(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> History:
    """All that happened in the world, but with the new task's source."""
    monkeypatch.setattr("automl_tl.history._add_shipped", lambda history: None)
    opened = open_history(tmp_path / "history.db")
    for backbone in world.backbones.values():
        opened.record_backbone(backbone)
    trials = world.experience.trials
    for name, profile in world.profiles.items():
        images = int(profile.meta["images"])
        splits = {"train": np.arange(images)}
        pixels = np.zeros(images, dtype=np.uint64)
        facts = Task(name, [""] * images, np.zeros(images, dtype=np.int64), ("a", "b"), splits, name, [""] * images, pixels)
        opened.record_task(facts, world.source_of[name])
        opened.record_profile(profile)
    for row in range(len(trials)):
        if world.source_of[trials.task[row]] != world.source_of[NEW]:
            candidate = Candidate(trials.backbone[row], trials.strategy[row], trials.hyperparameters[row])
            opened.record_trial(finished(trials.task[row], candidate, trials.score[row], seed=row))
    return opened


def advise(history: History, world: World, cache: Path) -> Ranking:
    experience = Experience.of(history, without=NEW)
    ranker = ranker_for(experience, cache)
    assert ranker is not None
    costs = CostModel.learn(experience, strategies=STRATEGIES, speed=1e10)
    candidates = propose(world.backbones, STRATEGIES, seed=0, per_pair=3)
    return rank_(ranker, candidates, world.profiles[NEW], world.backbones, costs, strategies=STRATEGIES, stage=2)


def expected(ranking: Ranking) -> Mapping[str, float]:
    return {item.candidate.id: item.score for item in ranking.items}


def test_a_trial_recorded_today_changes_tomorrows_advice(history: History, world: World, tmp_path: Path) -> None:
    yesterday = advise(history, world, tmp_path / "rankers")
    assert expected(advise(history, world, tmp_path / "rankers")) == expected(yesterday), "the same history, the same advice"
    last = yesterday.items[-1].candidate
    other = next(name for name in world.profiles if world.source_of[name] != world.source_of[NEW])
    history.record_trial(finished(other, last, 0.99))
    today = advise(history, world, tmp_path / "rankers")
    assert expected(today) != expected(yesterday)
    assert today.basis != yesterday.basis

    for name in world.profiles:
        if world.source_of[name] != world.source_of[NEW]:
            for seed in range(1, 4):
                history.record_trial(finished(name, last, 0.99, seed))
    tomorrow = advise(history, world, tmp_path / "rankers")

    def place(ranking: Ranking) -> int:
        return min(i for i, item in enumerate(ranking.items) if item.candidate.id == last.id)

    assert place(tomorrow) < len(tomorrow.items) / 4, "what did best in every other task is no longer the last choice"
    assert place(tomorrow) < place(yesterday)
    assert expected(tomorrow)[last.id] > expected(yesterday)[last.id]
