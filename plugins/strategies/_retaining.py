"""What the strategies that learn without forgetting share: where they go on from, and the loss of the new classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from automl_tl import Backbone, Batch, Classifier, Fitted, Job, model
from automl_tl.device import device
from automl_tl.errors import TrialError
from automl_tl.importance import parameters_of
from automl_tl.inference import outputs, predict
from automl_tl.records import KEPT_VALIDATION, TRAIN, VALIDATION
from automl_tl.space import Choice, Float, Int, Space, Value

from ._probe import Probe, fit_probe

SPACE: Space = {
    "rate": Float(3e-4, 1e-2, 2e-3, log=True),
    "backbone_rate": Float(0.05, 1.0, 0.3, log=True),
    "epochs": Int(3, 40, 12),
    "batch_size": Choice((16, 32, 64), 32),
    "norms": Choice(("still", "moving"), "still"),
    "among": Choice(("new", "all"), "all"),
    "label_smoothing": Float(0.0, 0.2, 0.0),
    "augmentation": Choice(("none", "light", "medium", "strong"), "light"),
    "flip": Choice((False, True), False),
}
"""Without weight decay: it would pull what is to be kept to zero. Moving norms forget what no penalty of weights can keep."""


def earlier_model(job: Job) -> model.Model:
    """The model that the task must not forget."""
    return model.load(Path(job.task.earlier))


def own_classes(job: Job) -> np.ndarray:
    """Positions of the classes that the task has training images of."""
    return np.unique(job.task.labels[job.task.part(TRAIN)])


def widened_head(job: Job) -> nn.Linear:
    """The earlier model's head, with a row for each class that it did not know: a linear probe of its features, made to compete
    fairly with the old rows where there are images to tell (`balanced`).

    Raises:
        TrialError: that head is not linear.
    """
    old = earlier_model(job).net.head
    if not isinstance(old, nn.Linear):
        raise TrialError("the earlier model's head is not linear, so it cannot be widened; train that model by another strategy")
    values = job.features().values
    probe = probe_new(job, values)
    head = nn.Linear(old.in_features, len(job.task.classes))
    with torch.no_grad():
        head.weight.zero_()
        head.bias.zero_()
        own = own_classes(job)
        head.weight[own], head.bias[own] = probe.weight, probe.bias
        head.weight[: old.out_features], head.bias[: old.out_features] = old.weight.cpu(), old.bias.cpu()
    if (index := both(job)) is not None and len(new_classes(job)):
        with torch.no_grad():
            logits = head(torch.from_numpy(values[index].astype(np.float32)))
        _rescale(head, job, *_fair(logits, job, index))
    return head


def probe_new(job: Job, values: np.ndarray) -> Probe:
    """A linear probe of the task's own classes on `values`, features of all its images."""
    own, labels = own_classes(job), job.task.labels
    train, validation = job.task.part(TRAIN), job.task.part(VALIDATION)
    places = [np.searchsorted(own, labels[part]) for part in (train, validation)]
    return fit_probe(values[train], places[0], values[validation], places[1], len(own))


@dataclass(frozen=True, eq=False)
class NewClasses:
    """The loss of the new images, and among which classes it looks."""

    own: Tensor
    """Positions of the classes that there are training images of, int64 ascending."""
    among: str
    """"new": those alone, as a network with a head for each task is trained, where it is told which task an image is of.
    "all": all of them; but the rows of the earlier classes get no gradient from images that are never theirs, which would only
    teach that those classes no longer are."""
    smoothing: float

    @classmethod
    def of(cls, job: Job, among: str, smoothing: float) -> NewClasses:
        return cls(torch.from_numpy(own_classes(job)).to(device()), among, smoothing)

    def loss(self, head: nn.Module, features: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy of what the linear `head` makes of n×d `features`."""
        assert isinstance(head, nn.Linear)
        if self.among == "new":
            logits, labels = (
                F.linear(features, head.weight[self.own], head.bias[self.own]),
                torch.searchsorted(self.own, batch.labels),
            )
        else:
            trained = torch.zeros(len(head.weight), 1, dtype=torch.bool, device=features.device)
            trained[self.own] = True
            weight = torch.where(trained, head.weight, head.weight.detach())
            bias = torch.where(trained[:, 0], head.bias, head.bias.detach())
            logits, labels = F.linear(features, weight, bias), batch.labels
        return F.cross_entropy(logits.float(), labels, label_smoothing=self.smoothing)


class Held:
    """A quadratic penalty that holds weights where an earlier model has them: factor · Σ importance · (w - w*)².

    `importance` and the earlier weights are by the names of a saved model. Of a head that is wider now, the rows of the earlier
    classes are held.
    """

    def __init__(self, job: Job, importance: Mapping[str, Tensor], factor: float) -> None:
        weights = parameters_of(earlier_model(job).net)
        self.importance = {name: value.to(device()) for name, value in importance.items()}
        self.origin = {name: weights[name].detach().clone() for name in importance}
        self.factor = factor
        if job.path is not None:
            job.path.extra = self.gradient

    def penalty(self, model: Classifier) -> Tensor:
        """A scalar."""
        self.model = model
        terms = [(self.importance[name] * away.square()).sum() for name, away in self._away(model)]
        return self.factor * torch.stack(terms).sum()

    def gradient(self) -> dict[str, Tensor]:
        """Of the penalty where the model is now: what is no part of the task's own gradient."""
        found = {}
        for name, away in self._away(self.model):
            parameter = self.model.get_parameter(name)
            found[name] = torch.zeros_like(parameter)
            _rows(found[name], away).copy_(2 * self.factor * self.importance[name] * away.detach())
        return found

    def _away(self, model: Classifier) -> Iterator[tuple[str, Tensor]]:
        for name, origin in self.origin.items():
            yield name, _rows(model.get_parameter(name), origin) - origin


def _rows(value: Tensor, like: Tensor) -> Tensor:
    """Those that `like` has, of a head that may have new classes since; a scalar has none."""
    return value if value.shape == like.shape else value[: len(like)]


def balanced(job: Job, fitted: Fitted) -> Fitted:
    """`fitted`, whose new classes' logits are scaled and shifted so that they compete fairly with the old ones.

    Wu et al. (2019), Large scale incremental learning: two numbers, by the validation images of new and of kept classes, which
    count the same. Where no image is kept there is nothing to learn them from, and nothing changes. Within the old and within the
    new classes the order stays.
    """
    net, index = fitted.model, both(job)
    assert isinstance(net, Classifier)
    if index is None or not len(new_classes(job)):
        return fitted
    logits = outputs(net, job.pixels.array, index, job.backbone)
    _rescale(net.head, job, *_fair(logits, job, index))
    probabilities = predict(net, job.pixels.array, job.task.part(VALIDATION), job.backbone)
    return replace(fitted, probabilities=probabilities)


def both(job: Job) -> np.ndarray | None:
    """Validation images of the task and of kept classes; None where there are no kept ones."""
    new, kept = job.task.part(VALIDATION), job.task.part(KEPT_VALIDATION)
    return np.concatenate([new, kept]) if len(kept) else None


def new_classes(job: Job) -> np.ndarray:
    """Positions of the classes that the earlier model does not know."""
    return np.arange(len(earlier_model(job).classes), len(job.task.classes))


def _fair(logits: Tensor, job: Job, index: np.ndarray) -> tuple[float, float]:
    """Scale and shift of the new classes' logits with the least cross-entropy."""
    moved = torch.zeros(logits.shape[1]).index_fill(0, torch.from_numpy(new_classes(job)), 1.0)

    def scaled(numbers: Tensor) -> Tensor:
        return torch.where(moved > 0, logits * numbers[0].exp() + numbers[1], logits)

    factor, shift = fairest(scaled, torch.from_numpy(job.task.labels[index]), len(job.task.part(VALIDATION)))
    return float(np.exp(factor)), shift


def fairest(logits: Callable[[Tensor], Tensor], labels: Tensor, new: int) -> tuple[float, float]:
    """The two numbers with the least cross-entropy of the `logits` that they give; the first `new` images weigh as much as the
    others together."""
    is_new = torch.arange(len(labels), device=labels.device) < new
    weight = torch.where(is_new, 0.5 / is_new.sum(), 0.5 / (~is_new).sum())
    numbers = torch.zeros(2, device=labels.device, requires_grad=True)
    optimiser = torch.optim.LBFGS([numbers], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = (weight * F.cross_entropy(logits(numbers), labels, reduction="none")).sum() + 1e-3 * numbers.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    return float(numbers[0].detach()), float(numbers[1].detach())


@torch.no_grad()
def _rescale(head: nn.Module, job: Job, scale: float, shift: float) -> None:
    assert isinstance(head, nn.Linear)
    rows = new_classes(job)
    head.weight[rows] *= scale
    head.bias[rows] = head.bias[rows] * scale + shift


def held_macs(backbone: Backbone, images: int, hyperparameters: Mapping[str, Value]) -> float:
    """As fine-tuning, and a look at every weight in each step."""
    steps = images * float(hyperparameters["epochs"]) / float(hyperparameters["batch_size"])
    return macs(backbone, images, hyperparameters) + 3.0 * backbone.params * steps


def macs(backbone: Backbone, images: int, hyperparameters: Mapping[str, Value], passes: float = 3.0) -> float:
    """Multiply-adds: the probe's pass, then `passes` forward passes' work for each image and epoch."""
    return float(backbone.macs) * images * (1 + passes * float(hyperparameters["epochs"]))
