"""What became of candidates in earlier tasks, in all of them and in those like the one at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .experience import Rows
from .kriging import Kriging, Pairs
from .records import Backbone, Profile

REFERENCES = 1000
"""Tasks that a new task is compared with; more are drawn from."""
SHRINK = {"all": 4.0, "near": 1.0}
"""A mean is shrunk towards nothing as by so many further trials of average standing."""
MEASURES = ("standing", "effect")
"""What is remembered of a trial: its place by rank, and how far it lies above the mean on a scale that tasks share. Ranks are the
same for every task; only scores tell a failure from a second place."""
FORMS = tuple((measure, form) for measure in MEASURES for form in SHRINK)
TRUST_SHRINK = 10.0
"""A task's agreement with others is shrunk as by so many further backbones."""
NEAR = 2.0
"""Widths of the closeness of tasks, to the median distance of a task from its nearest."""
KINDS = ("backbone and strategy", "backbone", "family", "source dataset")
"""What a candidate's record is kept of. A backbone that was never tried still has a family and a source dataset."""


def _keys(kind: str, backbone: Backbone, strategy: str) -> str:
    return {
        "backbone and strategy": f"{backbone.name}\n{strategy}",
        "backbone": backbone.name,
        "family": backbone.family,
        "source dataset": backbone.source_dataset,
    }[kind]


@dataclass(frozen=True, eq=False)
class Record:
    """How candidates stood in earlier tasks: a standing is the share of the task's trials that a trial beats, minus a half."""

    source_datasets: tuple[str, ...]
    """Of each reference task."""
    grid: Mapping[str, np.ndarray]
    """Sorted values of each number of a profile: a task's coordinates are its places among them, 0–1."""
    coordinates: np.ndarray
    """References × numbers of a profile."""
    width: float
    """Tasks so far apart count 0.6 as much as an equal one."""
    trust: np.ndarray
    """Of each reference, 0–1: how well what it says of backbones agrees with the other tasks."""
    keys: Mapping[str, Mapping[str, int]]
    """kind → key → position."""
    sums: Mapping[str, np.ndarray]
    """kind → measures × references × keys: added up."""
    counts: Mapping[str, np.ndarray]
    kriging: Kriging

    @classmethod
    def of(cls, rows: Rows, measured: np.ndarray, source_datasets: Sequence[str], *, seed: int = 0) -> Record:
        """From trials (`rows`), their measures (measures × n), and the source dataset of each of the rows' tasks."""
        total = len(rows.profiles)
        kept = np.arange(total)
        if total > REFERENCES:
            kept = np.sort(np.random.default_rng(seed).choice(total, REFERENCES, replace=False))
        numbers = [profile_numbers(rows.profiles[i]) for i in kept.tolist()]
        names = sorted({name for found in numbers for name in found})
        grid = {name: np.unique([found[name] for found in numbers if name in found]) for name in names}
        coordinates = _places(grid, numbers)
        apart = _apart(coordinates, coordinates)
        sources = np.array([source_datasets[i] for i in kept.tolist()])
        apart[sources[:, None] == sources[None, :]] = np.inf
        nearest = apart.min(axis=1, initial=np.inf)
        width = NEAR * float(np.median(nearest[np.isfinite(nearest)])) if np.isfinite(nearest).any() else 1.0
        reference = np.full(total, -1)
        reference[kept] = np.arange(len(kept))
        inside = reference[rows.task] >= 0
        keys, sums, counts = {}, {}, {}
        for kind in KINDS:
            index, codes = _codes(kind, rows)
            where = (reference[rows.task] * len(index) + codes)[inside]
            shape, cells = (len(kept), len(index)), len(kept) * len(index)
            keys[kind] = index
            sums[kind] = np.array([np.bincount(where, values[inside], cells).reshape(shape) for values in measured])
            counts[kind] = np.bincount(where, minlength=cells).astype(np.float64).reshape(shape)
        trust = _trust(sums["backbone"][MEASURES.index("effect")], counts["backbone"], sources)
        width = max(width, 1e-3)
        pairs, pair = _pairs(rows)
        cells = np.unique((reference[rows.task] * len(pairs.names) + pair)[inside], return_inverse=True)
        count = np.bincount(cells[1]).astype(np.float64)
        values = np.array([np.bincount(cells[1], own[inside]) / count / max(own.std(), 1e-6) for own in measured])
        where = (cells[0] % len(pairs.names), cells[0] // len(pairs.names))
        near = np.exp(-((_apart(coordinates, coordinates) / width) ** 2) / 2)
        kriging = Kriging.of(pairs, where, values, count, near, trust, sources.tolist(), seed=seed)
        return cls(tuple(sources.tolist()), grid, coordinates, width, trust, keys, sums, counts, kriging)

    def standings(self, rows: Rows, source_datasets: Sequence[str] | None = None) -> np.ndarray:
        """n × (kinds × forms, measures): means of what the row is made of, shrunk to 0 where there is little; and by kriging.

        `source_datasets`, one a task of `rows`: reference tasks of the same one are left out, so that a trial does not
        predict itself nor its siblings.
        """
        weights = self._weights(rows.profiles, source_datasets)
        result = np.zeros((len(rows.task), len(KINDS) * len(FORMS) + len(MEASURES)))
        for block, kind in enumerate(KINDS):
            _, codes = _codes(kind, rows, self.keys[kind])
            seen = codes >= 0
            counts = {form: weights[form] @ self.counts[kind] + shrink for form, shrink in SHRINK.items()}
            for offset, (measure, form) in enumerate(FORMS):
                means = (weights[form] @ self.sums[kind][MEASURES.index(measure)]) / counts[form]
                result[seen, len(FORMS) * block + offset] = means[rows.task[seen], codes[seen]]
        near = np.exp(-((self._apart(rows.profiles) / self.width) ** 2) / 2)
        result[:, -len(MEASURES) :] = self.kriging.expected(*_pairs(rows), rows.task, near, source_datasets).T
        return result

    def _apart(self, profiles: Sequence[Profile]) -> np.ndarray:
        """Profiles × references."""
        return _apart(_places(self.grid, [profile_numbers(profile) for profile in profiles]), self.coordinates)

    def _weights(self, profiles: Sequence[Profile], source_datasets: Sequence[str] | None) -> dict[str, np.ndarray]:
        """tasks × references: by trust, and by closeness, too."""
        near = np.exp(-((self._apart(profiles) / self.width) ** 2) / 2)
        near = near * self.trust
        every = np.ones_like(near) * self.trust
        if source_datasets is not None:
            same = np.array(source_datasets)[:, None] == np.array(self.source_datasets)[None, :]
            near[same] = every[same] = 0.0
        near /= np.maximum(near.max(axis=1, keepdims=True, initial=0.0), 1e-9)
        return {"all": every, "near": near}

    def facts(self) -> dict[str, Any]:
        """As JSON; sums and counts as (position, value) pairs of the cells that are not empty."""
        filled = {kind: np.flatnonzero(counts) for kind, counts in self.counts.items()}
        return {
            "source_datasets": self.source_datasets,
            "grid": {name: values.tolist() for name, values in self.grid.items()},
            "coordinates": self.coordinates.tolist(),
            "width": self.width,
            "trust": self.trust.tolist(),
            "keys": {kind: list(keys) for kind, keys in self.keys.items()},
            "cells": {kind: cells.tolist() for kind, cells in filled.items()},
            "sums": {kind: self.sums[kind].reshape(len(MEASURES), -1)[:, cells].tolist() for kind, cells in filled.items()},
            "counts": {kind: self.counts[kind].ravel()[cells].tolist() for kind, cells in filled.items()},
            "kriging": self.kriging.facts(),
        }

    @classmethod
    def read(cls, facts: Mapping[str, Any]) -> Record:
        """What `facts` gave."""
        sums, counts = {}, {}
        for kind, keys in facts["keys"].items():
            shape, cells = (len(facts["source_datasets"]), len(keys)), facts["cells"][kind]
            sums[kind], counts[kind] = np.zeros((len(MEASURES), *shape)), np.zeros(shape)
            sums[kind].reshape(len(MEASURES), -1)[:, cells] = facts["sums"][kind]
            counts[kind].ravel()[cells] = facts["counts"][kind]
        return cls(
            tuple(facts["source_datasets"]),
            {name: np.array(values) for name, values in facts["grid"].items()},
            np.array(facts["coordinates"]).reshape(len(facts["source_datasets"]), len(facts["grid"])),
            facts["width"],
            np.array(facts["trust"]),
            {kind: {key: position for position, key in enumerate(keys)} for kind, keys in facts["keys"].items()},
            sums,
            counts,
            Kriging.read(facts["kriging"]),
        )


def profile_numbers(profile: Profile) -> dict[str, float]:
    """What tasks are compared by: their meta-features and their distances to the sources."""
    distances = {f"{source}/{metric}": value for source, found in profile.distances.items() for metric, value in found.items()}
    return {**profile.meta, **distances}


def _trust(sums: np.ndarray, counts: np.ndarray, sources: np.ndarray) -> np.ndarray:
    """Correlation of what each task says of backbones with what the tasks of other sources say, shrunk towards a half."""
    effect = np.where(counts > 0, sums / np.maximum(counts, 1), 0.0)
    known = (counts > 0).astype(np.float64)
    other = (sources[:, None] != sources[None, :]).astype(np.float64)
    mean = (other @ effect) / np.maximum(other @ known, 1.0)
    both = known * ((other @ known) > 0)
    count = np.maximum(both.sum(axis=1, keepdims=True), 1.0)
    own = (effect - (both * effect).sum(axis=1, keepdims=True) / count) * both
    mean = (mean - (both * mean).sum(axis=1, keepdims=True) / count) * both
    agreement = (own * mean).sum(axis=1) / np.maximum(np.sqrt((own**2).sum(axis=1) * (mean**2).sum(axis=1)), 1e-9)
    shrunk = (agreement * count[:, 0] + 0.5 * TRUST_SHRINK) / (count[:, 0] + TRUST_SHRINK)
    return np.maximum(shrunk, 0.02)


def _places(grid: Mapping[str, np.ndarray], numbers: Sequence[Mapping[str, float]]) -> np.ndarray:
    """tasks × numbers: the place of each value among the history's, 0–1; a half where it is unknown."""
    places = np.full((len(numbers), len(grid)), 0.5)
    for column, (name, values) in enumerate(grid.items()):
        own = np.array([found.get(name, np.nan) for found in numbers])
        known = np.isfinite(own)
        low, high = np.searchsorted(values, own[known], "left"), np.searchsorted(values, own[known], "right")
        places[known, column] = (low + high) / (2 * len(values))
    return places


def _apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Root mean square difference of the coordinates, len(a) × len(b)."""
    square = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None, :] - 2 * a @ b.T
    return np.asarray(np.sqrt(np.maximum(square, 0) / max(a.shape[1], 1)))


def _pairs(rows: Rows) -> tuple[Pairs, np.ndarray]:
    """The pairs that occur, and the index of each row's."""
    strategies = {name: code for code, name in enumerate(dict.fromkeys(rows.strategy))}
    codes = np.array([strategies[name] for name in rows.strategy], dtype=np.int64)
    names = list(strategies)
    used, pair = np.unique(rows.backbone * len(names) + codes, return_inverse=True)
    return Pairs.of([rows.backbones[i // len(names)] for i in used], [names[i % len(names)] for i in used]), pair


def _codes(kind: str, rows: Rows, known: Mapping[str, int] | None = None) -> tuple[Mapping[str, int], np.ndarray]:
    """Keys of `kind` with their positions, and the position of each row's key; -1 for one that is not in `known`."""
    strategies = {name: code for code, name in enumerate(dict.fromkeys(rows.strategy))}
    codes = np.array([strategies[name] for name in rows.strategy], dtype=np.int64)
    cells = [_keys(kind, backbone, name) for backbone in rows.backbones for name in strategies]
    index = {key: position for position, key in enumerate(dict.fromkeys(cells))} if known is None else known
    table = np.array([index.get(key, -1) for key in cells], dtype=np.int64)
    return index, table[rows.backbone * len(strategies) + codes]
