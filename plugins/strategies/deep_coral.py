"""Align the covariances of two domains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from automl_tl import Backbone, Batch, Classifier, Fitted, Job, Strategy, hookimpl, loop
from automl_tl.space import Float, Value

from . import _adapting, _layers
from ._losses import coral
from ._probe import begin


class DeepCoral(Strategy):
    """Cross-entropy on the source + `weight` · CORAL(source, target), from a probed head.

    Equation 6 of the paper, with the distance of equations 1 to 3, which is taken of the features that enter the head, where
    the paper takes the logits: seven logits hold too little of the domain. Features are scaled to a mean square of 1 first, so
    that `weight` means the same for every backbone.
    """

    name = "deep-coral"
    paper = "Sun and Saenko (2016), Deep CORAL: correlation alignment for deep domain adaptation"
    needs = frozenset({"target"})
    space = {**_adapting.SPACE, "weight": Float(1.0, 1000.0, 100.0, log=True)}
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
        apart = coral(*_adapting.to_unit(seen.features, seen.target_features))
        return seen.cross_entropy(batch.labels, self.hp.label_smoothing) + float(self.hp.weight) * apart

    @classmethod
    def cost(cls, backbone: Backbone, images: int, hyperparameters: Mapping[str, Value]) -> float:
        return _adapting.macs(backbone, images, hyperparameters)


@hookimpl
def register_strategies() -> list[type[Strategy]]:
    return [DeepCoral]
