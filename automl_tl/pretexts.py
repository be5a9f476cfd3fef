"""Learning from images without their labels: two views of an image should be told from other images, not from each other.

Two objectives on the embeddings (n×d) of two views of the same n images. Both need no negative pairs and no second network, so
that they work with small batches on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH = 512
"""Of the embeddings."""


def barlow_twins(one: Tensor, other: Tensor, *, trade_off: float = 5e-3) -> Tensor:
    """The cross-correlation of the two embeddings should be the identity: Σ(1 - Cᵢᵢ)² + λ Σᵢ≠ⱼ Cᵢⱼ².

    Zbontar et al. (2021), Barlow Twins, equations 1 and 2.
    """
    left, right = _standardised(one), _standardised(other)
    correlation = left.T @ right / len(one)
    diagonal = correlation.diagonal()
    redundant = correlation.square().sum() - diagonal.square().sum()
    return (1 - diagonal).square().sum() + trade_off * redundant


def _standardised(embedding: Tensor) -> Tensor:
    centred = embedding - embedding.mean(dim=0)
    return centred / (centred.square().mean(dim=0).sqrt() + 1e-5)


def vicreg(one: Tensor, other: Tensor, *, invariance: float = 25.0, variance: float = 25.0, covariance: float = 1.0) -> Tensor:
    """λ s(Z, Z′) + μ (v(Z) + v(Z′)) + ν (c(Z) + c(Z′)): alike, each number spread by at least 1, and no two of them correlated.

    Bardes et al. (2022), VICReg, equations 1 to 6.
    """
    spread = sum(F.relu(1 - (z.var(dim=0) + 1e-4).sqrt()).mean() for z in (one, other))
    return invariance * F.mse_loss(one, other) + variance * spread + covariance * (_correlated(one) + _correlated(other))


def _correlated(embedding: Tensor) -> Tensor:
    """Σᵢ≠ⱼ Cov(Z)ᵢⱼ² / d."""
    n, d = embedding.shape
    centred = embedding - embedding.mean(dim=0)
    covariance = centred.T @ centred / (n - 1)
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / d


PRETEXTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"barlow-twins": barlow_twins, "vicreg": vicreg}


def projector(num_features: int) -> nn.Module:
    """From features to the embeddings that the objectives are taken on; thrown away after the training."""
    return nn.Sequential(
        nn.Linear(num_features, WIDTH, bias=False), nn.BatchNorm1d(WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH, bias=False)
    )


def recolour(views: Tensor, generator: torch.Generator) -> Tensor:
    """Change the colours of N×3×H×W views (0–255): each channel's strength by up to 0.4, and one in five to grey.

    Without it, two crops of an image are told by their colours alone (Chen et al., 2020, SimCLR, section 3.1).
    """
    strength = 1 + (torch.rand(len(views), 3, 1, 1, generator=generator) * 2 - 1) * 0.4
    grey = torch.rand(len(views), 1, 1, 1, generator=generator) < 0.2
    changed = (views * strength.to(views.device)).clamp(0, 255)
    return torch.where(grey.to(views.device), changed.mean(dim=1, keepdim=True), changed)


def neighbour_accuracy(
    train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], *, neighbours: int = 20, temperature: float = 0.07
) -> float:
    """Share of the test features (n×d, labels n) that their nearest training features name rightly, by cosine, weighted.

    Wu et al. (2018), Unsupervised feature learning via non-parametric instance discrimination, section 3.4.
    """
    known, labels = F.normalize(train[0], dim=1), train[1]
    right = 0
    for start in range(0, len(test[1]), 256):
        features, truth = F.normalize(test[0][start : start + 256], dim=1), test[1][start : start + 256]
        likeness, nearest = (features @ known.T).topk(min(neighbours, len(known)), dim=1)
        votes = torch.zeros(len(features), int(labels.max()) + 1, device=features.device)
        votes.scatter_add_(1, labels[nearest], (likeness / temperature).exp())
        right += int((votes.argmax(1) == truth).sum())
    return right / len(test[1])
