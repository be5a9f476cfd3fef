"""Images through a network: prepared as it wants them, in batches, without gradients."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .augment import normalise
from .device import autocast, device
from .fetching import in_batches
from .records import Backbone

BATCH = 256


@torch.inference_mode()
def predict(
    model: nn.Module, images: np.ndarray, index: np.ndarray, backbone: Backbone, *, dtype: torch.dtype = torch.float32
) -> np.ndarray:
    """Class probabilities, len(index)×classes float32, of uint8 `images` (N×size×size×3) at the positions `index`.

    In fp32, so that a model answers the same wherever it is and in whatever form: in bf16 a probability is off by up to 0.02.
    While it trains, its own `dtype` is faster, and good enough for a score.
    """
    model.eval()

    def run(batch: Tensor) -> tuple[Tensor]:
        return (F.softmax(model(laid_out(batch, backbone)).float(), dim=1),)

    with autocast(dtype):  # around all batches: the weights are cast once
        parts = [probabilities.numpy() for (probabilities,) in in_batches(images, index, BATCH, run)]
    return np.concatenate(parts) if parts else np.empty((0, 0), dtype=np.float32)


@torch.no_grad()
def outputs(
    net: nn.Module, images: np.ndarray, index: np.ndarray, backbone: Backbone, *, dtype: torch.dtype = torch.float32
) -> Tensor:
    """What `net`, evaluating, gives for uint8 `images` (N×size×size×3) at the positions `index`: n×d float32, on the CPU."""
    net.eval()

    def run(batch: Tensor) -> tuple[Tensor]:
        return (net(laid_out(batch, backbone)).float(),)

    with autocast(dtype):
        return torch.cat([found for (found,) in in_batches(images, index, BATCH, run)])


def prepare(images: np.ndarray, backbone: Backbone) -> Tensor:
    """uint8 N×size×size×3 to what the backbone takes: normalised floats on the device, channels last."""
    return laid_out(torch.from_numpy(np.ascontiguousarray(images)).to(device()).permute(0, 3, 1, 2), backbone)


def laid_out(batch: Tensor, backbone: Backbone) -> Tensor:
    """N×3×size×size of 0–255 to what the backbone takes: normalised floats, channels last."""
    return normalise(batch, backbone.mean, backbone.std).contiguous(memory_format=torch.channels_last)
