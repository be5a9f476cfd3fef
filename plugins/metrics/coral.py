"""CORAL distance."""

from __future__ import annotations

import numpy as np

from automl_tl import Features, hookimpl

from ._inputs import both_moments


def coral_distance(factor: np.ndarray, other: np.ndarray) -> float:
    """|C₁ - C₂|²_F / 4d²: how far apart two covariances are.

    Sun and Saenko (2016), Deep CORAL: correlation alignment for deep domain adaptation, equation 1.

    Args:
        factor, other: d×r₁ and d×r₂, with covariances C = factor @ factor.T.

    With few images the difference is taken in the span of both factors: [A B] = QR gives C₁ - C₂ = Q R diag(1, -1) Rᵀ Qᵀ, and
    Q does not change the norm. No d×d matrix is made then.
    """
    size, rank = factor.shape
    if 2 * (rank + other.shape[1]) < size:
        triangle = np.asarray(np.linalg.qr(np.hstack([factor, other]), mode="r"))
        factor, other = triangle[:, :rank], triangle[:, rank:]
    return float(((factor @ factor.T - other @ other.T) ** 2).sum() / (4 * size**2))


class Coral:
    """CORAL distance between the features of the target and of the source; 0: the same covariance."""

    name = "coral"
    kind = "distance"

    def score(self, target: Features, source: Features | None) -> float:
        (_, factor), (_, other) = both_moments(target, source)
        return coral_distance(factor, other)


@hookimpl
def register_metrics() -> list[Coral]:
    return [Coral()]
