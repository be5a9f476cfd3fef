"""What became of candidates in earlier tasks, in all of them and in those like the one at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .experience import Rows
from .records import Backbone, Profile

REFERENCES = 1000
"""Tasks that a new task is compared with; more are drawn from."""
SHRINK = {"all": 4.0, "near": 1.0}
"""A mean of standings is shrunk towards nothing as by so many further trials of average standing."""
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
    keys: Mapping[str, Mapping[str, int]]
    """kind → key → position."""
    sums: Mapping[str, np.ndarray]
    """kind → references × keys: standings added up."""
    counts: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, rows: Rows, standing: np.ndarray, source_datasets: Sequence[str], *, seed: int = 0) -> Record:
        """From trials (`rows`), their standings, and the source dataset of each of the rows' tasks."""
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
        width = float(np.median(nearest[np.isfinite(nearest)])) if np.isfinite(nearest).any() else 1.0
        reference = np.full(total, -1)
        reference[kept] = np.arange(len(kept))
        inside = reference[rows.task] >= 0
        keys, sums, counts = {}, {}, {}
        for kind in KINDS:
            index, codes = _codes(kind, rows)
            where = (reference[rows.task] * len(index) + codes)[inside]
            shape, cells = (len(kept), len(index)), len(kept) * len(index)
            keys[kind] = index
            sums[kind] = np.bincount(where, standing[inside], cells).reshape(shape)
            counts[kind] = np.bincount(where, minlength=cells).astype(np.float64).reshape(shape)
        return cls(tuple(sources.tolist()), grid, coordinates, max(width, 1e-3), keys, sums, counts)

    def standings(self, rows: Rows, source_datasets: Sequence[str] | None = None) -> np.ndarray:
        """n × (kinds × all/near): the mean standing of what the row is made of, shrunk towards 0 where there is little.

        `source_datasets`, one a task of `rows`: reference tasks of the same one are left out, so that a trial does not
        predict itself nor its siblings.
        """
        weights = self._weights(rows.profiles, source_datasets)
        result = np.zeros((len(rows.task), len(KINDS) * len(SHRINK)))
        for block, kind in enumerate(KINDS):
            _, codes = _codes(kind, rows, self.keys[kind])
            seen = codes >= 0
            for offset, (form, shrink) in enumerate(SHRINK.items()):
                means = (weights[form] @ self.sums[kind]) / (weights[form] @ self.counts[kind] + shrink)
                result[seen, len(SHRINK) * block + offset] = means[rows.task[seen], codes[seen]]
        return result

    def _weights(self, profiles: Sequence[Profile], source_datasets: Sequence[str] | None) -> dict[str, np.ndarray]:
        """tasks × references: 1 each, and by closeness."""
        coordinates = _places(self.grid, [profile_numbers(profile) for profile in profiles])
        near = np.exp(-((_apart(coordinates, self.coordinates) / self.width) ** 2) / 2)
        every = np.ones_like(near)
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
            "keys": {kind: list(keys) for kind, keys in self.keys.items()},
            "cells": {kind: cells.tolist() for kind, cells in filled.items()},
            "sums": {kind: self.sums[kind].ravel()[cells].tolist() for kind, cells in filled.items()},
            "counts": {kind: self.counts[kind].ravel()[cells].tolist() for kind, cells in filled.items()},
        }

    @classmethod
    def read(cls, facts: Mapping[str, Any]) -> Record:
        """What `facts` gave."""
        tables: dict[str, dict[str, np.ndarray]] = {"sums": {}, "counts": {}}
        for name, kinds in tables.items():
            for kind, keys in facts["keys"].items():
                kinds[kind] = np.zeros((len(facts["source_datasets"]), len(keys)))
                kinds[kind].ravel()[facts["cells"][kind]] = facts[name][kind]
        return cls(
            tuple(facts["source_datasets"]),
            {name: np.array(values) for name, values in facts["grid"].items()},
            np.array(facts["coordinates"]).reshape(len(facts["source_datasets"]), len(facts["grid"])),
            facts["width"],
            {kind: {key: position for position, key in enumerate(keys)} for kind, keys in facts["keys"].items()},
            tables["sums"],
            tables["counts"],
        )


def profile_numbers(profile: Profile) -> dict[str, float]:
    """What tasks are compared by: their meta-features and their distances to the sources."""
    distances = {f"{source}/{metric}": value for source, found in profile.distances.items() for metric, value in found.items()}
    return {**profile.meta, **distances}


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


def _codes(kind: str, rows: Rows, known: Mapping[str, int] | None = None) -> tuple[Mapping[str, int], np.ndarray]:
    """Keys of `kind` with their positions, and the position of each row's key; -1 for one that is not in `known`."""
    strategies = {name: code for code, name in enumerate(dict.fromkeys(rows.strategy))}
    codes = np.array([strategies[name] for name in rows.strategy], dtype=np.int64)
    cells = [_keys(kind, backbone, name) for backbone in rows.backbones for name in strategies]
    index = {key: position for position, key in enumerate(dict.fromkeys(cells))} if known is None else known
    table = np.array([index.get(key, -1) for key in cells], dtype=np.int64)
    return index, table[rows.backbone * len(strategies) + codes]
