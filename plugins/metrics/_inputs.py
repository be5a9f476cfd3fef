"""What the metrics take out of `Features`: checked float64 arrays, or an InputError that says why there is nothing to measure."""

from __future__ import annotations

import numpy as np

from automl_tl import Features
from automl_tl.errors import InputError

LARGEST = 1e75
"""The fourth power of a feature, summed, still fits a float64."""


ROUNDING = 1e-12
"""By so much a distribution of float64 may add up to more or less than 1."""


def samples(target: Features, source: Features | None) -> tuple[np.ndarray, np.ndarray]:
    """The features of both sides, as they are stored (n×d and m×d, n and m at least 2)."""
    if source is None:
        raise InputError("a distance needs a source, and none is given")
    found = _matrix(target.values, "target"), _matrix(source.values, "source")
    for values, side in zip(found, ("target", "source"), strict=True):
        _require_two(values, side)
    _require_same_width(found[0].shape[1], found[1].shape[1])
    return found


def moments(features: Features, side: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean (d) and a factor of the covariance (d×r): what is stored of the whole source, or else what `values` give.

    The covariance is factor @ factor.T. That of n images has n - 1 in its denominator and a d×n factor.
    """
    if features.mean is not None and features.factor is not None:
        factor = _matrix(features.factor, f"{side}'s covariance factor").astype(np.float64)
        mean = _matrix(features.mean[None], f"{side}'s mean")[0].astype(np.float64)
        _require_same_width(len(mean), len(factor))
        return mean, factor
    values = _matrix(features.values, side)
    _require_two(values, side)
    mean = values.mean(axis=0, dtype=np.float64)
    centred = values - mean
    centred /= np.sqrt(len(values) - 1)
    return mean, centred.T


def both_moments(
    target: Features, source: Features | None
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """`moments` of target and source, which must have the same number of features."""
    if source is None:
        raise InputError("a distance needs a source, and none is given")
    found = moments(target, "target"), moments(source, "source")
    _require_same_width(len(found[0][0]), len(found[1][0]))
    return found


def labelled(target: Features) -> tuple[np.ndarray, np.ndarray]:
    """Features (n×d, scaled so that the largest magnitude is 1) and labels (n, each of 0…classes-1 in use).

    The scores of labelled features do not depend on their scale; a magnitude of 1 keeps all powers within float64.
    """
    values = _matrix(target.values, "target")
    labels = _labels(target, len(values))
    if (values == values[0]).all():
        raise InputError("the features are the same for every image, so they say nothing about the labels")
    return values / np.abs(values).max().astype(np.float64), labels


def beliefs(target: Features) -> tuple[np.ndarray, np.ndarray]:
    """What the source head says (n×source classes, each row a distribution) and labels (n, each of 0…classes-1 in use)."""
    if target.probabilities is None:
        raise InputError("this backbone has no source head, so there are no probabilities of source classes")
    probabilities = _shaped(target.probabilities, "source head").astype(np.float64, copy=False)
    labels = _labels(target, len(probabilities))
    totals = probabilities.sum(axis=1, keepdims=True)
    fine = (probabilities.min(axis=1) >= 0) & (totals[:, 0] > 0) & (totals[:, 0] < np.inf)  # two passes: there may be many
    if not fine.all():
        _matrix(probabilities, "source head")
        raise InputError(f"row {np.argmin(fine)} of the source head's probabilities is not a distribution; give its softmax")
    if (np.abs(totals - 1) > ROUNDING).any():  # a copy of many images costs more than the score itself
        probabilities = probabilities / totals
    return probabilities, labels


def spectrum(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Left singular vectors (n×k) and squared singular values (k) of `values` (n×d), without those that are only rounding.

    Through the eigenvectors of the smaller Gram matrix: several times faster than a singular value decomposition, and as good
    wherever the squared singular values are added to something larger than rounding (a ridge, a noise level).
    """
    rows, columns = values.shape
    gram = values @ values.T if rows <= columns else values.T @ values
    squares, vectors = np.linalg.eigh(gram)
    kept = squares > max(rows, columns) * np.finfo(np.float64).eps * squares[-1]
    squares, vectors = squares[kept], vectors[:, kept]
    return (vectors if rows <= columns else values @ vectors / np.sqrt(squares)), squares


def indicators(labels: np.ndarray) -> np.ndarray:
    """n×classes: 1 where the image is of the class, else 0."""
    return np.asarray(np.eye(labels.max() + 1)[labels])


def _shaped(values: np.ndarray, side: str) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim != 2 or 0 in values.shape:
        raise InputError(f"the features of the {side} have shape {values.shape}; needed is images × features, neither of them 0")
    return values


def _matrix(values: np.ndarray, side: str) -> np.ndarray:
    values = _shaped(values, side)
    if not max(float(values.max()), -float(values.min())) <= LARGEST:  # also NaN
        row, column = np.argwhere(~(np.abs(values.astype(np.float64)) <= LARGEST))[0]
        raise InputError(f"feature {column} of row {row} of the {side} is {values[row, column]}, not a finite number of use")
    return values


def _labels(target: Features, images: int) -> np.ndarray:
    if target.labels is None:
        raise InputError("transferability needs labels, and the target has none")
    if len(target.labels) != images:
        raise InputError(f"there are {len(target.labels)} labels for {images} images")
    found, labels = np.unique(target.labels, return_inverse=True)
    if len(found) < 2:
        raise InputError(f"transferability needs two classes; all {images} images are of class {found[0]}")
    return labels


def _require_two(values: np.ndarray, side: str) -> None:
    if len(values) < 2:
        raise InputError(f"the {side} has one image; a spread needs at least two")


def _require_same_width(one: int, other: int) -> None:
    if one != other:
        raise InputError(f"{one} features on one side and {other} on the other: both must come from the same backbone")
