"""How good predicted probabilities are. Everything takes n×c `probabilities` and n integer `labels`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BINS = 15


@dataclass(frozen=True)
class Bin:
    """Predictions of like confidence."""

    low: float
    high: float
    count: int
    confidence: float
    """Mean confidence."""
    accuracy: float


def judge(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Accuracy, balanced accuracy, macro-F1, log-loss, calibration error, and AUROC where it is defined.

    - balanced accuracy: mean recall of the classes that occur;
    - macro-F1: mean F1 of the classes that occur or are predicted;
    - log-loss: mean −log of the probability given to the true class;
    - calibration error (ECE; Guo et al., 2017): mean |confidence − accuracy| over 15 bins of equal width, by their counts;
    - AUROC: one class against the rest, mean over the classes; left out unless every class occurs and not all labels are alike.
    """
    predicted = probabilities.argmax(axis=1)
    counts = confusion(probabilities, labels)
    right, truth, said = np.diag(counts).astype(float), counts.sum(axis=1), counts.sum(axis=0)
    occurs = truth > 0
    f1 = 2 * right / np.maximum(truth + said, 1)
    scores = {
        "accuracy": float((predicted == labels).mean()),
        "balanced_accuracy": float((right[occurs] / truth[occurs]).mean()),
        "macro_f1": float(f1[occurs | (said > 0)].mean()),
        "log_loss": log_loss(probabilities, labels),
        "ece": calibration_error(probabilities, labels),
    }
    if occurs.all() and len(truth) > 1:
        scores["auroc"] = float(np.mean([auroc(probabilities[:, c], labels == c) for c in range(len(truth))]))
    return scores


def log_loss(probabilities: np.ndarray, labels: np.ndarray) -> float:
    chosen = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return float(-np.log(np.clip(chosen, 1e-12, 1.0)).mean())


def auroc(score: np.ndarray, positive: np.ndarray) -> float:
    """Chance that a positive scores above a negative, ties counting half (Mann and Whitney); needs both."""
    from scipy.stats import rankdata

    ranks = rankdata(score)
    positives = int(positive.sum())
    negatives = len(positive) - positives
    return float((ranks[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def confusion(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """c×c counts: true class by predicted class."""
    classes = probabilities.shape[1]
    flat = labels * classes + probabilities.argmax(axis=1)
    return np.bincount(flat, minlength=classes * classes).reshape(classes, classes)


def reliability(probabilities: np.ndarray, labels: np.ndarray, *, bins: int = BINS) -> list[Bin]:
    """Occupied bins of equal width, by the confidence of the prediction."""
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == labels
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    found = []
    for number in np.unique(place):
        inside = place == number
        edges = (number / bins, (number + 1) / bins)
        found.append(Bin(*edges, int(inside.sum()), float(confidence[inside].mean()), float(right[inside].mean())))
    return found


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    total = len(labels)
    return sum(one.count / total * abs(one.confidence - one.accuracy) for one in reliability(probabilities, labels))


def bootstrap_interval(right: np.ndarray, *, seed: int = 0, draws: int = 2000, coverage: float = 0.95) -> tuple[float, float]:
    """Percentile interval of the mean of `right` (n truth values): accuracy on another sample of the same size."""
    counts = np.random.default_rng(seed).binomial(len(right), right.mean(), size=draws)
    tail = (1 - coverage) / 2
    low, high = np.quantile(counts / len(right), [tail, 1 - tail])
    return float(low), float(high)
