"""A trial in the words of a tracking program."""

from __future__ import annotations

import math
from collections.abc import Mapping

from automl_tl import Trial


def title_of(trial: Trial) -> str:
    """For a person, and different for every trial of a run."""
    return f"{trial.candidate.strategy} on {trial.candidate.backbone} {trial.id[:6]}"


def step_of(epoch: float, told: Mapping[float, int]) -> int:
    """A whole number for an epoch such as 2.5: that epoch rounded up, or the next that no epoch told before has as its step."""
    step, taken = math.ceil(epoch), set(told.values())
    while step in taken:
        step += 1
    return step


def facts_of(trial: Trial) -> dict[str, str | float | int | bool]:
    """What was decided before it began."""
    candidate = trial.candidate
    return {"strategy": candidate.strategy, "backbone": candidate.backbone, "seed": trial.seed, **candidate.hyperparameters}
