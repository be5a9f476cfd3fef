"""Networks as timm makes them: without weights, and what they cost."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import ZooError

if TYPE_CHECKING:
    from torch import nn

# Names that say it anywhere: tf_efficientnetv2_s and gc_efficientnetv2_rw_t are both efficientnets.
_ROOTS = ("efficientnet", "mobilenet", "convnext", "resnext", "resnet", "res2net", "regnet", "densenet", "darknet", "xception")
RESERVED = re.compile(r"pretrained.*|checkpoint_path|cache_dir|features_only|num_classes|in_chans|scriptable|exportable|no_jit")
"""Words of timm's `create_model` that fetch or unpickle files or change what comes out: not for a card to say."""
LARGEST = 100_000
"""Number in what a card says of a network: no layer is wider."""
_DEEPEST = {re.compile(r".*(depth_mult|deepen).*"): 10, re.compile(r".*(depth|layers|blocks|levels).*"): 200}
"""Words that say how many layers there are → the largest sum: timm's deepest networks have 139 blocks (resnetrs420) and 5.3 times
as many as usual (EfficientNet-L2). A hundred thousand would take minutes to make, even without numbers in them."""
_UNMADE = (TypeError, ValueError, LookupError, RuntimeError, AssertionError, ArithmeticError, AttributeError, MemoryError)
_PREFIX = re.compile(r"^_?(?:(?:tf|legacy|gc|test|dm|eca|ese|nf|tiny)_)?")


@dataclass(frozen=True)
class Counts:
    """Of a headless network."""

    params: int
    macs: int
    """Multiply-adds of one image: of convolutions, matrix products and attention; the rest is small beside them."""
    num_features: int


def create(architecture: str, kwargs: Mapping[str, Any], *, num_classes: int) -> nn.Module:
    """An untrained network of timm, with a head of `num_classes` (0: none). What says so may come from a stranger: nothing is
    fetched, and no file opened.

    Raises:
        ZooError: timm has no such network, or does not take `kwargs`.
    """
    import timm

    if not re.fullmatch(r"[\w.]+", architecture) or not timm.is_model(architecture.partition(".")[0]):
        raise ZooError(f"build: timm {timm.__version__} has no network {architecture[:80]!r}")
    for name in filter(RESERVED.fullmatch, kwargs):
        raise ZooError(f"build: kwargs: {name!r} is not for a card to say; remove it")
    if not all(abs(number) <= LARGEST for number in _numbers(kwargs)):
        raise ZooError(f"build: kwargs: a number above {LARGEST:,} makes no network")
    for name, value in kwargs.items():
        most = next((most for words, most in _DEEPEST.items() if words.fullmatch(name)), LARGEST)
        if most < LARGEST and sum(map(abs, _numbers(value))) > most:
            raise ZooError(f"build: kwargs: {name}: more than {most} in all makes no network")
    try:
        net: nn.Module = timm.create_model(architecture, num_classes=num_classes, **kwargs)
    except _UNMADE as error:
        raise ZooError(f"build: timm cannot make {architecture} with {json.dumps(dict(kwargs))}: {first_line(error)}") from None
    return net


def _numbers(value: Any) -> Iterator[float]:
    """Numbers in a JSON value, however deep."""
    if isinstance(value, int | float):
        yield value
    elif isinstance(value, (Mapping, list, tuple)):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _numbers(part)


def headless(net: nn.Module) -> nn.Module:
    """`net` without its source head: N×3×S×S images to N×num_features."""
    if net.num_classes:  # what was made without a head may not know how to drop one
        net.reset_classifier(0)  # type: ignore[operator]
    return net


def count(architecture: str, kwargs: Mapping[str, Any], *, num_classes: int, input_size: int) -> Counts:
    """Count the headless network on the meta device, where a forward pass moves shapes and no numbers.

    Raises:
        ZooError: it cannot be made, or its output is not one vector an image.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        net = headless(create(architecture, kwargs, num_classes=num_classes))
        image = torch.empty(1, 3, input_size, input_size)
    net.eval().requires_grad_(False)  # the counter follows gradients where there are some
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            output = net(image)
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        raise ZooError(f"build: {architecture} does not take images of {input_size} px: {first_line(error)}") from None
    shape = tuple(getattr(output, "shape", ()))
    if len(shape) != 2:
        raise ZooError(f"build: {architecture} gives an output of shape {shape} for one image, not one vector")
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
    letters = re.match(r"([a-z]+?)(?:v?\d|_|$)", name)
    return letters.group(1) if letters else name


def first_line(error: Exception) -> str:
    """Of somebody's message, for ours."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
