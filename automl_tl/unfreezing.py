"""How many layers to unfreeze: every depth tried on one task, with what it gains, what it forgets and what it costs."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from . import loop
from .backbones import build
from .device import chance_put_back, channels_last, precision
from .errors import InputError
from .features import source_head
from .inference import outputs
from .layers import layer_groups, still_norms
from .objectives import validate
from .pixels import pixels_of
from .records import VALIDATION, Backbone, Candidate, Task
from .space import Value
from .strategy import Classifier, Strategy
from .trials import job_of

SETTINGS: Mapping[str, Value] = {"rate": 2e-3, "backbone_rate": 0.3, "batch_size": 32}
MOST_SOURCE = 1000
"""Source images that are looked at."""
BETTER = 0.1
"""Of the way from chance to always right: from here on labels are taken for the source head's own."""


@dataclass(frozen=True)
class Depth:
    """What came of training the top `groups` groups of layers and the head."""

    groups: int
    parameters: int
    """Trained ones, with the head."""
    score: float
    """Best validation accuracy, 0–1."""
    loss: float
    seconds: float
    memory_mb: float
    drift: float
    """How far features moved: rms(f - f⁰) / rms(f⁰ - mean f⁰); 0: not at all, 1: as far as images differ from each other."""
    changed: float | None
    """Share of images that the source head, on the tuned features, calls otherwise than before; None: no source head."""
    source: float | None = None
    """Accuracy of the source head, on the tuned features, on labelled images of the source; None: there are none."""


@dataclass(frozen=True)
class Study:
    """The answer for one task and one backbone."""

    task: str
    backbone: str
    groups: tuple[str, ...]
    """The lowest parameter of each group of layers, bottom to top."""
    depths: tuple[Depth, ...]
    judged_on: str
    """Which images `drift` and `changed` were measured on, in words."""
    epochs: int
    seed: int
    images: int
    """Validation images."""
    fingerprint: str
    """Of the task."""

    @property
    def enough(self) -> int:
        """The fewest groups whose score is within one standard error of the best score."""
        best = max(depth.score for depth in self.depths)
        error = float(np.sqrt(max(best * (1 - best), 1e-9) / max(self.images, 1)))
        return next(depth.groups for depth in self.depths if depth.score >= best - error)


class _Top(Strategy):
    """The head and the top groups of layers, from a head that fits already; every norm keeps its statistics."""

    name = "unfreeze-study"

    def __init__(self, hyperparameters: Mapping[str, Value], backbone: Backbone, groups: int, head: nn.Linear | None) -> None:
        super().__init__(hyperparameters, backbone)
        self.groups, self.head = groups, head

    def build(self, backbone: nn.Module, num_classes: int) -> Classifier:
        model = super().build(backbone.requires_grad_(False), num_classes)
        if self.head is not None:
            model.head.load_state_dict(self.head.state_dict())
        for group in self._trained(backbone):
            for parameter in group:
                parameter.requires_grad_(True)
        return model

    def _trained(self, backbone: nn.Module) -> list[list[nn.Parameter]]:
        return layer_groups(backbone)[-self.groups :] if self.groups else []

    def param_groups(self, model: Classifier) -> Iterator[tuple[float, list[nn.Parameter]]]:
        yield 1.0, list(model.head.parameters())
        yield self.hp.backbone_rate, [parameter for group in self._trained(model.backbone) for parameter in group]

    def start_epoch(self, model: Classifier, epoch: int) -> None:
        still_norms(model.backbone, only_frozen=False)


@chance_put_back()
def study_unfreezing(
    task: Task,
    backbone: Backbone,
    *,
    source: Task | None = None,
    epochs: int = 8,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> Study:
    """Train a head on the untouched backbone for `epochs`; then, from that head and for as many epochs again, depth 0 (the head
    alone), 1, 2 … all groups of layers, so that depths differ in nothing else.

    Forgetting: the tuned features go through the head that the backbone had, and its words are compared with those of the
    untouched network, on the images of `source` if there are some, else on the task's own validation images (which underestimates
    it where the source is far away). Where `source` has the classes of that head, in its order, its accuracy is told as well.

    Raises:
        InputError: fewer than two epochs.
    """
    if epochs < 2:
        raise InputError(f"a study takes at least 2 epochs a depth, but got {epochs}")
    judge, words = _judge(task, source, backbone)
    untouched = build(backbone)
    names = {parameter: name for name, parameter in untouched.named_parameters()}
    groups = tuple(names[group[0]] for group in layer_groups(untouched))
    depths: list[Depth] = []
    _, head = _train(task, backbone, judge, 0, None, epochs, seed)
    for count in range(len(groups) + 1):
        depths.append(_train(task, backbone, judge, count, head, epochs, seed)[0])
        if progress is not None:
            progress("training each depth", count + 1, len(groups) + 1)
    validation = len(task.part(VALIDATION))
    return Study(task.name, backbone.name, groups, tuple(depths), words, epochs, seed, validation, task.fingerprint)


def _train(
    task: Task,
    backbone: Backbone,
    judge: _Before,
    groups: int,
    head: nn.Linear | None,
    epochs: int,
    seed: int,
) -> tuple[Depth, nn.Linear]:
    """One depth, from a head or from nothing; and the head that came of it."""
    values = {**SETTINGS, "epochs": epochs}
    strategy = _Top(values, backbone, groups, head)
    with tempfile.TemporaryDirectory() as folder:
        candidate = Candidate(backbone.name, strategy.name, values)
        job = job_of(task, candidate, backbone, seed=seed, folder=Path(folder))
        start = time.perf_counter()
        fitted = loop.fit(strategy, job)
        seconds = time.perf_counter() - start
    model = fitted.model
    assert isinstance(model, Classifier)
    assert isinstance(model.head, nn.Linear)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    validated = validate(model, job.pixels.array, task, backbone)
    memory = max(point.memory_mb for point in fitted.curve)
    depth = Depth(groups, trained, validated.score, validated.loss, seconds, memory, *judge.compare(model.backbone))
    return depth, model.head


def _judge(task: Task, source: Task | None, backbone: Backbone) -> tuple[_Before, str]:
    """What forgetting is measured by, and on which images."""
    if source is None:
        words = f"the {len(task.part(VALIDATION))} validation images of the task itself, for want of images of the source"
        return _Before(backbone, pixels_of(task, backbone).array[task.part(VALIDATION)]), words
    count = len(source.labels)
    index = np.linspace(0, count - 1, min(MOST_SOURCE, count)).astype(int)
    labels = source.labels[index] if len(source.classes) == backbone.num_classes else None
    words = f"{len(index)} images of the source ({source.name})"
    return _Before(backbone, pixels_of(source, backbone).array[index], labels), words


class _Before:
    """What the untouched network made of some images, to compare a tuned one with.

    `labels`, of as many classes as the source head has, are taken for that head's own where it is then right more often than by
    chance: what is called otherwise, or in another order, is not.
    """

    def __init__(self, backbone: Backbone, images: np.ndarray, labels: np.ndarray | None = None) -> None:
        self.backbone, self.images = backbone, images
        self.head = _source_head(backbone)
        self.features = self._features(build(backbone))
        self.told = self._told(self.features)
        self.labels: torch.Tensor | None = None
        if labels is not None and self.told is not None and (labels >= 0).any():
            chance, known = 1 / backbone.num_classes, torch.from_numpy(labels)
            self.labels = known if _right(self.told, known) > chance + BETTER * (1 - chance) else None

    def compare(self, tuned: nn.Module) -> tuple[float, float | None, float | None]:
        """`Depth.drift`, `Depth.changed` and `Depth.source` of a tuned backbone."""
        after = self._features(tuned)
        apart = (self.features - self.features.mean(0)).square().mean().sqrt()
        drift = float((after - self.features).square().mean().sqrt() / apart.clamp(min=1e-12))
        told = self._told(after)
        if told is None or self.told is None:
            return drift, None, None
        right = None if self.labels is None else _right(told, self.labels)
        return drift, float((told != self.told).float().mean()), right

    @torch.inference_mode()
    def _told(self, features: torch.Tensor) -> torch.Tensor | None:
        """The classes by the source head, if there is one."""
        if self.head is None:
            return None
        told: torch.Tensor = self.head(features).argmax(1)
        return told

    def _features(self, net: nn.Module) -> torch.Tensor:
        dtype = precision(channels_last(net))
        return outputs(net, self.images, np.arange(len(self.images)), self.backbone, dtype=dtype)


def _right(told: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of the labelled images, whose labels are not -1, that are told rightly."""
    labelled = labels >= 0
    return float((told[labelled] == labels[labelled]).float().mean())


def _source_head(backbone: Backbone) -> nn.Linear | None:
    """The classifier that the backbone was pretrained with, if it is one linear layer on its features."""
    if not backbone.num_classes:
        return None
    head = source_head(build(backbone, head=True), backbone)
    return None if head is None else head.cpu()
