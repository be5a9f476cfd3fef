"""Fréchet distance."""

from __future__ import annotations

import numpy as np
import torch

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
    apart = float(((mean - other_mean) ** 2).sum() + np.linalg.norm(factor) ** 2 + np.linalg.norm(other_factor) ** 2)
    if min(factor.shape[1], other_factor.shape[1]) < len(mean):
        return max(apart - 2 * _trace_from_factors(factor, other_factor), 0.0)
    trace, error = _trace_from_covariances(factor @ factor.T, other_factor @ other_factor.T)
    if error > TOLERANCE * (apart - 2 * trace):
        trace = _trace_from_factors(_shortened(factor), _shortened(other_factor))
    return max(apart - 2 * trace, 0.0)


def _trace_from_factors(factor: np.ndarray, other: np.ndarray) -> float:
    return float(np.linalg.svd(factor.T @ other, compute_uv=False).sum())


def _trace_from_covariances(covariance: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """tr (C₁C₂)^½ and its error, infinite where C₂ is singular: one symmetric eigenproblem, LᵀC₁L with C₂ = LLᵀ.

    LAPACK's dsygst makes LᵀC₁L in a third of the time of two products; eigenvalues alone (dsyevd) come faster from scipy than
    from torch.
    """
    from scipy.linalg import eigvalsh
    from scipy.linalg.lapack import dsygst

    lower, failed = torch.linalg.cholesky_ex(torch.from_numpy(other))
    if failed:
        return 0.0, np.inf
    between = dsygst(covariance, lower.numpy(), itype=2, lower=1)[0]  # below the diagonal, as a Fortran array
    squares = np.maximum(eigvalsh(between, driver="evd", overwrite_a=True, check_finite=False), 0)
    # Rounding moves an eigenvalue λ by about this much, hence its root by rounding/√λ, or by √rounding where λ is smaller.
    rounding = 10 * np.finfo(np.float64).eps * np.linalg.norm(covariance) * np.linalg.norm(other)
    roots = np.sqrt(squares)
    least = max(np.sqrt(rounding), np.finfo(np.float64).tiny)  # nothing is rounded where one side is a single point
    return float(roots.sum()), float((rounding / np.maximum(roots, least)).sum())


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
