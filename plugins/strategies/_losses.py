"""Terms that strategies add to cross-entropy or put in its place: each a formula of its paper, a scalar that has gradients."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

WIDTHS = (4.0, 2.0, 1.0, 0.5, 0.25)
"""σ² of the kernels of `mmd`, in medians of the squared distance: those of the metric `mmd2`."""


def _exactly(like: Tensor) -> torch.autocast:
    """Products in the precision of the values: inside the loop's autocast they would have eight bits, too few for differences."""
    return torch.autocast(like.device.type, enabled=False)


def coral(source: Tensor, target: Tensor) -> Tensor:
    """|C_S - C_T|²_F / 4d², of the covariances of n×d and m×d activations (n, m at least 2).

    Sun and Saenko (2016), Deep CORAL, equations 1 to 3.
    """
    with _exactly(source):
        difference = _covariance(source) - _covariance(target)
    return difference.square().sum() / (4 * source.shape[1] ** 2)


def _covariance(values: Tensor) -> Tensor:
    centred = values - values.mean(0)
    return centred.T @ centred / (len(values) - 1)


def mmd(source: Tensor, target: Tensor) -> Tensor:
    """Unbiased MMD² of n×d and m×d activations under a mean of Gaussian kernels (n, m at least 2); can be slightly negative.

    mean k(s, s') + mean k(t, t') - 2 mean k(s, t), over pairs of different images; k(a, b) is the mean of exp(-|a - b|²/2σ²)
    over σ² = ¼, ½, 1, 2 and 4 times the median squared distance, through which no gradient flows. Gretton et al. (2012),
    equation 3; Long et al. (2015), equation 2, with equal weights of the kernels.
    """
    n = len(source)
    both = torch.cat([source, target])
    both = both - both.mean(0).detach()  # near the origin, |a - b|² = |a|² + |b|² - 2ab loses the fewest digits
    with _exactly(both):
        lengths = both.square().sum(1)
        squares = (lengths[:, None] + lengths[None] - 2 * both @ both.T).clamp(min=0)
    different = ~torch.eye(len(both), dtype=torch.bool, device=both.device)
    median = squares.detach()[different].median().clamp(min=1e-12)
    kernel = torch.stack([torch.exp(-squares / (2 * width * median)) for width in WIDTHS]).mean(0) * different
    within = sum(part.sum() / (len(part) * (len(part) - 1)) for part in (kernel[:n, :n], kernel[n:, n:]))
    return within - 2 * kernel[:n, n:].mean()


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, values: Tensor, strength: float) -> Tensor:
        context.strength = strength
        return values.view_as(values)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -context.strength * gradient, None


def reverse_gradient(values: Tensor, strength: float) -> Tensor:
    """`values`, whose gradient comes back times -`strength`: Ganin et al. (2016), equations 13 and 14."""
    reversed_: Tensor = _Reversal.apply(values, strength)
    return reversed_


def adversary_strength(done: float) -> float:
    """2 / (1 + exp(-10 p)) - 1 for the share p of training that is done, 0 to 1: Ganin et al. (2016), section 5.2.2."""
    return 2 / (1 + math.exp(-10 * done)) - 1


def class_confusion(logits: Tensor, temperature: float) -> Tensor:
    """Minimum class confusion of n×classes logits of unlabelled images: Jin et al. (2020), equations 2 to 6.

    With probabilities Y at `temperature` and weights w that are larger for surer images (1 + exp(-entropy), n in all), the
    correlation of classes is Yᵀ diag(w) Y; its rows are made to add up to 1, and the share off the diagonal is the loss.
    """
    probabilities = F.softmax(logits / temperature, dim=1)
    weights = 1 + torch.exp(-entropy(probabilities)).detach()
    weights = weights * len(logits) / weights.sum()
    with _exactly(logits):
        confusion = (probabilities * weights[:, None]).T @ probabilities
    confusion = confusion / confusion.sum(1, keepdim=True).clamp(min=1e-8)
    return (confusion.sum() - confusion.trace()) / logits.shape[1]


def entropy(probabilities: Tensor) -> Tensor:
    """n, in nats, of n×classes."""
    return -(probabilities * torch.log(probabilities + 1e-12)).sum(1)


def divergence(logits: Tensor, others: Tensor) -> Tensor:
    """KL(p ‖ q) of each image, n, for p and q the softmax of n×classes `logits` and `others`."""
    return F.kl_div(F.log_softmax(others, dim=1), F.log_softmax(logits, dim=1), reduction="none", log_target=True).sum(1)


def distillation(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Mean cross-entropy of the softmax of n×classes `logits` / T under that of `teacher` / T, times T².

    Hinton et al. (2015), Distilling the knowledge in a neural network: T² keeps the gradient's size. With p^(1/T) made to add up
    to 1 it is equation 2 of Li and Hoiem (2016).
    """
    soft = F.softmax(teacher / temperature, dim=1)
    return -(soft * F.log_softmax(logits / temperature, dim=1)).sum(1).mean() * temperature**2
