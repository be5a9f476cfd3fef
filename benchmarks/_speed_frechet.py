"""The Fréchet distance from features to number, against the formula as pytorch-fid and as torchmetrics compute it.

- pytorch-fid: np.cov of both sides, `scipy.linalg.sqrtm` of their product, the trace of its real part.
- torchmetrics: covariances in float64 torch, the eigenvalues of their product (`torch.linalg.eigvals`), the sum of their roots.

Features are synthetic, as an encoder's are: correlated, not negative, with a spectrum that falls by four orders of magnitude.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import scipy.linalg
import torch
from _turns import in_turns, ratio, row

from automl_tl import Features
from automl_tl.features import source_statistics
from automl_tl.registry import metrics

SIZES = (512, 1280, 2048)
FEW = 500
"""Images that meet a stored source."""


def evidence(folder: Path, *, quick: bool) -> tuple[list[tuple[str, ...]], dict[str, float]]:
    rows, figures, errors = [], {}, []
    for size in SIZES[:1] if quick else SIZES:
        x, y = (_features(3 * size, size, seed) for seed in (0, 1))
        peers = {
            "ours": lambda x=x, y=y: metrics("distance")["frechet"].score(Features(x), Features(y)),
            "sqrtm": lambda x=x, y=y: _with_sqrtm(_moments(x), _moments(y)),
            "torchmetrics": lambda x=x, y=y: _with_eigvals(x, y),
        }
        seconds, found = in_turns(peers, 3)
        for peer, name in (("sqrtm", f"frechet_speedup_{size}"), ("torchmetrics", f"frechet_over_torchmetrics_{size}")):
            figures |= ratio(name, seconds["ours"], seconds[peer])
            rows.append(row(f"{3 * size:,} × {size} against as many: {peer}", seconds["ours"], seconds[peer], figures, name))
            errors.append(abs(found["ours"] / found[peer] - 1))
    few, source = _features(FEW, size, 2), source_statistics(y)
    assert source.factor is not None
    assert source.mean is not None
    stored = source.mean.astype(np.float64), np.asarray(source.factor.astype(np.float64) @ source.factor.T)
    peers = {
        "ours": lambda: metrics("distance")["frechet"].score(Features(few), source),
        "sqrtm": lambda: _with_sqrtm(_moments(few), stored),
    }
    seconds, found = in_turns(peers, 3)
    errors.append(abs(found["ours"] / found["sqrtm"] - 1))
    figures |= ratio("frechet_lowrank_speedup", seconds["ours"], seconds["sqrtm"])
    what = f"{FEW} × {size} against a stored source: sqrtm"
    rows.append(row(what, seconds["ours"], seconds["sqrtm"], figures, "frechet_lowrank_speedup"))
    print(f"relative differences to the peers: {', '.join(f'{error:.1e}' for error in errors)}")
    return rows, figures | {"frechet_relative_error": float(max(errors))}


def _features(images: int, size: int, seed: int) -> np.ndarray:
    rng, shared = np.random.default_rng(seed), np.random.default_rng(99)
    mixing = shared.normal(size=(size, size)) * np.logspace(0, -2, size)[:, None] / np.sqrt(size)
    hidden = rng.normal(loc=0.1 * seed, size=(images, size)) @ mixing
    return np.maximum(hidden + 0.05 * shared.normal(size=size), 0.1 * hidden).astype(np.float32)


def _moments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values = values.astype(np.float64)
    return values.mean(axis=0), np.cov(values, rowvar=False)


def _with_sqrtm(one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> float:
    (mean, covariance), (other_mean, other_covariance) = one, other
    root = scipy.linalg.sqrtm(covariance @ other_covariance)
    if not np.isfinite(root).all():
        offset = 1e-6 * np.eye(len(mean))
        root = scipy.linalg.sqrtm((covariance + offset) @ (other_covariance + offset))
    apart = mean - other_mean
    return float(apart @ apart + np.trace(covariance) + np.trace(other_covariance) - 2 * np.trace(np.real(root)))


def _with_eigvals(x: np.ndarray, y: np.ndarray) -> float:
    values = [torch.from_numpy(side).double() for side in (x, y)]
    means, covariances = [side.mean(0) for side in values], [side.T.cov() for side in values]
    roots = torch.linalg.eigvals(covariances[0] @ covariances[1]).sqrt().real.sum()
    apart = (means[0] - means[1]).square().sum()
    return float(apart + covariances[0].trace() + covariances[1].trace() - 2 * roots)
