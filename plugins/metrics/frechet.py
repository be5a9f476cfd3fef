"""Fréchet distance."""

from __future__ import annotations

import numpy as np

from automl_tl import Features, hookimpl

from ._inputs import both_moments

TOLERANCE = 1e-8
"""Relative error of the distance up to which the fast route is taken."""


def frechet_distance(mean: np.ndarray, factor: np.ndarray, other_mean: np.ndarray, other_factor: np.ndarray) -> float:
    """|m₁ - m₂|² + tr C₁ + tr C₂ - 2 tr (C₁C₂)^½: the squared 2-Wasserstein distance of two normal distributions.

    Dowson and Landau (1982), The Fréchet distance between multivariate normal distributions; on the features of images it is
    the FID of Heusel et al. (2017), GANs trained by a two time-scale update rule.

    Args:
        mean, other_mean: d.
        factor, other_factor: d×r₁ and d×r₂, with covariances C = factor @ factor.T; r is often the number of images.

    The eigenvalues of (C₁C₂)^½ are the singular values of factor.T @ other_factor, which is small where there are fewer images
    than features, and keeps all digits where the covariances are singular.
    """
    apart = float(((mean - other_mean) ** 2).sum()) + _squares(factor) + _squares(other_factor)
    if min(factor.shape[1], other_factor.shape[1]) < len(mean):
        return max(apart - 2 * _trace_from_factors(factor, other_factor), 0.0)
    trace, error = _trace_from_covariances(factor, other_factor)
    if error > TOLERANCE * (apart - 2 * trace):
        trace = _trace_from_factors(_shortened(factor), _shortened(other_factor))
    return max(apart - 2 * trace, 0.0)


def _trace_from_factors(factor: np.ndarray, other: np.ndarray) -> float:
    return float(np.linalg.svd(factor.T @ other, compute_uv=False).sum())


def _trace_from_covariances(factor: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """tr (C₁C₂)^½ and its error, infinite where C₂ is singular: one symmetric eigenproblem, LᵀC₁L with C₂ = LLᵀ.

    Only lower triangles are made. All of it is scipy's: its BLAS, numpy's and torch's each have threads of their own, which go on
    spinning for a while after their work, so that a step of one right after a step of another takes twice as long.
    """
    from scipy.linalg import eigvalsh
    from scipy.linalg.blas import dsyrk
    from scipy.linalg.lapack import dpotrf, dsygst

    covariance, other_covariance = dsyrk(1.0, factor, lower=1), dsyrk(1.0, other, lower=1)
    # Rounding moves an eigenvalue λ by about this much, hence its root by rounding/√λ, or by √rounding where λ is smaller.
    rounding = 20 * np.finfo(np.float64).eps * np.sqrt(_squares(covariance)) * np.sqrt(_squares(other_covariance))
    lower, failed = dpotrf(other_covariance, lower=1, clean=0, overwrite_a=1)
    if failed:
        return 0.0, np.inf
    between = dsygst(covariance, lower, itype=2, lower=1, overwrite_a=1)[0]
    squares = np.maximum(eigvalsh(between, driver="evd", overwrite_a=True, check_finite=False), 0)
    roots = np.sqrt(squares)
    least = max(np.sqrt(rounding), np.finfo(np.float64).tiny)  # nothing is rounded where one side is a single point
    return float(roots.sum()), float((rounding / np.maximum(roots, least)).sum())


def _squares(values: np.ndarray) -> float:
    """The sum of the squares, without the threads of a BLAS."""
    return float(np.einsum("ij,ij->", values, values))


def _shortened(factor: np.ndarray) -> np.ndarray:
    """A factor of the same covariance with at most d columns."""
    if factor.shape[1] <= factor.shape[0]:
        return factor
    triangle = np.asarray(np.linalg.qr(factor.T, mode="r"))
    return triangle.T


class Frechet:
    """Fréchet distance between the features of the target and of the source; 0: the same mean and covariance."""

    name = "frechet"
    kind = "distance"

    def score(self, target: Features, source: Features | None) -> float:
        (mean, factor), (other_mean, other_factor) = both_moments(target, source)
        return frechet_distance(mean, factor, other_mean, other_factor)


@hookimpl
def register_metrics() -> list[Frechet]:
    return [Frechet()]
