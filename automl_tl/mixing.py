"""Images of a batch mixed with each other, and their labels with them."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from .fetching import sent
from .strategy import Batch


def mix(batch: Batch, *, mixup: float, cutmix: float, generator: torch.Generator) -> Batch:
    """`batch` mixed by one of the two, drawn evenly where both are asked for; as it is where neither is.

    mixup (Zhang et al., 2018): λ x + (1 - λ) x', λ from Beta(α, α) with α = `mixup`. CutMix (Yun et al., 2019): a box of
    1 - λ of the area comes from x', λ from Beta(α, α) with α = `cutmix`. One λ a batch; x' is the batch in another order. The
    random numbers are drawn on the CPU.
    """
    if not mixup and not cutmix:
        return batch
    pasted = bool(cutmix) and (not mixup or float(torch.rand((), generator=generator)) < 0.5)
    own = _beta(cutmix if pasted else mixup, generator)
    order = sent(torch.randperm(len(batch.images), generator=generator), batch.images.device)
    others = batch.images[order]
    if pasted:
        images, own = _paste(batch.images, others, own, generator)
    else:
        images = own * batch.images + (1 - own) * others
    share = torch.full((len(images),), own, device=images.device)
    return replace(batch, images=images, mixed=batch.labels[order], own=share)


def _beta(alpha: float, generator: torch.Generator) -> float:
    """A draw from Beta(α, α): the share of one of two draws from Gamma(α) (Marsaglia and Tsang, 2000, in torch)."""
    first, second = torch._standard_gamma(torch.full((2,), alpha, dtype=torch.float64), generator=generator).tolist()
    return float(first / (first + second)) if first + second > 0 else 0.5


def _paste(images: Tensor, others: Tensor, own: float, generator: torch.Generator) -> tuple[Tensor, float]:
    """`images` with a box of `others` around a random centre, and the share of the area that stayed (the box may leave it)."""
    height, width = images.shape[-2:]
    side = math.sqrt(1 - own)
    centre_y, centre_x = (torch.rand(2, generator=generator) * torch.tensor([height, width])).tolist()
    top, bottom = (min(max(round(centre_y + sign * side * height / 2), 0), height) for sign in (-1, 1))
    left, right = (min(max(round(centre_x + sign * side * width / 2), 0), width) for sign in (-1, 1))
    pasted = images.clone()
    pasted[:, :, top:bottom, left:right] = others[:, :, top:bottom, left:right]
    return pasted, 1 - (bottom - top) * (right - left) / (height * width)
