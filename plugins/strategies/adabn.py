"""Batch norms that normalise by the statistics of the target."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from automl_tl import Backbone, Classifier, Fitted, Job, Point, Strategy, hookimpl, loop
from automl_tl.device import memory_mb
from automl_tl.errors import TrialError
from automl_tl.inference import predict, prepare
from automl_tl.objectives import validate
from automl_tl.records import TARGET, VALIDATION
from automl_tl.space import Value

from . import _adapting
from ._probe import probe_job

BATCH = 128


class AdaBN(Strategy):
    """Train on the source from a probed head; then replace each batch norm's mean and variance by those of target images.

    Algorithm 1 of the paper: a domain is taken to lie in the statistics, what is learnt in the weights. It costs one more
    pass over the target images. A backbone without batch norms has nothing to replace.
    """

    name = "adabn"
    paper = "Li et al. (2018), Adaptive batch normalization for practical domain adaptation"
    needs = frozenset({"target"})
    space = {name: one for name, one in _adapting.SPACE.items() if name != "norms"}
    probed: nn.Linear

    def run(self, job: Job) -> Fitted:
        if not norms_of(job.build_backbone()):
            raise TrialError(f"{job.backbone.name} has no batch norms, so there are no statistics to adapt")
        self.probed = probe_job(job).head()
        fitted = loop.fit(self, job)
        adapt_norms(fitted.model, job)
        images, task = job.pixels.array, job.task
        probabilities = predict(fitted.model, images, task.part(VALIDATION), job.backbone)
        last = fitted.curve[-1] if fitted.curve else Point(0, 0.0, None, 0.0)
        score = validate(fitted.model, images, task, job.backbone).score
        point = Point(last.epoch + 0.5, last.seconds, None, score, memory_mb(), "statistics of the target")
        return replace(fitted, probabilities=probabilities, curve=[*fitted.curve, point])

    def build(self, backbone: nn.Module, num_classes: int) -> Classifier:
        return Classifier(backbone, self.probed)

    def param_groups(self, model: Classifier) -> Iterator[tuple[float, list[nn.Parameter]]]:
        return _adapting.rates(model, self.hp.backbone_rate)

    @classmethod
    def cost(cls, backbone: Backbone, images: int, hyperparameters: Mapping[str, Value]) -> float:
        return float(backbone.macs) * images * (2 + 3 * float(hyperparameters["epochs"]))


def norms_of(model: nn.Module) -> tuple[nn.modules.batchnorm._BatchNorm, ...]:
    """The batch norms that keep statistics."""
    found = [layer for layer in model.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    return tuple(layer for layer in found if layer.track_running_stats)


@torch.no_grad()
def adapt_norms(model: nn.Module, job: Job) -> None:
    """Running means and variances become the average over batches of the task's unlabelled images."""
    layers = norms_of(model)
    before = [layer.momentum for layer in layers]
    model.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a plain average
        layer.train()
    order = np.random.default_rng(job.seed).permutation(job.task.part(TARGET))  # a batch of one class has that class's statistics
    for index in np.array_split(order, max(1, len(order) // BATCH)):
        model(prepare(job.pixels.array[np.sort(index)], job.backbone))
    for layer, momentum in zip(layers, before, strict=True):
        layer.momentum = momentum
    model.eval()


@hookimpl
def register_strategies() -> list[type[Strategy]]:
    return [AdaBN]
