"""H-score, with a shrunk covariance."""

from __future__ import annotations

import numpy as np

from automl_tl import Features, hookimpl

from ._inputs import indicators, labelled, spectrum


def h_score(values: np.ndarray, labels: np.ndarray) -> float:
    """tr(C_α⁻¹ (1 - α) B): variance between the classes in units of the shrunk variance of the features.

    The shrinkage-based H-score of Ibrahim, Ponomareva and Mazumder (2022), Newer is not always better: rethinking
    transferability metrics, after Bao et al. (2019). C_α = (1 - α) C + α tr(C)/d I, where C (denominator n) is the covariance
    of the features and α the shrinkage of Ledoit and Wolf (2004); B (denominator n - 1) is the covariance of the features with
    each replaced by the mean of its class.

    Args:
        values: n×d features.
        labels: n, each of 0…classes-1 in use.

    Class means are combinations of images, so all happens along the singular vectors of the centred features.
    """
    images, size = values.shape
    centred = values - values.mean(axis=0)
    vectors, squares = spectrum(centred)
    shrinkage = ledoit_wolf(centred, squares)
    shrunk = (1 - shrinkage) * squares / images + shrinkage * squares.sum() / (images * size)
    members = indicators(labels)
    between = squares * ((vectors.T @ members) ** 2 / members.sum(axis=0)).sum(axis=1) / (images - 1)
    return float((1 - shrinkage) * (between / shrunk).sum())


def ledoit_wolf(centred: np.ndarray, squares: np.ndarray) -> float:
    """Shrinkage, 0…1, of the covariance of `centred` (n×d) towards a multiple of the identity.

    Ledoit and Wolf (2004), A well-conditioned estimator for large-dimensional covariance matrices, lemma 3.3. `squares` are
    the squared singular values of `centred`.
    """
    images, size = centred.shape
    spread = (squares**2).sum() / images**2
    error = ((centred**2).sum(axis=1) ** 2).sum() / images**2 - spread / images
    distance = spread - (squares.sum() / images) ** 2 / size
    if distance <= 10 * np.finfo(np.float64).eps * spread:  # it is a multiple of the identity already
        return 0.0
    return float(np.clip(error / distance, 0.0, 1.0))


class HScore:
    """Variance between the classes relative to the (shrunk) variance of the features; higher is better."""

    name = "h-score"
    kind = "transferability"

    def score(self, target: Features, source: Features | None) -> float:
        return h_score(*labelled(target))


@hookimpl
def register_metrics() -> list[HScore]:
    return [HScore()]
