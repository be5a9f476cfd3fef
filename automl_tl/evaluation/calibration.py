"""Whether a confidence of 0.8 is right four times in five, and how to make it so. n×c `probabilities`, n integer `labels`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BINS = 15
COLDEST, HOTTEST = 0.05, 20.0
"""Temperatures that are considered."""
FOLDS = 5
SMALLEST = 1e-12
"""Probabilities below count as this: a softmax in single precision gives zeros."""


@dataclass(frozen=True)
class Bin:
    """Predictions of like confidence."""

    low: float
    high: float
    count: int
    confidence: float
    """Mean confidence."""
    accuracy: float


def reliability(probabilities: np.ndarray, labels: np.ndarray) -> list[Bin]:
    """Occupied bins of equal width, by the confidence of the prediction."""
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == labels
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    found = []
    for number in np.unique(place):
        inside = place == number
        edges = (number / BINS, (number + 1) / BINS)
        found.append(Bin(*edges, int(inside.sum()), float(confidence[inside].mean()), float(right[inside].mean())))
    return found


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean |confidence − accuracy| of the bins of `reliability`, by their counts (ECE; Guo et al., 2017)."""
    total = len(labels)
    return sum(one.count / total * abs(one.confidence - one.accuracy) for one in reliability(probabilities, labels))


def cooled(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """What a softmax of logits / `temperature` gives: p^(1/T), scaled to a sum of one. The order of the classes stays."""
    scaled: np.ndarray = np.exp(_log_cooled(probabilities, temperature))
    return scaled


def fit_temperature(probabilities: np.ndarray, labels: np.ndarray, *, doubt: float = 0.0) -> float:
    """The temperature with the lowest log-loss on these predictions (Guo et al., 2017); above 1: they were too confident.

    With `doubt`, each label counts as wrong with that chance; the other classes then share it as the predictions would have it.
    """
    from scipy.optimize import minimize_scalar

    bounds = (np.log(COLDEST), np.log(HOTTEST))
    found = minimize_scalar(lambda t: _loss(probabilities, labels, float(np.exp(t)), doubt), bounds=bounds, method="bounded")
    return float(np.exp(found.x))


def choose_temperature(probabilities: np.ndarray, labels: np.ndarray, *, seed: int = 0) -> float:
    """`fit_temperature` where it helps on images that it was not fitted on, else 1.

    On the images that it is fitted on a temperature cannot do harm, so it is judged by five-fold cross-validation. A few dozen
    validation images that are all right would ask for boundless confidence, and so would each of the folds. So targets are
    smoothed as by Platt (1999): of n images the label counts (n + 1)/(n + 2), the chance that the next one is right where n were,
    if nothing was known before. 20 images that are all right ask for a confidence of 21/22. Platt counts the images of a class;
    one number is fitted here on those of all classes, so that n is all of them.
    """
    if len(labels) < 2 * FOLDS:
        return 1.0
    fold = np.random.default_rng(seed).permutation(len(labels)) % FOLDS
    before, after = 0.0, 0.0
    for number in range(FOLDS):
        inside, held = fold != number, fold == number
        temperature = _smoothed(probabilities[inside], labels[inside])
        before += _loss(probabilities[held], labels[held], 1.0) * held.sum()
        after += _loss(probabilities[held], labels[held], temperature) * held.sum()
    return _smoothed(probabilities, labels) if after < before else 1.0


def _smoothed(probabilities: np.ndarray, labels: np.ndarray) -> float:
    return fit_temperature(probabilities, labels, doubt=1 / (len(labels) + 2))


def _log_cooled(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    logits = np.log(np.clip(probabilities.astype(np.float64), SMALLEST, None)) / temperature
    logits -= logits.max(axis=1, keepdims=True)
    found: np.ndarray = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return found


def _loss(probabilities: np.ndarray, labels: np.ndarray, temperature: float, doubt: float = 0.0) -> float:
    rows = np.arange(len(labels))
    found = _log_cooled(probabilities, temperature)
    right = found[rows, labels].mean()
    if not doubt:
        return float(-right)
    others = np.clip(probabilities.astype(np.float64), SMALLEST, None)
    others[rows, labels] = 0.0
    wrong = (others * found).sum(axis=1) / others.sum(axis=1)
    return float(-(1 - doubt) * right - doubt * wrong.mean())
