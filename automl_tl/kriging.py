"""How a backbone with a strategy should do on a task, from all it and its like did elsewhere: the mean of a Gaussian process.

What is remembered are cells: a pair (backbone, strategy) on a reference task. Two cells go together as far as their pairs are
alike (the same backbone, family, source dataset, strategy; facts close to each other) and, in part, as far as their tasks are
(Rasmussen and Williams, 2006, chapter 2; with a task's mean taken off, it is the kriging of geostatistics). How much each
likeness counts is the one of a few `SETTINGS` that predicts source datasets best that are left out of the history.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .records import Backbone

MOST_CELLS, TRIED_ON = 2000, 600
"""The work grows with the cube: of more cells a sample is drawn, and a smaller one for the choice of the setting."""
CHUNK = 20_000
"""Rows predicted at once."""
SHARED = 0.5
"""Of what is known of a backbone holds for it with any strategy."""
FACTS = ("params", "macs", "num_features", "num_classes")
SETTINGS = (
    {
        "backbone": (0.1, 0.3),
        "family": (0.2, 0.2),
        "source": (0.05, 0.1),
        "facts": (0.05, 0.1),
        "strategy": (0.2, 0.2),
        "noise": 0.3,
    },
    {
        "backbone": (0.1, 0.5),
        "family": (0.1, 0.1),
        "source": (0.05, 0.1),
        "facts": (0.05, 0.3),
        "strategy": (0.2, 0.2),
        "noise": 0.2,
    },
    {
        "backbone": (0.1, 0.2),
        "family": (0.1, 0.1),
        "source": (0.02, 0.05),
        "facts": (0.02, 0.1),
        "strategy": (0.1, 0.1),
        "noise": 0.6,
    },
    {
        "backbone": (0.05, 0.2),
        "family": (0.2, 0.2),
        "source": (0.1, 0.2),
        "facts": (0.1, 0.3),
        "strategy": (0.3, 0.3),
        "noise": 1.0,
    },
)
"""Variance of what each likeness explains: on all tasks, and on tasks that are alike. `facts`: of one family and about the same
size; `noise`: of a trial on a task that is trusted fully."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """Backbones with strategies, as the kernel compares them."""

    names: np.ndarray
    """Columns: backbone, family, source dataset, strategy."""
    facts: np.ndarray
    """n × facts: logarithms."""

    @classmethod
    def of(cls, backbones: Sequence[Backbone], strategies: Sequence[str]) -> Pairs:
        names = [(b.name, b.family, b.source_dataset, s) for b, s in zip(backbones, strategies, strict=True)]
        facts = [[np.log(max(float(getattr(b, name)), 1.0)) for name in FACTS] for b in backbones]
        return cls(np.array(names, dtype=object).reshape(-1, 4), np.array(facts).reshape(-1, len(FACTS)))

    def alike(self, other: Pairs, setting: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Covariances of len(self) × len(other) pairs: on all tasks, and on like ones."""
        backbone, family, source, strategy = (_same(self.names[:, i], other.names[:, i]) for i in range(4))
        square = (self.facts**2).sum(1)[:, None] + (other.facts**2).sum(1)[None] - 2 * self.facts @ other.facts.T
        facts = family * np.exp(-np.maximum(square, 0) / (2 * len(FACTS)))
        kernels = {"backbone": backbone, "family": family, "source": source, "facts": facts}
        result = []
        for form in (0, 1):
            both = np.zeros_like(facts)
            for name, kernel in kernels.items():
                both += setting[name][form] * kernel
            result.append(both * (SHARED + (1 - SHARED) * strategy) + setting["strategy"][form] * strategy)
        return result[0], result[1]


@dataclass(frozen=True, eq=False)
class Kriging:
    """The fitted process."""

    setting: int
    """Of `SETTINGS`."""
    pairs: Pairs
    pair: np.ndarray
    """Of each cell, an index into `pairs`."""
    reference: np.ndarray
    """Of each cell: its task among the references."""
    groups: tuple[str, ...]
    """What is left out together."""
    weights: np.ndarray
    """(1 + groups) × measures × cells: of each cell's covariance in the prediction; without nothing, and without each group."""

    @classmethod
    def of(
        cls,
        pairs: Pairs,
        cells: tuple[np.ndarray, np.ndarray],
        values: np.ndarray,
        counts: np.ndarray,
        near: np.ndarray,
        trust: np.ndarray,
        sources: Sequence[str],
        *,
        seed: int,
    ) -> Kriging:
        """`cells`: pair and reference of each; `values`: measures × cells, means over so many trials (`counts`).

        `near`: references × references, 1 for the same; `trust`, `sources`: of each reference.
        """
        pair, reference = cells
        order = np.random.default_rng(seed).permutation(len(pair))
        groups = np.unique(np.array(sources, dtype=str))

        def solve(kept: np.ndarray, setting: Mapping[str, Any]) -> tuple[np.ndarray, float]:
            every, like = pairs.alike(pairs, setting)
            own, where = pair[kept], reference[kept]
            covariance = every[own][:, own] + like[own][:, own] * near[where][:, where]
            noise = setting["noise"] * (0.5 + 0.5 / counts[kept]) / trust[where]
            members = [np.flatnonzero(np.array(sources, dtype=str)[where] == name) for name in groups]
            return _solve(covariance, noise, values[:, kept], members, trust[where])

        some = np.sort(order[:TRIED_ON])
        setting = int(np.argmin([solve(some, setting)[1] for setting in SETTINGS]))
        kept = np.sort(order[:MOST_CELLS])
        weights, _ = solve(kept, SETTINGS[setting])
        return cls(setting, pairs, pair[kept], reference[kept], tuple(groups.tolist()), weights)

    def expected(
        self, pairs: Pairs, pair: np.ndarray, task: np.ndarray, near: np.ndarray, sources: Sequence[str] | None = None
    ) -> np.ndarray:
        """measures × rows. `near`: tasks × references; `sources`: of each task, if what has the same is to be left out."""
        every, like = pairs.alike(self.pairs, SETTINGS[self.setting])
        places = {name: position + 1 for position, name in enumerate(self.groups)}
        without = np.array([0 if sources is None else places.get(sources[i], 0) for i in range(len(near))], dtype=np.int64)
        cells, row = np.unique(task * len(pairs.names) + pair, return_inverse=True)
        own_task, own_pair = cells // len(pairs.names), cells % len(pairs.names)
        result = np.empty((self.weights.shape[1], len(cells)))
        for first in range(0, len(cells), CHUNK):
            part = slice(first, first + CHUNK)
            which = own_pair[part]
            alike = near[own_task[part]][:, self.reference]
            covariance = every[which][:, self.pair] + like[which][:, self.pair] * alike
            for code in np.unique(without[own_task[part]]):
                rows = np.flatnonzero(without[own_task[part]] == code)
                result[:, first + rows] = self.weights[code] @ covariance[rows].T
        return result[:, row]

    def facts(self) -> dict[str, Any]:
        """As JSON; without the groups, which only learning needs."""
        return {
            "setting": self.setting,
            "names": self.pairs.names.tolist(),
            "facts": self.pairs.facts.tolist(),
            "pair": self.pair.tolist(),
            "reference": self.reference.tolist(),
            "weights": self.weights[0].tolist(),
        }

    @classmethod
    def read(cls, facts: Mapping[str, Any]) -> Kriging:
        """What `facts` gave."""
        pairs = Pairs(np.array(facts["names"], dtype=object), np.array(facts["facts"]))
        indices = np.array(facts["pair"], dtype=np.int64), np.array(facts["reference"], dtype=np.int64)
        return cls(facts["setting"], pairs, *indices, (), np.array(facts["weights"])[None])


def _same(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    _, codes = np.unique(np.concatenate([a, b]).astype(str), return_inverse=True)
    return np.asarray(codes[: len(a), None] == codes[None, len(a) :], dtype=np.float64)


def _solve(
    covariance: np.ndarray, noise: np.ndarray, values: np.ndarray, members: Sequence[np.ndarray], trust: np.ndarray
) -> tuple[np.ndarray, float]:
    """Weights with nothing and with each group left out, and the error on the groups left out, by trust.

    Both follow from one inverse: without a group g they are r - P[:, g] P[g, g]⁻¹ r[g], where P is the inverse, r = P · values.
    """
    inverse = np.linalg.inv(covariance + np.diag(noise))
    whole = values @ inverse
    weights = np.zeros((1 + len(members), *values.shape))
    weights[0] = whole
    error = 0.0
    for code, own in enumerate(members):
        missed = np.linalg.solve(inverse[np.ix_(own, own)], whole[:, own].T).T
        weights[code + 1] = whole - missed @ inverse[own]
        weights[code + 1][:, own] = 0.0
        error += float((trust[own] * missed**2).sum())
    return weights, error
