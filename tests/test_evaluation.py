"""Scores of predicted probabilities, against scikit-learn and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics

from automl_tl.evaluation.classification import (
    ClassScores,
    accuracy_interval,
    auroc,
    balanced_interval,
    confusion,
    intervals,
    judge,
    log_loss,
    lower_beyond_luck,
    per_class,
)


def predictions(seed: int, *, images: int = 300, classes: int = 5, skill: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that are right more often than not, and imbalanced labels."""
    rng = np.random.default_rng(seed)
    shares = np.arange(1, classes + 1) / np.arange(1, classes + 1).sum()
    labels = rng.choice(classes, images, p=shares)
    labels[:classes] = np.arange(classes)
    logits = rng.normal(size=(images, classes)) + skill * np.eye(classes)[labels]
    exponents = np.exp(logits)
    return exponents / exponents.sum(axis=1, keepdims=True), labels


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("seed", range(4))
def test_scores_are_those_of_scikit_learn(seed: int, classes: int) -> None:
    probabilities, labels = predictions(seed, classes=classes)
    predicted = probabilities.argmax(axis=1)
    chances = probabilities[:, 1] if classes == 2 else probabilities
    expected = {
        "accuracy": metrics.accuracy_score(labels, predicted),
        "balanced_accuracy": metrics.balanced_accuracy_score(labels, predicted),
        "macro_f1": metrics.f1_score(labels, predicted, average="macro"),
        "log_loss": metrics.log_loss(labels, probabilities, labels=np.arange(classes)),
        "auroc": metrics.roc_auc_score(labels, chances, multi_class="ovr", average="macro"),
    }
    scores = judge(probabilities, labels)
    assert {name: scores[name] for name in expected} == pytest.approx(expected, rel=1e-9)
    np.testing.assert_array_equal(
        confusion(probabilities, labels), metrics.confusion_matrix(labels, predicted, labels=np.arange(classes))
    )


def test_scores_of_classes_that_are_absent() -> None:
    """Class 2 never occurs and is never predicted, class 3 is predicted but never occurs; there is no AUROC then."""
    probabilities, labels = predictions(0, classes=2)
    wider = np.zeros((len(labels), 4))
    wider[:, :2] = probabilities
    wider[:7] = (0.1, 0.1, 0.0, 0.8)
    predicted = wider.argmax(axis=1)
    scores = judge(wider, labels)
    assert "auroc" not in scores
    recalls = metrics.recall_score(labels, predicted, labels=[0, 1], average=None)
    assert scores["balanced_accuracy"] == pytest.approx(recalls.mean())
    assert scores["macro_f1"] == pytest.approx(metrics.f1_score(labels, predicted, average="macro"))  # of 0, 1 and 3
    assert set(np.unique(predicted)) == {0, 1, 3}
    assert confusion(wider, labels).shape == (4, 4)


def test_scores_of_one_image_and_of_one_class() -> None:
    scores = judge(np.array([[0.2, 0.8]]), np.array([1]))
    assert scores == pytest.approx(
        {"accuracy": 1.0, "balanced_accuracy": 1.0, "macro_f1": 1.0, "log_loss": -np.log(0.8), "ece": 0.2}
    )
    all_alike = judge(np.array([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3], [0.8, 0.2]]), np.zeros(4, dtype=int))
    assert all_alike["accuracy"] == all_alike["balanced_accuracy"] == 0.75
    assert all_alike["macro_f1"] == pytest.approx((6 / 7 + 0) / 2)
    assert "auroc" not in all_alike


def test_log_loss_of_certainties_is_no_negative_zero() -> None:
    assert f"{log_loss(np.eye(2), np.array([0, 1])):.4f}" == "0.0000"


def test_log_loss_of_a_certain_mistake_is_finite() -> None:
    assert log_loss(np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([0, 1])) == pytest.approx(-np.log(1e-12) / 2)


def test_auroc_counts_ties_half() -> None:
    """Pairs (positive, negative): 0.9 > 0.4, 0.9 > 0.1, 0.4 = 0.4, 0.4 > 0.1."""
    score, positive = np.array([0.9, 0.4, 0.4, 0.1]), np.array([True, True, False, False])
    assert auroc(score, positive) == 3.5 / 4
    assert auroc(-score, positive) == 0.5 / 4
    assert auroc(np.ones(4), positive) == 0.5


@pytest.mark.parametrize(("chance", "images"), [(0.6, 400), (0.9, 400), (0.8, 100), (0.97, 30)])
def test_nine_in_ten_intervals_cover_the_truth(chance: float, images: int) -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(300):
        low, high = accuracy_interval(rng.binomial(images, chance), images, coverage=0.9)
        covered += low <= chance <= high
    assert covered / 300 == pytest.approx(0.9, abs=0.055)


def test_interval_by_hand() -> None:
    """(p + z²/2n ± z·√(p(1-p)/n + z²/4n²)) / (1 + z²/n), z = 1.96; all of 20 right: from 20/(20 + z²), and none: its mirror."""
    p, n, z = 0.8, 1000, 1.959964
    half = z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    expected = [(p + z**2 / (2 * n) + sign * half) / (1 + z**2 / n) for sign in (-1, 1)]
    assert accuracy_interval(800, 1000) == pytest.approx(expected, abs=1e-6)
    assert accuracy_interval(20, 20) == pytest.approx((20 / (20 + z**2), 1.0), abs=1e-6)
    assert accuracy_interval(0, 20) == pytest.approx((0.0, z**2 / (20 + z**2)), abs=1e-6)
    assert 0 < accuracy_interval(1, 1)[0] < 1


def test_lower_beyond_luck_by_hand() -> None:
    """All of 4 right before, none of 4 now: 1 of the 70 ways to deal out the four."""
    assert lower_beyond_luck(0.0, 4, 1.0, 4, level=1 / 70 + 1e-9)
    assert not lower_beyond_luck(0.0, 4, 1.0, 4, level=1 / 70 - 1e-9)
    assert not lower_beyond_luck(1.0, 4, 0.0, 4, level=0.9), "more is no surprise"
    rng = np.random.default_rng(0)
    alike = rng.binomial(200, 0.9, size=(2000, 2)) / 200
    assert np.mean([lower_beyond_luck(now, 200, before, 200, level=0.05) for now, before in alike]) < 0.05


def test_scores_of_each_class_by_hand() -> None:
    """Of a: three images, two found, one other taken for it. Of b: one image, missed. c never occurs nor is predicted."""
    said = np.array([0, 0, 1, 0])
    found = per_class(np.eye(3)[said], np.array([0, 0, 0, 1]), ("a", "b", "c"))
    assert found == [
        ClassScores("a", 3, pytest.approx(2 / 3), pytest.approx(2 / 3), pytest.approx(2 / 3)),
        ClassScores("b", 1, 0.0, 0.0, 0.0),
        ClassScores("c", 0, None, None, None),
    ]


def test_intervals_hold_the_scores_and_narrow_with_more_images() -> None:
    few, many = predictions(3, images=200), predictions(3, images=4000)
    widths = []
    for probabilities, labels in (few, many):
        found, scores = intervals(probabilities, labels), judge(probabilities, labels)
        assert set(found) == set(scores) - {"auroc", "ece"}
        for name in ("accuracy", "balanced_accuracy", "macro_f1", "log_loss"):
            assert found[name][0] <= scores[name] <= found[name][1]
        widths.append(found["macro_f1"][1] - found["macro_f1"][0])
    assert 3 < widths[0] / widths[1] < 7  # twenty times the images: √20 = 4.5
    assert intervals(*few) == intervals(*few)


def test_the_interval_of_accuracy_has_a_width_where_all_are_right() -> None:
    labels = np.arange(20) % 4
    found = intervals(0.6 * np.eye(4)[labels] + 0.1, labels)
    assert found["accuracy"] == accuracy_interval(20, 20)
    assert found["accuracy"][0] == pytest.approx(0.839, abs=0.001)
    assert found["balanced_accuracy"] == pytest.approx((0.847, 1.0), abs=0.001)
    assert "macro_f1" not in found, "no draw has a mistake"


@pytest.mark.parametrize("sizes", [(5,) * 10, (5,) * 100, (200, 10, 4)])
def test_nineteen_in_twenty_intervals_of_balanced_accuracy_cover_the_truth(sizes: tuple[int, ...]) -> None:
    rng, images = np.random.default_rng(0), np.array(sizes)
    chances = np.linspace(0.6, 0.95, len(sizes))
    ends = [balanced_interval(rng.binomial(images, chances), images) for _ in range(1500)]
    covered = np.mean([low <= chances.mean() <= high for low, high in ends])
    assert covered >= 0.94
