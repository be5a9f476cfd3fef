"""Wrong labels are found: by hand, and where labels of real images were swapped on purpose."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits

from automl_tl.evaluation.suspects import Suspect, confident_errors, cross_validated, label_suspects


def test_thresholds_by_hand() -> None:
    """Class 0 is sure of itself at (0.9 + 0.8 + 0.1) / 3 = 0.6, class 1 at (0.7 + 0.5) / 2 = 0.6."""
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.3, 0.7], [0.5, 0.5]])
    found = confident_errors(probabilities, np.array([0, 0, 0, 1, 1]))
    assert found == [Suspect(2, 0, 1, 0.9, pytest.approx(0.8))]


def test_below_the_threshold_nobody_is_suspect() -> None:
    """0.55 for the other class is more than for its own, but less than that class's usual 0.8."""
    probabilities = np.array([[0.9, 0.1], [0.45, 0.55], [0.2, 0.8]])
    assert confident_errors(probabilities, np.array([0, 0, 1])) == []


def test_swapped_labels_come_first() -> None:
    digits = load_digits()
    values, truth = digits.data[:900], digits.target[:900]
    labels = truth.copy()
    wrong = np.random.default_rng(0).permutation(900)[:30]
    labels[wrong] = (labels[wrong] + 3) % 10
    doubts = label_suspects(values, labels, 10)
    first = doubts.suspects[:30]
    assert len({suspect.position for suspect in first} & set(wrong.tolist())) >= 20  # 1 in 30 labels is wrong
    assert sum(suspect.proposed == truth[suspect.position] for suspect in first) >= 20
    assert [suspect.margin for suspect in first] == sorted((suspect.margin for suspect in first), reverse=True)
    assert doubts.accuracy > 0.85
    assert doubts.judged == 900
    assert label_suspects(values, labels, 10) == doubts


def test_clean_labels_raise_few_doubts() -> None:
    digits = load_digits()
    doubts = label_suspects(digits.data[:900], digits.target[:900], 10)
    assert sum(suspect.margin > 0.7 for suspect in doubts.suspects) < 15


def test_classes_without_images_change_nothing() -> None:
    digits = load_digits()
    doubts = label_suspects(digits.data[:300], digits.target[:300], 10)
    among_others = label_suspects(digits.data[:300], digits.target[:300] + 500, 1000)
    assert doubts.suspects
    assert [(one.position, one.confidence, one.margin) for one in among_others.suspects] == [
        (one.position, one.confidence, one.margin) for one in doubts.suspects
    ]


def test_each_image_is_judged_by_a_model_that_did_not_see_it() -> None:
    """Features of noise: held out, they tell nothing of the labels."""
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 2
    found = cross_validated(rng.normal(size=(200, 150)), labels, 2)
    assert 0.35 < (found.argmax(axis=1) == labels).mean() < 0.65
    np.testing.assert_allclose(found.sum(axis=1), 1)


def test_small_classes_and_odd_features() -> None:
    labels = np.array([0] * 20 + [1] * 20 + [2] * 3)
    values = np.concatenate([np.random.default_rng(0).normal(labels[:, None], 0.3, (43, 4)), np.zeros((43, 2))], axis=1)
    doubts = label_suspects(values, labels, 4)
    assert doubts.judged == 40
    assert label_suspects(values, np.zeros(43, dtype=int), 1).judged == 0
    assert label_suspects(values[:4], labels[:4], 3).suspects == ()
