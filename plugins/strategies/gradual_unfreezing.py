"""Unfreeze from the top, as long as it pays."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import nn

from automl_tl import Backbone, Classifier, Fitted, Job, Point, Strategy, hookimpl, loop
from automl_tl.device import device, memory_mb
from automl_tl.layers import layer_groups, still_norms
from automl_tl.objectives import ACCURACY, validate
from automl_tl.processes import agreed
from automl_tl.records import VALIDATION
from automl_tl.space import Choice, Float, Int, Value
from automl_tl.strategy import REGULARISERS

from ._probe import adopting, probe_job


class GradualUnfreezing(Strategy):
    """Train the head, then one more group of layers from the top at each stage; go back when a stage does not pay.

    Each lower group learns at `decay` times the rate of the one above (discriminative rates: equation 2 of the paper, whose
    section 3.3 has the unfreezing). A stage is kept if its best validation accuracy (ties: log-loss) beats everything before
    it; the first that is not is rolled back and ends the climb, so the number of trained groups is found, not set. With moving
    norms, those of the trained groups adopt the task's statistics before each stage (see `begin`), and the head is fitted anew.
    """

    name = "gradual-unfreezing"
    paper = "Howard and Ruder (2018), Universal language model fine-tuning for text classification"
    space = {
        "rate": Float(1e-4, 1e-2, 2e-3, log=True),
        "decay": Float(0.2, 1.0, 0.4, log=True),
        "epochs": Int(1, 10, 4),
        "batch_size": Choice((16, 32, 64), 32),
        "norms": Choice(("still", "moving"), "still"),
        "weight_decay": Float(1e-4, 0.3, 0.02, log=True),
        "label_smoothing": Float(0.0, 0.2, 0.0),
        "augmentation": Choice(("none", "light", "medium", "strong"), "light"),
        "flip": Choice((False, True), False),
        **REGULARISERS,
    }
    depth: int
    best: Fitted
    start: nn.Module
    told_to_stop = False

    def run(self, job: Job) -> Fitted:
        probe = probe_job(job)
        model = Classifier(job.build_backbone(), probe.head()).to(device())
        probabilities = probe.probabilities(job.features().values[job.task.part(VALIDATION)])
        curve: list[Point] = []
        self.best = Fitted(model, curve, probabilities)
        curve.append(Point(0, 0.0, None, _standing(self.best, job)[0], memory_mb(), "head alone"))
        kept, stages = 0, len(layer_groups(model.backbone))
        for self.depth in range(1, stages + 1):
            if not _begun(self._folder(job)) and (
                curve[-1].epoch >= job.stop_after or loop.time_is_up(job, loop.last_epoch(curve))
            ):
                return Fitted(self.best.model, curve, self.best.probabilities, complete=False)
            stage = self._train_stage(job, curve)
            curve.extend(stage.curve)
            pays = bool(stage.curve) and _standing(stage, job) > _standing(self.best, job)
            if pays:
                self.best, kept = stage, self.depth
            if not stage.complete or self.told_to_stop:
                return Fitted(self.best.model, curve, self.best.probabilities, complete=False)
            if not pays:
                break
        return Fitted(self.best.model, curve, self.best.probabilities, notes=(f"{kept} of {stages} groups of layers trained",))

    def _train_stage(self, job: Job, before: list[Point]) -> Fitted:
        """The loop, on `depth` groups from the best model so far; its curve goes on from the stages before."""
        folder = self._folder(job)
        folder.mkdir(parents=True, exist_ok=True)
        epoch, depth, began = before[-1].epoch, self.depth, time.perf_counter()
        self._free(job)
        seconds = before[-1].seconds + time.perf_counter() - began
        note = f"{depth} group{'s' * (depth > 1)} of layers"

        def shifted(point: Point) -> Point:
            return replace(point, epoch=epoch + point.epoch, seconds=seconds + point.seconds, note=note)

        def report(point: Point) -> bool:
            self.told_to_stop = job.report(shifted(point))
            return self.told_to_stop

        stage = loop.fit(self, replace(job, folder=folder, stop_after=job.stop_after - epoch, report=report))
        stage.curve = [shifted(point) for point in stage.curve]
        return stage

    def _folder(self, job: Job) -> Path:
        return job.folder / f"stage-{self.depth}"

    def _free(self, job: Job) -> None:
        """What the stage begins with: the best so far. Where norms will move, they have the statistics of the training images,
        and the head is fitted anew on what the backbone gives then: those above normalise what the freed ones change."""
        self.start = self.best.model
        if self.hp.norms == "still" or _begun(self._folder(job)):
            return
        assert isinstance(self.start, Classifier)
        backbone = self.start.backbone
        best = replace(job, build_backbone=lambda: copy.deepcopy(backbone))
        adopted = adopting(best, self._trained)
        if adopted is not best:
            self.start = Classifier(adopted.build_backbone(), probe_job(adopted).head())

    def _trained(self, backbone: nn.Module) -> list[nn.Parameter]:
        return [parameter for group in layer_groups(backbone)[-self.depth :] for parameter in group]

    def build(self, backbone: nn.Module, num_classes: int) -> Classifier:
        model = Classifier(backbone, nn.Linear(self.facts.num_features, num_classes))
        model.load_state_dict(self.start.state_dict())
        model.backbone.requires_grad_(False)
        for parameter in self._trained(model.backbone):
            parameter.requires_grad_(True)
        return model

    def param_groups(self, model: Classifier) -> Iterator[tuple[float, list[nn.Parameter]]]:
        yield 1.0, list(model.head.parameters())
        for above, group in enumerate(reversed(layer_groups(model.backbone)[-self.depth :])):
            yield self.hp.decay**above, group

    def start_epoch(self, model: Classifier, epoch: int) -> None:
        still_norms(model.backbone, only_frozen=self.hp.norms == "moving")

    @classmethod
    def cost(cls, backbone: Backbone, images: int, hyperparameters: Mapping[str, Value]) -> float:
        """Two to three stages are usual; the lower groups pass forward only."""
        return float(backbone.macs) * images * (1 + 2.5 * 2 * float(hyperparameters["epochs"]))


def _begun(folder: Path) -> bool:
    """Whether a stage goes on from a checkpoint, which has all that it began with."""
    return (folder / loop.CHECKPOINT).exists()


def _standing(fitted: Fitted, job: Job) -> tuple[float, float]:
    """Validation score, then negative log-loss; those of the first process, as all must climb equally far."""
    if job.task.objective != ACCURACY:
        found = validate(fitted.model, job.pixels.array, job.task, job.backbone)
        score, sure = agreed(found.score, -found.loss)
        return score, sure
    labels = job.task.labels[job.task.part(VALIDATION)]
    chosen = fitted.probabilities[np.arange(len(labels)), labels]
    score, sure = agreed((fitted.probabilities.argmax(1) == labels).mean(), np.log(np.clip(chosen, 1e-12, None)).mean())
    return score, sure


@hookimpl
def register_strategies() -> list[type[Strategy]]:
    return [GradualUnfreezing]
