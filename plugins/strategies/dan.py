"""Align the distributions of two domains in a reproducing kernel Hilbert space."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from automl_tl import Backbone, Batch, Classifier, Fitted, Job, Strategy, hookimpl, loop
from automl_tl.space import Float, Value

from . import _adapting, _layers
from ._losses import mmd
from ._probe import begin


class DAN(Strategy):
    """Cross-entropy on the source + `weight` · (MMD² of the features + MMD² of the predictions), from a probed head.

    Equation 4 of the paper with the layers that a network with one linear head has above its last block. The kernels weigh
    the same (the paper learns their weights), and the estimate goes over all pairs of a batch (the paper's over a quarter of
    them, which is faster and noisier).
    """

    name = "dan"
    paper = "Long et al. (2015), Learning transferable features with deep adaptation networks"
    needs = frozenset({"target"})
    space = {**_adapting.SPACE, "weight": Float(0.1, 10.0, 1.0, log=True)}
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
        apart = mmd(seen.features, seen.target_features) + mmd(seen.logits.softmax(1), seen.target_logits.softmax(1))
        return seen.cross_entropy(batch.labels, self.hp.label_smoothing) + float(self.hp.weight) * apart

    @classmethod
    def cost(cls, backbone: Backbone, images: int, hyperparameters: Mapping[str, Value]) -> float:
        return _adapting.macs(backbone, images, hyperparameters)


@hookimpl
def register_strategies() -> list[type[Strategy]]:
    return [DAN]
