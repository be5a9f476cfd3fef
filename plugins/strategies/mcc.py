"""Classes that are rarely confused on the target."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from automl_tl import Backbone, Batch, Classifier, Fitted, Job, Strategy, hookimpl, loop
from automl_tl.space import Float, Value

from . import _adapting, _layers
from ._losses import class_confusion
from ._probe import begin


class MCC(Strategy):
    """Cross-entropy on the source + `weight` · minimum class confusion on the target, from a probed head.

    Equations 2 to 6 of the paper (see `_losses.class_confusion`): softened probabilities, surer images weighing more, and what is
    left of their correlation off the diagonal.
    """

    name = "mcc"
    paper = "Jin et al. (2020), Minimum class confusion for versatile domain adaptation"
    needs = frozenset({"target"})
    space = {
        **_adapting.SPACE,
        "weight": Float(0.1, 3.0, 1.0, log=True),
        "temperature": Float(1.0, 4.0, 2.5),
    }
    probed: nn.Linear

    def run(self, job: Job) -> Fitted:
        job, self.probed = begin(job, norms=self.hp.norms)
        return loop.fit(self, job)

    def build(self, backbone: nn.Module, num_classes: int) -> Classifier:
        return Classifier(backbone, self.probed)

    def param_groups(self, model: Classifier) -> Iterator[tuple[float, list[nn.Parameter]]]:
        return _layers.rates(model, self.hp.backbone_rate)

    def start_epoch(self, model: Classifier, epoch: int) -> None:
        _layers.settle(model, self.hp.norms)

    def loss(self, model: Classifier, batch: Batch) -> Tensor:
        seen = _adapting.see_both(model, batch)
        confused = class_confusion(seen.target_logits, self.hp.temperature)
        return seen.cross_entropy(batch.labels, self.hp.label_smoothing) + float(self.hp.weight) * confused

    @classmethod
    def cost(cls, backbone: Backbone, images: int, hyperparameters: Mapping[str, Value]) -> float:
        return _adapting.macs(backbone, images, hyperparameters)


@hookimpl
def register_strategies() -> list[type[Strategy]]:
    return [MCC]
