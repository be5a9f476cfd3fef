"""Plans for a budget, against all plans there are."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from automl_tl.planning import plan_within


def value(gains: np.ndarray, plan: list[int]) -> float:
    return float(gains[:, plan].max(axis=1).mean()) if plan else 0.0


def test_many_cheap_things_that_are_alike_are_worth_one() -> None:
    """Ten twins for 1 each against one for 10 that is worth twice as much: by the cost, the twins would come first."""
    luck = np.random.default_rng(0).exponential(size=(1000, 2))
    gains = np.column_stack([2 * luck[:, 1], *[luck[:, 0]] * 10])
    costs = np.array([10.0, *[1.0] * 10])
    assert plan_within(gains, costs, 10.0) == [0]
    assert plan_within(gains, costs, 5.0)[:1] == [1], "it is out of reach"
    assert set(plan_within(gains, costs, 11.0)) == {0, 1}, "no twin adds to another"


def test_cheap_things_that_differ_are_worth_many() -> None:
    luck = np.random.default_rng(0).exponential(size=(1000, 11))
    gains, costs = luck * [1.2, *[1.0] * 10], np.array([10.0, *[1.0] * 10])
    assert sorted(plan_within(gains, costs, 10.0)) == list(range(1, 11))


def test_nothing_to_gain_or_to_spend_is_no_plan() -> None:
    assert plan_within(np.zeros((5, 3)), np.ones(3), 10.0) == []
    assert plan_within(np.ones((5, 3)), np.ones(3), 0.5) == []


@pytest.mark.parametrize("seed", range(5))
def test_it_is_near_the_best_plan(seed: int) -> None:
    rng = np.random.default_rng(seed)
    costs = rng.uniform(1, 6, size=9)
    gains = np.maximum(rng.normal(size=(300, 3)) @ rng.normal(size=(3, 9)) + rng.normal(size=(300, 9)), 0) * np.sqrt(costs)
    plan = plan_within(gains, costs, 10.0)
    assert costs[plan].sum() <= 10.0
    plans = [list(one) for size in range(1, 10) for one in combinations(range(9), size) if costs[list(one)].sum() <= 10.0]
    assert value(gains, plan) >= 0.9 * max(value(gains, one) for one in plans)
