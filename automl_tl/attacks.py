"""Images changed a little so that a network errs: projected gradient descent within a maximum norm.

Images here are normalised for the backbone; `Ball` knows the largest change of a pixel (of 0–1) in those units, and where
black and white lie.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .records import Backbone

Objective = Callable[[Tensor], Tensor]
"""Logits to what the attacker maximises, one number an image."""


@dataclass(frozen=True, eq=False)
class Ball:
    """All images that differ from one by at most epsilon in each pixel, and are images still."""

    radius: Tensor
    """1×3×1×1."""
    black: Tensor
    white: Tensor

    @classmethod
    def of(cls, epsilon: float, backbone: Backbone, like: Tensor) -> Ball:
        """For images of `backbone`, on the device of `like`."""
        mean = like.new_tensor(backbone.mean).view(1, 3, 1, 1)
        std = like.new_tensor(backbone.std).view(1, 3, 1, 1)
        return cls(epsilon / std, -mean / std, (1 - mean) / std)

    def project(self, images: Tensor, around: Tensor) -> Tensor:
        """The nearest images inside."""
        inside = torch.clamp(images, around - self.radius, around + self.radius)
        return torch.clamp(inside, self.black, self.white)

    def start(self, around: Tensor, generator: torch.Generator) -> Tensor:
        """Images anywhere inside. Drawn on the CPU, so that a seed gives the same ones on every device."""
        drawn = torch.rand(around.shape, generator=generator).to(around.device) * 2 - 1
        return self.project(around + drawn * self.radius, around)


def cross_entropy_of(labels: Tensor) -> Objective:
    """The usual aim: that the true class becomes improbable."""

    def aim(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits.float(), labels, reduction="none")

    return aim


@contextmanager
def held(model: nn.Module) -> Iterator[None]:
    """`model` as an attacker sees it: as in use, not in training, and without gradients of its weights; afterwards as before.

    In training mode an attack would move the statistics of batch norms, and dropout would blur its gradients.
    """
    modes = [(module, module.training) for module in model.modules()]
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval()
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
        for module, training in modes:
            module.training = training


def _without_fp16(kind: str) -> AbstractContextManager[object]:
    """fp32 in place of fp16, in which the gradients of images that are recognised for sure end at 0, and their sign with them.

    No factor would do: what lifts those lets others overflow.
    """
    fp16 = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
    return torch.autocast(kind, enabled=False) if fp16 else nullcontext()


def pgd(
    model: nn.Module, images: Tensor, aim: Objective, ball: Ball, *, steps: int, generator: torch.Generator, share: float = 2.5
) -> Tensor:
    """Projected gradient ascent on `aim` from a random start: Madry et al. (2018), the inner problem of equation 2.1.

    Each step goes `share` · radius / `steps` along the sign of the gradient. One step with a share of 1.25 is the attack of
    Wong et al. (2020). `images` are N×3×size×size, normalised; so is what comes back. The model is `held` meanwhile.
    """
    step = ball.radius * share / steps
    changed = ball.start(images, generator)
    with held(model), _without_fp16(images.device.type):
        for _ in range(steps):
            changed.requires_grad_(True)
            with torch.enable_grad():
                total = aim(model(changed)).sum()
            (gradient,) = torch.autograd.grad(total, changed)
            changed = ball.project(changed.detach() + step * gradient.sign(), images)
    return changed.detach()
