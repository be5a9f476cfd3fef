"""Batch norms that normalise by the statistics of the target."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from torch import nn

from automl_tl import Backbone, Classifier, Fitted, Job, Point, Strategy, hookimpl, loop
from automl_tl.device import memory_mb
from automl_tl.errors import TrialError
from automl_tl.inference import predict
from automl_tl.norms import adopt_statistics, norms_of
from automl_tl.objectives import validate
from automl_tl.records import TARGET, VALIDATION
from automl_tl.space import Value

from . import _adapting
from ._layers import rates
from ._probe import begin


class AdaBN(Strategy):
    """Train on the source from a probed head; then replace each batch norm's mean and variance by those of target images.

    Algorithm 1 of the paper: a domain is taken to lie in the statistics, what is learnt in the weights. It costs one more
    pass over the target images. A backbone without batch norms has nothing to replace.
    """

    name = "adabn"
    paper = "Li et al. (2018), Adaptive batch normalization for practical domain adaptation"
    needs = frozenset({"target"})
    target_beside = False  # they are looked at after the training
    space = {name: one for name, one in _adapting.SPACE.items() if name != "norms"}
    probed: nn.Linear

    def run(self, job: Job) -> Fitted:
        if not norms_of(job.build_backbone()):
            raise TrialError(f"{job.backbone.name} has no batch norms, so there are no statistics to adapt")
        job, self.probed = begin(job, norms="moving")
        fitted = loop.fit(self, job)
        images, task = job.pixels.array, job.task
        adopt_statistics(fitted.model, images, task.part(TARGET), job.backbone, seed=job.seed)
        probabilities = predict(fitted.model, images, task.part(VALIDATION), job.backbone)
        *before, last = fitted.curve or [Point(0, 0.0, None, 0.0, memory_mb())]
        score = validate(fitted.model, images, task, job.backbone).score
        point = replace(last, score=score, note="statistics of the target")
        return replace(fitted, probabilities=probabilities, curve=[*before, point])

    def build(self, backbone: nn.Module, num_classes: int) -> Classifier:
        return Classifier(backbone, self.probed)

    def param_groups(self, model: Classifier) -> Iterator[tuple[float, list[nn.Parameter]]]:
        return rates(model, self.hp.backbone_rate)

    @classmethod
    def cost(cls, backbone: Backbone, images: int, hyperparameters: Mapping[str, Value]) -> float:
        return float(backbone.macs) * images * (2 + 3 * float(hyperparameters["epochs"]))


@hookimpl
def register_strategies() -> list[type[Strategy]]:
    return [AdaBN]
