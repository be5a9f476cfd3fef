"""Each loss against its closed form, the metric of the same name, or finite differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from automl_tl_plugins.metrics.coral import coral_distance
from automl_tl_plugins.metrics.mmd import mmd2
from automl_tl_plugins.strategies._losses import (
    adversary_strength,
    class_confusion,
    coral,
    divergence,
    entropy,
    mmd,
    reverse_gradient,
)
from automl_tl_plugins.strategies._prototypes import distances, nearest_head, prototypes
from torch import Tensor


def drawn(rows: int, columns: int, *, seed: int = 0, shift: float = 0.0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64) * scale + shift


def factor(values: Tensor) -> np.ndarray:
    return ((values - values.mean(0)) / math.sqrt(len(values) - 1)).T.numpy()


def test_coral_is_the_metric() -> None:
    source, target = drawn(9, 4), drawn(7, 4, seed=1, scale=2.0)
    assert float(coral(source, target)) == pytest.approx(coral_distance(factor(source), factor(target)))
    assert float(coral(source, source + 5)) == pytest.approx(0), "a shift changes no covariance"
    one, other = torch.tensor([[-1.0], [1.0]]), torch.tensor([[-2.0], [2.0]])
    assert float(coral(one, other)) == pytest.approx((2 - 8) ** 2 / 4)


def test_mmd_is_the_metric() -> None:
    """Of 11 images there are 55 pairs, so that both take the same pair as the median."""
    source, target = drawn(6, 3), drawn(5, 3, seed=1, shift=1.0)
    assert float(mmd(source, target)) == pytest.approx(mmd2(source.numpy(), target.numpy()), rel=1e-6)
    near, far = (float(mmd(drawn(40, 3), drawn(40, 3, seed=2, shift=shift))) for shift in (0.0, 2.0))
    assert abs(near) < 0.05 < 0.3 < far


def test_gradients_are_those_of_finite_differences() -> None:
    source, target = drawn(5, 3).requires_grad_(), drawn(4, 3, seed=1, scale=2.0).requires_grad_()
    assert torch.autograd.gradcheck(coral, (source, target))
    logits, others = drawn(5, 3).requires_grad_(), drawn(5, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(divergence, (logits, others))
    assert torch.autograd.gradcheck(lambda values: entropy(values.softmax(1)), (logits,))
    assert torch.autograd.gradcheck(lambda values: distances(values, others), (logits,))


@pytest.mark.parametrize(
    "loss", [lambda values: mmd(values, drawn(20, 3, seed=1, shift=1.0)), lambda values: class_confusion(values, 2.5)]
)
def test_descent_makes_it_smaller(loss: object) -> None:
    """Width of the kernels and weights of the images are held in the gradient; it leads down all the same."""
    values = drawn(20, 3).requires_grad_()
    first = loss(values)  # type: ignore[operator]
    (gradient,) = torch.autograd.grad(first, values)
    assert float(loss(values.detach() - 0.5 * gradient)) < float(first.detach())  # type: ignore[operator]


def test_class_confusion_by_hand() -> None:
    """Two images with the same entropy weigh the same; p = (¾, ¼) and (¼, ¾) give the matrix of ⅝ and ⅜."""
    logits = torch.tensor([[math.log(3), 0.0], [0.0, math.log(3)]])
    assert float(class_confusion(logits, 1.0)) == pytest.approx(3 / 8)
    assert float(class_confusion(torch.eye(3) * 100, 1.0)) == pytest.approx(0, abs=1e-6)
    assert float(class_confusion(torch.zeros(4, 5), 1.0)) == pytest.approx(0.8)
    assert float(class_confusion(logits * 2, 2.0)) == pytest.approx(3 / 8), "temperature divides the logits"


def test_sure_images_weigh_more() -> None:
    sure, unsure = torch.tensor([[9.0, 0.0, 0.0]]), torch.tensor([[0.1, 0.0, 0.1]])
    rows = torch.cat([sure, unsure])
    probabilities = rows.softmax(1)
    weights = 1 + torch.exp(-entropy(probabilities))
    weights = 2 * weights / weights.sum()
    assert weights[0] > 1 > weights[1]
    confusion = sum(w * torch.outer(p, p) for w, p in zip(weights, probabilities, strict=True))
    confusion = confusion / confusion.sum(1, keepdim=True)
    assert float(class_confusion(rows, 1.0)) == pytest.approx(float((confusion.sum() - confusion.trace()) / 3))


def test_a_reversed_gradient() -> None:
    values = drawn(3, 2).requires_grad_()
    seen = reverse_gradient(values, 0.3)
    assert torch.equal(seen, values)
    seen.square().sum().backward()
    assert values.grad is not None
    torch.testing.assert_close(values.grad, -0.3 * 2 * values.detach())


def test_the_adversary_grows_along_the_schedule() -> None:
    assert adversary_strength(0.0) == 0
    assert adversary_strength(0.5) == pytest.approx(2 / (1 + math.exp(-5)) - 1)
    assert adversary_strength(1.0) == pytest.approx(0.9999, abs=1e-4)


def test_divergence_is_that_of_torch() -> None:
    one, other = drawn(5, 4), drawn(5, 4, seed=1)
    theirs = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=one), torch.distributions.Categorical(logits=other)
    )
    torch.testing.assert_close(divergence(one, other), theirs)


def test_nearest_means_are_a_linear_classifier() -> None:
    features, labels = drawn(12, 4).float(), torch.tensor([0, 1, 2] * 4)
    centres = prototypes(features, labels, 3)
    torch.testing.assert_close(centres[1], features[labels == 1].mean(0))
    queries = drawn(6, 4, seed=1).float()
    ours, theirs = nearest_head(centres)(queries).softmax(1), (-distances(queries, centres)).softmax(1)
    torch.testing.assert_close(ours, theirs)


def test_losses_are_exact_inside_the_loops_autocast() -> None:
    source, target = drawn(9, 4).float(), drawn(7, 4, seed=1).float()
    for loss in (coral, mmd):
        with torch.autocast("cpu", torch.bfloat16):
            inside = loss(source, target)
        assert torch.equal(inside, loss(source, target))
