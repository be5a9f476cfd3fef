"""The earlier model's weights, held by how much each did for its loss while it was trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from automl_tl import Backbone, Batch, Classifier, Fitted, Job, Strategy, hookimpl, loop
from automl_tl.errors import TrialError
from automl_tl.memory import earlier_importance
from automl_tl.records import IMPORTANCE
from automl_tl.space import Float, Value

from . import _layers, _retaining


class SynapticIntelligence(Strategy):
    """Fine-tuning on new classes + strength · Σ Ω (w - w*)²: equation 4 of the paper.

    w* are the earlier model's weights. Ω (equation 5) was added up while that was trained: what a weight did for the loss on its
    way, over how far it moved. It cannot be had afterwards. The loss is cross-entropy among the new classes, as for the
    multi-headed networks of the paper, where it is told which task an image is of.
    """

    name = "synaptic-intelligence"
    paper = "Zenke, Poole and Ganguli (2017), Continual learning through synaptic intelligence"
    needs = frozenset({"earlier model", "linear head", IMPORTANCE})
    space = {**_retaining.SPACE, "strength": Float(1e-3, 1e4, 10.0, log=True)}
    head: nn.Linear
    new: _retaining.NewClasses
    held: _retaining.Held

    def run(self, job: Job) -> Fitted:
        self.hp.weight_decay = 0.0
        self.head = _retaining.widened_head(job)
        self.new = _retaining.NewClasses.of(job, self.hp.among, self.hp.label_smoothing)
        importance = earlier_importance(job.task)
        if importance is None:
            raise TrialError("the earlier model remembers no importance; train it with --remember importance")
        self.held = _retaining.Held(job, importance, self.hp.strength)
        return _retaining.balanced(job, loop.fit(self, job))

    def build(self, backbone: nn.Module, num_classes: int) -> Classifier:
        return Classifier(backbone, self.head)

    def param_groups(self, model: Classifier) -> Iterator[tuple[float, list[nn.Parameter]]]:
        return _layers.rates(model, self.hp.backbone_rate)

    def start_epoch(self, model: Classifier, epoch: int) -> None:
        _layers.settle(model, self.hp.norms)

    def loss(self, model: Classifier, batch: Batch) -> Tensor:
        return self.new.loss(model.head, model.backbone(batch.images), batch) + self.held.penalty(model)

    @classmethod
    def cost(cls, backbone: Backbone, images: int, hyperparameters: Mapping[str, Value]) -> float:
        return _retaining.held_macs(backbone, images, hyperparameters)


@hookimpl
def register_strategies() -> list[type[Strategy]]:
    return [SynapticIntelligence]
