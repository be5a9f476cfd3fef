"""Maximum mean discrepancy."""

from __future__ import annotations

import numpy as np
from scipy.spatial.distance import pdist

from automl_tl import Features, hookimpl

from ._inputs import samples

WIDTHS = (4.0, 2.0, 1.0, 0.5, 0.25)
"""σ² of the kernels, in medians of the squared distance. Each is half the one before: `_kernel` relies on it."""
BLOCK = 1024
MEDIAN_SAMPLE = 250
"""Images of each side that the median is taken over."""


def mmd2(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased MMD² = mean k(x, x') + mean k(y, y') - 2 mean k(x, y), over pairs of different images.

    Gretton et al. (2012), A kernel two-sample test, equation 3. The kernel k(a, b) is the mean of exp(-|a - b|²/2σ²) over
    σ² = ¼, ½, 1, 2 and 4 times the median squared distance. Can be slightly negative.

    Args:
        x, y: n×d and m×d. Worked through in blocks of rows: memory does not grow with n·m.
    """
    unit = _typical_distance(x, y)
    if unit == 0:  # all images are one and the same point
        return 0.0
    # Near the origin, |a - b|² = |a|² + |b|² - 2ab loses the fewest digits.
    origin = (x.mean(axis=0, dtype=np.float64) + y.mean(axis=0, dtype=np.float64)) / 2
    within = [_mean_kernel(side, side, origin, unit, same=True) for side in (x, y)]
    return sum(within) - 2 * _mean_kernel(x, y, origin, unit, same=False)


def _typical_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Root of the median squared distance between different images, of at most 250 evenly spaced rows of each side.

    Where more than half of them coincide, the root of the mean squared distance from row 0 instead.
    """
    pooled = np.concatenate([_thinned(x), _thinned(y)]).astype(np.float64)
    median = float(np.median(pdist(pooled)))
    if median > 0:
        return median
    squares = [((rows - pooled[0]) ** 2).sum() for side in (x, y) for rows in _blocks(side)]
    return float(np.sqrt(sum(squares) / (len(x) + len(y))))


def _thinned(values: np.ndarray) -> np.ndarray:
    return values[np.linspace(0, len(values) - 1, min(len(values), MEDIAN_SAMPLE)).astype(np.int64)]


def _blocks(values: np.ndarray) -> list[np.ndarray]:
    return [values[start : start + BLOCK] for start in range(0, len(values), BLOCK)]


def _mean_kernel(x: np.ndarray, y: np.ndarray, origin: np.ndarray, unit: float, *, same: bool) -> float:
    """Mean of the kernel over all pairs; of one and the `same` sample, over those of different images."""
    total = 0.0
    for i, left in enumerate(_blocks(x)):
        rows = (left - origin) / unit
        for j, right in enumerate(_blocks(y)):
            if same and j < i:
                continue  # counted twice above the diagonal
            kernel = _kernel(rows, (right - origin) / unit)
            if same and i == j:
                total += kernel.sum() - np.trace(kernel)
            else:
                total += (2 if same else 1) * kernel.sum()
    return float(total / (len(x) * (len(y) - 1 if same else len(y))))


def _kernel(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Kernel of each row with each column, both in units of the typical distance."""
    squares = (rows**2).sum(axis=1)[:, None] + (columns**2).sum(axis=1) - 2 * rows @ columns.T
    one = np.exp(-np.maximum(squares, 0.0) / (2 * WIDTHS[0]))
    total = one.copy()
    for _ in WIDTHS[1:]:  # half the width: the square
        one *= one
        total += one
    return np.asarray(total / len(WIDTHS))


class MMD:
    """Unbiased MMD² between the features of the target and a sample of the source's; about 0: the same distribution."""

    name = "mmd2"
    kind = "distance"

    def score(self, target: Features, source: Features | None) -> float:
        return mmd2(*samples(target, source))


@hookimpl
def register_metrics() -> list[MMD]:
    return [MMD()]
