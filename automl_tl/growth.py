"""How much better a paused trial may still get, from the learning curves of trials that ended.

As in freeze-thaw optimisation (Swersky et al., 2014) a paused trial is judged by where it may end. What it gains, in logits of
the score, is taken for normal; its mean and spread come from trials of the same strategy, weighed by how like their settings are.
Gains are a matter of the task first: on some, a third of the epochs tells all, on others the score is still far from its end. So
one trial that ended on the task itself tells as much as many on others. (Each source dataset left out of a history of 870 such
trials, the mean log likelihood of a gain is -1.10 by the strategy alone, as by its settings, and -0.88 with up to three trials of
the task itself.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .errors import InputError
from .records import Candidate, Grown
from .space import Space, Value, check, placed
from .surrogate import Growth, part_of

ALIKE = 0.5
"""Of a hyperparameter's range: settings so far apart in one count as alike to 0.6."""
OWN = 10.0
"""Trials on other tasks that one on the task itself is worth."""
SURE = 10.0
"""Trials with the same settings that the strategy's whole record is worth."""
ASSUMED = 3.0
"""Trials that the growth assumed without any is worth."""
STILL = Growth(0.0, 0.0)
"""Of what cannot go on."""


@dataclass(frozen=True, eq=False)
class _Record:
    """Trials of one strategy that ended: n."""

    places: np.ndarray
    """n × hyperparameters, each within 0–1."""
    gains: np.ndarray
    """n, logits."""


class Growths:
    """What trials of other tasks gained, by strategy."""

    def __init__(self, grown: Mapping[str, Sequence[Grown]], spaces: Mapping[str, Space]) -> None:
        self._spaces = spaces
        self._records = {name: self._record(name, grown.get(name, ())) for name in spaces}

    def foretell(self, candidate: Candidate, ended: Sequence[Grown] = ()) -> Growth:
        """Of a paused trial of `candidate`; `ended` are trials by the same strategy on the task itself.

        An earlier version may have begun it: one whose strategy is gone grows no more, and a setting that has no place any more
        is like no other.
        """
        name = candidate.strategy
        if name not in self._spaces:
            return STILL
        space = self._spaces[name]
        others, own = self._records[name], self._record(name, ended)
        gains = np.concatenate([others.gains, own.gains])
        worth = np.repeat((1.0, OWN), (len(others.gains), len(own.gains)))
        apart = np.concatenate([others.places, own.places]) - _place(space, candidate.hyperparameters)
        apart = np.nan_to_num(apart, nan=1.0)
        parts = np.array([part_of(space, each) for each in space])
        alike = np.exp(-(apart**2 @ parts) / (2 * ALIKE**2))
        before = Growth()
        whole = _normal(others.gains, np.ones(len(others.gains)), before, ASSUMED)
        return _normal(gains, worth * alike, whole, SURE)

    def _record(self, name: str, trials: Sequence[Grown]) -> _Record:
        """Trials with settings that the strategy no longer takes are left out."""
        space, places, gains = self._spaces[name], list[np.ndarray](), list[float]()
        for trial in trials:
            try:
                places.append(_place(space, check(space, trial.hyperparameters)))
            except InputError:
                continue
            gains.append(_logit(trial.best) - _logit(trial.early))
        return _Record(np.array(places).reshape(len(gains), len(space)), np.array(gains))


def _normal(gains: np.ndarray, weights: np.ndarray, before: Growth, sure: float) -> Growth:
    """Mean and spread of weighted gains, to which `before` adds as much as `sure` trials."""
    weight = weights.sum() + sure
    mean = (weights @ gains + sure * before.mean) / weight
    variance = (weights @ (gains - mean) ** 2 + sure * (before.spread**2 + (before.mean - mean) ** 2)) / weight
    return Growth(float(mean), float(np.sqrt(variance)))


def _place(space: Space, values: Mapping[str, Value]) -> np.ndarray:
    return np.array(list(placed(space, values).values()))


def _logit(score: float) -> float:
    kept = min(max(score, 0.005), 0.995)
    return float(np.log(kept / (1 - kept)))
