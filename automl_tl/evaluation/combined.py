"""One score out of several, with weights that a person sets; and the choices that no other choice beats in everything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from automl_tl.errors import InputError

WEIGHTS: Mapping[str, float] = {"score": 50.0, "latency": 1.0, "size": 1.0, "training": 1.0}
"""With these, half the latency (or size, or training) is worth as much as a score that is 1.4 % of itself higher."""
SMALLEST = 1e-9


@dataclass(frozen=True)
class Standing:
    """What is weighed of one trained model."""

    score: float
    """0–1; larger is better."""
    latency: float
    """Seconds for one image."""
    size: float
    """Bytes on disk."""
    training: float
    """Seconds."""


def combined_scores(standings: Sequence[Standing], weights: Mapping[str, float] = WEIGHTS) -> list[float]:
    """Weighted geometric means, 0–1: 1 is a model that is the best of all in everything.

    Each measure is put in relation to the best of `standings` (score / best score; least cost / cost) and

        combined = ∏ relation_k ^ (weight_k / Σ weights).

    It is the weighted product model of Bridgman (1922): units do not matter, twice the cost always costs the same factor, and
    a model that is hopeless in one thing cannot buy that back. It compares the given models among themselves only.

    Raises:
        InputError: a weight that is not one of score, latency, size, training; negative; or all zero.
    """
    chosen = check_weights(weights)
    if not standings:
        return []
    table = _table(standings)
    best = table.max(axis=0)  # costs are negated: the best is the largest in every column
    relation = np.empty_like(table)
    relation[:, 0] = table[:, 0] / max(best[0], SMALLEST)
    relation[:, 1:] = np.minimum(best[1:], -SMALLEST) / np.minimum(table[:, 1:], -SMALLEST)
    shares = np.array([chosen[name] for name in WEIGHTS])
    return [float(value) for value in np.prod(np.maximum(relation, 0) ** (shares / shares.sum()), axis=1)]


def pareto_front(standings: Sequence[Standing]) -> list[bool]:
    """Whether each is on the front: no other is at least as good in score, latency, size and training, and better in one."""
    table = _table(standings)
    return [not bool(((table >= row).all(axis=1) & (table > row).any(axis=1)).any()) for row in table]


def check_weights(weights: Mapping[str, float]) -> dict[str, float]:
    """All four weights; those not given are zero."""
    unknown = [name for name in weights if name not in WEIGHTS]
    if unknown:
        raise InputError(f"weight {unknown[0]!r} is not known; known: {', '.join(WEIGHTS)}")
    chosen = {name: float(weights.get(name, 0.0)) for name in WEIGHTS}
    if min(chosen.values()) < 0 or not 0 < sum(chosen.values()) < float("inf"):
        raise InputError(f"weights {dict(weights)}: none may be negative, one at least must be above zero")
    return chosen


def read_weights(texts: Sequence[str]) -> dict[str, float]:
    """`WEIGHTS` with what a person types changed: "score=50", "latency=0".

    Raises:
        InputError: one is not NAME=NUMBER, or its name is not known.
    """
    weights = dict(WEIGHTS)
    for text in texts:
        name, _, number = text.partition("=")
        try:
            weights[name.strip()] = float(number)
        except ValueError:
            raise InputError(f"weight {text!r}: write NAME=NUMBER, such as latency=2") from None
    return check_weights(weights)


def _table(standings: Sequence[Standing]) -> np.ndarray:
    """n×4, larger is better in every column."""
    return np.array([(one.score, -one.latency, -one.size, -one.training) for one in standings]).reshape(-1, 4)
