"""Labels that look wrong: confident learning on frozen features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .calibration import cooled, fit_temperature

FOLDS = 5
DIMENSIONS = 512
"""Wider features are reduced to so many principal components, and it stays a matter of a second."""


@dataclass(frozen=True)
class Suspect:
    """An image whose neighbours in the features have another label."""

    position: int
    """Row of the features."""
    given: int
    proposed: int
    confidence: float
    """Of `proposed`, by a classifier that did not see the image."""
    margin: float
    """`confidence` less that of the given label: how strongly the label is doubted."""


@dataclass(frozen=True)
class Doubts:
    """Suspects, and how far to trust the classifier that doubts them."""

    suspects: tuple[Suspect, ...]
    """The most doubtful first."""
    judged: int
    """Images that were judged."""
    accuracy: float
    """How often the classifier agrees with the labels: where it rarely does, its doubts are weak."""


def label_suspects(values: np.ndarray, labels: np.ndarray, classes: int, *, seed: int = 0) -> Doubts:
    """Suspects among n×d features with n labels. Classes of fewer than five images are not judged."""
    judged = np.flatnonzero(np.bincount(labels, minlength=classes)[labels] >= FOLDS)
    if len(np.unique(labels[judged])) < 2:
        return Doubts((), 0, 0.0)
    held_out = cross_validated(values[judged], labels[judged], classes, seed=seed)
    found = confident_errors(held_out, labels[judged])
    suspects = tuple(Suspect(int(judged[s.position]), s.given, s.proposed, s.confidence, s.margin) for s in found)
    return Doubts(suspects, len(judged), float((held_out.argmax(axis=1) == labels[judged]).mean()))


def confident_errors(probabilities: np.ndarray, labels: np.ndarray) -> list[Suspect]:
    """Confident learning (Northcutt, Jiang and Chuang, 2021) on out-of-sample n×c `probabilities`.

    A class's threshold is the mean probability that images of its label get for it. An image counts as one of class j if its
    probability of j reaches the threshold of j (of several such classes, the most probable one); it is a suspect if j is not
    its label. Ordered by margin.
    """
    classes = probabilities.shape[1]
    threshold = np.full(classes, np.inf)  # a class without images claims none
    for label in np.unique(labels):
        threshold[label] = probabilities[labels == label, label].mean()
    claimed = np.where(probabilities >= threshold, probabilities, -1.0)
    proposed = claimed.argmax(axis=1)
    rows = np.arange(len(labels))
    margins = probabilities[rows, proposed] - probabilities[rows, labels]
    doubted = np.flatnonzero((claimed[rows, proposed] >= 0) & (proposed != labels))
    return [
        Suspect(int(i), int(labels[i]), int(proposed[i]), float(probabilities[i, proposed[i]]), float(margins[i]))
        for i in doubted[np.argsort(-margins[doubted], kind="stable")]
    ]


def cross_validated(values: np.ndarray, labels: np.ndarray, classes: int, *, seed: int = 0) -> np.ndarray:
    """n×`classes` probabilities, of each image by a linear discriminant that did not see it; five stratified folds. Classes
    without images have none: however many there are, they change nothing.

    A discriminant with a shrunken covariance (Ledoit and Wolf, 2004) is as good as a logistic regression on such features and
    is solved in one step. It is too sure of itself, so that its probabilities are cooled by the temperature that fits best.
    """
    from sklearn.decomposition import PCA
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.model_selection import StratifiedKFold

    values = values.astype(np.float64)
    size = min(DIMENSIONS, *values.shape)
    reduced = PCA(size, svd_solver="randomized", random_state=seed).fit_transform(values) if size < values.shape[1] else values
    known = np.unique(labels)
    found = np.zeros((len(labels), len(known)))
    for train, held in StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(reduced, labels):
        model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(reduced[train], labels[train])
        found[held] = model.predict_proba(reduced[held])
    spread = np.zeros((len(labels), classes))
    spread[:, known] = cooled(found, fit_temperature(found, np.searchsorted(known, labels)))
    return spread
