"""The earlier model's weights, held where they matter by the Fisher information."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from automl_tl import Backbone, Batch, Classifier, Fitted, Job, Strategy, hookimpl, loop
from automl_tl.errors import TrialError
from automl_tl.memory import earlier_fisher
from automl_tl.records import FISHER
from automl_tl.space import Float, Value

from . import _layers, _retaining


class ElasticWeights(Strategy):
    """Fine-tuning on new classes + strength/2 · Σ F (w - w*)²: equation 3 of the paper.

    w* are the earlier model's weights and F the diagonal of their Fisher information: as it remembers it, or by the kept images.
    Of several tasks before, the Fisher information is added up and the newest weights are held (Huszár, 2018). The loss is
    cross-entropy among the new classes: the protocol of such penalties, where it is told which task an image is of.
    """

    name = "ewc"
    paper = "Kirkpatrick et al. (2017), Overcoming catastrophic forgetting in neural networks"
    needs = frozenset({"earlier model", "linear head", FISHER})
    space = {**_retaining.SPACE, "strength": Float(1e-3, 1e6, 1e4, log=True)}
    head: nn.Linear
    new: _retaining.NewClasses
    held: _retaining.Held

    def run(self, job: Job) -> Fitted:
        self.hp.weight_decay = 0.0
        self.head = _retaining.widened_head(job)
        self.new = _retaining.NewClasses.of(job, self.hp.among, self.hp.label_smoothing)
        fisher = earlier_fisher(job.task, job.pixels.array, job.backbone, seed=job.seed)
        if fisher is None:
            raise TrialError("the earlier model remembers no Fisher information; give images of what it knows with --keep")
        self.held = _retaining.Held(job, fisher, self.hp.strength / 2)
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
    return [ElasticWeights]
