"""Clients that train a copy of the server's network and send its weights back, and the server that takes their average.

McMahan et al. (2017), algorithm 1, with all clients in every round: w ← Σ n_k/n w_k, where client k starts at w and descends on
its own n_k images for some epochs. The average itself is Flower's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from automl_tl import Backbone, Classifier, Job, Strategy, loop
from automl_tl.errors import TrialError
from automl_tl.federation import Answer, Told
from automl_tl.records import PUBLIC, TRAIN, VALIDATION
from automl_tl.space import Choice, Float, Int, Space, Value

from ._probe import begin

LOCAL: Space = {
    "rate": Float(3e-4, 3e-2, 5e-3, log=True),
    "backbone_rate": Float(0.1, 1.0, 0.3, log=True),
    "epochs": Int(2, 40, 10),
    "local_epochs": Int(1, 5, 2),
    "batch_size": Choice((16, 32, 64), 16),
    "optimiser": Choice(("adamw", "sgd"), "adamw"),
    "norms": Choice(("still", "moving"), "still"),
    "weight_decay": Float(1e-4, 0.3, 0.02, log=True),
    "label_smoothing": Float(0.0, 0.2, 0.0),
    "augmentation": Choice(("none", "light", "medium"), "light"),
    "flip": Choice((False, True), False),
}
"""Of the training on a client; an epoch is a round."""


def pretrained_start(strategy: Strategy, job: Job, *, norms: str = "moving") -> Classifier:
    """The server's network before the first round, found on its own labelled images: batch norms have the statistics of the
    public ones (unless `norms` are still), and the head is a linear probe on them. Where there are too few for that, it is the
    pretrained network.

    A good start is worth more where clients are unlike (Nguyen et al., 2023, Where to begin? On the impact of pre-training and
    initialization in federated learning): with the source's statistics, which then stay, images unlike the source's lose most of
    what the network knows.
    """
    model, public = loop.assemble(strategy, job).model, job.task.part(PUBLIC)
    if len(np.unique(job.task.labels[public])) < 2:
        return model
    parts = {TRAIN: public, VALIDATION: job.task.part(VALIDATION)}
    known, head = begin(replace(job, task=replace(job.task, splits=parts)), norms=norms)
    model.backbone.load_state_dict(known.build_backbone().state_dict())
    model.head.load_state_dict(head.state_dict())
    return model


class WeightsCentre:
    """The server's side: its network has the average of the clients' weights."""

    def __init__(self, strategy: Strategy, job: Job, *, pretrained: bool = True) -> None:
        self.model = pretrained_start(strategy, job) if pretrained else loop.assemble(strategy, job).model

    def first(self) -> list[np.ndarray]:
        return arrays_of(self.model)

    def take(self, arrays: list[np.ndarray], number: int) -> None:
        put(self.model, arrays)

    def tell(self) -> dict[str, Any]:
        return {}


class WeightsClient:
    """A client's side: a fresh optimiser every round, so it remembers nothing."""

    def __init__(self, strategy: Strategy, job: Job, hold: Callable[[Classifier, Told], None] | None = None) -> None:
        self.strategy, self.job = strategy, job
        self.hold = hold
        """Called with the network as it came, before it trains."""

    def answer(self, arrays: list[np.ndarray], told: Told) -> Answer:
        parts = loop.assemble(self.strategy, self.job)
        put(parts.model, arrays)
        if self.hold is not None:
            self.hold(parts.model, told)
        loss = train_locally(self.strategy, parts, self.job, int(told["round"]))
        return Answer(arrays_of(parts.model), len(self.job.task.part(TRAIN)), {"loss": loss})


def train_locally(strategy: Strategy, parts: loop.Parts, job: Job, number: int) -> float:
    """The local epochs of round `number` (from 0), at their place in the schedule of all rounds; the mean loss."""
    train = job.task.part(TRAIN)
    if len(train) == 1:  # batch norms cannot take a single image: it is seen twice
        job = replace(job, task=replace(job.task, splits={**job.task.splits, TRAIN: np.repeat(train, 2)}))
    each, rounds = int(strategy.hp.local_epochs), int(strategy.hp.epochs)
    of = rounds * each
    epochs = range(number * each, (number + 1) * each)
    losses = [loop.train_epoch(strategy, parts, job, epoch, (epoch / of, (epoch + 1) / of)) for epoch in epochs]
    return float(np.mean(losses))


def arrays_of(model: nn.Module) -> list[np.ndarray]:
    """Weights and statistics of norms, in the order of the state dictionary; counters are left out."""
    return [tensor.detach().float().cpu().numpy().copy() for tensor in _state(model)]


@torch.no_grad()
def put(model: nn.Module, arrays: list[np.ndarray]) -> None:
    """Give `model` what `arrays_of` took from one like it.

    Raises:
        TrialError: it is of another form.
    """
    state = _state(model)
    if [tuple(tensor.shape) for tensor in state] != [values.shape for values in arrays]:
        raise TrialError("the weights that came are of another network than the one that was agreed on")
    for tensor, values in zip(state, arrays, strict=True):
        tensor.copy_(torch.from_numpy(values))


def _state(model: nn.Module) -> list[Tensor]:
    return [tensor for tensor in model.state_dict().values() if tensor.is_floating_point()]


def local_macs(backbone: Backbone, images: int, hyperparameters: Mapping[str, Value]) -> float:
    """Multiply-adds of all clients' training, forward and back."""
    return 3.0 * backbone.macs * images * float(hyperparameters["epochs"]) * float(hyperparameters["local_epochs"])
