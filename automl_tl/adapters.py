"""A network that grows: what one task needs of its own lies beside layers that all tasks share and none changes.

For each task after the first, every matrix and kernel W has a low-rank pair beside it, W x + B A x, and every norm has a copy.
The output holds the features of each task's own pass, side by side, and then how strange the image is to the batch norms of each
pass: N×(tasks · d + tasks). The first task's features are those of the network as it came, bit for bit.

Rebuffi, Bilen and Vedaldi (2018), Efficient parametrization of multi-domain deep neural networks: parallel adapters and norms
of each domain's own; here with kernels of low rank, as in Hu et al. (2022).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

NORMS = (_BatchNorm, nn.LayerNorm, nn.GroupNorm)
LEAST = 1e-5
"""What a variance, and a distance in units of it, are taken to be more than 0."""


@dataclass
class _Turn:
    """Whose pass it is, and what its batch norms find; shared by all layers of a network."""

    task: int = 0
    strange: list[Tensor] | None = None
    """`strangeness` of what came to each batch norm so far, N; None: nobody asks."""
    images: int = 0
    """How many there are in the pass."""


class _Beside(nn.Module):
    """A matrix or kernel with a low-rank pair for each later task."""

    def __init__(self, shared: nn.Module, turn: _Turn) -> None:
        super().__init__()
        self.shared = shared
        self.own = nn.ModuleList()
        self.turn = turn

    def add(self, rank: int) -> None:
        self.own.append(_pair(self.shared, rank))

    @property
    def weight(self) -> Any:
        """For networks that compute with a layer's weights themselves (Swin V2, BEiT, EVA): there the pair is left out."""
        return self.shared.weight

    @property
    def bias(self) -> Any:
        return self.shared.bias

    def forward(self, values: Tensor) -> Tensor:
        shared: Tensor = self.shared(values)
        return shared if not self.turn.task else shared + self.own[self.turn.task - 1](values)


class _Instead(nn.Module):
    """A norm with a copy for each later task. Of each task's images a batch norm has statistics besides those that it normalises
    by, which may be an earlier task's, or the source's."""

    seen_mean: Tensor
    """tasks×channels, as is the variance."""
    seen_variance: Tensor

    def __init__(self, shared: nn.Module, turn: _Turn) -> None:
        super().__init__()
        self.shared = shared
        self.own = nn.ModuleList()
        self.turn = turn
        if isinstance(shared, _BatchNorm) and shared.running_mean is not None and shared.running_var is not None:
            self.register_buffer("seen_mean", shared.running_mean[None].clone())
            self.register_buffer("seen_variance", shared.running_var[None].clone())

    def add(self, rank: int) -> None:
        self.own.append(copy.deepcopy(self.shared).requires_grad_(True))
        if hasattr(self, "seen_mean"):
            self.seen_mean = torch.cat([self.seen_mean, self.seen_mean[:1]])
            self.seen_variance = torch.cat([self.seen_variance, self.seen_variance[:1]])

    def forward(self, values: Tensor) -> Tensor:
        layer = self.own[self.turn.task - 1] if self.turn.task else self.shared
        if self.turn.strange is not None and hasattr(self, "seen_mean"):
            task = self.turn.task
            strange = strangeness(values, self.seen_mean[task], self.seen_variance[task], images=self.turn.images)
            self.turn.strange.append(strange)
        normed: Tensor = layer(values)
        return normed


def strangeness(values: Tensor, mean: Tensor, variance: Tensor, *, images: int) -> Tensor:
    """How far the N `images` of `values`, N×channels×… or N·tokens×channels, are from those that channels have `mean` and
    `variance` of: N logarithms of the mean over the channels of (an image's mean - mean)² / variance."""
    means = values.float().flatten(2).mean(2) if values.ndim > 2 else values.float()
    if means.shape[0] != images:  # LeViT's norms take the tokens of all images in a row
        means = means.reshape(images, -1, means.shape[1]).mean(1)
    away = (means - mean).square() / (variance + LEAST)
    return (away.mean(1) + LEAST).log()


def is_plain(layer: nn.Module) -> bool:
    """Whether it computes W x, or an ungrouped convolution with W as it is: others, such as those that standardise their
    kernels first, are not what they would be with something added to W x."""
    from timm.layers.conv2d_same import Conv2dSame  # pads by the size of what comes in

    if isinstance(layer, nn.Conv2d):
        return type(layer) in (nn.Conv2d, Conv2dSame) and layer.groups == 1
    return type(layer) is nn.Linear


def _pair(layer: nn.Module, rank: int) -> nn.Sequential:
    """A then B of the same shape in and out as `layer`; B is zero, so that training starts at the layer itself."""
    down: nn.Linear | nn.Conv2d
    up: nn.Linear | nn.Conv2d
    if isinstance(layer, nn.Linear):
        down, up = nn.Linear(layer.in_features, rank, bias=False), nn.Linear(rank, layer.out_features, bias=False)
    else:
        assert isinstance(layer, nn.Conv2d)
        assert not isinstance(layer.padding, str)
        shape = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
        down = type(layer)(layer.in_channels, rank, *shape, bias=False)  # type: ignore[arg-type]
        up = nn.Conv2d(rank, layer.out_channels, 1, bias=False)
    nn.init.zeros_(up.weight)
    return nn.Sequential(down, up)


class Grown(nn.Module):
    """A backbone with adapters for the tasks after its first, of the `ranks`."""

    def __init__(self, network: nn.Module, ranks: Sequence[int]) -> None:
        super().__init__()
        self.turn = _Turn()
        self.network = network
        self.ranks: list[int] = []
        _wrap(network, self.turn)
        for rank in ranks:
            self.grow(rank)

    def grow(self, rank: int) -> list[nn.Module]:
        """Adapters and norms for one more task, which are returned; all that was there is frozen."""
        self.requires_grad_(False)
        device = next(self.parameters()).device
        for layer in self.modules():
            if isinstance(layer, (_Beside, _Instead)):
                layer.add(rank)
        self.ranks.append(rank)
        self.to(device)
        return self.newest()

    def newest(self) -> list[nn.Module]:
        """The newest task's adapters and norms."""
        return [layer.own[-1] for layer in self.modules() if isinstance(layer, (_Beside, _Instead))]

    def saw(self, task: int, mean: Tensor, variance: Tensor) -> None:
        """What entered the batch norms in the pass of `task` with its own images, all channels in a row.

        Raises:
            ValueError: not as many as there are channels.
        """
        places = [layer for layer in self.modules() if isinstance(layer, _Instead) and hasattr(layer, "seen_mean")]
        sizes = [place.seen_mean.shape[1] for place in places]
        if len(mean) != sum(sizes) or len(variance) != sum(sizes):
            raise ValueError(f"{len(mean)} means and {len(variance)} variances do not fit {sum(sizes)} channels")
        for place, one, other in zip(places, torch.split(mean, sizes), torch.split(variance, sizes), strict=True):
            place.seen_mean[task] = one
            place.seen_variance[task] = other

    @property
    def tasks(self) -> int:
        return 1 + len(self.ranks)

    def train(self, mode: bool = True) -> Grown:
        """Only the newest task's norms follow the images: those of the others stay as they were."""
        super().train(mode)
        for layer in self.modules():
            if isinstance(layer, _Instead):
                layer.shared.eval()
                for own in list(layer.own)[:-1]:
                    own.eval()
        return self

    def features(self, images: Tensor, task: int) -> Tensor:
        """N×d, as `task` sees the images."""
        self.turn.task = task
        seen: Tensor = self.network(images)
        return seen

    def forward(self, images: Tensor) -> Tensor:
        seen = [self._watched(images, task) for task in range(self.tasks)]
        return torch.cat([*(features for features, _ in seen), torch.stack([strange for _, strange in seen], 1)], dim=1)

    def _watched(self, images: Tensor, task: int) -> tuple[Tensor, Tensor]:
        """`features`, and N: the mean over the batch norms of how strange they find an image; 0 where there are none."""
        found: list[Tensor] = []
        self.turn.strange, self.turn.images = found, images.shape[0]
        try:
            seen = self.features(images, task)
        finally:
            self.turn.strange = None
        return seen, torch.stack(found).mean(0) if found else torch.zeros_like(seen[:, 0], dtype=torch.float32)


def _wrap(module: nn.Module, turn: _Turn) -> None:
    for name, child in module.named_children():
        if isinstance(child, NORMS):
            setattr(module, name, _Instead(child, turn))
        elif is_plain(child) and not isinstance(getattr(child, "padding", None), str):
            setattr(module, name, _Beside(child, turn))
        else:
            _wrap(child, turn)
