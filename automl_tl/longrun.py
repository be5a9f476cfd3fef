"""The best recipe of a search, once more with as long a schedule as the time holds.

Many short trainings find out which network, strategy and rates suit the images. The same recipe then gains from a longer
schedule. It begins anew: `loop.schedule` lets the rate fall to nothing by the last epoch, so merely going on would gain little.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

from .records import Candidate, Trial
from .space import Float, Int, Space
from .surrogate import Growth

LEAST_LONGER = 1.5
"""Times as many epochs as before: a run that is hardly longer is the same run with other luck."""
CAREFUL = 0.92
"""Of the time is planned for: a run that is cut off before its rate has fallen is worth little."""


def long_run(
    trials: Iterable[Trial], growth: Mapping[str, Growth], spaces: Mapping[str, Space], *, seconds: float
) -> tuple[Candidate, float] | None:
    """What to train for the `seconds` that are left, and the seconds that it should take; None where nothing promises a gain.

    The recipe is that of the trial which promises most when it has ended (`growth` says what paused ones gain on average).
    There is none where a strategy without epochs is further ahead than growth is likely to make up for, and where the time
    holds less than `LEAST_LONGER` times the epochs of the recipe.
    """
    scored = [trial for trial in trials if trial.score is not None and trial.curve]
    recipes = [trial for trial in scored if "epochs" in spaces.get(trial.candidate.strategy, {})]
    if not recipes:
        return None
    best = max(recipes, key=lambda trial: _promise(trial, growth))
    others = [_logit(trial) for trial in scored if trial not in recipes]
    gain = growth.get(best.candidate.strategy, Growth())
    if max(others, default=-math.inf) > _promise(best, growth) + gain.mean + gain.spread:
        return None
    space = spaces[best.candidate.strategy]["epochs"]
    assert isinstance(space, (Int, Float))
    before = float(best.candidate.hyperparameters["epochs"])
    each = best.seconds / min(best.curve[-1].epoch, before)  # some strategies go through theirs several times
    epochs = min(int(CAREFUL * seconds / each), int(space.high))
    if epochs < LEAST_LONGER * before:
        return None
    longer = replace(best.candidate, hyperparameters={**best.candidate.hyperparameters, "epochs": epochs})
    return longer, epochs * each


def _promise(trial: Trial, growth: Mapping[str, Growth]) -> float:
    paused = trial.status == "stopped"
    return _logit(trial) + (growth.get(trial.candidate.strategy, Growth()).mean if paused else 0.0)


def _logit(trial: Trial) -> float:
    score = min(max(trial.score or 0.0, 0.005), 0.995)
    return math.log(score / (1 - score))
