"""What a paused trial may still gain, learnt from trials that ended."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from automl_tl import Candidate
from automl_tl.growth import Growths
from automl_tl.records import Grown
from automl_tl.registry import strategies
from automl_tl.space import Value, defaults
from automl_tl.surrogate import Growth

SPACE = strategies()["fine-tuning"].space
LOW: dict[str, Value] = {"rate": 5e-4, "norms": "still"}
HIGH: dict[str, Value] = {"rate": 1e-2, "norms": "moving"}


def candidate(**values: Value) -> Candidate:
    return Candidate("net", "fine-tuning", {**defaults(SPACE), **values})


def grown(values: dict[str, Value], pairs: Sequence[tuple[float, float]]) -> list[Grown]:
    return [Grown({**defaults(SPACE), **values}, early, best) for early, best in pairs]


def growths(*trials: list[Grown]) -> Growths:
    spaces = {name: strategy.space for name, strategy in strategies().items()}
    return Growths({"fine-tuning": [one for some in trials for one in some]}, spaces)


def logit(score: float) -> float:
    return math.log(score / (1 - score))


def test_it_is_the_mean_and_the_spread_of_what_others_gained() -> None:
    pairs = [(0.5, 0.6), (0.5, 0.7), (0.6, 0.8)] * 20
    gains = [logit(end) - logit(third) for third, end in pairs]
    found = growths(grown({}, pairs)).foretell(candidate())
    assert found.mean == pytest.approx(np.mean(gains), rel=0.1)
    assert found.spread == pytest.approx(np.std(gains), rel=0.2)


def test_nothing_known_nothing_learnt() -> None:
    found = growths().foretell(candidate())
    assert (found.mean, found.spread) == pytest.approx((Growth().mean, Growth().spread))


def test_like_settings_tell_more() -> None:
    """High rates score badly at first and gain much; low ones the other way round."""
    known = growths(grown(LOW, [(0.5, 0.55)] * 20), grown(HIGH, [(0.5, 0.9)] * 20))
    low, high = (known.foretell(candidate(**values)) for values in (LOW, HIGH))
    assert low.mean < 0.8 < 1.6 < high.mean
    assert high.mean < logit(0.9) + 0.01, "no more than any of them gained"


def test_what_ended_on_the_task_itself_tells_most() -> None:
    """Others gained two logits; here nothing was gained, three times."""
    known = growths(grown({}, [(0.5, 0.88)] * 50))
    before = known.foretell(candidate())
    one, three = (known.foretell(candidate(), grown({}, [(0.9, 0.9)] * count)) for count in (1, 3))
    assert before.mean > 1.8
    assert three.mean < 0.7 * before.mean < one.mean < before.mean
    assert one.spread > before.spread, "that they differ shows how little is sure"


def test_settings_that_a_strategy_no_longer_takes_are_left_out() -> None:
    stale = [Grown({"rate": 5.0}, 0.5, 0.99), Grown({"gone": 1}, 0.5, 0.99)]
    assert growths(stale).foretell(candidate()) == growths().foretell(candidate())


def test_a_paused_trial_of_an_earlier_version_is_no_error() -> None:
    """It lacks what its strategy got since, has an option that is gone, or its strategy is gone itself."""
    known = growths(grown(LOW, [(0.5, 0.55)] * 20), grown(HIGH, [(0.5, 0.9)] * 20))
    assert known.foretell(Candidate("net", "fine-tuning", dict(HIGH))) == known.foretell(candidate(**HIGH)), "at its default"
    gone = known.foretell(candidate(**HIGH | {"norms": "gone"}))
    assert gone.mean < known.foretell(candidate(**HIGH)).mean, "an option that is gone is like no other"
    assert math.isfinite(gone.mean)
    assert gone.spread > 0
    assert known.foretell(Candidate("net", "uninstalled", {"rate": 1e-3})) == Growth(0.0, 0.0), "it cannot go on"
