"""The history as advice is learnt from it: columns of trials, profiles, facts of backbones."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np
import xxhash

from . import registry
from .errors import InputError
from .records import Backbone, Profile
from .space import Space, Value, check, defaults

if TYPE_CHECKING:
    from .history import History


PROVEN, RIVALS = 24, 2
"""Settings of a strategy that are proven, at most; and how many a winner was the best of, itself included, at least."""


@dataclass(frozen=True, eq=False)
class Trials:
    """Columns of the finished trials, all of one length."""

    task: np.ndarray
    """Fingerprints."""
    source_dataset: np.ndarray
    """Where the task's images come from."""
    backbone: np.ndarray
    strategy: np.ndarray
    hyperparameters: Sequence[Mapping[str, Value]]
    score: np.ndarray
    """Validation accuracy, 0–1."""
    seconds: np.ndarray
    memory_mb: np.ndarray
    images: np.ndarray
    """Training images."""
    speed: np.ndarray
    """Of the machine, as `cost.calibrate` measures it; NaN: unknown."""

    def __len__(self) -> int:
        return len(self.score)

    def take(self, rows: np.ndarray) -> Trials:
        """Some of the trials."""
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        picked = {name: values[rows] for name, values in columns.items() if isinstance(values, np.ndarray)}
        return Trials(**picked, hyperparameters=[self.hyperparameters[row] for row in rows])


@dataclass(frozen=True, eq=False)
class Experience:
    """Everything that advice is learnt from."""

    trials: Trials
    profiles: Mapping[str, Profile]
    """By fingerprint."""
    backbones: Mapping[str, Backbone]
    digest: str

    @classmethod
    def of(cls, history: History, *, without: str = "", objective: str = "accuracy") -> Experience:
        """All trials of `history` on tasks with this objective that have a score, a profile and the facts of their backbone.

        Those of the task `without` (a fingerprint) are left out: advice on a task never rests on what was tried on that very
        task, so that the same question has the same answer when it is asked again.
        """
        with history.snapshot():  # or the digest would name what others write meanwhile, too
            trials, profiles, backbones = history.table(objective=objective), history.profiles(), history.backbones()
            digest = history.digest(without=without, objective=objective)
        trials = replace(trials, hyperparameters=completed(list(trials.strategy), trials.hyperparameters))
        known = [task in profiles and name in backbones for task, name in zip(trials.task, trials.backbone, strict=True)]
        usable = np.flatnonzero(np.array(known, dtype=bool) & np.isfinite(trials.score) & (trials.task != without))
        return cls(trials.take(usable), profiles, backbones, digest)

    def take(self, rows: np.ndarray) -> Experience:
        """The same with some of the trials; its digest is not the whole's."""
        selection = xxhash.xxh64_hexdigest(np.asarray(rows, dtype=np.int64).tobytes())
        return Experience(self.trials.take(rows), self.profiles, self.backbones, f"{self.digest}-{selection}")


def completed(strategies: Sequence[str], hyperparameters: Sequence[Mapping[str, Value]]) -> list[Mapping[str, Value]]:
    """The hyperparameters of each trial with those that its strategy got later: they were at their defaults, which do nothing."""
    plain = {name: defaults(strategy.space) for name, strategy in registry.strategies().items()}
    known: dict[tuple[str, int], Mapping[str, Value]] = {}
    for strategy, values in zip(strategies, hyperparameters, strict=True):
        if (strategy, id(values)) not in known:
            known[strategy, id(values)] = {**plain.get(strategy, {}), **values}
    return [known[strategy, id(values)] for strategy, values in zip(strategies, hyperparameters, strict=True)]


def proven(experience: Experience, *, most: int = PROVEN) -> dict[str, list[Mapping[str, Value]]]:
    """Of each strategy the settings that were the best of at least `RIVALS` on a task with a backbone, the most frequent first.

    Draws seldom differ from the defaults in the two or three hyperparameters at once that made the difference elsewhere; what won
    on earlier tasks is where a search should begin (Feurer et al., 2015, Initializing Bayesian hyperparameter optimization via
    meta-learning).
    """
    trials, known = experience.trials, registry.strategies()
    groups: dict[tuple[str, str, str], dict[str, float]] = defaultdict(dict)
    settings: dict[str, Mapping[str, Value]] = {}
    objects, codes = distinct(trials.hyperparameters)
    keys = [json.dumps(values, sort_keys=True) for values in objects]  # once: a million trials share some thousands
    for row, (code, values) in enumerate(zip(codes.tolist(), trials.hyperparameters, strict=True)):
        key = keys[code]
        settings[key] = values
        rivals = groups[trials.strategy[row], trials.task[row], trials.backbone[row]]
        rivals[key] = max(rivals.get(key, 0.0), float(trials.score[row]))
    wins: dict[str, Counter[str]] = defaultdict(Counter)
    for (strategy, _, _), rivals in groups.items():
        best = max(rivals, key=lambda key: (rivals[key], key))
        if len(rivals) >= RIVALS and strategy in known and _possible(known[strategy].space, settings[best]):
            wins[strategy][best] += 1
    return {
        strategy: [settings[key] for key in sorted(won, key=lambda key: (-won[key], key))[:most]]
        for strategy, won in wins.items()
    }


def _possible(space: Space, values: Mapping[str, Value]) -> bool:
    """Whether a strategy's space, which may have changed since, still holds these."""
    try:
        return check(space, values) == values
    except InputError:
        return False


@dataclass(frozen=True, eq=False)
class Rows:
    """Candidates to be encoded: each a task, a backbone, a strategy and hyperparameters."""

    profiles: Sequence[Profile]
    task: np.ndarray
    """Index into `profiles`."""
    backbones: Sequence[Backbone]
    backbone: np.ndarray
    """Index into `backbones`."""
    strategy: Sequence[str]
    hyperparameters: Sequence[Mapping[str, Value]]


def rows_of(experience: Experience) -> Rows:
    """The trials of `experience` as rows."""
    trials = experience.trials
    tasks, task = np.unique(trials.task.astype(str), return_inverse=True)
    names, backbone = np.unique(trials.backbone.astype(str), return_inverse=True)
    return Rows(
        [experience.profiles[name] for name in tasks],
        task,
        [experience.backbones[name] for name in names],
        backbone,
        list(trials.strategy),
        trials.hyperparameters,
    )


def distinct(hyperparameters: Sequence[Mapping[str, Value]]) -> tuple[list[Mapping[str, Value]], np.ndarray]:
    """The objects among them, each once, and the position of each entry's: many candidates and trials share theirs."""
    own = np.fromiter(map(id, hyperparameters), np.int64, len(hyperparameters))
    _, first, codes = np.unique(own, return_index=True, return_inverse=True)
    return [hyperparameters[row] for row in first.tolist()], codes
