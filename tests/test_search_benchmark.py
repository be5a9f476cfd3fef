"""The arithmetic of benchmarks/search.py, by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

from search import WAYS, by_mean_standing, figures
from synthetic import World

CURVES = {"ours": [(10.0, 0.5), (30.0, 0.9)], "optuna": [(20.0, 0.7), (40.0, 0.6)], "best_on_average": []}


def test_figures_of_curves() -> None:
    found = figures({"a set": {way: CURVES[way] for way in WAYS}}, {"a set": 0.1}, 50.0)
    assert found["auc_ours"] == pytest.approx(100 * (10 * 0.1 + 20 * 0.5 + 20 * 0.9) / 50)
    assert found["auc_optuna"] == pytest.approx(100 * (20 * 0.1 + 20 * 0.7 + 10 * 0.6) / 50)
    assert found["auc_best_on_average"] == pytest.approx(10), "a guess all along"
    assert found["end_optuna"] == pytest.approx(60), "what is best by validation, though it was better before"
    assert (found["first_model_seconds_optuna"], found["first_model_seconds_best_on_average"]) == (20, 50)
    assert found["seconds_ratio_to_99"] == pytest.approx(50 / 30), "never there: the whole clock"


def test_the_best_on_average_stand_above_the_others() -> None:
    world = World(sources=3, tasks_each=2, backbones=4, trials=10)
    trials = world.experience.trials
    order = by_mean_standing(world.experience)
    place = {candidate.id: number for number, candidate in enumerate(order)}
    assert len(place) == len(order)
    best = max(range(len(trials)), key=lambda row: trials.score[row] - np.mean(trials.score[trials.task == trials.task[row]]))
    same = [c for c in order if (c.backbone, c.strategy) == (trials.backbone[best], trials.strategy[best])]
    assert min(place[candidate.id] for candidate in same) < len(order) / 2
