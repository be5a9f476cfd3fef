"""Every metric and every loss where numbers are hard: a finite value that float64 confirms, or an error that names the reason."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from automl_tl_plugins.strategies._losses import (
    adversary_strength,
    class_confusion,
    coral,
    distillation,
    divergence,
    entropy,
    mmd,
)
from automl_tl_plugins.strategies._prototypes import distances
from automl_tl_plugins.strategies._retaining import Held, NewClasses
from small import QUICK
from torch import Tensor, nn
from torch.nn import functional as F

from automl_tl import Batch, Classifier, Features, Norms, registry
from automl_tl.backbones import catalogue
from automl_tl.errors import InputError
from automl_tl.evaluation.classification import intervals, judge
from automl_tl.space import defaults
from automl_tl.strategy import Room, cross_entropy

METRICS = {kind: registry.metrics(kind) for kind in ("distance", "transferability", "familiarity")}
NAMED = [(kind, name) for kind, found in METRICS.items() for name in found]
every_metric = pytest.mark.parametrize(("kind", "name"), NAMED, ids=[name for _, name in NAMED])


def ordinary(images: int = 24, size: int = 6) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.normal(size=(images, size)) + 3 * (np.arange(images) % 3)[:, None] * (np.arange(size) % 2)


HARD = {
    "constant": np.full((24, 6), 2.5),
    "zero": np.zeros((24, 6)),
    "one image": ordinary()[:1],
    "duplicated": np.repeat(ordinary()[:3], 8, axis=0),
    "all but one the same": np.concatenate([np.ones((23, 6)), 2 * np.ones((1, 6))]),
    "rank deficient": ordinary() @ np.outer(np.arange(6), np.ones(6)),
    "more features than images": ordinary(5, 400),
    "one feature": ordinary(24, 1),
    "a constant feature among others": np.concatenate([ordinary(), np.full((24, 2), 7.0)], axis=1),
    "huge": ordinary() * 1e37,
    "tiny": ordinary() * 1e-37,
    "beyond single precision": ordinary() * 1e70,
    "below double precision": ordinary() * 1e-310,
    "huge beside tiny": ordinary() * 10.0 ** np.array([30, 15, 0, -15, -30, -30]),
    "a large offset": ordinary() * 1e-3 + 1e6,
    "half precision": ordinary().astype(np.float16),
    "not a number": np.where(np.arange(144).reshape(24, 6) == 40, np.nan, ordinary()),
    "infinite": np.where(np.arange(144).reshape(24, 6) == 40, -np.inf, ordinary()),
    "too huge": ordinary() * 1e200,
}


def head(images: int) -> np.ndarray:
    logits = np.random.default_rng(images).normal(size=(images, 4)) * 30
    return np.exp(logits - logits.max(1, keepdims=True)) / np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True)


def norms_of(values: np.ndarray) -> Norms:
    """As if the features were what a batch norm saw."""
    with np.errstate(all="ignore"):
        mean, variance = values.astype(np.float64).mean(0), values.astype(np.float64).var(0)
    return Norms(np.arange(len(mean)) // 2, mean, variance, np.zeros(len(mean)), np.ones(len(mean)))


def score(kind: str, name: str, values: np.ndarray, source: np.ndarray) -> float:
    seen = Features(values, np.arange(len(values)) % 3, head(len(values)), norms=norms_of(values))
    return float(METRICS[kind][name].score(seen, Features(source) if kind == "distance" else None))


@every_metric
@pytest.mark.parametrize("hard", HARD)
def test_no_metric_leaves_nan_without_a_reason(kind: str, name: str, hard: str) -> None:
    """Nor warns of what it divides by (warnings are errors here); with what is hard on either side and on both."""
    values = HARD[hard]
    pairs = [(values, ordinary(20, values.shape[1]))]
    if kind == "distance":
        pairs += [(ordinary(20, values.shape[1]), values), (values, values)]
    for target, source in pairs:
        with contextlib.suppress(InputError):  # which reason it names is tested beside the metric's definition
            assert math.isfinite(score(kind, name, target, source))


@every_metric
def test_features_that_are_stored_in_single_precision_score_as_in_double(kind: str, name: str) -> None:
    for values in (ordinary(), ordinary(5, 400), ordinary() * 1e-3 + 1e3):
        stored, other = values.astype(np.float32), ordinary(20, values.shape[1]).astype(np.float32)
        exact = score(kind, name, stored.astype(np.float64), other.astype(np.float64))
        assert score(kind, name, stored, other) == pytest.approx(exact, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(
    "probabilities",
    [np.full((6, 3), 1 / 3), np.eye(3)[[0, 1, 2, 0, 1, 2]], np.eye(3)[[0] * 6], np.full((6, 3), 1e-320)],
    ids=["all alike", "all right", "all one class", "vanishing"],
)
def test_scores_of_predictions_are_numbers(probabilities: np.ndarray) -> None:
    for labels in (np.arange(6) % 3, np.zeros(6, dtype=np.int64)):
        assert all(math.isfinite(value) for value in judge(probabilities, labels).values())
        assert all(math.isfinite(end) for pair in intervals(probabilities, labels, draws=20).values() for end in pair)


# Losses


def drawn(rows: int, columns: int, seed: int = 0, *, scale: float = 1.0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


LOSSES: dict[str, Any] = {
    "coral": coral,
    "mmd": mmd,
    "divergence": lambda one, other: divergence(one, other).mean(),
    "distillation": lambda one, other: distillation(one, other.detach(), 2.0),
    "class confusion": lambda one, _: class_confusion(one, 2.5),
    "entropy": lambda one, _: entropy(one.softmax(1)).mean(),
    "distances": lambda one, other: F.cross_entropy(-distances(one, other), torch.arange(len(one)) % len(other)),
}
every_loss = pytest.mark.parametrize("name", LOSSES)


def value_and_gradient(name: str, one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    one = one.clone().requires_grad_()
    loss = LOSSES[name](one, other)
    return loss.detach(), torch.autograd.grad(loss, one)[0]


@every_loss
@pytest.mark.parametrize(
    ("scale", "offset"), [(1.0, 0.0), (1e-3, 0.0), (30.0, 0.0), (1.0, 100.0)], ids=["ordinary", "small", "large", "far off"]
)
def test_losses_in_single_precision_are_those_in_double(name: str, scale: float, offset: float) -> None:
    """What is compared is what both are given: values that single precision has."""
    one, other = ((drawn(8, 5, seed) * scale + offset).float() for seed in (0, 1))
    value, gradient = value_and_gradient(name, one, other)
    exact, exact_gradient = value_and_gradient(name, one.double(), other.double())
    assert float(value) == pytest.approx(float(exact), rel=2e-4, abs=1e-6)
    largest = float(exact_gradient.abs().max())
    torch.testing.assert_close(gradient.double(), exact_gradient, rtol=1e-3, atol=2e-4 * largest + 1e-12)


@every_loss
@pytest.mark.parametrize("hard", ["constant", "zero", "duplicated", "two images", "one against the rest", "far apart"])
def test_losses_and_their_gradients_stay_finite(name: str, hard: str) -> None:
    one, other = {
        "constant": (torch.full((6, 4), 3.0), torch.full((6, 4), 3.0)),
        "zero": (torch.zeros(6, 4), torch.zeros(6, 4)),
        "duplicated": (drawn(2, 4).repeat(3, 1).float(), drawn(2, 4).repeat(3, 1).float()),
        "two images": (drawn(2, 4).float(), drawn(2, 4, 1).float()),
        "one against the rest": (torch.cat([torch.ones(5, 4), 9 * torch.ones(1, 4)]), torch.ones(6, 4)),
        "far apart": (drawn(6, 4).float() * 1e4, -drawn(6, 4, 1).float() * 1e4),
    }[hard]
    value, gradient = value_and_gradient(name, one, other)
    assert math.isfinite(value)
    assert gradient.isfinite().all()


def test_gradients_of_what_is_held_in_them_are_those_of_finite_differences() -> None:
    """The width of the kernels and the weights of the images are constants of the gradient: the formulas with both spelt out."""
    source, target = drawn(5, 3).requires_grad_(), drawn(4, 3, 1).requires_grad_()
    pooled = torch.cat([source, target]).detach()
    median = torch.pdist(pooled).square().sort().values[(36 - 1) // 2]

    def held(one: Tensor, other: Tensor) -> Tensor:
        def kernel(a: Tensor, b: Tensor) -> Tensor:
            squares = (a[:, None] - b[None]).square().sum(2)
            return torch.stack([torch.exp(-squares / (2 * width * median)) for width in (4, 2, 1, 0.5, 0.25)]).mean(0)

        within = [(kernel(part, part).sum() - len(part)) / (len(part) * (len(part) - 1)) for part in (one, other)]
        return within[0] + within[1] - 2 * kernel(one, other).mean()

    assert torch.autograd.gradcheck(held, (source, target))
    torch.testing.assert_close(mmd(source, target), held(source, target))
    ours, theirs = (torch.autograd.grad(loss(source, target), (source, target)) for loss in (mmd, held))
    torch.testing.assert_close(ours, theirs)

    logits = drawn(5, 3).requires_grad_()
    certain = 1 + torch.exp(-entropy(F.softmax(logits.detach() / 2.5, dim=1)))

    def confusion(values: Tensor) -> Tensor:
        p = F.softmax(values / 2.5, dim=1)
        between = torch.einsum("i,ij,ik->jk", certain * len(p) / certain.sum(), p, p)
        shares = between / between.sum(1, keepdim=True)
        return (shares.sum() - shares.trace()) / p.shape[1]

    assert torch.autograd.gradcheck(confusion, (logits,))
    torch.testing.assert_close(class_confusion(logits, 2.5), confusion(logits))
    (one,), (other,) = (torch.autograd.grad(loss, logits) for loss in (class_confusion(logits, 2.5), confusion(logits)))
    torch.testing.assert_close(one, other)


def test_gradients_of_cross_entropies_are_those_of_finite_differences() -> None:
    logits, teacher, labels = drawn(5, 3).requires_grad_(), drawn(5, 3, 1), torch.tensor([0, 1, 2, 0, 1])
    images = torch.zeros(5, 1)
    mixed = Batch(images, labels, None, labels.flip(0), torch.linspace(0, 1, 5, dtype=torch.float64))
    for batch in (Batch(images, labels), mixed):
        assert torch.autograd.gradcheck(lambda values, batch=batch: cross_entropy(values, batch, 0.1), (logits,))
    assert mixed.own is not None
    each = F.log_softmax(logits, dim=1)
    plain = [-own * each[i, labels[i]] - (1 - own) * each[i, labels[4 - i]] for i, own in enumerate(mixed.own)]
    torch.testing.assert_close(cross_entropy(logits, mixed), torch.stack(plain).mean())
    assert torch.autograd.gradcheck(lambda values: distillation(values, teacher, 2.0), (logits,))


def small_net() -> Classifier:
    """Twelve numbers to four features to three classes, float64."""
    torch.manual_seed(0)
    return Classifier(nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), nn.Linear(4, 3)).double()


def small_batch() -> Batch:
    """Six images, and six of another domain."""
    images, others = torch.randn(2, 6, 3, 2, 2, dtype=torch.float64)
    return Batch(images, torch.arange(6) % 3, others)


def strategy_of(name: str, **changed: Any) -> Any:
    """As a plugin's `run` has made it, but for what it learns of the images."""
    if name not in registry.strategies():
        pytest.skip("needs the extra 'federated'")
    kind = registry.strategies()[name]
    return kind(defaults(kind.space) | changed, replace(catalogue()[QUICK], num_features=4))


def agree_with_differences(net: nn.Module, loss: Callable[[], Tensor], gradients: Sequence[Tensor]) -> None:
    """The slope of `loss` along a random direction in each parameter of `net`; parts of it are in single precision."""
    for parameter, gradient in zip(net.parameters(), gradients, strict=True):
        away = torch.randn_like(parameter)
        with torch.no_grad():
            parameter += 1e-4 * away
            above = loss()
            parameter -= 2e-4 * away
            below = loss()
            parameter += 1e-4 * away
        assert float(above - below) / 2e-4 == pytest.approx(float((gradient * away).sum()), rel=2e-2, abs=2e-2)


@pytest.mark.parametrize("name", ["l2-sp", "fedprox", "ewc", "synaptic-intelligence", "lwf"])
def test_gradients_of_what_holds_a_network_back_are_those_of_finite_differences(name: str) -> None:
    """Of a network in float64 that has left its starting point."""
    net, strategy = small_net(), strategy_of(name, **({"alpha": 1.0} if name == "l2-sp" else {}))
    start = [parameter.detach() + 0.1 * torch.randn_like(parameter) for parameter in net.parameters()]
    strategy.start, strategy.begun, strategy.mu = start[:2], start, 0.7
    strategy.new = NewClasses(torch.arange(3), "new", 0.0)
    strategy.teacher, strategy.known = copy.deepcopy(net).requires_grad_(False), 3
    strategy.held = Held.__new__(Held)  # whose importance and origin are the test's own, not a saved model's
    strategy.held.origin = {key: value for (key, _), value in zip(net.named_parameters(), start, strict=True)}
    strategy.held.importance = {key: torch.rand_like(value) for key, value in strategy.held.origin.items()}
    strategy.held.factor = 0.7
    batch = small_batch()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.3 * torch.randn_like(parameter)

    def loss() -> Tensor:
        found: Tensor = strategy.loss(net, batch)
        return found

    plain = torch.autograd.grad(cross_entropy(net(batch.images), batch), list(net.parameters()))
    gradients = torch.autograd.grad(loss(), list(net.parameters()))
    assert any((one - other).abs().max() > 1e-2 for one, other in zip(gradients, plain, strict=True)), "nothing holds it back"
    agree_with_differences(net, loss, gradients)


def test_the_adversary_of_domains_learns_while_the_backbone_unlearns() -> None:
    """Equations 13 to 15 of Ganin et al.: the adversary descends on the loss of the domains, the backbone climbs on it."""
    net, strategy, batch = small_net(), strategy_of("dann", hidden=64), small_batch()
    strategy.probed, strategy.room, strategy.steps = net.head, Room(), 10
    model = strategy.build(net.backbone, 3)
    strength = adversary_strength(0.5)

    def parts() -> tuple[Tensor, Tensor]:
        """Of the classes, of the domains; no gradient is reversed here."""
        seen = torch.cat([model.backbone(batch.images), model.backbone(batch.target)])
        told = model.adversary(seen.float()).squeeze(1)
        return F.cross_entropy(model.head(seen[:6]), batch.labels), F.binary_cross_entropy_with_logits(
            told, 1.0 * (torch.arange(12) > 5)
        )

    strategy.step = 5
    gradients = dict(
        zip(model.state_dict(), torch.autograd.grad(strategy.loss(model, batch), list(model.parameters())), strict=True)
    )
    backbone, adversary = ([g for key, g in gradients.items() if key.startswith(part)] for part in ("backbone", "adversary"))
    agree_with_differences(model.backbone, lambda: parts()[0] - strength * parts()[1], backbone)
    agree_with_differences(model.adversary, lambda: parts()[1], adversary)
