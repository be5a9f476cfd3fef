"""Every built-in strategy and metric passes the kit that plugin authors are given; what is broken does not."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from types import FunctionType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from automl_tl import Batch, Candidate, Classifier, Features, Fitted, Job, Strategy, model, registry
from automl_tl.backbones import catalogue
from automl_tl.errors import AutomlError
from automl_tl.records import TEST
from automl_tl.space import Float, Int, check
from automl_tl.testing import _fewest, check_metric, check_strategy, small_task, smallest_backbone, task_for

METRICS = [metric for kind in ("distance", "transferability") for metric in registry.metrics(kind).values()]
ALIKE = {"last-blocks", "layerwise-decay", "l2-sp", "bias-norm", "adabn", "dan", "deep-coral", "dann", "trades", "pgd"}
ALIKE |= {"synaptic-intelligence", "lwf", "ewc", "fedavg", "fedprox", "federated-distillation"}
"""Each is trained by what another one of its kind is trained by, too, which is checked each time: one that is quicker, where
there is one."""
TESTED = {"from-scratch", "gradual-unfreezing", "expansion", "rehearsal", "lora", "prototypical", "dp-fedavg", "fast-adversarial"}
"""What is their own has tests each time: in the files on strategies, their details, norms, retaining, domains, attacks and
federation."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in ALIKE | TESTED else ()) for name in registry.strategies()]
)
def test_strategies(name: str) -> None:
    check_strategy(registry.strategies()[name], draws=0)


def test_each_strategy_names_its_paper_and_none_is_another_under_a_new_name() -> None:
    known = registry.strategies()
    unnamed = [name for name, strategy in known.items() if not re.search(r"\((19|20)\d\d\)", strategy.paper)]
    assert not unnamed, "author (year), title"
    made = {name: substance(strategy) for name, strategy in known.items()}
    twins = [(one, other) for one, other in combinations(known, 2) if made[one] == made[other]]
    assert not twins


def substance(strategy: type[Strategy]) -> set[tuple[object, ...]]:
    """What a strategy does otherwise than the defaults: the code of its methods, and what may vary."""
    methods = {name: getattr(one, "__func__", one) for name, one in vars(strategy).items()}
    codes = {name: one.__code__ for name, one in methods.items() if isinstance(one, FunctionType)}
    return {(name, code.co_code, code.co_names, repr(code.co_consts)) for name, code in codes.items()} | {tuple(strategy.space)}


@pytest.mark.slow
@pytest.mark.parametrize("name", registry.strategies())
def test_strategies_with_random_settings(name: str) -> None:
    check_strategy(registry.strategies()[name])


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_metrics(metric: object) -> None:
    check_metric(metric)  # type: ignore[arg-type]


class Plain(Strategy):
    """All weights at one rate: the defaults of the five seams."""

    name = "plain"
    paper = "nobody's"
    space = {"rate": Float(1e-4, 1e-2, 1e-3, log=True), "epochs": Int(2, 20, 5)}


def test_the_defaults_of_the_seams_pass() -> None:
    check_strategy(Plain, draws=1)
    assert "plain" not in registry.strategies(), "the kit leaves nothing registered"


class Raises(Plain):
    """Fails in its second epoch."""

    name = "raises"

    def start_epoch(self, model: Classifier, epoch: int) -> None:
        if epoch == 1:
            raise RuntimeError("out of cheese")


class Looks(Plain):
    """Trains on the test labels."""

    name = "looks"

    def run(self, job: Job) -> Fitted:
        fitted = super().run(job)
        share = float(job.task.labels[job.task.part(TEST)][:5].mean()) / 10
        fitted.probabilities = (1 - share) * fitted.probabilities + share / len(job.task.classes)
        return fitted


class Forgets(Plain):
    """Starts anew after a stop."""

    name = "forgets"

    def start_epoch(self, model: Classifier, epoch: int) -> None:
        self.seen = getattr(self, "seen", 0) + 1

    def loss(self, model: Classifier, batch: Batch) -> Tensor:
        return super().loss(model, batch) * self.seen


class Draws(Plain):
    """Draws before the loop has set the seed."""

    name = "draws"

    def run(self, job: Job) -> Fitted:
        self.drawn = 1 + float(torch.rand(()))
        return super().run(job)

    def loss(self, model: Classifier, batch: Batch) -> Tensor:
        return super().loss(model, batch) * self.drawn


class Guesses(Plain):
    """Never learns."""

    name = "guesses"

    def build(self, backbone: nn.Module, num_classes: int) -> Classifier:
        return super().build(backbone, num_classes)

    def loss(self, model: Classifier, batch: Batch) -> Tensor:
        return -super().loss(model, batch)


class Hurries(Plain):
    """Does not look at the clock."""

    name = "hurries"

    def run(self, job: Job) -> Fitted:
        return super().run(replace(job, deadline=math.inf))


class Deaf(Plain):
    """Does not stop when told to."""

    name = "deaf"

    def run(self, job: Job) -> Fitted:
        return super().run(replace(job, report=lambda point: job.report(point) and False))


class Swallows(Plain):
    """Says nothing of what went wrong."""

    name = "swallows"

    def run(self, job: Job) -> Fitted:
        try:
            return super().run(job)
        except AutomlError as error:
            raise RuntimeError("something went wrong") from error.__cause__


class Litters(Plain):
    """Leaves torch without gradients."""

    name = "litters"

    def run(self, job: Job) -> Fitted:
        with torch.enable_grad():
            fitted = super().run(job)
        torch.set_grad_enabled(False)
        return fitted


class Free(Plain):
    """Says that it costs nothing."""

    name = "free"

    @classmethod
    def cost(cls, backbone: object, images: int, hyperparameters: object) -> float:
        return 0.0


class Wordy(Plain):
    """Says in words what it costs."""

    name = "wordy"

    @classmethod
    def cost(cls, backbone: object, images: int, hyperparameters: object) -> float:
        return "a lot"  # type: ignore[return-value]


class Unnamed(Plain):
    """Nobody knows where it comes from."""

    name = "unnamed"
    paper = ""


class Keyed(Plain):
    """Has groups as torch's optimisers take them."""

    name = "keyed"

    def param_groups(self, model: Classifier) -> Iterator[tuple[float, list[nn.Parameter]]]:
        yield {"params": list(model.parameters()), "lr": 1e-3}  # type: ignore[misc]


class Swapped(Plain):
    """Has the factor last."""

    name = "swapped"

    def param_groups(self, model: Classifier) -> Iterator[tuple[float, list[nn.Parameter]]]:
        yield list(model.parameters()), 1.0  # type: ignore[misc]


class Groupless(Plain):
    """Forgot to return its groups."""

    name = "groupless"

    def param_groups(self, model: Classifier) -> Iterator[tuple[float, list[nn.Parameter]]]:
        return None  # type: ignore[return-value]


class Misspelt(Plain):
    """Asks for a hyperparameter that it has not."""

    name = "misspelt"

    def start_epoch(self, model: Classifier, epoch: int) -> None:
        assert self.hp.epoch > epoch


class Each(Plain):
    """Has a loss for each image."""

    name = "each"

    def loss(self, model: Classifier, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(model(batch.images), batch.labels, reduction="none")


class Silent(Plain):
    """Forgot to return its loss."""

    name = "silent"

    def loss(self, model: Classifier, batch: Batch) -> Tensor:
        super().loss(model, batch)
        return None  # type: ignore[return-value]


class Raw(Plain):
    """Says a value where a range belongs."""

    name = "raw"
    space = {"rate": 0.1}  # type: ignore[dict-item]


class Wanting(Plain):
    """Needs what it misspells."""

    name = "wanting"
    needs = frozenset({"targets"})


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (Wanting, "wanting needs targets, which the task does not bring"),
        (Each, r"TypeError: `loss` gave a tensor of shape \(\d+,\); expected a tensor with one number"),
        (Silent, "TypeError: `loss` gave a NoneType; expected a tensor"),
        (Raw, r"Raw'>: its space has 'rate': 0\.1; expected a name and a Float, Int or Choice"),
        (int, "its name is None"),
        (Raises, "out of cheese"),
        (Looks, "other test labels"),
        (Draws, "trained twice with one seed, it predicts differently"),
        (Guesses, "hardly above chance"),
        pytest.param(Hurries, "deadline was over", marks=pytest.mark.slow),
        (Deaf, "said stop, but it went on"),
        pytest.param(Swallows, "an error below it became RuntimeError: something went wrong", marks=pytest.mark.slow),
        (Forgets, "taken up again, it predicts differently"),
        (Free, "cost of strategy 'free' failed: ValueError: it gave 0.0; expected multiply-adds above 0"),
        (Wordy, "cost of strategy 'wordy' failed: ValueError: could not convert .* 'a lot'; expected multiply-adds above 0"),
        (Unnamed, "unnamed has no paper; say who described it"),
        (Keyed, "keyed: TypeError: `param_groups` gave a dict; expected pairs of a factor on the rate and a list of parameters"),
        (Swapped, r"swapped: TypeError: `param_groups` gave \(list, float\); expected pairs of a factor on the rate"),
        (Groupless, "groupless: TypeError: `param_groups` gave a NoneType; expected pairs of a factor on the rate"),
        (Misspelt, "misspelt: AttributeError: `self.hp` has no 'epoch'; the strategy's `space` has rate, epochs"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_broken_strategy_is_caught(broken: type[Strategy], sentence: str) -> None:
    with pytest.raises(AssertionError, match=sentence):
        check_strategy(broken, draws=0)


@pytest.mark.parametrize(("low", "high", "trained"), [(1, 2, 2), (1, 30, 3), (5, 30, 5)])
def test_the_kit_trains_for_as_short_as_a_space_allows(low: int, high: int, trained: int) -> None:
    class Brief(Plain):
        space = {"epochs": Int(low, high, low)}

    assert check(Brief.space, _fewest(Brief)) == {"epochs": trained}


def test_what_is_left_changed_is_caught() -> None:
    try:
        with pytest.raises(AssertionError, match="it left gradients on as False"):
            check_strategy(Litters, draws=0)
    finally:
        torch.set_grad_enabled(True)


class _Metric:
    """A metric of a plugin."""

    name = "odd"

    def __init__(self, kind: str, score: Callable[[Features, Features | None], float]) -> None:
        self.kind = kind
        self.score = score


@pytest.mark.parametrize(
    ("metric", "sentence"),
    [
        (_Metric("distances", lambda target, source: 0.0), "its kind is 'distances'; expected one of distance, transferability"),
        (_Metric, "it is a class; give an object of it"),
        (_Metric("distance", lambda target, source: 1.0), "not farther"),
        (_Metric("distance", lambda target, source: float("nan")), "gave nan"),
        (_Metric("transferability", lambda target, source: float(np.abs(target.values[0]).sum())), "order|higher"),
    ],
    ids=["kind", "class", "constant", "nan", "first row"],
)
def test_a_broken_metric_is_caught(metric: _Metric, sentence: str) -> None:
    with pytest.raises(AssertionError, match=sentence):
        check_metric(metric)  # type: ignore[arg-type]


def test_the_kit_uses_real_images() -> None:
    task, backbone = small_task(), smallest_backbone()
    assert len(task.classes) == 5
    assert len(task.part(TEST)) > 40
    assert Candidate(backbone.name, "plain").backbone == backbone.name


def test_an_earlier_model_is_of_the_backbone_that_is_asked_for() -> None:
    """Or no author could check a strategy that needs one with a network of their own choice."""
    other = catalogue()["convnext_24.fractals_64"]
    for backbone in (other, smallest_backbone()):
        assert model.load(Path(task_for(frozenset({"earlier model"}), backbone).earlier)).backbone.name == backbone.name
