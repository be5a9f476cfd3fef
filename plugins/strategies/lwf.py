"""The earlier model's answers to new images, kept while new classes are learnt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from automl_tl import Backbone, Batch, Classifier, Fitted, Job, Strategy, hookimpl, loop
from automl_tl.space import Float, Value

from . import _layers, _retaining
from ._losses import distillation


class WithoutForgetting(Strategy):
    """Cross-entropy among the new classes + strength · distillation of what the earlier model says of the new images.

    Equations 1 to 3 and figure 3 of the paper: the new rows of the head are trained first (here as a linear probe), then all
    weights. The earlier model answers each image as it is augmented. Nothing of its own images is needed.
    """

    name = "lwf"
    paper = "Li and Hoiem (2016), Learning without forgetting"
    needs = frozenset({"earlier model", "linear head"})
    space = {
        **_retaining.SPACE,
        "strength": Float(0.1, 10.0, 1.0, log=True),
        "temperature": Float(1.0, 4.0, 2.0),
    }
    head: nn.Linear
    new: _retaining.NewClasses
    teacher: nn.Module
    known: int

    def run(self, job: Job) -> Fitted:
        self.hp.weight_decay = 0.0
        self.head = _retaining.widened_head(job)
        self.new = _retaining.NewClasses.of(job, self.hp.among, self.hp.label_smoothing)
        earlier = _retaining.earlier_model(job)
        self.teacher, self.known = earlier.net.requires_grad_(False), len(earlier.classes)
        return _retaining.balanced(job, loop.fit(self, job))

    def build(self, backbone: nn.Module, num_classes: int) -> Classifier:
        return Classifier(backbone, self.head)

    def param_groups(self, model: Classifier) -> Iterator[tuple[float, list[nn.Parameter]]]:
        return _layers.rates(model, self.hp.backbone_rate)

    def start_epoch(self, model: Classifier, epoch: int) -> None:
        _layers.settle(model, self.hp.norms)

    def loss(self, model: Classifier, batch: Batch) -> Tensor:
        features = model.backbone(batch.images)
        with torch.no_grad():
            said = self.teacher(batch.images).float()
        kept = distillation(model.head(features)[:, : self.known].float(), said, self.hp.temperature)
        return self.new.loss(model.head, features, batch) + float(self.hp.strength) * kept

    @classmethod
    def cost(cls, backbone: Backbone, images: int, hyperparameters: Mapping[str, Value]) -> float:
        """The earlier model passes forward, too."""
        return _retaining.macs(backbone, images, hyperparameters, passes=4.0)


@hookimpl
def register_strategies() -> list[type[Strategy]]:
    return [WithoutForgetting]
