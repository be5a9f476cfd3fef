"""A trial in the words of a tracking program."""

from __future__ import annotations

from automl_tl import Trial


def title_of(trial: Trial) -> str:
    """For a person, and different for every trial of a run."""
    return f"{trial.candidate.strategy} on {trial.candidate.backbone} {trial.id[:6]}"


def facts_of(trial: Trial) -> dict[str, str | float | int | bool]:
    """What was decided before it began."""
    candidate = trial.candidate
    return {"strategy": candidate.strategy, "backbone": candidate.backbone, "seed": trial.seed, **candidate.hyperparameters}
