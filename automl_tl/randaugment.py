"""RandAugment on whole batches of tensors (Cubuk et al., 2020, RandAugment: Practical automated data augmentation).

Each image meets `LAYERS` operations, drawn evenly from the paper's fourteen, all at one magnitude. An operation is applied at
once to all images of the batch that drew it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from .fetching import sent

LAYERS = 2
STRONGEST = 10.0
"""Magnitude at which each operation is at the end of the paper's range."""


def randaugment(images: Tensor, magnitude: float, *, generator: torch.Generator) -> Tensor:
    """N×3×H×W floats, 0–255, after two random operations each at `magnitude` (0–10); the random numbers are drawn on the CPU."""
    strength = magnitude / STRONGEST
    for _ in range(LAYERS):
        drawn = torch.randint(len(OPERATIONS), (len(images),), generator=generator)
        signs = torch.where(torch.rand(len(images), generator=generator) < 0.5, -1.0, 1.0)
        changed = images.clone()
        for code, operation in enumerate(OPERATIONS):
            rows = torch.nonzero(drawn == code).flatten()
            if len(rows):
                here = sent(rows, images.device)
                changed[here] = operation(images[here], strength * sent(signs[rows], images.device)).clamp(0, 255)
        images = changed
    return images


def _column(amounts: Tensor) -> Tensor:
    return amounts[:, None, None, None]


def _identity(images: Tensor, amounts: Tensor) -> Tensor:
    return images


def _autocontrast(images: Tensor, amounts: Tensor) -> Tensor:
    """Each channel stretched to 0–255; a flat one stays."""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    return torch.where(high > low, (images - low) * (255 / (high - low).clamp(min=1e-6)), images)


def _equalise(images: Tensor, amounts: Tensor) -> Tensor:
    """Each channel's grey values spread evenly: value → share of pixels that are not brighter."""
    rows = images.round().long().flatten(2).flatten(0, 1)
    counts = torch.zeros(len(rows), 256, device=images.device).scatter_add_(1, rows, torch.ones_like(rows, dtype=torch.float32))
    below = counts.cumsum(1)
    first = below.gather(1, rows.amin(1, keepdim=True))
    spread = (below - first) / (below[:, -1:] - first).clamp(min=1) * 255
    flat = below[:, -1:] == first
    return torch.where(flat, rows.float(), spread.gather(1, rows)).reshape(images.shape)


def _solarise(images: Tensor, amounts: Tensor) -> Tensor:
    """What is brighter than a threshold (255 at strength 0, 0 at 1) is inverted."""
    return torch.where(images >= _column(255 * (1 - amounts.abs())) + 1e-3, 255 - images, images)


def _posterise(images: Tensor, amounts: Tensor) -> Tensor:
    """Fewer grey values: eight bits at strength 0, four at 1."""
    step = 2 ** _column((4 * amounts.abs()).round())
    return (images / step).floor() * step


def _blended(other: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """Towards `other` or away from it, by up to 0.9."""

    def operation(images: Tensor, amounts: Tensor) -> Tensor:
        plain = other(images)
        return plain + (images - plain) * (1 + 0.9 * _column(amounts))

    return operation


def _grey(images: Tensor) -> Tensor:
    weights = images.new_tensor([0.299, 0.587, 0.114]).reshape(1, 3, 1, 1)
    return (images * weights).sum(1, keepdim=True)


def _smooth(images: Tensor) -> Tensor:
    kernel = images.new_tensor([[1.0, 1, 1], [1, 5, 1], [1, 1, 1]]).div(13).expand(3, 1, 3, 3)
    return F.conv2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), kernel, groups=3)


def _mapped(maps: Callable[[Tensor], tuple[Tensor | float, ...]]) -> Callable[[Tensor, Tensor], Tensor]:
    """An affine map of the image plane: six entries of a 2×3 matrix from the amounts."""

    def operation(images: Tensor, amounts: Tensor) -> Tensor:
        entries = [torch.as_tensor(entry, device=images.device).expand(len(images)) for entry in maps(amounts)]
        grid = F.affine_grid(torch.stack(entries, 1).reshape(-1, 2, 3), list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, padding_mode="border", align_corners=False)

    return operation


def _turned(amounts: Tensor) -> tuple[Tensor | float, ...]:
    angle = amounts * math.radians(30)
    return angle.cos(), -angle.sin(), 0.0, angle.sin(), angle.cos(), 0.0


OPERATIONS: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    _identity,
    _autocontrast,
    _equalise,
    _solarise,
    _posterise,
    _blended(torch.zeros_like),  # brightness
    _blended(lambda images: _grey(images).mean((2, 3), keepdim=True)),  # contrast
    _blended(_grey),  # colour
    _blended(_smooth),  # sharpness
    _mapped(_turned),
    _mapped(lambda amounts: (1.0, 0.3 * amounts, 0.0, 0.0, 1.0, 0.0)),  # shear
    _mapped(lambda amounts: (1.0, 0.0, 0.0, 0.3 * amounts, 1.0, 0.0)),
    _mapped(lambda amounts: (1.0, 0.0, 0.9 * amounts, 0.0, 1.0, 0.0)),  # shift, by up to 45 % of the side
    _mapped(lambda amounts: (1.0, 0.0, 0.0, 0.0, 1.0, 0.9 * amounts)),
)
