"""LogME, the logarithm of the maximum evidence."""

from __future__ import annotations

import numpy as np

from automl_tl import Features, hookimpl

from ._inputs import indicators, labelled, spectrum

ROUNDS = 1000
CONVERGED = 1e-6
RANGE = 1e10
"""The noise-to-weight ratio stays within this factor of the largest squared singular value. Beyond, the evidence does not
change any more, or (noise-free labels) grows for ever."""


def logme(values: np.ndarray, labels: np.ndarray) -> float:
    """Mean over the classes of max over α, β of log p(y | F, α, β) / n, for y = Fw + noise, w ~ N(0, 1/α), noise ~ N(0, 1/β).

    You et al. (2021), LogME: practical assessment of pre-trained models for transfer learning; the fixed point is that of
    You et al. (2022), Ranking and tuning pre-trained models. y says which images are of the class (1 or 0).

    Args:
        values: n×d features F, neither centred nor scaled.
        labels: n, each of 0…classes-1 in use.

    With squared singular values σ of F, parts x of y along the left singular vectors, and t = α/β, the fixed point is
    t ← γ·r / (m·(n - γ)) with γ = Σ σ/(σ + t), r = |y - Fw|², m = |w|². At it the evidence depends on t alone:
    -½ (log 2π + 1 + log(q/n) + Σ log(1 + σ/t)/n) with q = r + t·m. All classes go through it at once.
    """
    vectors, squares = spectrum(values)
    images, rank = vectors.shape
    targets = indicators(labels)
    parts = (vectors.T @ targets) ** 2
    beyond = np.maximum(targets.sum(axis=0) - parts.sum(axis=0), 0.0) if rank < images else np.zeros(targets.shape[1])
    sigma = squares[:, None]
    ratio = np.full(targets.shape[1], squares.mean())
    for _ in range(ROUNDS):
        before = ratio
        noise = ratio / (sigma + ratio)
        residual = (parts * noise**2).sum(axis=0) + beyond
        weights = (parts * sigma / (sigma + ratio) ** 2).sum(axis=0)
        with np.errstate(divide="ignore"):  # no weights at all: the ratio goes to the end of its range
            ratio = residual * (1 - noise).sum(axis=0) / (weights * (noise.sum(axis=0) + images - rank))
        ratio = np.clip(ratio, squares[-1] / RANGE, squares[-1] * RANGE)
        if np.abs(np.log(ratio / before)).max() < CONVERGED:
            break
    fit = (parts * (ratio / (sigma + ratio))).sum(axis=0) + beyond
    evidence = -(np.log(2 * np.pi) + 1 + np.log(fit / images) + np.log1p(sigma / ratio).sum(axis=0) / images) / 2
    return float(evidence.mean())


class LogME:
    """Evidence of a linear model of the labels on the features, a nat an image; higher is better."""

    name = "logme"
    kind = "transferability"

    def score(self, target: Features, source: Features | None) -> float:
        return logme(*labelled(target))


@hookimpl
def register_metrics() -> list[LogME]:
    return [LogME()]
