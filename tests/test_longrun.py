"""Which recipe is trained longer with the time that is left, and how much longer."""

from __future__ import annotations

import pytest

from automl_tl import Candidate, Trial
from automl_tl.longrun import CAREFUL, long_run
from automl_tl.records import Point
from automl_tl.space import Float, Int
from automl_tl.surrogate import Growth

SPACES = {"tuning": {"epochs": Int(1, 40, 10), "rate": Float(1e-4, 1e-1, 1e-3)}, "other": {"epochs": Int(1, 40, 10)}, "probe": {}}
GROWTH = {"tuning": Growth(0.5, 0.3), "other": Growth(0.5, 0.3)}


def trial(strategy: str, score: float, *, epochs: int = 10, reached: int = 10, each: float = 1.0) -> Trial:
    values = {"epochs": epochs, "rate": 0.01} if strategy == "tuning" else {"epochs": epochs} if strategy == "other" else {}
    curve = (Point(float(reached), reached * each, 0.1, score, 1.0),)
    status = "finished" if reached == epochs or strategy == "probe" else "stopped"
    validation = {"accuracy": score, "score": score}
    return Trial("x", "t", Candidate("net", strategy, values), 0, status, curve, validation, seconds=reached * each)


def test_the_best_recipe_gets_the_epochs_that_the_time_holds() -> None:
    found = long_run([trial("tuning", 0.9, each=2.0), trial("other", 0.8)], GROWTH, SPACES, seconds=60)
    assert found is not None
    candidate, seconds = found
    assert candidate == Candidate("net", "tuning", {"epochs": int(CAREFUL * 60 / 2.0), "rate": 0.01})
    assert seconds == pytest.approx(int(CAREFUL * 30) * 2.0)
    assert seconds < 60


def test_no_more_epochs_than_the_space_has() -> None:
    found = long_run([trial("tuning", 0.9)], GROWTH, SPACES, seconds=1e6)
    assert found is not None
    assert found[0].hyperparameters["epochs"] == 40


def test_a_paused_trial_counts_as_what_it_may_become() -> None:
    paused = trial("other", 0.88, reached=4)
    found = long_run([trial("tuning", 0.9), paused], GROWTH, SPACES, seconds=60)
    assert found is not None
    assert found[0].strategy == "other"


@pytest.mark.parametrize(
    "trials",
    [
        [],
        [trial("probe", 0.9)],
        [trial("probe", 0.97), trial("tuning", 0.9)],
        [trial("tuning", 0.9, each=4.2)],
    ],
    ids=["nothing tried", "no recipe with epochs", "a probe far ahead", "hardly longer"],
)
def test_nothing_where_nothing_promises_a_gain(trials: list[Trial]) -> None:
    assert long_run(trials, GROWTH, SPACES, seconds=60) is None
