"""Classes as the means of their images' features, and the linear classifier that nearest means are."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ._frozen import linear


def prototypes(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """classes×d: the mean of each class's rows of n×d `features`; each class has at least one."""
    members = torch.zeros(classes, len(features), dtype=features.dtype, device=features.device)
    members[labels, torch.arange(len(labels), device=labels.device)] = 1.0
    return members @ features / members.sum(1, keepdim=True)


def distances(features: Tensor, centres: Tensor) -> Tensor:
    """n×classes squared Euclidean distances of n×d features to classes×d centres."""
    return (features[:, None] - centres[None]).square().sum(2)


def nearest_head(centres: Tensor) -> nn.Linear:
    """A layer whose softmax is that of -|f - c|²: 2 cᵀf - |c|², as |f|² is the same for every class.

    Snell et al. (2017), equation 8.
    """
    return linear(2 * centres, -centres.square().sum(1))
