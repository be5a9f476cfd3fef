"""What batch norms saw: of a task's images now, and of the source's while the network was trained.

A network with batch norms carries statistics of its source along: the running mean and variance of every channel. They tell
how far a task's images are from the source without one image of it, and can be exchanged for the task's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from . import checkpoint
from .device import channels_last
from .features import cached_at
from .fetching import fetched, in_batches
from .inference import laid_out
from .pixels import Pixels
from .records import Backbone, Norms, Task

BATCH = 128
MOST = 128
"""Images that are looked at: a mean and a variance of a channel over as many images and all their pixels are exact enough."""


def norm_statistics(
    task: Task, backbone: Backbone, pixels: Pixels, build: Callable[[], nn.Module], *, index: np.ndarray
) -> Norms | None:
    """Of at most `MOST` of the images at `index`; None for a network without batch norms. Kept on disk."""
    chosen = np.sort(np.random.default_rng(0).permutation(index)[:MOST])
    path = cached_at("norms", task, backbone, chosen)
    tensors = checkpoint.cached(path)
    if tensors is None:
        tensors = measure(build(), pixels.array, chosen, backbone)
        path.parent.mkdir(exist_ok=True)
        checkpoint.save(path, tensors, {"backbone": backbone.name, "task": task.name})
    if not len(tensors["layer"]):
        return None
    return Norms(**{name: tensor.numpy() for name, tensor in tensors.items()})


@torch.no_grad()  # the network, which is laid out for it, may be trained later
def measure(
    net: nn.Module,
    images: np.ndarray,
    index: np.ndarray,
    backbone: Backbone,
    *,
    layers: Sequence[_BatchNorm] | None = None,
) -> dict[str, Tensor]:
    """What enters each batch norm of `net` that keeps statistics, or these `layers`, as it evaluates: mean and variance of a
    channel over the images at `index`, and those that the norm has; of all norms in a row, with the number of each channel's.

    In single precision for each batch, as Apple's devices have no double, and a double is twice the memory; batches are put
    together in double precision.
    """
    net = channels_last(net.eval())
    layers = norms_of(net) if layers is None else layers
    whose: list[int] = []
    seen: list[Tensor] = []

    def watch(number: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def see(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            values = inputs[0].transpose(0, 1).flatten(1).float()
            variance, mean = torch.var_mean(values, dim=1, correction=0)
            whose.append(number)
            seen.append(torch.stack([mean, variance, torch.full_like(mean, values.shape[1])]))

        return see

    def run(batch: Tensor) -> tuple[Tensor, ...]:
        whose.clear()
        seen.clear()  # also of a batch that memory did not suffice for
        net(laid_out(batch, backbone))
        return tuple(seen)

    watched = [layer.register_forward_pre_hook(watch(number)) for number, layer in enumerate(layers)]
    sums = [np.zeros((3, layer.num_features)) for layer in layers]
    for found in in_batches(images, index if layers else index[:0], BATCH, run):
        for number, told in zip(whose, found, strict=True):
            mean, variance, count = told.double().numpy()
            sums[number] += count * np.stack([mean, variance + mean**2, np.ones_like(mean)])
    for one in watched:
        one.remove()
    means = [torch.from_numpy(total[0] / total[2]) for total in sums]
    variances = [torch.from_numpy(total[1] / total[2]) - mean**2 for total, mean in zip(sums, means, strict=True)]
    return {
        "layer": torch.tensor([number for number, layer in enumerate(layers) for _ in range(layer.num_features)]),
        "mean": _joined(means),
        "variance": _joined(variances).clamp(min=0),
        "source_mean": _joined([layer.running_mean for layer in layers if layer.running_mean is not None]),
        "source_variance": _joined([layer.running_var for layer in layers if layer.running_var is not None]),
    }


def norms_of(net: nn.Module) -> tuple[_BatchNorm, ...]:
    """The batch norms that keep statistics."""
    return tuple(layer for layer in net.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats)


@contextmanager
def unmoved(net: nn.Module) -> Iterator[None]:
    """What `net` sees inside does not move the statistics of its batch norms, whatever mode they are in."""
    layers = norms_of(net)
    before = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, momentum in zip(layers, before, strict=True):
            layer.momentum = momentum


@torch.no_grad()
def adopt_statistics(
    net: nn.Module,
    images: np.ndarray,
    index: np.ndarray,
    backbone: Backbone,
    *,
    seed: int,
    layers: Sequence[_BatchNorm] | None = None,
) -> None:
    """Running means and variances of all batch norms, or of these `layers`, become the average over batches of the `images` at
    `index` (Li et al., 2018, Adaptive batch normalization for practical domain adaptation). Leaves `net` evaluating."""
    layers = norms_of(net) if layers is None else layers
    before = [layer.momentum for layer in layers]
    net.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a plain average
        layer.train()
    order = np.random.default_rng(seed).permutation(index)  # a batch of one class has that class's statistics
    parts = (np.sort(part) for part in np.array_split(order, max(1, len(order) // BATCH)))
    for batch in fetched(images, parts):
        net(laid_out(batch, backbone))
    for layer, momentum in zip(layers, before, strict=True):
        layer.momentum = momentum
    net.eval()


def _joined(parts: list[Tensor]) -> Tensor:
    return torch.cat([part.float().cpu() for part in parts]) if parts else torch.empty(0)
