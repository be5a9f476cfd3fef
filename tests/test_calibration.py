"""Confidence against accuracy, and the temperature that brings them together."""

from __future__ import annotations

import numpy as np
import pytest

from automl_tl.evaluation.calibration import calibration_error, choose_temperature, cooled, fit_temperature, reliability
from automl_tl.evaluation.classification import judge, log_loss


def test_calibration_error_by_hand() -> None:
    """Confidences 0.5, 0.5, 0.5 (one right), 0.99, 1.0 (both right), 0.7 (wrong)."""
    top = np.array([0.5, 0.5, 0.5, 0.99, 1.0, 0.7])
    probabilities = np.stack([top, 1 - top], axis=1)
    labels = np.array([0, 1, 1, 0, 0, 1])
    bins = reliability(probabilities, labels)
    assert [(one.count, one.confidence, one.accuracy) for one in bins] == [
        (3, pytest.approx(0.5), pytest.approx(1 / 3)),
        (1, pytest.approx(0.7), 0.0),
        (2, pytest.approx(0.995), 1.0),
    ]
    assert [(round(one.low * 15), round(one.high * 15)) for one in bins] == [(7, 8), (10, 11), (14, 15)]
    expected = 3 / 6 * (1 / 2 - 1 / 3) + 1 / 6 * 0.7 + 2 / 6 * 0.005
    assert calibration_error(probabilities, labels) == pytest.approx(expected)
    assert judge(probabilities, labels)["ece"] == pytest.approx(expected)


def test_calibration_of_honest_and_of_boastful_predictions() -> None:
    rng = np.random.default_rng(0)
    chance = rng.uniform(0.5, 1, 20_000)
    labels = (rng.uniform(size=len(chance)) > chance).astype(int)
    honest = np.stack([chance, 1 - chance], axis=1)
    boastful = np.tile((0.999, 0.001), (len(chance), 1))
    assert calibration_error(honest, labels) < 0.02
    assert calibration_error(boastful, labels) == pytest.approx(0.25, abs=0.02)


def softmax(logits: np.ndarray) -> np.ndarray:
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)


def honest(images: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose softmax is the truth, and labels drawn from it."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (images, 3))
    labels = np.array([rng.choice(3, p=row) for row in softmax(logits)])
    return logits, labels


def test_a_temperature_divides_the_logits() -> None:
    logits = np.array([[2.0, 0.0, -1.0], [0.5, 0.5, 3.0]])
    np.testing.assert_allclose(cooled(softmax(logits), 2.0), softmax(logits / 2), rtol=1e-12)
    np.testing.assert_allclose(cooled(softmax(logits), 1.0), softmax(logits), rtol=1e-12)
    certain = cooled(np.array([[1.0, 0.0]], dtype=np.float32), 2.0)
    assert certain[0, 1] == pytest.approx(1e-6, rel=1e-3)  # 1e-12, to the half


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_the_temperature_that_was_applied_is_found(factor: float) -> None:
    logits, labels = honest(4000)
    loud = softmax(logits * factor)
    found = fit_temperature(loud, labels)
    assert found == pytest.approx(factor, rel=0.1)
    assert log_loss(cooled(loud, found), labels) <= log_loss(loud, labels)
    assert calibration_error(cooled(loud, found), labels) < 0.03
    np.testing.assert_array_equal(cooled(loud, found).argmax(1), loud.argmax(1))


def test_two_predictions_by_hand() -> None:
    """Right at odds of 1:9 once in ten: honest. At 1:99 as often right: logits ln 99 must become ln 9."""
    labels = np.array([1] + [0] * 9)
    assert fit_temperature(np.tile((0.9, 0.1), (10, 1)), labels) == pytest.approx(1.0, rel=1e-3)
    assert fit_temperature(np.tile((0.99, 0.01), (10, 1)), labels) == pytest.approx(np.log(99) / np.log(9), rel=1e-3)


def test_a_temperature_is_chosen_only_where_it_helps_on_other_images() -> None:
    logits, labels = honest(600)
    assert choose_temperature(softmax(logits * 3), labels) == pytest.approx(3.0, rel=0.2)
    few, known = honest(9)
    assert choose_temperature(softmax(few * 3), known) == 1.0  # too few to tell
    lucky = sum(choose_temperature(softmax(honest(60, seed=s)[0]), honest(60, seed=s)[1]) != 1.0 for s in range(20))
    assert lucky < 14  # honest already: a coin at most, where a fit on the same images would always find something


@pytest.mark.parametrize(("classes", "images"), [(2, 20), (2, 100), (10, 60)])
def test_images_that_are_all_right_do_not_ask_for_boundless_confidence(classes: int, images: int) -> None:
    """By hand: n images that are all right at a confidence of 0.7 are as good as a confidence of (n + 1)/(n + 2)."""
    labels = np.arange(images) % classes
    probabilities = np.full((images, classes), 0.3 / (classes - 1))
    probabilities[np.arange(images), labels] = 0.7
    found = choose_temperature(probabilities, labels)
    assert cooled(probabilities, found).max(axis=1) == pytest.approx((images + 1) / (images + 2), abs=1e-3)
    assert choose_temperature(probabilities, labels) == found


def test_doubt_spares_those_who_are_honest_and_mostly_right() -> None:
    """100 classes, nearly all right, confidences that are the truth: smoothing must not make them much less sure."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1, (400, 100))
    logits[np.arange(400), rng.integers(100, size=400)] += 8.0
    truth = softmax(logits)
    labels = np.array([rng.choice(100, p=row) for row in truth])
    assert (truth.argmax(1) == labels).mean() > 0.9
    assert choose_temperature(truth, labels) == pytest.approx(1.0, abs=0.1)
    assert choose_temperature(softmax(logits * 2), labels) == pytest.approx(2.0, rel=0.1)
