"""Speed of learning, by hand."""

from __future__ import annotations

import pytest

from automl_tl.evaluation.adaptation import adaptation
from automl_tl.records import Point


def curve(*scores: float) -> list[Point]:
    return [Point(epoch, 2.0 * epoch, None, score) for epoch, score in enumerate(scores, 1)]


def test_by_hand() -> None:
    """Best so far: 0.4, 0.8, 0.8, 1.0. 90 % and 95 % of 1.0 come with epoch 4, at 8 s. Area: (0.6 + 0.8 + 0.9) / 3."""
    found = adaptation(curve(0.4, 0.8, 0.6, 1.0))
    assert found is not None
    assert found.final == 1.0
    assert found.epochs == {0.9: 4, 0.95: 4}
    assert found.seconds == {0.9: 8.0, 0.95: 8.0}
    assert found.area == pytest.approx(2.3 / 3)


def test_a_score_that_falls_again_was_reached() -> None:
    found = adaptation(curve(0.5, 0.93, 1.0, 0.2), shares=(0.5, 0.9))
    assert found is not None
    assert found.epochs == {0.5: 1, 0.9: 2}
    assert found.final == 1.0
    assert found.area == pytest.approx((0.715 + 0.965 + 1.0) / 3)


def test_faster_learners_have_more_area() -> None:
    fast, slow = adaptation(curve(0.9, 0.9, 0.9)), adaptation(curve(0.1, 0.5, 0.9))
    assert fast is not None
    assert slow is not None
    assert fast.area == pytest.approx(0.9)
    assert slow.area == pytest.approx(0.5)


def test_short_curves() -> None:
    assert adaptation([]) is None
    one = adaptation([Point(1, 0.3, None, 0.7)])
    assert one is not None
    assert (one.final, one.area, one.epochs[0.95], one.seconds[0.95]) == (0.7, 0.7, 1, 0.3)
    nothing = adaptation(curve(0.0, 0.0))
    assert nothing is not None
    assert (nothing.final, nothing.area, nothing.epochs[0.9]) == (0.0, 0.0, 1)
