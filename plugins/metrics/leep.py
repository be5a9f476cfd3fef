"""LEEP, the log expected empirical prediction."""

from __future__ import annotations

import numpy as np

from automl_tl import Features, hookimpl

from ._inputs import beliefs


def leep(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """(1/n) Σᵢ log Σ_z P(yᵢ | z) θ(xᵢ)_z: log-likelihood of the labels when source classes are translated into target classes.

    Nguyen et al. (2020), LEEP: a new measure to evaluate transferability of learned representations. P(y, z) is the mean over
    the images of class y of what the source head says of z, times the share of y; P(y | z) = P(y, z) / P(z).

    Args:
        probabilities: n×(source classes) θ, each row a distribution.
        labels: n, each of 0…classes-1 in use.
    """
    members = [probabilities[labels == label] for label in range(labels.max() + 1)]
    joint = np.stack([rows.sum(axis=0) for rows in members])
    seen = joint.sum(axis=0)
    translation = np.divide(joint, seen, out=np.zeros_like(joint), where=seen > 0)
    return float(sum(np.log(rows @ given).sum() for rows, given in zip(members, translation, strict=True)) / len(labels))


class LEEP:
    """How well the source head's classes, translated, predict the labels; 0 is best."""

    name = "leep"
    kind = "transferability"

    def score(self, target: Features, source: Features | None) -> float:
        return leep(*beliefs(target))


@hookimpl
def register_metrics() -> list[LEEP]:
    return [LEEP()]
