"""Forgetting, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from automl_tl.evaluation.forgetting import backward_transfer, forgetting, told_accuracy

SCORES = np.array([[0.9, 0.3, 0.2], [0.7, 0.8, 0.4], [0.6, 0.9, 0.7]])


def test_by_hand() -> None:
    assert backward_transfer(SCORES) == pytest.approx(((0.6 - 0.9) + (0.9 - 0.8)) / 2)
    assert forgetting(SCORES) == pytest.approx(((0.9 - 0.6) + (0.8 - 0.9)) / 2)


def test_what_was_gained_in_between_counts_as_forgotten_but_not_as_backward_transfer() -> None:
    scores = np.array([[0.5, 0, 0], [0.8, 0.6, 0], [0.5, 0.6, 0.7]])
    assert backward_transfer(scores) == 0.0
    assert forgetting(scores) == pytest.approx((0.3 + 0.0) / 2)


def test_a_single_task_forgets_nothing() -> None:
    one = np.array([[0.8]])
    assert (backward_transfer(one), forgetting(one)) == (0, 0)


@pytest.mark.parametrize("shape", [(2, 3), (3,), (0, 0)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="tasks × tasks"):
        forgetting(np.zeros(shape))


def test_who_is_told_the_task_only_chooses_among_its_classes() -> None:
    probabilities = np.array([[0.1, 0.2, 0.7, 0.0], [0.4, 0.3, 0.2, 0.1], [0.0, 0.6, 0.1, 0.3]])
    assert told_accuracy(probabilities, np.array([1, 0, 0]), np.array([0, 1])) == pytest.approx(2 / 3)
    assert told_accuracy(probabilities, np.array([2, 2, 3]), np.array([2, 3])) == 1.0
