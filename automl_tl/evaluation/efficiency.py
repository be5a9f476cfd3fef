"""How much data a way of training needs: power laws of its error, and the factor of data that one way saves over another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DRAWS = 1000


@dataclass(frozen=True)
class PowerLaw:
    """error = scale · images^(−exponent), as learning curves have it over much of their way (Hestness et al., 2017)."""

    scale: float
    exponent: float
    """Above 0: more data helps."""
    explained: float
    """R² of log error; near 1: a power law describes the points."""

    def error(self, images: float | np.ndarray) -> np.ndarray:
        return np.asarray(self.scale * np.asarray(images, dtype=np.float64) ** -self.exponent)

    def images(self, error: float) -> float:
        """How many it takes to get down to `error`; infinite where more data does not help, or takes more than a float holds."""
        if self.exponent <= 0:
            return float("inf")
        try:
            return float((self.scale / error) ** (1 / self.exponent))
        except OverflowError:  # the curve is nearly flat; a few of a thousand drawn laws may be
            return float("inf")


@dataclass(frozen=True)
class Curve:
    """A power law with its uncertainty."""

    law: PowerLaw
    drawn: tuple[PowerLaw, ...]
    """Of bootstrap samples of the runs."""

    def band(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ends of the middle 95 % of the errors that the drawn laws give for these numbers of images."""
        errors = np.stack([law.error(images) for law in self.drawn])
        low, high = np.quantile(errors, [0.025, 0.975], axis=0)
        return low, high


@dataclass(frozen=True)
class Saving:
    """Transfer reaches with `images / factor` images what the other way reaches with `images`."""

    factor: float
    low: float
    high: float
    """95 % bootstrap interval; 0 where a drawn law does not get there with any data."""
    images: float
    error: float
    """Of the other way, with all of them."""
    most: float
    """The largest factor that can be measured, as that with the fewest images: a `factor` of so much is this or more. One below 1
    lies outside what was measured, so the law was trusted beyond its points."""


def fit_power_law(images: Sequence[float] | np.ndarray, errors: Sequence[float] | np.ndarray) -> PowerLaw:
    """Least squares on log error by log images.

    Raises:
        ValueError: fewer than two different numbers of images, or an error that is not above zero.
    """
    x, y = np.asarray(images, dtype=np.float64), np.asarray(errors, dtype=np.float64)
    if len(np.unique(x)) < 2 or (y <= 0).any() or (x <= 0).any():
        raise ValueError("a power law takes errors above zero at two different numbers of images at least")
    x, y = np.log(x), np.log(y)
    slope, offset = np.polyfit(x, y, 1)
    left = float(((y - offset - slope * x) ** 2).sum())
    total = float(((y - y.mean()) ** 2).sum())
    return PowerLaw(float(np.exp(offset)), float(-slope), 1 - left / total if total > 0 else 1.0)


def fit_curve(images: Sequence[float], errors: Sequence[float], *, smallest: float, seed: int = 0, draws: int = DRAWS) -> Curve:
    """`fit_power_law` of all runs, and of `draws` sets of errors that might as well have come out.

    It is the wild bootstrap (Wu, 1986): each log error is moved off the law by its own residual with a random sign, so that
    small sets may scatter more than large ones. Residuals are divided by 1 − leverage (HC3), as a dozen runs ask for.
    Errors below `smallest` count as that: no mistake in 100 test images is not an error of zero. Half a mistake is usual.
    """
    x, y = np.asarray(images, dtype=np.float64), np.maximum(np.asarray(errors, dtype=np.float64), smallest)
    law = fit_power_law(x, y)
    design = np.stack([np.log(x), np.ones(len(x))], axis=1)
    solve = np.linalg.pinv(design)
    leverage = (design * solve.T).sum(axis=1)
    fitted = np.log(law.error(x))
    residual = (np.log(y) - fitted) / np.maximum(1 - leverage, 1e-6)
    signs = np.random.default_rng(seed).choice((-1.0, 1.0), size=(draws, len(x)))
    slopes, offsets = solve @ (fitted + signs * residual).T
    drawn = tuple(PowerLaw(float(np.exp(o)), float(-s), law.explained) for s, o in zip(slopes, offsets, strict=True))
    return Curve(law, drawn)


def data_saving(transferred: Curve, other: Curve, *, fewest: float, images: float) -> Saving:
    """The factor of data that transfer saves: `images` over what transfer needs for the error of `other` with all `images`.

    `fewest` is the smallest number that was measured, and transfer is never said to need less: where it is as good with that, a
    nearly flat law names a billionth of an image, and a flat one none. The interval is that of the drawn laws, taken in pairs.
    """

    def factor(mine: PowerLaw, its: PowerLaw) -> float:
        error = float(its.error(images))
        return images / (fewest if mine.error(fewest) <= error * (1 + 1e-9) else mine.images(error))  # but for rounding

    factors = [factor(mine, its) for mine, its in zip(transferred.drawn, other.drawn, strict=True)]
    low, high = np.quantile(factors, [0.025, 0.975])
    error = float(other.law.error(images))
    return Saving(factor(transferred.law, other.law), float(low), float(high), images, error, images / fewest)
