"""How good predicted probabilities are. Everything takes n×c `probabilities` and n integer `labels`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from automl_tl.errors import InputError

from .calibration import calibration_error

DRAWS = 200
"""Bootstrap samples of `intervals`."""
FEW = 10
"""Images of a class, with less of which a bootstrap of its F1 says too little."""


@dataclass(frozen=True)
class ClassScores:
    """How one class fares; None: undefined, as it never occurs, or is never predicted."""

    name: str
    images: int
    recall: float | None
    precision: float | None
    f1: float | None


def judge(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Accuracy, balanced accuracy, macro-F1, log-loss, calibration error, and AUROC where it is defined.

    - balanced accuracy: mean recall of the classes that occur;
    - macro-F1: mean F1 of the classes that occur or are predicted;
    - log-loss: mean −log of the probability given to the true class;
    - calibration error (ECE; Guo et al., 2017): mean |confidence − accuracy| over 15 bins of equal width, by their counts;
    - AUROC: one class against the rest, mean over the classes; left out unless every class occurs and not all labels are alike.

    Raises:
        InputError: there is nothing to judge, or a probability is not a number.
    """
    _check(probabilities, labels)
    counts = confusion(probabilities, labels)
    right, truth = np.diag(counts), counts.sum(axis=1)
    occurs = truth > 0
    scores = {
        "accuracy": float(right.sum() / len(labels)),
        "balanced_accuracy": float((right[occurs] / truth[occurs]).mean()),
        "macro_f1": _macro_f1(counts),
        "log_loss": log_loss(probabilities, labels),
        "ece": calibration_error(probabilities, labels),
    }
    if occurs.all() and len(truth) > 1:
        scores["auroc"] = float(np.mean([auroc(probabilities[:, c], labels == c) for c in range(len(truth))]))
    return scores


def _check(probabilities: np.ndarray, labels: np.ndarray) -> None:
    if not len(labels) or len(probabilities) != len(labels):
        raise InputError(f"there are {len(probabilities)} predictions for {len(labels)} labels; needed is one for each of some")
    finite = np.isfinite(probabilities).all(axis=1)
    if not finite.all():
        image = int(np.argmin(finite))
        value = probabilities[image][~np.isfinite(probabilities[image])][0]
        raise InputError(f"the network says {value} of image {image} of {len(labels)}, which is no probability")


def _macro_f1(counts: np.ndarray) -> float:
    """Of a `confusion`."""
    right, truth, said = np.diag(counts).astype(float), counts.sum(axis=1), counts.sum(axis=0)
    f1 = 2 * right / np.maximum(truth + said, 1)
    return float(f1[(truth > 0) | (said > 0)].mean())


def per_class(probabilities: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> list[ClassScores]:
    """Recall, precision and F1 of each class, in the order of `names`."""
    matrix = confusion(probabilities, labels)
    rows = zip(names, np.diag(matrix).tolist(), matrix.sum(axis=1).tolist(), matrix.sum(axis=0).tolist(), strict=True)
    return [
        ClassScores(
            name,
            truth,
            right / truth if truth else None,
            right / said if said else None,
            2 * right / (truth + said) if truth + said else None,
        )
        for name, right, truth, said in rows
    ]


def log_loss(probabilities: np.ndarray, labels: np.ndarray) -> float:
    return float(_losses(probabilities, labels).mean())


def _losses(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """n: the log-loss of each image."""
    chosen = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return np.asarray(0.0 - np.log(np.clip(chosen, 1e-12, 1.0)))  # of certainties 0.0, not -0.0


def auroc(score: np.ndarray, positive: np.ndarray) -> float:
    """Chance that a positive scores above a negative, ties counting half (Mann and Whitney); needs both."""
    from scipy.stats import rankdata

    ranks = rankdata(score)
    positives = int(positive.sum())
    negatives = len(positive) - positives
    return float((ranks[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def lower_beyond_luck(share: float, images: int, share_before: float, images_before: int, *, level: float = 1e-3) -> bool:
    """Whether a `share` of `images` is less than the `share_before` of others, beyond luck (Fisher's exact test, one-sided).

    The level is strict: where the others are those that a model was chosen by, their share is the best of many.
    """
    from scipy.stats import fisher_exact

    counts = ((round(share * images), images), (round(share_before * images_before), images_before))
    return bool(fisher_exact([[right, of - right] for right, of in counts], alternative="less").pvalue < level)


def confusion(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """c×c counts: true class by predicted class."""
    classes = probabilities.shape[1]
    return _counted(labels * classes + probabilities.argmax(axis=1), classes)


def _counted(cells: np.ndarray, classes: int) -> np.ndarray:
    """classes×classes counts of cells that are numbered row by row."""
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def accuracy_interval(right: int, images: int, *, coverage: float = 0.95) -> tuple[float, float]:
    """Wilson's interval (1927) of an accuracy, `right` of `images` being right: the shares that a test by it would not reject.

    It has a width where all images are right, or none is: a bootstrap would draw the same again and again.
    """
    from scipy.stats import binomtest

    found = binomtest(right, images).proportion_ci(coverage, method="wilson")
    return float(found.low), float(found.high)


def balanced_interval(right: np.ndarray, images: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean recall of classes, `right` of whose `images` are right: mean ± 1.96 √Σ p(1 - p)/n / classes.

    The p of a class is (right + 1) / (n + 2), Laplace's rule of succession: with plain shares, as with a bootstrap, a class of
    whose few images none is wrong would have no width.
    """
    recall, expected = right / images, (right + 1) / (images + 2)
    reach = 1.96 * float(np.sqrt((expected * (1 - expected) / images).sum())) / len(recall)
    return max(float(recall.mean()) - reach, 0.0), min(float(recall.mean()) + reach, 1.0)


def intervals(
    probabilities: np.ndarray, labels: np.ndarray, *, seed: int = 0, draws: int = DRAWS
) -> dict[str, tuple[float, float]]:
    """`accuracy_interval`, `balanced_interval`, and 95 % percentile bootstrap intervals (Efron, 1979) of macro-F1 and log-loss.

    For the bootstrap, images are drawn with replacement; a score of a draw is that of the classes that occur in it. Macro-F1 has
    none where a class has less than `FEW` images or no image is wrong: what draws then show is narrower than the truth.
    Calibration error is left out, as drawing twice the same images adds to it, so that its interval would lie too high; AUROC
    for its time: it sorts all images once a class and draw.
    """
    rng = np.random.default_rng(seed)
    classes = probabilities.shape[1]
    cells, losses = labels * classes + probabilities.argmax(axis=1), _losses(probabilities, labels)
    drawn_of: dict[str, list[float]] = {"macro_f1": [], "log_loss": []}
    for _ in range(draws):
        drawn = rng.integers(len(labels), size=len(labels))
        drawn_of["macro_f1"].append(_macro_f1(_counted(cells[drawn], classes)))
        drawn_of["log_loss"].append(float(losses[drawn].mean()))
    counts = _counted(cells, classes)
    right, images = np.diag(counts), counts.sum(axis=1)
    right, images = right[images > 0], images[images > 0]
    if images.min() < FEW or right.sum() == len(labels):
        del drawn_of["macro_f1"]
    ends = {name: np.quantile(values, [0.025, 0.975]) for name, values in drawn_of.items()}
    return {
        "accuracy": accuracy_interval(int(right.sum()), len(labels)),
        "balanced_accuracy": balanced_interval(right, images),
        **{name: (float(low), float(high)) for name, (low, high) in ends.items()},
    }
