"""Trials beside each other: what each is good for, and what it costs to use."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .backbones import build
from .errors import InputWarning, ZooError
from .evaluation.combined import WEIGHTS, Standing, check_weights, combined_scores, pareto_front
from .evaluation.cost import time_passes
from .records import Backbone, Trial

TIMED = 0.2
"""Seconds of timing a backbone."""


@dataclass(frozen=True)
class Compared:
    """A trial among the others."""

    trial: Trial
    standing: Standing
    combined: float
    """`combined.combined_scores` among these trials."""
    front: bool
    """No other trial is as good in everything and better in something."""


def compare(
    trials: Sequence[Trial], backbones: Mapping[str, Backbone], classes: int, *, weights: Mapping[str, float] = WEIGHTS
) -> list[Compared]:
    """The trials that have a score, in their order: validation score, latency of one image, size, seconds of training.

    Latency is measured here and now, once a backbone; trials are left out whose backbone is not in `backbones`, and, with a
    warning, those whose backbone is no longer at hand.

    Raises:
        InputError: the weights.
    """
    check_weights(weights)
    latency: dict[str, float] = {}
    for name in dict.fromkeys(trial.candidate.backbone for trial in trials if trial.validation):
        if name not in backbones:
            continue
        try:
            latency[name] = time_passes(build(backbones[name]), backbones[name].input_size, 1, seconds=TIMED).seconds
        except ZooError as error:
            warnings.warn(f"trials on {name} are left out of the comparison: {error}", InputWarning, stacklevel=2)
    kept = [trial for trial in trials if trial.validation and trial.candidate.backbone in latency]
    standings = [
        Standing(
            trial.score or 0.0,
            latency[trial.candidate.backbone],
            size_of(backbones[trial.candidate.backbone], classes),
            trial.seconds,
        )
        for trial in kept
    ]
    rows = zip(kept, standings, combined_scores(standings, weights), pareto_front(standings), strict=True)
    return [Compared(*row) for row in rows]


def measure_of(trials: Sequence[Trial]) -> str:
    """What their scores are: "accuracy", or "score" where the task's objective asks for more."""
    return "accuracy" if all(trial.score == trial.validation["accuracy"] for trial in trials if trial.validation) else "score"


def size_of(backbone: Backbone, classes: int) -> float:
    """Bytes of a model on disk: four for each weight of the backbone and of a linear head."""
    return 4.0 * (backbone.params + (backbone.num_features + 1) * classes)
