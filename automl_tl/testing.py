"""Conformance kits for plugin authors: each trains or measures for real, and fails with a sentence."""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from . import memory, model
from .backbones import build, catalogue
from .cost import multiply_adds
from .data import load_task
from .device import chance_put_back, device
from .errors import PLUGIN_FAULTS, PluginError, ZooError
from .home import cache
from .hookspecs import Metric
from .importance import PathIntegral
from .layers import still_norms
from .objectives import adapt, brings, federate, harden, learn_to_learn, retain
from .profiling import reference_encoder
from .records import TEST, Backbone, Candidate, Features, Norms, Point, Task
from .registry import forget, strategies, wrong_with
from .space import Choice, Value, check, defaults, draw
from .strategy import Classifier, Fitted, Strategy
from .trials import Limits, job_of, probabilities_on, run_trial

DRAWS = 3
"""Random settings that are tried besides the defaults."""
FEWEST = {"epochs": 3, "episodes": 10}
"""What the trials here train for, where a strategy has such a thing and its space allows."""


def small_task() -> Task:
    """240 of scikit-learn's digits, of five classes, 8 × 8 pixels, with a test split."""
    return _digits("small", range(5), 240, test=0.2)


def _digits(name: str, classes: range, most: int, *, test: float = 0.0) -> Task:
    from sklearn.datasets import load_digits

    digits = load_digits()
    chosen = np.flatnonzero(np.isin(digits.target, classes))[:most]
    images = [np.uint8(image * 15) for image in digits.images[chosen]]
    return load_task((images, digits.target[chosen].tolist()), name=name, test=test)


def task_for(needs: frozenset[str], backbone: Backbone | None = None) -> Task:
    """The small task, with what a strategy needs beside it; an earlier model is one of `backbone`, or of the smallest.

    The target is the same kind of digits in negative and noisy, without labels; the source are digits of other classes, which are
    what an earlier model knows, too; the change of a pixel is 1/255; the images belong to three clients.
    """
    from sklearn.datasets import load_digits

    task, digits = small_task(), load_digits()
    if "target" in needs:
        chosen = np.flatnonzero(digits.target < 5)[240:400]
        noise = np.random.default_rng(0).normal(0, 10, (len(chosen), 8, 8))
        images = [np.uint8(np.clip(image, 0, 255)) for image in 240 - digits.images[chosen] * 15 + noise]
        task = adapt(task, load_task((images, digits.target[chosen].tolist()), name="negative", test=0.3))
    if "source" in needs:
        task = learn_to_learn(task, _digits("others", range(5, 10), 200))
    if "earlier model" in needs:
        folder, known = _earlier(backbone or smallest_backbone())
        task = retain(task, folder, known.classes, known)
    if "clients" in needs:
        task = federate(task, 3, skew=1.0)
    return harden(task, 1 / 255) if "epsilon" in needs else task


class _AllWeights(Strategy):
    """The defaults of the seams, but that norms stay as they are: a few images give poor statistics."""

    name = "all weights"

    def start_epoch(self, model: Classifier, epoch: int) -> None:
        still_norms(model.backbone, only_frozen=False)


def _earlier(backbone: Backbone) -> tuple[Path, Task]:
    """A model of other digits that remembers all that can be remembered, trained once by each version; and its images."""
    known = _digits("known", range(7, 10), 90)
    what = json.dumps([backbone.name, backbone.digest, version("automl_tl"), memory.KINDS])
    folder = cache() / "kit" / f"earlier-{hashlib.sha256(what.encode()).hexdigest()[:16]}"
    if not (folder / model.CARD).exists():
        values: dict[str, Value] = {"epochs": 3, "batch_size": 16}
        candidate = Candidate(backbone.name, _AllWeights.name, values)
        with tempfile.TemporaryDirectory() as scratch:
            job = job_of(known, candidate, backbone, seed=0, folder=Path(scratch))
            job.path = PathIntegral()
            fitted = _AllWeights(values, backbone).run(job)
        net, images = fitted.model, job.pixels.array
        assert isinstance(net, Classifier)
        memory.remember(folder, net, known, images, backbone, kinds=memory.KINDS, importance=job.path.importance(net), most=30)
        model.save(folder, net, backbone, candidate, known.classes, {})
    return folder, known


def smallest_backbone() -> Backbone:
    """The embedded network with the fewest multiply-adds, of those with the reference encoder's source: their features tell
    something of most images, which a strategy needs that is to learn in a second."""
    embedded = {name: backbone for name, backbone in catalogue().items() if backbone.zoo == "embedded"}
    reference = reference_encoder()
    assert reference is not None, "it comes with the embedded networks"
    source = reference[0].source_dataset
    return min((b for b in embedded.values() if b.source_dataset == source), key=lambda backbone: backbone.macs)


def check_strategy(
    strategy: type[Strategy], *, task: Task | None = None, backbone: Backbone | None = None, draws: int = DRAWS
) -> None:
    """Train `strategy`, which need not be installed, on a small real task, and see that it keeps the contract.

    - runs: its name, space, defaults and draws are valid, it says what it does and whose paper it is, its cost is positive and
      grows with the images, and it trains with its defaults and with `draws` random settings;
    - learns: its curve holds finite scores at growing times, and it beats chance;
    - respects the budget: after the deadline it starts no epoch; where it is told to stop, it stops;
    - seeds: the same seed gives the same predictions, whatever torch drew before, and test labels change nothing;
    - checkpoints and resumes: stopped twice and taken up again, it predicts what it would have without the stops;
    - cleans up: the source network, torch's settings, threads and the working folder are as they were; a saved model predicts
      the same;
    - fails clearly: what goes wrong below it is not swallowed.

    Raises:
        AssertionError: says what is wrong.
    """
    wrong = wrong_with("register_strategies", strategy)
    assert not wrong, f"{strategy!r}: {wrong}"
    backbone = backbone or smallest_backbone()
    task = task or task_for(strategy.needs, backbone)
    missing = ", ".join(sorted(strategy.needs - brings(task)))
    assert not missing, f"{strategy.name} needs {missing}, which the task does not bring; `objectives.brings` has the words"
    with _registered(strategy):
        _check_facts(strategy, backbone)
        device()  # whoever asks first settles the number of torch's threads
        source, surroundings = _copy(build(backbone)), _surroundings()
        values = {**defaults(strategy.space), **_fewest(strategy)}
        whole = _train(task, strategy, backbone, values)
        _check_curve(whole, task)
        _check_repeats(whole, task, strategy, backbone, values)
        _check_deadline(task, strategy, backbone, values)
        _check_failure(task, strategy, backbone, values)
        _check_saved(whole, task, strategy, backbone, values)
        for number in range(draws):
            values = {**draw(strategy.space, f"kit/{number}"), **_fewest(strategy)}
            if strategy.requires(values) <= brings(task):
                _train(task, strategy, backbone, values)
        for name, tensor in _copy(build(backbone)).items():
            assert torch.equal(tensor, source[name]), f"the source network was changed: {name}"
        for what, value in _surroundings().items():
            assert value == surroundings[what], f"it left {what} as {value}, which was {surroundings[what]}"


def check_metric(metric: Metric) -> None:
    """Measure features of known kinds, and see that `metric` keeps the contract.

    Raises:
        AssertionError: says what is wrong.
    """
    wrong = wrong_with("register_metrics", metric)
    assert not wrong, f"{metric!r}: {wrong}"
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 30)
    near = rng.normal(size=(120, 16)).astype(np.float32)
    shuffled = rng.permutation(120)
    if metric.kind == "familiarity":
        same, other = (_familiarity(metric, near + shift) for shift in (0, 3))
        assert same > other, f"images like the source's are not more familiar: {same} against {other} for others"
        return
    if metric.kind == "distance":
        itself, away, mixed = (_score(metric, Features(values), Features(near)) for values in (near, near + 3, near[shuffled]))
        assert away > itself, f"features moved away are not farther: {away} against {itself}"
        assert math.isclose(mixed, itself, abs_tol=1e-6), "the order of the images matters"
        return
    centres = rng.normal(size=(4, 16)).astype(np.float32) * 3
    tell, noise = near + centres[labels], near
    apart, chance = (_transferability(metric, values, labels) for values in (tell, noise))
    assert apart > chance, f"features that tell the classes apart do not score higher: {apart} against {chance}"
    turned = _transferability(metric, tell[shuffled], labels[shuffled])
    assert math.isclose(turned, apart, rel_tol=1e-4, abs_tol=1e-6), "the order of the images matters"


def _score(metric: Metric, target: Features, source: Features | None = None) -> float:
    value = float(metric.score(target, source))
    assert math.isfinite(value), f"{metric.name} gave {value}"
    return value


def _familiarity(metric: Metric, values: np.ndarray) -> float:
    """Of 16 channels whose source had mean 0 and variance 1."""
    norms = Norms(np.repeat((0, 1), 8), values.mean(axis=0), values.var(axis=0), np.zeros(16), np.ones(16))
    return _score(metric, Features(values, norms=norms))


def _transferability(metric: Metric, values: np.ndarray, labels: np.ndarray) -> float:
    """The source head knows as much as the features: distances to the first four rows' means, as probabilities."""
    logits = values @ np.stack([values[labels == label].mean(axis=0) for label in range(4)]).T
    exponent = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = (exponent / exponent.sum(axis=1, keepdims=True)).astype(np.float32)
    return _score(metric, Features(values, labels, probabilities))


class _registered:
    """Makes a strategy known under its name, as an installed plugin is."""

    def __init__(self, strategy: type[Strategy]) -> None:
        self.strategy = strategy

    def __enter__(self) -> None:
        strategies()[self.strategy.name] = self.strategy  # the registry's own table: nothing else looks strategies up

    def __exit__(self, *_: object) -> None:
        forget()


def _check_facts(strategy: type[Strategy], backbone: Backbone) -> None:
    assert strategy.__doc__, f"{strategy.name} has no docstring; say what it does"
    assert strategy.paper, f"{strategy.name} has no paper; say who described it: author (year), title"
    values = check(strategy.space, defaults(strategy.space))
    for number in range(20):
        check(strategy.space, draw(strategy.space, str(number)))
    try:
        few, many = (multiply_adds(strategy, backbone, images, values) for images in (100, 1000))
    except PluginError as error:
        raise AssertionError(str(error)) from error
    assert few < many, f"cost must grow with the images, but 100 cost {few} and 1,000 {many}"


def _fewest(strategy: type[Strategy]) -> dict[str, Value]:
    fewest = {**FEWEST, "epochs": FEWEST["epochs"] * (2 if "epsilon" in strategy.needs else 1)}  # robust ones learn slower
    spans = {name: span for name, span in strategy.space.items() if name in fewest and not isinstance(span, Choice)}
    return {name: min(max(int(span.low), fewest[name]), int(span.high)) for name, span in spans.items()}


def _train(
    task: Task,
    strategy: type[Strategy],
    backbone: Backbone,
    values: Mapping[str, Value],
    *,
    stops: bool = False,
) -> Fitted:
    """The road of every trial; with `stops`, one that halving stops after an epoch and a person after the next."""
    candidate = Candidate(backbone.name, strategy.name, values)
    legs = [(1.0, False), (math.inf, True), (math.inf, False)] if stops else [(math.inf, False)]
    with tempfile.TemporaryDirectory() as folder:
        for stop_after, told_to_stop in legs:
            heard: list[Point] = []

            def report(point: Point, heard: list[Point] = heard, told_to_stop: bool = told_to_stop) -> bool:
                heard.append(point)
                return told_to_stop

            limits = Limits(stop_after=stop_after)
            trial, fitted = run_trial(task, candidate, backbone, seed=1, folder=Path(folder), limits=limits, report=report)
            assert fitted is not None, f"it failed with {dict(values)}: {trial.error}"
            assert all(point.epoch <= stop_after for point in heard), (
                f"it went on after epoch {stop_after:g}, where it was to stop"
            )
            assert len(heard) <= 1 or not told_to_stop, f"`report` said stop, but it went on for {len(heard) - 1} epochs"
            left = [path.name for path in Path(folder).rglob("*.partial")]
            assert not left, f"it left half-written files: {', '.join(left)}"
            if fitted.complete:
                break
    assert fitted is not None
    assert fitted.complete, "it stopped before its last epoch although nothing told it to"
    return fitted


@chance_put_back()
def _check_repeats(whole: Fitted, task: Task, strategy: type[Strategy], backbone: Backbone, values: Mapping[str, Value]) -> None:
    """One more training answers for seed, test labels and stops at once; only where it differs is the reason looked for."""
    shuffled = _with_shuffled_test_labels(task)
    torch.rand(1)  # what is drawn without the seed is from now on something else
    if _difference(whole, _train(shuffled, strategy, backbone, values, stops=True)) == 0:
        return
    _same(whole, _train(task, strategy, backbone, values), "trained twice with one seed, it predicts differently")
    _same(whole, _train(shuffled, strategy, backbone, values), "trained with other test labels, it predicts differently")
    resumed = _train(task, strategy, backbone, values, stops=True)
    _same(whole, resumed, "stopped after an epoch and taken up again, it predicts differently")


def _check_deadline(task: Task, strategy: type[Strategy], backbone: Backbone, values: Mapping[str, Value]) -> None:
    """What has only one step may take it; nothing else starts."""
    candidate = Candidate(backbone.name, strategy.name, values)
    with tempfile.TemporaryDirectory() as folder:
        late = Limits(deadline=-math.inf)
        trial, fitted = run_trial(task, candidate, backbone, seed=1, folder=Path(folder), limits=late)
    assert fitted is not None, f"it failed where no time was left, instead of stopping: {trial.error}"
    assert len(fitted.curve) <= 1, f"the deadline was over before it began, but it trained for {len(fitted.curve)} epochs"


def _check_failure(task: Task, strategy: type[Strategy], backbone: Backbone, values: Mapping[str, Value]) -> None:
    """A network that cannot be read is the trial's error, in its own words."""
    sentence = "the weights cannot be read"

    def unreadable() -> NoReturn:
        raise ZooError(sentence)

    complete = check(strategy.space, values)
    with tempfile.TemporaryDirectory() as folder:
        job = job_of(task, Candidate(backbone.name, strategy.name, complete), backbone, seed=1, folder=Path(folder))
        broken = replace(job, build_backbone=unreadable, features=unreadable)
        try:
            strategy(complete, backbone).run(broken)
        except PLUGIN_FAULTS as error:  # whatever a plugin makes of it must still say what happened
            said = f"{type(error).__name__}: {error}"
        else:
            said = ""
    assert said, "an error below it was swallowed: it goes on without a network"
    assert sentence in said, f"an error below it became {said}"


def _copy(net: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def _surroundings() -> dict[str, object]:
    """What a strategy might change beyond its own trial."""
    return {
        "gradients on": torch.is_grad_enabled(),
        "the default number format": torch.get_default_dtype(),
        "the number of torch's threads": torch.get_num_threads(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "other Python threads": sorted(thread.name for thread in threading.enumerate() if not thread.daemon),
        "the working folder": sorted(path.name for path in Path.cwd().iterdir()),
    }


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


def _difference(one: Fitted, other: Fitted) -> float:
    return float(np.abs(one.probabilities - other.probabilities).max())


def _same(one: Fitted, other: Fitted, otherwise: str) -> None:
    assert (difference := _difference(one, other)) == 0, f"{otherwise} (by up to {difference:.2g})"


def _check_saved(fitted: Fitted, task: Task, strategy: type[Strategy], backbone: Backbone, values: Mapping[str, Value]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        candidate = Candidate(backbone.name, strategy.name, values)
        model.save(Path(folder), fitted.model, backbone, candidate, task.classes, {})
        loaded = model.load(Path(folder))
        index = task.part(TEST)
        one, other = (probabilities_on(task, backbone, net, index) for net in (fitted.model, loaded.net))
    assert np.allclose(one, other, atol=1e-5), "the saved model predicts something else than the trained one"
