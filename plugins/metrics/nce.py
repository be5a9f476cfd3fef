"""NCE, the negative conditional entropy."""

from __future__ import annotations

import numpy as np

from automl_tl import Features, hookimpl

from ._inputs import beliefs


def nce(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """-H(Y | Z) = Σ P(y, z) log(P(y, z) / P(z)), where z is the source class that the head finds most probable.

    Tran, Nguyen and Hassner (2019), Transferability and hardness of supervised classification tasks.

    Args:
        probabilities: n×(source classes).
        labels: n, 0…classes-1.
    """
    pairs, joint = np.unique(np.stack([probabilities.argmax(axis=1), labels]), axis=1, return_counts=True)
    seen = np.bincount(pairs[0], weights=joint)[pairs[0]]
    return float((joint * np.log(joint / seen)).sum() / len(labels))


class NCE:
    """How much of the labels the source head's first choice leaves open, in nats, negated; 0 is best."""

    name = "nce"
    kind = "transferability"

    def score(self, target: Features, source: Features | None) -> float:
        return nce(*beliefs(target))


@hookimpl
def register_metrics() -> list[NCE]:
    return [NCE()]
