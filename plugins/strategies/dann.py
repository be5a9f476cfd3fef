"""Features that an adversary cannot tell the domain from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from automl_tl import Backbone, Batch, Classifier, Fitted, Job, Strategy, hookimpl, loop
from automl_tl.batches import steps_of
from automl_tl.space import Float, Int, Value
from automl_tl.strategy import Room

from . import _adapting, _layers
from ._losses import adversary_strength, reverse_gradient
from ._probe import begin


class DANN(Strategy):
    """A second head tells source from target, and its gradient reaches the backbone reversed; from a probed head.

    Equations 9 and 13 to 15 of the paper, with its schedule of the reversal's strength; one optimiser trains all three parts.
    The second head (two hidden layers) is gone from the trained model.
    """

    name = "dann"
    paper = "Ganin et al. (2016), Domain-adversarial training of neural networks"
    needs = frozenset({"target"})
    space = {
        **_adapting.SPACE,
        "weight": Float(0.1, 2.0, 1.0, log=True),
        "hidden": Int(64, 512, 256),
    }
    probed: nn.Linear
    room: Room
    steps: int
    step = 0.0

    def run(self, job: Job) -> Fitted:
        job, self.probed = begin(job, norms=self.hp.norms)
        self.room, self.steps = job.room, steps_of(self, job) * self.hp.epochs
        fitted = loop.fit(self, job)
        del fitted.model.adversary
        return fitted

    def build(self, backbone: nn.Module, num_classes: int) -> Classifier:
        model, hidden = Classifier(backbone, self.probed), self.hp.hidden
        model.adversary = nn.Sequential(
            nn.Linear(self.facts.num_features, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1)
        )
        return model

    def param_groups(self, model: Classifier) -> Iterator[tuple[float, list[nn.Parameter]]]:
        return _layers.rates(model, self.hp.backbone_rate)

    def start_epoch(self, model: Classifier, epoch: int) -> None:
        _layers.settle(model, self.hp.norms)
        self.step = epoch * self.steps // self.hp.epochs

    def loss(self, model: Classifier, batch: Batch) -> Tensor:
        seen = _adapting.see_both(model, batch)
        strength = adversary_strength(min(self.step / self.steps, 1.0))
        self.step += 1 / self.room.pieces  # of a batch
        features = reverse_gradient(torch.cat([seen.features, seen.target_features]), strength)
        told = model.get_submodule("adversary")(features).float().squeeze(1)
        domain = torch.zeros_like(told)
        domain[len(seen.features) :] = 1.0
        apart = F.binary_cross_entropy_with_logits(told, domain)
        return seen.cross_entropy(batch.labels, self.hp.label_smoothing) + float(self.hp.weight) * apart

    @classmethod
    def cost(cls, backbone: Backbone, images: int, hyperparameters: Mapping[str, Value]) -> float:
        return _adapting.macs(backbone, images, hyperparameters)


@hookimpl
def register_strategies() -> list[type[Strategy]]:
    return [DANN]
