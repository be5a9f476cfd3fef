"""Training on images that an attacker changed: another strategy trains, and only its loss is another.

Madry et al. (2018), equation 2.1: the outer minimisation is whatever the base strategy does (its start, its rates, its
schedule, what it freezes, its regularisation), the inner maximisation is the attack.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from automl_tl import Backbone, Batch, Classifier, Fitted, Job, Strategy, registry
from automl_tl.attacks import Ball, Objective, pgd
from automl_tl.space import Choice, Float, Int, Space, Value, defaults

BASES = (
    *("fine-tuning", "last-blocks", "layerwise-decay", "l2-sp", "bias-norm", "lora", "gradual-unfreezing", "from-scratch"),
    *("dann", "deep-coral", "dan", "mcc"),
)
SPACE: Space = {
    "base": Choice(BASES, "fine-tuning"),
    "rate": Float(3e-4, 1e-2, 4e-3, log=True),
    "backbone_rate": Float(0.1, 1.0, 1.0, log=True),
    "epochs": Int(3, 40, 16),
    "batch_size": Choice((32, 64, 128), 32),
    "norms": Choice(("still", "moving"), "moving"),
    "weight_decay": Float(1e-4, 0.3, 0.02, log=True),
    "augmentation": Choice(("none", "light", "medium"), "light"),
    "flip": Choice((False, True), False),
}
"""Those that the base has, too, are the base's (within its ranges); its others are at their defaults. What withstands
attacks lies far from what the source taught, so the defaults move every weight, and the norms, at a high rate."""


Loss = Callable[[Classifier, Batch], Tensor]
"""What a strategy descends on."""


@dataclass(frozen=True)
class Attacker:
    """Changes training images within the task's epsilon."""

    epsilon: float
    backbone: Backbone
    steps: int
    share: float = 2.5
    """Of the radius, all steps together."""

    def __call__(self, model: Classifier, images: Tensor, aim: Objective) -> Tensor:
        """Images near `images` with a larger `aim`; random numbers are those of the loop, which seeds them for each epoch."""
        ball = Ball.of(self.epsilon, self.backbone, images)
        return pgd(model, images, aim, ball, steps=self.steps, share=self.share, generator=torch.default_generator)


def base_of(values: Mapping[str, Value]) -> type[Strategy]:
    return registry.lookup("strategy", str(values["base"]), registry.strategies())


def base_values(values: Mapping[str, Value]) -> dict[str, Value]:
    """The base's hyperparameters: its defaults, and the shared ones as far as its space allows; cycles are the loop's. What else
    is named alike, such as a weight, is of another term."""
    space = base_of(values).space
    found = {**defaults(space), **{name: values[name] for name in ("cycles",) if name in values}}
    for name in SPACE.keys() & space.keys() & values.keys():
        one = space[name]
        if isinstance(one, Choice):
            found[name] = values[name] if values[name] in one.options else found[name]
        else:
            found[name] = type(one.default)(min(max(float(values[name]), one.low), one.high))
    return found


def requires(needs: frozenset[str], values: Mapping[str, Value]) -> frozenset[str]:
    """The needs of the strategy and of its base; a base that is not installed is a need that no task meets."""
    if values["base"] not in registry.strategies():
        return needs | {f"strategy {values['base']}"}
    return needs | base_of(values).requires(base_values(values))


def train(job: Job, values: Mapping[str, Value], harden: Callable[[Loss], Loss]) -> Fitted:
    """Let the base train on what `harden` makes of its loss."""
    base = base_of(values)(base_values(values), job.backbone)
    base.loss = harden(base.loss)  # type: ignore[method-assign, assignment]
    return base.run(job)


def macs(backbone: Backbone, images: int, values: Mapping[str, Value], passes: float) -> float:
    """Multiply-adds where each image is seen `passes` more times, forth and back, than the base sees it."""
    base = base_of(values).cost(backbone, images, base_values(values))
    return base + 3.0 * backbone.macs * images * passes * float(base_values(values)["epochs"])
