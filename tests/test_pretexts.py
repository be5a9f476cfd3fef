"""Objectives without labels, against their formulas written out plainly."""

from __future__ import annotations

import math

import pytest
import torch

from automl_tl.pretexts import barlow_twins, neighbour_accuracy, recolour, vicreg


def embeddings() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(12, 4, generator=generator)
    return one, one + 0.3 * torch.randn(12, 4, generator=generator)


def test_barlow_twins_by_the_formula() -> None:
    """Equation 2: the correlation of number i of one view with number j of the other, over the batch."""
    one, other = embeddings()
    total = 0.0
    for i in range(4):
        for j in range(4):
            left, right = one[:, i] - one[:, i].mean(), other[:, j] - other[:, j].mean()
            correlation = float((left * right).sum() / (left.square().sum().sqrt() * right.square().sum().sqrt()))
            total += (1 - correlation) ** 2 if i == j else 5e-3 * correlation**2
    assert float(barlow_twins(one, other)) == pytest.approx(total, rel=1e-3)


def test_barlow_twins_wants_numbers_that_agree_and_differ_from_each_other() -> None:
    one = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    assert float(barlow_twins(one, one)) == pytest.approx(0, abs=1e-4)
    assert float(barlow_twins(one, -one)) == pytest.approx(8, rel=1e-3)
    assert float(barlow_twins(one[:, :1].repeat(1, 2), one[:, :1].repeat(1, 2))) == pytest.approx(2 * 5e-3, rel=1e-2)


def test_vicreg_by_the_formula() -> None:
    one, other = embeddings()
    alike = float((one - other).square().mean())
    spread = correlated = 0.0
    for view in (one, other):
        for i in range(4):
            spread += max(0.0, 1 - math.sqrt(float(view[:, i].var()) + 1e-4)) / 4
            for j in set(range(4)) - {i}:
                covariance = float(((view[:, i] - view[:, i].mean()) * (view[:, j] - view[:, j].mean())).sum() / 11)
                correlated += covariance**2 / 4
    assert float(vicreg(one, other)) == pytest.approx(25 * alike + 25 * spread + correlated, rel=1e-4)


def test_vicreg_punishes_a_collapse() -> None:
    """All images at one point agree perfectly, and cost the full price of no spread, once a view."""
    point = torch.ones(8, 3)
    assert float(vicreg(point, point)) == pytest.approx(2 * 25 * (1 - 0.01), rel=1e-3)


def test_neighbours_vote_by_their_likeness() -> None:
    """Two of three neighbours are of class 1, but the nearest, of class 0, weighs more than both."""
    known = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.6, -0.8], [-1.0, 0.0]])
    train = (known, torch.tensor([0, 1, 1, 2]))
    test = (torch.tensor([[3.0, 0.0], [-2.0, 0.1]]), torch.tensor([0, 2]))
    assert neighbour_accuracy(train, test, neighbours=3) == 1.0
    assert neighbour_accuracy(train, test, neighbours=3, temperature=10.0) == 0.0  # then two beat one, for both


def test_recoloured_views_keep_their_shapes() -> None:
    """Brightness changes a channel at a time and one in five loses its colour; what is black stays black."""
    views = torch.zeros(500, 3, 2, 2)
    views[:, 0, 0, 0], views[:, 1, 0, 0] = 100, 50
    changed = recolour(views, torch.Generator().manual_seed(0))
    assert (changed[:, :, 1, 1] == 0).all()
    grey = (changed[:, 0, 0, 0] == changed[:, 2, 0, 0]).float().mean()
    assert 0.14 < float(grey) < 0.26
    assert (changed >= 0).all()
    assert (changed <= 255).all()
    again = recolour(views, torch.Generator().manual_seed(0))
    assert torch.equal(changed, again)
