"""Batches of uint8 images to normalised, augmented floats, on the device, in one resampling.

Images are decoded once (see `pixels`), so augmentation works on whole batches of tensors: one affine map an image (crop,
scale, flip, rotation) and one `grid_sample`, then brightness and contrast. A CPU core augments some thousand 64 px
images a second this way, against some hundred with one PIL call after another.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from .fetching import sent


@dataclass(frozen=True)
class Augmentation:
    """How far a training image may be changed. `scale` is the smallest share of the area that a crop keeps."""

    scale: float = 1.0
    flip: bool = False
    rotate: float = 0.0
    """Degrees, either way."""
    jitter: float = 0.0
    """Relative change of brightness and contrast, either way."""


def normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """uint8 (or float 0–255) N×3×H×W to floats with the given channel `mean` and `std` (of 0–1 values)."""
    rows = images.permute(0, 2, 3, 1)
    of = _kept if type(images) is Tensor else channels
    if images.dtype != torch.uint8 or not rows.is_contiguous():
        return images.sub(of(mean, images.device)).div_(of(std, images.device))
    # Pixel by pixel, as images are decoded: whole rows at once, as loops over three values take a processor six times as long.
    width = images.shape[-1]
    mean_row, std_row = (of(values, images.device).flatten().repeat(width) for values in (mean, std))
    return rows.flatten(2).float().sub_(mean_row).div_(std_row).reshape(rows.shape).permute(0, 3, 1, 2)


def channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    """`values` of 0–1 as 1×channels×1×1 on the device, of 0–255."""
    with torch.inference_mode(False):
        return (torch.tensor(values, dtype=torch.float32, device="cpu") * 255).reshape(1, -1, 1, 1).to(device)


@lru_cache(maxsize=64)
def _kept(values: tuple[float, ...], device: torch.device) -> Tensor:
    """`channels` that stay on the device, as sending them with each batch makes a GPU wait.

    Not for images without numbers, those of a trace (torch.export, fake tensors): what is made beside them has none, either, and
    would stay for all real images that follow.
    """
    return channels(values, device)


def augment(images: Tensor, how: Augmentation, *, size: int, generator: torch.Generator) -> Tensor:
    """N×3×H×W images (uint8 or float, 0–255) to random views of `size`×`size` pixels, still 0–255, as floats.

    The crop keeps `scale`–1 of the area at an aspect ratio of 3/4–4/3 (Szegedy et al., 2015). The random numbers are
    drawn on the CPU, so that a seed gives the same views on every device.
    """
    n = len(images)
    crops = how.scale < 1 or how.rotate > 0
    if not crops and images.shape[-2:] == (size, size):
        views = images.float()
        if how.flip:
            mirrored = torch.rand(n, generator=generator) < 0.5
            views = torch.where(sent(mirrored, views.device)[:, None, None, None], views.flip(-1), views)
    else:
        views = _resample(images.float(), sent(_random_maps(n, how, generator), images.device), size)
    return _jitter(views, how.jitter, generator) if how.jitter > 0 else views


def _random_maps(n: int, how: Augmentation, generator: torch.Generator) -> Tensor:
    """n×2×3 affine maps from view to image coordinates, both −1–1."""
    uniform = torch.rand(n, 6, generator=generator)
    area = how.scale + (1 - how.scale) * uniform[:, 0]
    ratio = torch.exp((uniform[:, 1] * 2 - 1) * math.log(4 / 3)) if how.scale < 1 else torch.ones(n)
    width = (area * ratio).sqrt().clamp(max=1)
    height = (area / ratio).sqrt().clamp(max=1)
    mirror = torch.where(uniform[:, 2] < 0.5, -1.0, 1.0) if how.flip else torch.ones(n)
    angle = (uniform[:, 3] * 2 - 1) * math.radians(how.rotate)
    shift_x = (uniform[:, 4] * 2 - 1) * (1 - width)
    shift_y = (uniform[:, 5] * 2 - 1) * (1 - height)
    cos, sin = angle.cos(), angle.sin()
    rows = [width * mirror * cos, -width * sin, shift_x, height * mirror * sin, height * cos, shift_y]
    return torch.stack(rows, dim=1).reshape(n, 2, 3)


def _resample(images: Tensor, maps: Tensor, size: int) -> Tensor:
    grid = F.affine_grid(maps, [len(images), 3, size, size], align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _jitter(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    factors = 1 + (torch.rand(len(images), 2, generator=generator) * 2 - 1) * strength
    brightness, contrast = sent(factors, images.device)[:, :, None, None, None].unbind(1)
    grey = images.mean(dim=(1, 2, 3), keepdim=True)
    return images.sub(grey).mul_(contrast).add_(grey * brightness).clamp_(0, 255)
