"""A linear classifier in closed form."""

from __future__ import annotations

import numpy as np

from automl_tl import Features, hookimpl

from ._inputs import indicators, labelled, spectrum

PATH = tuple(10.0**exponent for exponent in range(1, -7, -1))
"""Ridge penalties, strongest first, in units of the largest squared singular value of the centred features."""


def ridge_accuracy(values: np.ndarray, labels: np.ndarray) -> float:
    """Leave-one-out accuracy of ridge regression on class indicators, at the penalty where it is highest.

    Squared error would choose a penalty too strong where there are many classes: with the indicators nearly all 0, the mean of
    the classes is hard to beat, and whether the own class's output is the highest is another question.

    Allen (1974), The relationship between variable selection and data augmentation and a method for prediction: with the
    leverage hᵢ of an image, the residual of a model fitted without it is (yᵢ - ŷᵢ) / (1 - hᵢ). One spectral decomposition
    U, σ of the centred features serves all penalties λ: ŷ = ȳ + U diag(σ/(σ + λ)) Uᵀ y and hᵢ = 1/n + Σ uᵢ² σ/(σ + λ). The
    intercept is not penalised. An image's class is that of the highest output.

    Args:
        values: n×d features.
        labels: n, each of 0…classes-1 in use.
    """
    vectors, squares = spectrum(values - values.mean(axis=0))
    targets = indicators(labels)
    parts = vectors.T @ targets
    highest = 0.0
    for penalty in PATH:
        kept = squares / (squares + penalty * squares[-1])
        fitted = targets.mean(axis=0) + vectors @ (kept[:, None] * parts)
        leverage = 1 / len(values) + vectors**2 @ kept
        residuals = (targets - fitted) / (1 - leverage)[:, None]
        highest = max(highest, float(((targets - residuals).argmax(axis=1) == labels).mean()))
    return highest


class LinearProbe:
    """Leave-one-out accuracy of a regularised linear classifier on the features; higher is better."""

    name = "linear-probe"
    kind = "transferability"

    def score(self, target: Features, source: Features | None) -> float:
        return ridge_accuracy(*labelled(target))


@hookimpl
def register_metrics() -> list[LinearProbe]:
    return [LinearProbe()]
