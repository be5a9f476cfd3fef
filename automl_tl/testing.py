"""Conformance kits for plugin authors: each trains or measures for real, and fails with a sentence."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from . import model
from .backbones import build, catalogue
from .data import load_task
from .hookspecs import Metric
from .objectives import adapt, brings, harden, learn_to_learn
from .records import TEST, Backbone, Candidate, Features, Task
from .registry import forget, strategies
from .space import Value, check, defaults, draw
from .strategy import Fitted, Strategy
from .trials import Limits, probabilities_on, run_trial

DRAWS = 3
FEWEST_EPOCHS = 3
"""Epochs of the trials here, where a strategy has them and its space allows."""


def small_task() -> Task:
    """300 of scikit-learn's digits, of five classes, 8 × 8 pixels, with a test split."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    chosen = np.flatnonzero(digits.target < 5)[:300]
    images = [np.uint8(image * 15) for image in digits.images[chosen]]
    return load_task((images, digits.target[chosen].tolist()), name="small", test=0.2)


def task_for(needs: frozenset[str]) -> Task:
    """The small task, with what a strategy needs beside it.

    The target is the same kind of digits in negative and noisy, without labels; the source are digits of other classes; the
    change of a pixel is 1/255.
    """
    from sklearn.datasets import load_digits

    task, digits = small_task(), load_digits()
    if "target" in needs:
        chosen = np.flatnonzero(digits.target < 5)[300:500]
        noise = np.random.default_rng(0).normal(0, 10, (len(chosen), 8, 8))
        images = [np.uint8(np.clip(image, 0, 255)) for image in 240 - digits.images[chosen] * 15 + noise]
        task = adapt(task, load_task((images, digits.target[chosen].tolist()), name="negative", test=0.3))
    if "source" in needs:
        chosen = np.flatnonzero(digits.target >= 5)[:200]
        images = [np.uint8(image * 15) for image in digits.images[chosen]]
        task = learn_to_learn(task, load_task((images, digits.target[chosen].tolist()), name="others"))
    return harden(task, 1 / 255) if "epsilon" in needs else task


def smallest_backbone() -> Backbone:
    """The embedded network with the fewest multiply-adds."""
    return min((b for b in catalogue().values() if b.zoo == "embedded"), key=lambda backbone: backbone.macs)


def check_strategy(strategy: type[Strategy], *, task: Task | None = None, backbone: Backbone | None = None) -> None:
    """Train `strategy`, which need not be installed, on a small real task, and see that it keeps the contract.

    - its name, space, defaults and draws are valid, its cost is positive and grows with the images;
    - its curve holds finite scores at growing times, and it beats chance;
    - the same seed gives the same predictions, and test labels change nothing;
    - the source network stays as it was; a saved model predicts the same;
    - stopped after an epoch and taken up again, it predicts what it would have without the stop.

    Raises:
        AssertionError: says what is wrong.
    """
    task, backbone = task or task_for(strategy.needs), backbone or smallest_backbone()
    with _registered(strategy):
        _check_facts(strategy, backbone)
        before = {name: tensor.clone() for name, tensor in build(backbone).state_dict().items()}
        values = _short(strategy)
        whole = _train(task, strategy, backbone, values)
        _check_curve(whole, task)
        again = _train(_with_shuffled_test_labels(task), strategy, backbone, values)
        _same(whole, again, "trained twice with one seed, the second time with other test labels, it predicts differently")
        for name, tensor in build(backbone).state_dict().items():
            assert torch.equal(tensor, before[name]), f"the source network was changed: {name}"
        _check_saved(whole, task, strategy, backbone, values)
        if len(whole.curve) > 1:
            resumed = _train(task, strategy, backbone, values, stops=(1.0, math.inf))
            _same(whole, resumed, "stopped after an epoch and taken up again, it predicts differently")
        for number in range(DRAWS):
            values = {**draw(strategy.space, f"kit/{number}"), **_fewest_epochs(strategy)}
            if strategy.requires(values) <= brings(task):
                _train(task, strategy, backbone, values)


def check_metric(metric: Metric) -> None:
    """Measure features of known kinds, and see that `metric` keeps the contract.

    Raises:
        AssertionError: says what is wrong.
    """
    assert metric.kind in ("distance", "transferability"), f"kind is {metric.kind!r}; write distance or transferability"
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 30)
    near = rng.normal(size=(120, 16)).astype(np.float32)
    shuffled = rng.permutation(120)
    if metric.kind == "distance":
        itself, away = _score(metric, near, near), _score(metric, near + 3, near)
        assert away > itself, f"features moved away are not farther: {away} against {itself}"
        assert math.isclose(_score(metric, near[shuffled], near), itself, abs_tol=1e-6), "the order of the images matters"
        return
    centres = rng.normal(size=(4, 16)).astype(np.float32) * 3
    tell, noise = near + centres[labels], near
    apart, chance = (_transferability(metric, values, labels) for values in (tell, noise))
    assert apart > chance, f"features that tell the classes apart do not score higher: {apart} against {chance}"
    turned = _transferability(metric, tell[shuffled], labels[shuffled])
    assert math.isclose(turned, apart, rel_tol=1e-4, abs_tol=1e-6), "the order of the images matters"


def _score(metric: Metric, target: np.ndarray, source: np.ndarray) -> float:
    value = float(metric.score(Features(target), Features(source)))
    assert math.isfinite(value), f"{metric.name} gave {value}"
    return value


def _transferability(metric: Metric, values: np.ndarray, labels: np.ndarray) -> float:
    """The source head knows as much as the features: distances to the first four rows' means, as probabilities."""
    logits = values @ np.stack([values[labels == label].mean(axis=0) for label in range(4)]).T
    exponent = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = (exponent / exponent.sum(axis=1, keepdims=True)).astype(np.float32)
    value = float(metric.score(Features(values, labels, probabilities), None))
    assert math.isfinite(value), f"{metric.name} gave {value}"
    return value


class _registered:
    """Makes a strategy known under its name, as an installed plugin is."""

    def __init__(self, strategy: type[Strategy]) -> None:
        assert isinstance(getattr(strategy, "name", None), str), f"{strategy.__name__} has no name"
        assert strategy.name, f"{strategy.__name__} has an empty name"
        self.strategy = strategy

    def __enter__(self) -> None:
        strategies()[self.strategy.name] = self.strategy  # the registry's own table: nothing else looks strategies up

    def __exit__(self, *_: object) -> None:
        forget()


def _check_facts(strategy: type[Strategy], backbone: Backbone) -> None:
    assert strategy.__doc__, f"{strategy.name} has no docstring; say what it does"
    values = check(strategy.space, defaults(strategy.space))
    for number in range(20):
        check(strategy.space, draw(strategy.space, str(number)))
    few, many = (strategy.cost(backbone, images, values) for images in (100, 1000))
    assert 0 < few < many < math.inf, f"cost must be positive and grow with the images, but 100 cost {few} and 1,000 {many}"


def _short(strategy: type[Strategy]) -> dict[str, Value]:
    return {**defaults(strategy.space), **_fewest_epochs(strategy)}


def _fewest_epochs(strategy: type[Strategy]) -> dict[str, Value]:
    low = getattr(strategy.space.get("epochs"), "low", None)
    return {} if low is None else {"epochs": max(int(low), FEWEST_EPOCHS)}


def _train(
    task: Task,
    strategy: type[Strategy],
    backbone: Backbone,
    values: Mapping[str, Value],
    stops: tuple[float, ...] = (math.inf,),
) -> Fitted:
    """The road of every trial; several `stops` stop and resume."""
    with tempfile.TemporaryDirectory() as folder:
        for stop in stops:
            candidate = Candidate(backbone.name, strategy.name, values)
            limits = Limits(stop_after=stop)
            trial, fitted = run_trial(task, candidate, backbone, seed=1, folder=Path(folder), limits=limits)
            assert fitted is not None, f"it failed with {dict(values)}: {trial.error}"
    assert fitted is not None
    assert fitted.complete, "it stopped before its last epoch although nothing told it to"
    return fitted


def _check_curve(fitted: Fitted, task: Task) -> None:
    assert fitted.curve, "the learning curve has no point"
    for point in fitted.curve:
        assert 0 <= point.score <= 1, f"the curve has a score of {point.score}"
    for first, second in zip(fitted.curve, fitted.curve[1:], strict=False):
        assert second.epoch > first.epoch, f"epoch {second.epoch} follows epoch {first.epoch} in the curve"
        assert second.seconds >= first.seconds, f"second {second.seconds} follows second {first.seconds} in the curve"
    best = max(point.score for point in fitted.curve)
    assert best > 1.5 / len(task.classes), f"its best validation accuracy, {best:.2f}, is hardly above chance"
    assert np.allclose(fitted.probabilities.sum(axis=1), 1, atol=1e-3), "the probabilities of an image do not add up to 1"


def _with_shuffled_test_labels(task: Task) -> Task:
    labels = task.labels.copy()
    labels[task.part(TEST)] = np.roll(labels[task.part(TEST)], 7)
    return replace(task, labels=labels)


def _same(one: Fitted, other: Fitted, otherwise: str) -> None:
    difference = float(np.abs(one.probabilities - other.probabilities).max())
    assert difference == 0, f"{otherwise} (by up to {difference:.2g})"


def _check_saved(fitted: Fitted, task: Task, strategy: type[Strategy], backbone: Backbone, values: Mapping[str, Value]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        candidate = Candidate(backbone.name, strategy.name, values)
        model.save(Path(folder), fitted.model, backbone, candidate, task.classes, {})
        loaded = model.load(Path(folder))
        index = task.part(TEST)
        one, other = (probabilities_on(task, backbone, net, index) for net in (fitted.model, loaded.net))
    assert np.allclose(one, other, atol=1e-5), "the saved model predicts something else than the trained one"
