"""MMD, LogME, LEEP, H-score and k-NN against the formulas of the reference implementations, written down here anew.

- MMD: the whole Gram matrix of both samples at once, one kernel a width, as domain-adaptation code has it; the five widths and
  the unbiased means are those of our kernel, so that the value is the same.
- LogME: a singular value decomposition of the features, then the fixed point class by class (You et al., 2021).
- LEEP: the joint distribution image by image, then the expected prediction image by image (Nguyen et al., 2020).
- H-score: scikit-learn's `LedoitWolf`, the covariance of the class means, and the inverse (Ibrahim et al., 2022).
- k-NN: scikit-learn's brute-force cosine neighbours, itself left out.

Besides: MMD of many images in a process of its own, with its peak memory; the Gram matrix alone would be of n² numbers.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from _turns import in_turns, ratio, row
from sklearn.covariance import LedoitWolf
from sklearn.neighbors import NearestNeighbors

from automl_tl import Features
from automl_tl.registry import metrics

IMAGES, SIZE, CLASSES, SOURCE = 4000, 1280, 50, 1000
MANY, WIDE, SAMPLE = 50_000, 2048, 256
"""Images and features of the large MMD, and images of the source's stored sample."""


def evidence(folder: Path, *, quick: bool) -> tuple[list[tuple[str, ...]], dict[str, float]]:
    target, source = _task(IMAGES // 4 if quick else IMAGES)
    x, y, labels, beliefs = target.values, source.values, target.labels, target.probabilities
    assert labels is not None
    assert beliefs is not None
    references = {
        "mmd2": lambda: _mmd2(x, y),
        "logme": lambda: _logme(x, labels),
        "leep": lambda: _leep(beliefs, labels),
        "h-score": lambda: _h_score(x, labels),
        "knn": lambda: _knn(x, labels),
    }
    scores = metrics("distance") | metrics("transferability")
    rows, figures = [], {}
    for name, reference in references.items():
        peers = {"ours": lambda name=name: scores[name].score(target, source), "reference": reference}
        seconds, found = in_turns(peers, 3)
        key = name.replace("-", "_")
        figures |= ratio(f"{key}_speedup", seconds["ours"], seconds["reference"])
        figures[f"{key}_difference"] = abs(found["ours"] - found["reference"]) / max(abs(found["reference"]), 1e-12)
        what = f"{name} of {len(x):,} × {x.shape[1]}: {found['ours']:.8g}, reference {found['reference']:.8g}"
        rows.append(row(what, seconds["ours"], seconds["reference"], figures, f"{key}_speedup"))
    many = MANY // 10 if quick else MANY
    line = [sys.executable, __file__, str(many)]
    done = json.loads(subprocess.run(line, capture_output=True, text=True, check=True, cwd=Path(__file__).parent).stdout)
    gram = 8 * many**2 / 1e9
    rows.append((f"MMD of {many:,} × {WIDE}: {done['gb']:.2f} GB (Gram: {gram:.1f})", f"{done['seconds']:.4g}", "", ""))
    return rows, figures | {f"mmd_{many}_seconds": done["seconds"], f"mmd_{many}_gb": done["gb"], f"mmd_{many}_gram_gb": gram}


def _task(images: int) -> tuple[Features, Features]:
    """Features around class means and beliefs of a source head that has something to do with the classes."""
    rng = np.random.default_rng(0)
    labels = rng.integers(CLASSES, size=images)
    means = rng.normal(size=(CLASSES, SIZE))
    values = np.maximum(means[labels] + 3 * rng.normal(size=(images, SIZE)), 0).astype(np.float32)
    logits = 2 * rng.normal(size=(CLASSES, SOURCE))[labels] + rng.normal(size=(images, SOURCE))
    beliefs = torch.from_numpy(logits).softmax(1).numpy()
    other = np.maximum(1.2 * rng.normal(size=(images, SIZE)) * 3, 0).astype(np.float32)
    return Features(values, labels, beliefs), Features(other)


def _mmd2(x: np.ndarray, y: np.ndarray) -> float:
    from automl_tl_plugins.metrics.mmd import WIDTHS, _typical_distance

    unit = _typical_distance(x, y)  # which bandwidth is a choice, not work
    both = torch.from_numpy(np.concatenate([x, y]).astype(np.float64)) / unit
    squares = torch.cdist(both, both, compute_mode="use_mm_for_euclid_dist").square()
    gram = sum(torch.exp(-squares / (2 * width)) for width in WIDTHS) / len(WIDTHS)
    assert isinstance(gram, torch.Tensor)
    n, m = len(x), len(y)
    xx, yy, xy = gram[:n, :n], gram[n:, n:], gram[:n, n:]
    within = (xx.sum() - xx.trace()) / (n * (n - 1)) + (yy.sum() - yy.trace()) / (m * (m - 1))
    return float(within - 2 * xy.mean())


def _logme(values: np.ndarray, labels: np.ndarray) -> float:
    features = values.astype(np.float64)
    images, size = features.shape
    u, s, _ = np.linalg.svd(features, full_matrices=False)
    squares, evidences = s[:, None] ** 2, []
    for label in np.unique(labels):
        y = (labels == label).astype(np.float64)[:, None]
        alpha = beta = 1.0
        x = u.T @ y
        beyond = float((y**2).sum() - (x**2).sum())
        for _ in range(1000):
            before = alpha / beta
            gamma = float((squares / (squares + before)).sum())
            weights = float((squares * x**2 / (before + squares) ** 2).sum())
            residual = float((x**2 / (1 + squares / before) ** 2).sum()) + beyond
            alpha, beta = gamma / weights, (images - gamma) / residual
            if abs(alpha / beta - before) / before <= 1e-6:
                break
        evidence = size / 2 * np.log(alpha) + images / 2 * np.log(beta) - 0.5 * np.log(alpha + beta * squares).sum()
        evidence -= (size - len(squares)) / 2 * np.log(alpha)
        evidence -= beta / 2 * residual + alpha / 2 * weights + images / 2 * np.log(2 * np.pi)
        evidences.append(evidence / images)
    return float(np.mean(evidences))


def _leep(beliefs: np.ndarray, labels: np.ndarray) -> float:
    images, source = beliefs.shape
    joint = np.zeros((int(labels.max()) + 1, source))
    for belief, label in zip(beliefs, labels, strict=True):
        joint[label] += belief / images
    given = joint / joint.sum(axis=0, keepdims=True)
    return float(np.mean([np.log((given[label] * belief).sum()) for belief, label in zip(beliefs, labels, strict=True)]))


def _h_score(values: np.ndarray, labels: np.ndarray) -> float:
    features = values.astype(np.float64)
    features -= features.mean(axis=0)
    fitted = LedoitWolf(assume_centered=False).fit(features)
    replaced = np.zeros_like(features)
    for label in np.unique(labels):
        replaced[labels == label] = features[labels == label].mean(axis=0)
    between = np.cov(replaced, rowvar=False)
    return float(np.trace(np.linalg.pinv(fitted.covariance_, hermitian=True) @ ((1 - fitted.shrinkage_) * between)))


def _knn(values: np.ndarray, labels: np.ndarray) -> float:
    apart, nearest = NearestNeighbors(n_neighbors=5, metric="cosine", algorithm="brute").fit(values).kneighbors()
    votes = np.zeros((len(values), int(labels.max()) + 1))
    for column in range(5):
        votes[np.arange(len(values)), labels[nearest[:, column]]] += 2 - apart[:, column]
    return float((votes.argmax(axis=1) == labels).mean())


def many_images(images: int) -> None:
    """The MMD of so many images and a source's sample; prints seconds and peak memory beyond the features' own."""
    from automl_tl_plugins.metrics.mmd import mmd2

    rng = np.random.default_rng(0)
    x = rng.standard_normal((images, WIDE), dtype=np.float32)
    y = rng.standard_normal((SAMPLE, WIDE), dtype=np.float32) * 1.1
    Path("/proc/self/clear_refs").write_text("5")  # the peak from here on: a process begins with its parent's
    start, before = time.perf_counter(), _peak_kb()
    mmd2(x, y)
    print(json.dumps({"seconds": time.perf_counter() - start, "gb": (_peak_kb() - before) * 1024 / 1e9}))


def _peak_kb() -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


if __name__ == "__main__":
    many_images(int(sys.argv[1]))
