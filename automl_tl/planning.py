"""What to do with the time that is left, where choices may turn out alike."""

from __future__ import annotations

import numpy as np


def plan_within(gains: np.ndarray, costs: np.ndarray, budget: float) -> list[int]:
    """What to do within `budget`, in order: positions of `costs` (n), by the best of their `gains` (draws × n, none below 0).

    Only the best of all gains counts, so that a choice adds the less, the more it is like those before it. Two plans are made:
    by what a choice adds, and by what it adds for its cost. The better one is never far from the best plan there is, which
    neither alone can say (Leskovec et al., 2007, Cost-effective outbreak detection in networks): by cost alone, many cheap
    things that are much alike come before a dear one that is worth more than all of them.
    """
    plans = [_greedy(gains, costs, budget, per_cost) for per_cost in (True, False)]
    return max(plans, key=lambda plan: float(gains[:, plan].max(axis=1).mean()) if plan else 0.0)


def _greedy(gains: np.ndarray, costs: np.ndarray, budget: float, per_cost: bool) -> list[int]:
    chosen: list[int] = []
    best_so_far = np.zeros(len(gains))
    while True:
        added = np.maximum(gains, best_so_far[:, None]).mean(axis=0) - best_so_far.mean()
        added[costs > budget] = 0.0
        added[chosen] = 0.0
        if added.max(initial=0.0) <= 0:
            return chosen
        best = int((added / costs if per_cost else added).argmax())
        chosen.append(best)
        budget -= float(costs[best])
        best_so_far = np.maximum(best_so_far, gains[:, best])
