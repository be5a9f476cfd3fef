"""What a history says of settings that won."""

from __future__ import annotations

from collections.abc import ItemsView
from dataclasses import replace

import numpy as np
import pytest
from synthetic import STRATEGIES, World

from automl_tl import registry
from automl_tl.experience import PROVEN, Experience, proven
from automl_tl.space import Value


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(registry, "strategies", lambda: STRATEGIES)
    return World(sources=5, trials=150)


def winners(experience: Experience, strategy: str) -> list[dict[str, object]]:
    """Of each task with a backbone where at least two settings were tried, the best one."""
    trials, found = experience.trials, []
    for task in sorted(set(trials.task)):
        for backbone in sorted(set(trials.backbone)):
            rows = np.flatnonzero((trials.task == task) & (trials.backbone == backbone) & (trials.strategy == strategy))
            if len({str(trials.hyperparameters[row]) for row in rows}) > 1:
                found.append(dict(trials.hyperparameters[rows[np.argmax(trials.score[rows])]]))
    return found


def test_the_best_of_each_task_and_backbone_is_proven(world: World) -> None:
    known = proven(world.experience, most=1000)
    won = winners(world.experience, "tuning")
    assert len(known["tuning"]) == len({str(values) for values in won}) > PROVEN
    assert all(values in won for values in known["tuning"])
    times = [won.count(dict(values)) for values in known["tuning"]]
    assert times == sorted(times, reverse=True), "the most frequent first"
    assert proven(world.experience)["tuning"] == known["tuning"][:PROVEN]


class Counted(dict[str, Value]):
    """Settings that know how often they were written down."""

    written = 0

    def items(self) -> ItemsView[str, Value]:
        Counted.written += 1
        return super().items()


def test_settings_that_many_trials_share_are_written_down_once(world: World) -> None:
    trials = world.experience.trials
    counted = replace(trials, hyperparameters=[Counted(values) for values in trials.hyperparameters])
    asked = []
    for times in (1, 5):
        before = Counted.written
        rows = np.tile(np.arange(len(trials)), times)
        assert proven(replace(world.experience, trials=counted.take(rows)), most=1000) == proven(world.experience, most=1000)
        asked.append(Counted.written - before)
    assert asked[0] == asked[1]


def test_one_setting_alone_proves_nothing(world: World) -> None:
    assert "probe" not in proven(world.experience), "it has no settings to choose from"


def test_what_no_longer_fits_the_space_is_left_out(world: World) -> None:
    trials = world.experience.trials
    outside = [{**values, "epochs": 10_000} if "epochs" in values else values for values in trials.hyperparameters]
    stale = replace(world.experience, trials=replace(trials, hyperparameters=outside))
    assert proven(stale) == {}
    gone = replace(world.experience, trials=replace(trials, strategy=np.full(len(trials), "uninstalled", dtype=object)))
    assert proven(gone) == {}
