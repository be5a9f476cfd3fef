"""Every metric against its definition, written out plainly, and against numbers that are known in closed form."""

from __future__ import annotations

import math
import tracemalloc
from collections import Counter

import numpy as np
import pytest
import scipy.linalg
from automl_tl_plugins.metrics.batch_norm import BatchNorm, divergence, frechet
from automl_tl_plugins.metrics.coral import Coral, coral_distance
from automl_tl_plugins.metrics.frechet import Frechet, frechet_distance
from automl_tl_plugins.metrics.h_score import HScore, h_score
from automl_tl_plugins.metrics.knn import KNN, knn_accuracy
from automl_tl_plugins.metrics.leep import LEEP, leep
from automl_tl_plugins.metrics.linear_probe import PATH, LinearProbe, ridge_accuracy
from automl_tl_plugins.metrics.logme import LogME, logme
from automl_tl_plugins.metrics.mmd import MMD, mmd2
from automl_tl_plugins.metrics.nce import NCE, nce
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal
from sklearn.covariance import LedoitWolf
from sklearn.datasets import load_digits

from automl_tl import Features, Norms, registry
from automl_tl.errors import InputError

DISTANCES = [Frechet(), MMD(), Coral()]
FEATURE_SCORES = [LogME(), HScore(), KNN(), LinearProbe()]
HEAD_SCORES = [LEEP(), NCE()]
SIX_DIGITS = 1e-6


def by_name(metric: object) -> str:
    return str(metric.name)  # type: ignore[attr-defined]


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Raw 8×8 pixels of real handwriting, float32 like features; three pixels are 0 in all images."""
    values, labels = load_digits(return_X_y=True)
    return values.astype(np.float32), labels


def random_labelled(images: int, size: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(images + size)
    labels = np.arange(images) % classes
    return (rng.normal(size=(images, size)) + rng.normal(size=(classes, size))[labels]).astype(np.float32), labels


def real_labelled() -> tuple[np.ndarray, np.ndarray]:
    values, labels = digits()
    return values[:150], labels[:150]


LABELLED = {
    "random, more images": random_labelled(90, 12, 3),
    "random, more features": random_labelled(40, 70, 4),
    "real, more images": real_labelled(),
    "real, more features": (real_labelled()[0][:50], real_labelled()[1][:50]),
}
labelled_sets = pytest.mark.parametrize(("values", "labels"), LABELLED.values(), ids=LABELLED.keys())


def pairs_of_samples() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    pixels, labels = digits()
    pixels = pixels[:, pixels.var(axis=0) > 1]
    return {
        "random, more images": (rng.normal(size=(80, 10)), rng.normal(0.5, 2, size=(60, 10))),
        "random, few images": (rng.normal(size=(12, 40)), rng.normal(0.5, 2, size=(9, 40))),
        "random, few against many": (rng.normal(size=(12, 40)), rng.normal(0.5, 2, size=(90, 40))),
        "real, more images": (pixels[labels < 5], pixels[labels >= 5]),
        "real, few images": (pixels[:20], pixels[labels >= 5][:25]),
    }


PAIRS = pairs_of_samples()
sample_pairs = pytest.mark.parametrize(("x", "y"), PAIRS.values(), ids=PAIRS.keys())


# Fréchet


@sample_pairs
def test_frechet_is_the_formula_with_the_matrix_square_root(x: np.ndarray, y: np.ndarray) -> None:
    one, other = np.cov(x, rowvar=False, dtype=np.float64), np.cov(y, rowvar=False, dtype=np.float64)
    root = scipy.linalg.sqrtm(one @ other)
    means = x.mean(axis=0, dtype=np.float64) - y.mean(axis=0, dtype=np.float64)
    expected = means @ means + np.trace(one) + np.trace(other) - 2 * np.trace(root).real
    # Where the covariances are singular, it is sqrtm that is wrong, by the root of the rounding: closed forms below.
    singular = min(len(x), len(y)) <= x.shape[1]
    assert Frechet().score(Features(x), Features(y)) == pytest.approx(expected, rel=1e-5 if singular else SIX_DIGITS)


def factors_of_known_distance(size: int, rank: int, images: int) -> tuple[np.ndarray, np.ndarray, float]:
    """d×images factors of two covariances with the same eigenvectors, `rank` of them not 0, and their Fréchet distance."""
    rng = np.random.default_rng(size + rank)
    axes = np.linalg.qr(rng.normal(size=(size, size)))[0]
    spreads = np.zeros((2, size))
    spreads[0, :rank], spreads[1, size - rank :] = 10.0 ** -np.linspace(0, 6, rank), 10.0 ** np.linspace(-6, 0, rank)
    mixing = np.linalg.qr(rng.normal(size=(max(images, size), size)))[0].T
    one, other = (axes @ (np.diag(spread) @ mixing) for spread in spreads)
    return one, other, float(((spreads[0] - spreads[1]) ** 2).sum())


@pytest.mark.parametrize(("size", "rank", "images"), [(30, 30, 30), (30, 30, 200), (30, 22, 30), (30, 22, 200), (30, 1, 60)])
def test_frechet_keeps_its_digits_for_singular_and_ill_conditioned_covariances(size: int, rank: int, images: int) -> None:
    one, other, expected = factors_of_known_distance(size, rank, images)
    zero = np.zeros(size)
    assert frechet_distance(zero, one, zero, other) == pytest.approx(expected, rel=1e-10)
    # The same covariances, but very close to each other: the error must be small even so.
    assert frechet_distance(zero, one, zero, 1.001 * one) == pytest.approx(1e-6 * (one**2).sum(), rel=SIX_DIGITS)


def test_frechet_of_normal_distributions_on_a_line() -> None:
    # Means 1 and 4, deviations 2 and 1 (n - 1): (1 - 4)² + (2 - 1)² = 10.
    target = np.array([[1 - math.sqrt(2)], [1 + math.sqrt(2)]])
    source = np.array([[3.0], [4.0], [5.0]])
    assert target.std(ddof=1) == pytest.approx(2)
    assert Frechet().score(Features(target), Features(source)) == pytest.approx(10, rel=1e-12)


@sample_pairs
def test_stored_statistics_stand_for_all_images_of_the_source(x: np.ndarray, y: np.ndarray) -> None:
    mean = y.mean(axis=0, dtype=np.float64)
    singular, directions = np.linalg.svd((y - mean) / math.sqrt(len(y) - 1), full_matrices=False)[1:]
    stored = Features(y[:3], mean=mean, factor=directions.T * singular)
    for metric in (Frechet(), Coral()):
        assert metric.score(Features(x), stored) == pytest.approx(metric.score(Features(x), Features(y)), rel=1e-9)


# CORAL


@sample_pairs
def test_coral_is_the_difference_of_the_covariances(x: np.ndarray, y: np.ndarray) -> None:
    difference = np.cov(x, rowvar=False, dtype=np.float64) - np.cov(y, rowvar=False, dtype=np.float64)
    expected = sum(entry**2 for entry in difference.ravel()) / (4 * x.shape[1] ** 2)
    assert Coral().score(Features(x), Features(y)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("images", [4, 40])
def test_coral_with_and_without_the_large_matrix(images: int) -> None:
    rng = np.random.default_rng(images)
    one, other = rng.normal(size=(30, images)), rng.normal(size=(30, images))
    assert coral_distance(one, other) == pytest.approx(((one @ one.T - other @ other.T) ** 2).sum() / 3600, rel=1e-9)


# MMD²


def plain_mmd2(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x.astype(np.float64), y.astype(np.float64)
    pooled = np.concatenate([x, y])
    distances = [((a - b) ** 2).sum() for i, a in enumerate(pooled) for b in pooled[:i]]
    median = float(np.median(np.sqrt(distances))) ** 2

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.mean([np.exp(-((a - b) ** 2).sum() / (2 * width * median)) for width in (0.25, 0.5, 1, 2, 4)]))

    within = [np.mean([kernel(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j]) for z in (x, y)]
    return float(within[0] + within[1] - 2 * np.mean([kernel(a, b) for a in x for b in y]))


@sample_pairs
def test_mmd2_is_the_mean_over_all_pairs(x: np.ndarray, y: np.ndarray) -> None:
    x, y = x[:60], y[:60]
    assert MMD().score(Features(x), Features(y)) == pytest.approx(plain_mmd2(x, y), rel=1e-9)


def test_mmd2_is_the_same_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    values, labels = digits()
    whole = mmd2(values[labels == 1], values[labels != 1][:300])
    monkeypatch.setattr("automl_tl_plugins.metrics.mmd.BLOCK", 7)
    assert mmd2(values[labels == 1], values[labels != 1][:300]) == pytest.approx(whole, rel=1e-12)


def test_mmd2_never_holds_the_gram_matrix() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 4000, 4)).astype(np.float32)
    tracemalloc.start()
    value = mmd2(x, y)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4000 * 4000 * 8 / 2
    assert abs(value) < 1e-3


def test_mmd2_is_unbiased() -> None:
    """Over many draws from one distribution the mean is 0, and not positive as of the biased estimate (here about 0.06)."""
    rng = np.random.default_rng(1)
    values = [mmd2(*rng.normal(size=(2, 15, 3))) for _ in range(300)]
    assert abs(np.mean(values)) < 3 * np.std(values) / math.sqrt(300)
    assert min(values) < 0


def test_mmd2_where_most_images_coincide() -> None:
    x, y = np.zeros((20, 3)), np.zeros((20, 3))
    assert mmd2(x, y) == 0
    y[0] = 1
    assert math.isfinite(mmd2(x, y))


# All distances


@pytest.mark.parametrize("metric", DISTANCES, ids=by_name)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), images=st.integers(2, 30), size=st.integers(1, 20))
def test_distances_know_no_direction_no_origin_and_no_axes(metric: Frechet, seed: int, images: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(images, size)), 2 * rng.normal(size=(images + 3, size)) + rng.normal(size=size)
    value = metric.score(Features(x), Features(y))
    assert math.isfinite(value)
    near = pytest.approx(value, rel=1e-8, abs=1e-10)
    axes = np.linalg.qr(rng.normal(size=(size, size)))[0]
    assert metric.score(Features(y), Features(x)) == near
    assert metric.score(Features(x + 3), Features(y + 3)) == near
    assert metric.score(Features(x @ axes), Features(y @ axes)) == near
    assert metric.score(Features(x[::-1]), Features(y)) == pytest.approx(value, rel=1e-8, abs=1e-10)


@pytest.mark.parametrize("metric", [Frechet(), Coral()], ids=by_name)
@pytest.mark.parametrize("images", [20, 64, 500])
def test_a_sample_is_at_no_distance_from_itself(metric: Frechet, images: int) -> None:
    values = digits()[0][:images]
    assert metric.score(Features(values), Features(values)) < 1e-9 * metric.score(Features(values), Features(2 * values))


@pytest.mark.parametrize("metric", DISTANCES, ids=by_name)
def test_distances_grow_as_real_images_fade(metric: Frechet) -> None:
    values = digits()[0]
    values = values[np.random.default_rng(0).permutation(len(values))]
    target, source = values[:800], values[800:]
    distances = [metric.score(Features(target * fade), Features(source)) for fade in (1.0, 0.8, 0.6, 0.4, 0.2)]
    assert distances == sorted(distances)
    assert distances[0] < 0.2 * distances[1]


@pytest.mark.parametrize("metric", DISTANCES, ids=by_name)
@pytest.mark.parametrize("scale", [1e-12, 1e12, 1e30])
def test_distances_at_huge_and_tiny_scales(metric: Frechet, scale: float) -> None:
    x, y = PAIRS["random, few images"]
    power = {"frechet": 2, "coral": 4, "mmd2": 0}[metric.name]
    expected = metric.score(Features(x), Features(y)) * scale**power
    assert metric.score(Features(x * scale), Features(y * scale)) == pytest.approx(expected, rel=1e-9)


def test_distances_of_constant_and_of_duplicated_features() -> None:
    constant, other = np.full((5, 3), 2.0), np.full((4, 3), 5.0)
    assert Frechet().score(Features(constant), Features(other)) == pytest.approx(27)
    assert Coral().score(Features(constant), Features(other)) == 0
    assert MMD().score(Features(constant), Features(constant)) == 0
    kernel = np.mean([math.exp(-1 / (2 * width)) for width in (4, 2, 1, 0.5, 0.25)])  # all distances are the median or 0
    assert MMD().score(Features(constant), Features(other)) == pytest.approx(2 - 2 * kernel)
    duplicated = np.repeat(digits()[0][:3], 40, axis=0)
    for metric in DISTANCES:
        assert math.isfinite(metric.score(Features(duplicated), Features(digits()[0][:100])))


@pytest.mark.parametrize("metric", DISTANCES, ids=by_name)
@pytest.mark.parametrize(
    ("target", "source", "reason"),
    [
        (np.ones((3, 2)), None, "needs a source"),
        (np.ones((1, 2)), np.ones((3, 2)), "target has one image"),
        (np.ones((3, 2)), np.ones((1, 2)), "source has one image"),
        (np.ones((3, 2)), np.ones((3, 4)), "2 features on one side and 4 on the other"),
        (np.ones((0, 2)), np.ones((3, 2)), "neither of them 0"),
        (np.ones(3), np.ones((3, 2)), r"shape \(3,\)"),
        (np.array([[1, 2], [3, np.nan]]), np.ones((3, 2)), "feature 1 of row 1 of the target is nan"),
        (np.ones((3, 2)), np.array([[1, 2], [-np.inf, 4]]), "feature 0 of row 1 of the source is -inf"),
        (np.ones((3, 2)), np.array([[1, 2], [3, 1e80]]), "feature 1 of row 1 of the source"),
        (np.array([[1, 2], [3, np.inf]], dtype=np.float16), np.ones((3, 2)), "feature 1 of row 1 of the target is inf"),
    ],
)
def test_a_distance_that_is_undefined_names_the_reason(
    metric: Frechet, target: np.ndarray, source: np.ndarray | None, reason: str
) -> None:
    with pytest.raises(InputError, match=reason):
        metric.score(Features(target), None if source is None else Features(source))


# LogME


def plain_logme(values: np.ndarray, labels: np.ndarray) -> float:
    """Algorithm 1 of the paper, class by class, and the evidence as the density of the labels under the Gaussian."""
    images, size = values.shape
    scatter, evidences = values.T @ values, []
    largest = np.linalg.norm(values, 2) ** 2
    for label in np.unique(labels):
        y = (labels == label).astype(np.float64)
        alpha = beta = 1.0
        for _ in range(400):
            hessian = alpha * np.eye(size) + beta * scatter
            weights = beta * np.linalg.solve(hessian, values.T @ y)
            gamma = size - alpha * np.trace(np.linalg.inv(hessian))
            alpha = gamma / (weights @ weights)
            beta = (images - gamma) / ((y - values @ weights) ** 2).sum()
            if not 0 < largest / 1e10 < alpha / beta:  # labels without noise: the rest of the way is rounding
                beta = alpha * 1e10 / largest
                break
        covariance = values @ values.T / alpha + np.eye(images) / beta
        evidences.append(multivariate_normal(np.zeros(images), covariance).logpdf(y) / images)
    return float(np.mean(evidences))


@labelled_sets
def test_logme_is_the_evidence_at_the_fixed_point_of_the_paper(values: np.ndarray, labels: np.ndarray) -> None:
    expected = plain_logme(values.astype(np.float64), labels)
    assert LogME().score(Features(values, labels), None) == pytest.approx(expected, rel=SIX_DIGITS)


def test_logme_of_features_that_say_nothing_is_the_evidence_of_noise_alone() -> None:
    # Each feature value is equally frequent in both classes, and 0 on average: no weight helps. log N(y; 0, ½) / n.
    values, labels = np.array([[1.0], [-1.0], [1.0], [-1.0]]), np.array([0, 0, 1, 1])
    assert logme(values, labels) == pytest.approx(-0.5 * (math.log(2 * math.pi * 0.5) + 1), rel=1e-9)


# H-score


def plain_h_score(values: np.ndarray, labels: np.ndarray) -> float:
    means = np.stack([values[labels == label].mean(axis=0) for label in labels])
    fitted = LedoitWolf().fit(values)
    return float(np.trace(np.linalg.inv(fitted.covariance_) @ np.cov(means, rowvar=False)) * (1 - fitted.shrinkage_))


@labelled_sets
def test_h_score_is_the_trace_with_the_shrunk_covariance(values: np.ndarray, labels: np.ndarray) -> None:
    expected = plain_h_score(values.astype(np.float64), labels)
    assert HScore().score(Features(values, labels), None) == pytest.approx(expected, rel=SIX_DIGITS)


def test_h_score_of_one_feature_by_hand() -> None:
    # Variance 1 (n), nothing to shrink; class means ±½, so 4 · ¼ / 3 between (n - 1).
    values = np.array([[1.0], [1.0], [1.0], [-1.0], [-1.0], [-1.0], [-1.0], [1.0]])
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    assert h_score(values, labels) == pytest.approx(8 * 0.25 / 7, rel=1e-12)


# LEEP and NCE


def head(images: int, source_classes: int, labels: np.ndarray) -> np.ndarray:
    """Probabilities that lean to a source class which goes with the label; float16 as they are cached."""
    rng = np.random.default_rng(images)
    logits = rng.normal(size=(images, source_classes))
    logits[np.arange(images), labels % source_classes] += 1.5
    return (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).astype(np.float16)


HEADS = {
    "random": (head(80, 6, np.arange(80) % 4), np.arange(80) % 4),
    "more source classes than images": (head(20, 50, np.arange(20) % 3), np.arange(20) % 3),
    "real": (head(150, 7, real_labelled()[1]), real_labelled()[1]),
}
head_sets = pytest.mark.parametrize(("probabilities", "labels"), HEADS.values(), ids=HEADS.keys())


@head_sets
def test_leep_is_the_mean_log_likelihood(probabilities: np.ndarray, labels: np.ndarray) -> None:
    theta = probabilities.astype(np.float64)
    theta /= theta.sum(axis=1, keepdims=True)
    total = 0.0
    for i, label in enumerate(labels):
        likelihood = 0.0
        for z in range(theta.shape[1]):
            joint = sum(theta[j, z] for j in range(len(labels)) if labels[j] == label) / len(labels)
            likelihood += joint / (sum(theta[:, z]) / len(labels)) * theta[i, z]
        total += math.log(likelihood)
    assert LEEP().score(Features(theta, labels, probabilities), None) == pytest.approx(total / len(labels), rel=1e-9)


@head_sets
def test_nce_is_the_negative_conditional_entropy(probabilities: np.ndarray, labels: np.ndarray) -> None:
    first = [int(np.argmax(row)) for row in probabilities]
    joint, seen = Counter(zip(first, labels.tolist(), strict=True)), Counter(first)
    expected = sum(count / len(labels) * math.log(count / seen[z]) for (z, _), count in joint.items())
    assert NCE().score(Features(probabilities, labels, probabilities), None) == pytest.approx(expected, rel=1e-9)


def test_leep_and_nce_by_hand() -> None:
    labels = np.array([0, 0, 1, 1])
    assert leep(np.eye(2)[labels], labels) == 0
    assert nce(np.eye(2)[labels], labels) == 0
    nothing = np.full((4, 3), 1 / 3)
    assert leep(nothing, labels) == pytest.approx(-math.log(2))
    assert nce(nothing, labels) == pytest.approx(-math.log(2))
    # One image of class 1 looks like class 0: of the three there, a third is class 1.
    assert nce(np.eye(2)[[0, 0, 0, 1]], labels) == pytest.approx(0.5 * math.log(2 / 3) + 0.25 * math.log(1 / 3))


@head_sets
def test_leep_is_never_above_nce_plus_the_entropy_it_leaves_out(probabilities: np.ndarray, labels: np.ndarray) -> None:
    """Property 1 of the LEEP paper: LEEP ≥ NCE + mean log-probability of the first source class."""
    theta = probabilities.astype(np.float64)
    theta /= theta.sum(axis=1, keepdims=True)
    translation = np.stack([theta[labels == label].sum(axis=0) for label in np.unique(labels)]) / theta.sum(axis=0)
    first = theta.argmax(axis=1)
    bound = np.log(translation[labels, first]).mean() + np.log(theta.max(axis=1)).mean()
    assert bound <= leep(theta, labels) <= 0


@pytest.mark.parametrize("metric", HEAD_SCORES, ids=by_name)
@pytest.mark.parametrize(
    ("probabilities", "labels", "reason"),
    [
        (None, np.array([0, 1]), "no source head"),
        (np.ones((2, 3)), None, "needs labels"),
        (np.ones((2, 3)), np.array([0, 1, 1]), "3 labels for 2 images"),
        (np.ones((2, 3)), np.array([1, 1]), "needs two classes"),
        (np.array([[0.5, 0.5], [-0.5, 1.5]]), np.array([0, 1]), "row 1 of the source head"),
        (np.array([[0.0, 0.0], [0.5, 0.5]]), np.array([0, 1]), "row 0 of the source head"),
        (np.array([[0.5, np.nan], [0.5, 0.5]]), np.array([0, 1]), "nan"),
    ],
)
def test_a_head_score_that_is_undefined_names_the_reason(
    metric: LEEP, probabilities: np.ndarray | None, labels: np.ndarray | None, reason: str
) -> None:
    with pytest.raises(InputError, match=reason):
        metric.score(Features(np.ones((2, 2)), labels, probabilities), None)


# k-NN


@labelled_sets
def test_knn_is_a_vote_of_the_five_nearest(values: np.ndarray, labels: np.ndarray) -> None:
    x, right = values.astype(np.float64), 0
    for i, row in enumerate(x):
        cosines = [(row @ other / math.sqrt((row @ row) * (other @ other)), j) for j, other in enumerate(x) if j != i]
        votes: Counter[int] = Counter()
        for cosine, j in sorted(cosines, reverse=True)[:5]:
            votes[int(labels[j])] += 1 + cosine  # type: ignore[assignment]
        right += votes.most_common(1)[0][0] == labels[i]
    assert KNN().score(Features(values, labels), None) == right / len(labels)


def test_knn_by_hand() -> None:
    # Each image has one of its own class in its direction, and the two others at a right angle.
    values, labels = np.array([[1.0, 0], [2, 0], [0, 1], [0, 3]]), np.array([0, 0, 1, 1])
    assert knn_accuracy(values, labels) == 0.5  # 3 neighbours: two votes of 1 + 0 tie with one of 1 + 1; the lower class wins
    assert knn_accuracy(np.concatenate([values, 2 * values]), np.concatenate([labels, labels])) == 1


def test_knn_in_blocks_and_with_a_feature_of_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    values, labels = real_labelled()
    values = np.concatenate([values, np.zeros((1, 64))])
    labels = np.append(labels, 3)
    whole = knn_accuracy(values, labels)
    monkeypatch.setattr("automl_tl_plugins.metrics.knn.BLOCK", 11)
    assert knn_accuracy(values, labels) == whole


# Linear probe


@labelled_sets
def test_linear_probe_is_ridge_regression_refitted_without_each_image(values: np.ndarray, labels: np.ndarray) -> None:
    x, y = values.astype(np.float64), np.eye(labels.max() + 1)[labels]
    largest = np.linalg.norm(x - x.mean(axis=0), 2) ** 2
    found = []
    for penalty in PATH:
        outputs = []
        for i in range(len(x)):
            rest, targets = np.delete(x, i, axis=0), np.delete(y, i, axis=0)
            centred = rest - rest.mean(axis=0)
            ridge = centred.T @ centred + penalty * largest * np.eye(x.shape[1])
            weights = np.linalg.solve(ridge, centred.T @ (targets - targets.mean(axis=0)))
            outputs.append((x[i] - rest.mean(axis=0)) @ weights + targets.mean(axis=0))
        found.append((np.argmax(outputs, axis=1) == labels).mean())
    assert LinearProbe().score(Features(values, labels), None) == pytest.approx(max(found), rel=1e-12)


def test_linear_probe_on_real_digits_is_as_good_as_a_linear_classifier_is() -> None:
    values, labels = digits()
    assert ridge_accuracy(values.astype(np.float64), labels) == pytest.approx(0.935, abs=0.015)


def test_linear_probe_knows_a_useful_backbone_with_a_hundred_classes() -> None:
    """Three images of each, on features of which few vary much, as real ones: by least squared error one in 50 is told."""
    rng = np.random.default_rng(0)
    labels = np.arange(300) % 100
    values = (rng.normal(size=(100, 128))[labels] + 2 * rng.normal(size=(300, 128))) / np.arange(1, 129)
    assert ridge_accuracy(values, labels) > 0.2


# All scores of features


@pytest.mark.parametrize("metric", FEATURE_SCORES, ids=by_name)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), images=st.integers(6, 40), size=st.integers(2, 30), classes=st.integers(2, 5))
def test_scores_know_no_axes_no_scale_no_order(metric: KNN, seed: int, images: int, size: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    values, labels = rng.normal(size=(images, size)), np.arange(images) % classes
    near = pytest.approx(metric.score(Features(values, labels), None), rel=1e-6, abs=1e-9)
    axes, order = np.linalg.qr(rng.normal(size=(size, size)))[0], rng.permutation(images)
    assert metric.score(Features(values @ axes, labels), None) == near
    assert metric.score(Features(values * 1e-6, labels), None) == near
    assert metric.score(Features(values[order], labels[order]), None) == near
    assert metric.score(Features(values, 3 * labels + 1), None) == near


@pytest.mark.parametrize("metric", FEATURE_SCORES, ids=by_name)
def test_scores_fall_as_noise_covers_real_images(metric: KNN) -> None:
    values, labels = digits()
    noise = np.random.default_rng(0).normal(size=values.shape)
    scores = [metric.score(Features(values + level * noise, labels), None) for level in (0, 5, 10, 20, 80)]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > scores[-1]


@pytest.mark.parametrize("metric", FEATURE_SCORES, ids=by_name)
@pytest.mark.parametrize("scale", [1e-200, 1e-30, 1e30])
def test_scores_at_huge_and_tiny_scales(metric: KNN, scale: float) -> None:
    values, labels = LABELLED["random, more features"]
    expected = metric.score(Features(values, labels), None)
    assert metric.score(Features(values.astype(np.float64) * scale, labels), None) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("metric", FEATURE_SCORES, ids=by_name)
@pytest.mark.parametrize(
    ("values", "labels"),
    [
        (np.array([[1.0], [2.0]]), np.array([0, 1])),
        (np.repeat(np.eye(3), 10, axis=0), np.repeat(np.arange(3), 10)),
        (np.repeat(np.eye(3), 10, axis=0), np.arange(30) % 2),
        (np.eye(6), np.arange(6)),
        (np.concatenate([np.zeros((9, 5)), np.ones((1, 5))]), np.arange(10) % 2),
        (np.outer(np.arange(20), np.ones(50)), np.arange(20) // 10),
        (np.array([[1.0, 0], [-1, 0], [1, 0], [-1, 0]]), np.array([0, 1, 0, 1])),
    ],
    ids=[
        "two images",
        "separable duplicates",
        "contradictory duplicates",
        "an image a class",
        "one differs",
        "rank 1",
        "opposite",
    ],
)
def test_scores_of_degenerate_features_are_finite(metric: KNN, values: np.ndarray, labels: np.ndarray) -> None:
    assert math.isfinite(metric.score(Features(values, labels), None))


@pytest.mark.parametrize("metric", FEATURE_SCORES, ids=by_name)
@pytest.mark.parametrize(
    ("values", "labels", "reason"),
    [
        (np.ones((4, 2)), np.array([0, 0, 1, 1]), "the same for every image"),
        (np.zeros((4, 2)), np.array([0, 0, 1, 1]), "the same for every image"),
        (np.eye(2), np.array([3, 3]), "all 2 images are of class 3"),
        (np.ones((1, 2)), np.array([0]), "needs two classes"),
        (np.eye(2), None, "needs labels"),
        (np.eye(2), np.array([0]), "1 labels for 2 images"),
        (np.array([[1, 2], [np.nan, 3]]), np.array([0, 1]), "feature 0 of row 1 of the target is nan"),
    ],
)
def test_a_score_that_is_undefined_names_the_reason(
    metric: KNN, values: np.ndarray, labels: np.ndarray | None, reason: str
) -> None:
    with pytest.raises(InputError, match=reason):
        metric.score(Features(values, labels), None)


def test_all_metrics_are_registered_under_their_kind() -> None:
    assert set(registry.metrics("distance")) >= {"frechet", "mmd2", "coral"}
    scores = {"logme", "h-score", "leep", "nce", "knn", "linear-probe"}
    assert set(registry.metrics("transferability")) >= scores


def test_mmd_of_a_sample_with_itself_counts_every_pair_between_the_two() -> None:
    """Equation 3 has no exception for two samples that happen to be one object."""
    x = np.random.default_rng(0).normal(size=(40, 8))
    assert mmd2(x, x) == pytest.approx(mmd2(x, x.copy()), abs=1e-12)


# Familiarity


def norms(mean: list[float], variance: list[float], source_mean: list[float], source_variance: list[float]) -> Norms:
    """Two channels in the first layer, the others in the second."""
    layer = np.array([0, 0, *[1] * (len(mean) - 2)])
    return Norms(layer, *(np.array(values) for values in (mean, variance, source_mean, source_variance)))


def test_batch_norm_distances_by_hand() -> None:
    """Layer 0: a channel that is the same and one moved by 3 of its standard deviations; layer 1: one of twice the deviation."""
    seen = norms([5, 6, 0], [4, 4, 4], [5, 0, 0], [4, 4, 1])
    assert frechet(seen) == pytest.approx(((0 + 9) / 2 + 1) / 2, rel=1e-4)
    moved = (2 * (4 + 36) / 4 - 2) / 4
    wider = (4 / 1 + 1 / 4 - 2) / 4
    assert divergence(seen) == pytest.approx((moved / 2 + wider) / 2, rel=1e-4)
    assert BatchNorm().score(Features(np.zeros((1, 1)), norms=seen), None) == pytest.approx(-math.log1p(2.75), rel=1e-4)


def test_divergence_of_batch_norms_is_the_mean_of_both_directions() -> None:
    """Against the Kullback-Leibler divergence of torch."""
    import torch
    from torch.distributions import Normal, kl_divergence

    seen = norms([0.3, -1.0, 2.0, 0.0], [0.5, 2.0, 1.0, 3.0], [0.1, 1.0, 2.0, -1.0], [1.0, 1.5, 0.7, 2.0])
    here = Normal(torch.tensor(seen.mean), torch.tensor(seen.variance).sqrt())
    there = Normal(torch.tensor(seen.source_mean), torch.tensor(seen.source_variance).sqrt())
    both = ((kl_divergence(here, there) + kl_divergence(there, here)) / 2).numpy()
    assert divergence(seen) == pytest.approx((both[:2].mean() + both[2:].mean()) / 2, rel=1e-4)


def test_a_channel_that_is_silent_on_the_target_stays_finite() -> None:
    silent = norms([0, 0, 0], [0, 0, 0], [0, 0, 0], [1, 1, 1])
    assert frechet(silent) == pytest.approx(1, rel=1e-2)
    assert math.isfinite(divergence(silent))
    with pytest.raises(InputError, match="has no batch norms"):
        BatchNorm().score(Features(np.zeros((1, 1))), None)
