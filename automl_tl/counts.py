"""What a network costs, counted without its weights."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

# Names that say it anywhere: tf_efficientnetv2_s and gc_efficientnetv2_rw_t are both efficientnets.
_ROOTS = ("efficientnet", "mobilenet", "convnext", "resnext", "resnet", "regnet", "densenet", "xception")
_PREFIX = re.compile(r"^_?(?:(?:tf|legacy|gc|test|dm|eca|ese|cs|nf|tiny)_)?")


@dataclass(frozen=True)
class Counts:
    """Of a headless network."""

    params: int
    macs: int
    """Multiply-adds of one image: of convolutions, matrix products and attention; the rest is small beside them."""
    num_features: int


def count(net: nn.Module, input_size: int) -> Counts:
    """Count `net`, headless and on the meta device, where a forward pass moves shapes and no numbers.

    Raises:
        ValueError: its output is not one vector an image.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    net.eval().requires_grad_(False)  # the counter follows gradients where there are some
    image = torch.empty(1, 3, input_size, input_size, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        output = net(image)
    shape = tuple(getattr(output, "shape", ()))
    if len(shape) != 2:
        raise ValueError(f"gives an output of shape {shape} for one image, not one vector")
    params = sum(parameter.numel() for parameter in net.parameters())
    return Counts(params, counter.get_total_flops() // 2, shape[1])


def family(architecture: str) -> str:
    """The kind of network that a timm name stands for.

    >>> [family(name) for name in ("mobilenetv2_100", "tf_efficientnet_b0", "resnet10t", "vit_base_patch16_224")]
    ['mobilenet', 'efficientnet', 'resnet', 'vit']
    """
    for root in _ROOTS:
        if root in architecture:
            return root
    name = _PREFIX.sub("", architecture)
    letters = re.match(r"([a-z]+?)(?:v?\d.*|_.*|)$", name)
    return letters.group(1) if letters else name
