"""How familiar a network's batch norms are with the images: a distance to the source without one image of it."""

from __future__ import annotations

import numpy as np

from automl_tl import Features, Norms, hookimpl
from automl_tl.errors import InputError

from ._inputs import LARGEST

EPSILON = 1e-5
"""Added to variances, as batch norms do."""


def divergence(norms: Norms) -> float:
    """Symmetric Kullback-Leibler divergence of normal distributions, averaged over the channels of a layer, then the layers.

    With d = μ - μₛ it is ((σ² + d²)/σₛ² + (σₛ² + d²)/σ²)/2 - 1 for a channel (Jeffreys, 1946), halved here into a mean of both
    directions. It does not depend on the scale of a channel.
    """
    variance, source = (values.astype(np.float64) + EPSILON for values in (norms.variance, norms.source_variance))
    apart = (norms.mean.astype(np.float64) - norms.source_mean) ** 2
    return _over_layers(norms, ((variance + apart) / source + (source + apart) / variance - 2) / 4)


def frechet(norms: Norms) -> float:
    """Fréchet distance (μ - μₛ)² + (σ - σₛ)², in units of the source's variance, averaged as `divergence` is.

    Of diagonal normal distributions: Dowson and Landau (1982). It stays finite where a channel is silent on the target, and
    grows with the square of what is far away.
    """
    source = norms.source_variance.astype(np.float64) + EPSILON
    apart = (norms.mean.astype(np.float64) - norms.source_mean) ** 2
    spread = (np.sqrt(norms.variance.astype(np.float64) + EPSILON) - np.sqrt(source)) ** 2
    return _over_layers(norms, (apart + spread) / source)


def _over_layers(norms: Norms, channels: np.ndarray) -> float:
    sums, counts = np.bincount(norms.layer, weights=channels), np.bincount(norms.layer)
    return float((sums[counts > 0] / counts[counts > 0]).mean())


class BatchNorm:
    """Minus the logarithm of 1 + the Fréchet distance between what the batch norms see and what they saw; 0: the same."""

    name = "batch-norm"
    kind = "familiarity"

    def score(self, target: Features, source: Features | None) -> float:
        if target.norms is None:
            raise InputError("this backbone has no batch norms, so it keeps no statistics of its source")
        return -float(np.log1p(frechet(_checked(target.norms))))


def _checked(norms: Norms) -> Norms:
    """Raises InputError: a statistic is not a number of use."""
    for side, means, variances in (
        ("the images", norms.mean, norms.variance),
        ("the source", norms.source_mean, norms.source_variance),
    ):
        if not len(means):
            raise InputError("this backbone has no batch norms, so it keeps no statistics of its source")
        spread = variances.astype(np.float64)
        fine = (np.abs(means.astype(np.float64)) <= LARGEST) & (spread >= 0) & (spread <= LARGEST)
        if not fine.all():
            channel = int(np.argmin(fine))
            raise InputError(
                f"in channel {channel} of the batch norms {side} have a mean of {means[channel]} and a variance of "
                f"{variances[channel]}: no finite numbers of use; the weights are damaged"
            )
    return norms


@hookimpl
def register_metrics() -> list[BatchNorm]:
    return [BatchNorm()]
