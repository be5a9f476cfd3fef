"""A few old images among the new ones, and a classifier by nearest means."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from automl_tl import Backbone, Batch, Classifier, Fitted, Job, Strategy, hookimpl, loop
from automl_tl.evaluation.calibration import fit_temperature
from automl_tl.inference import outputs
from automl_tl.memory import herd, unit_features
from automl_tl.objectives import validate
from automl_tl.records import KEPT, TRAIN, VALIDATION
from automl_tl.space import Float, Int, Value
from automl_tl.strategy import cross_entropy

from . import _layers, _retaining
from ._frozen import linear
from ._losses import distillation
from ._prototypes import prototypes


class Rehearsal(Strategy):
    """New images and at most `exemplars` old ones together; distillation holds what the earlier model says of both (iCaRL).

    Algorithms 2 to 5 of the paper: as many old images of each class, herded, join the new ones; the loss is classification
    of all classes + strength · distillation of the old ones (here of softmax outputs, as the earlier model was trained for
    them, where the paper has sigmoids). Afterwards the class with the nearest mean of unit features is told (algorithm 1; the
    means are a linear layer without biases), where that scores at least as well on the validation images as the trained head.
    """

    name = "rehearsal"
    paper = "Rebuffi et al. (2017), iCaRL: Incremental classifier and representation learning"
    needs = frozenset({"earlier model", "linear head", "kept images"})
    space = {
        **{name: one for name, one in _retaining.SPACE.items() if name != "among"},
        "exemplars": Int(20, 2000, 200),
        "strength": Float(0.1, 10.0, 1.0, log=True),
        "temperature": Float(1.0, 4.0, 2.0),
    }
    head: nn.Linear
    teacher: nn.Module
    known: int

    def run(self, job: Job) -> Fitted:
        self.hp.weight_decay = 0.0
        self.head, earlier = _retaining.widened_head(job), _retaining.earlier_model(job)
        self.teacher, self.known = earlier.net.requires_grad_(False), len(earlier.classes)
        chosen = exemplars(job, earlier.net.backbone, self.hp.exemplars)
        train = np.union1d(job.task.part(TRAIN), chosen)
        joined = replace(job, task=replace(job.task, splits={**job.task.splits, TRAIN: train}))
        fitted = loop.fit(self, joined)
        fitted.notes = (f"{len(chosen)} old images among {len(train)}",)
        return _with_means(joined, fitted)

    def build(self, backbone: nn.Module, num_classes: int) -> Classifier:
        return Classifier(backbone, self.head)

    def param_groups(self, model: Classifier) -> Iterator[tuple[float, list[nn.Parameter]]]:
        return _layers.rates(model, self.hp.backbone_rate)

    def start_epoch(self, model: Classifier, epoch: int) -> None:
        _layers.settle(model, self.hp.norms)

    def loss(self, model: Classifier, batch: Batch) -> Tensor:
        logits = model(batch.images).float()
        with torch.no_grad():
            said = self.teacher(batch.images).float()
        kept = distillation(logits[:, : self.known], said, self.hp.temperature)
        return cross_entropy(logits, batch, self.hp.label_smoothing) + float(self.hp.strength) * kept

    @classmethod
    def cost(cls, backbone: Backbone, images: int, hyperparameters: Mapping[str, Value]) -> float:
        """The old images are seen, too, and the earlier model passes forward."""
        return _retaining.macs(backbone, images + int(hyperparameters["exemplars"]), hyperparameters, passes=4.0)


def exemplars(job: Job, network: nn.Module, most: int) -> np.ndarray:
    """Positions of at most `most` kept images, as many of each class, at least one, by herding."""
    kept, labels = job.task.part(KEPT), job.task.labels
    classes = np.unique(labels[kept])
    each = max(1, most // len(classes))
    features = unit_features(network, job.pixels.array, kept, job.backbone)
    members = [np.flatnonzero(labels[kept] == label) for label in classes]
    return np.concatenate([kept[own[herd(features[own], each)]] for own in members])


def _with_means(job: Job, fitted: Fitted) -> Fitted:
    """The better of the trained head and of nearest means, by the validation images."""
    trained = fitted.model
    assert isinstance(trained, Classifier)
    without = len(job.task.classes) - len(np.unique(job.task.labels[job.task.part(TRAIN)]))
    if without:
        return replace(fitted, notes=(*fitted.notes, f"classified by the trained head: no image of {without} classes was kept"))
    by_means = Classifier(trained.backbone, _means_head(job, trained.backbone))
    found = [validate(net, job.pixels.array, job.task, job.backbone, dtype=torch.float32) for net in (by_means, trained)]
    if found[0].score < found[1].score:
        return replace(fitted, notes=(*fitted.notes, "classified by the trained head"))
    notes = (*fitted.notes, "classified by nearest means")
    return replace(fitted, model=by_means, probabilities=found[0].probabilities, notes=notes)


def _means_head(job: Job, network: nn.Module) -> nn.Linear:
    """μᵀf, as |f/|f| - μ|² of unit means μ is least where that is largest; scaled to be as sure as the validation images bear."""
    task, images, backbone = job.task, job.pixels.array, job.backbone
    train, validation = task.part(TRAIN), task.part(VALIDATION)
    features = torch.from_numpy(unit_features(network, images, train, backbone))
    means = nn.functional.normalize(prototypes(features, torch.from_numpy(task.labels[train]), len(task.classes)))
    head = linear(means, torch.zeros(len(means)))
    with torch.no_grad():
        head.to(next(network.parameters()).device)
        likely = torch.from_numpy(unit_features(network, images, validation, backbone)) @ means.T
        temperature = fit_temperature((10 * likely).softmax(1).numpy(), task.labels[validation])
        head.weight.mul_(10 / temperature / _length(job, network))
    return head


def _length(job: Job, network: nn.Module) -> float:
    """Mean length of the features of some training images."""
    return float(outputs(network, job.pixels.array, job.task.part(TRAIN)[:64], job.backbone).norm(dim=1).mean())


@hookimpl
def register_strategies() -> list[type[Strategy]]:
    return [Rehearsal]
