"""One candidate, trained and recorded."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from . import cost, guard, model, processes, registry
from .backbones import build
from .data import shown
from .device import chance_put_back, hardware, release_memory, reset_memory
from .errors import PLUGIN_FAULTS, AutomlError, TrialError, no_room
from .evaluation.adversaries import judge_robust
from .evaluation.classification import judge
from .evaluation.forgetting import told_accuracy
from .facts import is_number
from .features import cached_at, extract
from .importance import PathIntegral
from .inference import predict
from .model import as_it_starts, start_of
from .objectives import ACCURACY, RETENTION, ROBUSTNESS, validate
from .pixels import pixels_of
from .records import (
    KEPT_TEST,
    KEPT_VALIDATION,
    TEST,
    TRAIN,
    VALIDATION,
    Backbone,
    Candidate,
    Features,
    Point,
    Task,
    Trial,
    trial_id,
)
from .space import check
from .strategy import TRAINING, Fitted, Job


@dataclass(frozen=True)
class Limits:
    """How far one trial may go now."""

    stop_after: float = float("inf")
    """Epochs."""
    deadline: float = float("inf")
    """`time.monotonic()`."""
    silence: float = float("inf")
    """Seconds without an epoch that ended, from which on the trial is taken to hang; see `guard`."""
    final: bool = False
    """What `stop_after` ends will not go on; see `Job`."""


@chance_put_back()
def run_trial(
    task: Task,
    candidate: Candidate,
    backbone: Backbone,
    *,
    seed: int,
    folder: Path,
    limits: Limits | None = None,
    report: Callable[[Point], bool] = lambda point: False,
    command: str = "",
    trace: bool = False,
) -> tuple[Trial, Fitted | None]:
    """Train `candidate` on `task` as far as `limits` let it. A failure is a trial too, with its error and no score.

    `folder` keeps the checkpoints; it is the caller's to delete once the trial is recorded. With `trace`, what each weight does
    for the loss is added up on the way (`Fitted.importance`).

    Raises:
        TrialError: it failed in this process and not in those that train along.
        OSError: the disk is full.
    """
    limits = limits or Limits()
    start = time.perf_counter()
    trial = Trial(
        trial_id(task.fingerprint, candidate, seed),
        task.fingerprint,
        candidate,
        seed,
        "failed",
        provenance=provenance(command, backbone),
    )
    folder.mkdir(parents=True, exist_ok=True)
    release_memory()  # of the trial before
    reset_memory()
    try:
        job = _job(task, candidate, backbone, seed, folder, limits, report)
        job.path = PathIntegral() if trace else None
        fitted = _guarded(job, limits)
        validation = judge(fitted.probabilities, task.labels[task.part(VALIDATION)])
        if task.objective != ACCURACY:
            validated = validate(fitted.model, pixels_of(task, backbone).array, task, backbone)
            validation |= {"score": validated.score, **validated.parts}
    except PLUGIN_FAULTS as error:  # whatever a strategy raises is this trial's end, not the search's
        if no_room(error):  # no strategy's fault, and what fails for want of room would not be tried again
            raise
        words = shown(f"{candidate.strategy}: {error if isinstance(error, AutomlError) else guard.in_words(error)}")
        if not processes.all_failed(trial.id):
            alone = "only in one of several processes, which cannot go on without each other: start them again"
            raise TrialError(f"{words}; {alone}") from error
        return replace(trial, error=words, seconds=time.perf_counter() - start), None
    if job.room.pieces > 1:
        trial = replace(trial, provenance={**trial.provenance, "pieces": job.room.pieces})
    curve = tuple(fitted.curve)
    seconds = curve[-1].seconds if curve else time.perf_counter() - start
    return (
        replace(
            trial,
            status="finished" if fitted.complete else "stopped",
            curve=curve,
            validation=validation,
            seconds=max(seconds, 1e-6),
            memory_mb=max((point.memory_mb for point in curve), default=0.0),
        ),
        fitted,
    )


def _job(
    task: Task,
    candidate: Candidate,
    backbone: Backbone,
    seed: int,
    folder: Path,
    limits: Limits,
    report: Callable[[Point], bool],
) -> Job:
    """Raises InputError: there is no such strategy, or it knows no such hyperparameter."""
    strategy = registry.lookup("strategy", candidate.strategy, registry.strategies())
    restarted = {"cycles": TRAINING["cycles"]} if "cycles" in candidate.hyperparameters else {}
    space = {**strategy.space, **restarted}
    candidate = replace(candidate, hyperparameters=check(space, candidate.hyperparameters))
    return job_of(task, candidate, backbone, seed=seed, folder=folder, limits=limits, report=report)


def _guarded(job: Job, limits: Limits) -> Fitted:
    """`_train`, whatever the strategy does; processes that train together cannot be ended one by one."""
    if not processes.alone():
        return _train(job)
    with guard.outlived(job.folder) as lives, guard.never_silent(limits.silence) as heard:
        told = job.report

        def report(point: Point) -> bool:
            lives()
            heard()
            return told(point)

        job.report = report
        job.features = lambda: _features(job.task, job.backbone, heard)
        return _train(job)


def _train(job: Job) -> Fitted:
    """Raises AutomlError: what the strategy left cannot be used."""
    strategy = registry.lookup("strategy", job.strategy, registry.strategies())
    fitted = strategy(job.hyperparameters, job.backbone).run(job)
    if job.path is not None:
        fitted.importance = job.path.importance(fitted.model)
    expected = (len(job.task.part(VALIDATION)), len(job.task.classes))
    if fitted.probabilities.shape != expected or not np.isfinite(fitted.probabilities).all():
        raise AutomlError(f"gave probabilities of shape {fitted.probabilities.shape} or not finite; expected {expected}")
    curve = list(fitted.curve)
    if curve and fitted.notes:
        curve[-1] = replace(curve[-1], note="; ".join(fitted.notes))
    fitted.curve = [_plain(point) for point in curve]
    model.check_storable(fitted.model, job.strategy)
    return fitted


def _plain(point: Point) -> Point:
    """The same in Python's own numbers and in text that can be written: neither the history nor JSON holds others.

    Raises:
        AutomlError: one is not finite.
    """
    numbers: dict[str, Any] = {name: getattr(point, name) for name in ("epoch", "seconds", "loss", "score", "memory_mb")}
    for name, value in numbers.items():
        if not is_number(value) and (name, value) != ("loss", None):
            numbers[name] = float(value)
            if not math.isfinite(numbers[name]):
                raise AutomlError(f"reported a {name} of {value} in epoch {point.epoch}; expected a finite number")
    return replace(point, **numbers, note=shown(point.note))


def job_of(
    task: Task,
    candidate: Candidate,
    backbone: Backbone,
    *,
    seed: int,
    folder: Path,
    limits: Limits | None = None,
    report: Callable[[Point], bool] = lambda point: False,
) -> Job:
    """What a strategy is given to train `candidate`, whose hyperparameters are complete."""
    limits = limits or Limits()
    return Job(
        task=task,
        backbone=backbone,
        strategy=candidate.strategy,
        hyperparameters=candidate.hyperparameters,
        seed=seed,
        pixels=pixels_of(task, backbone),
        build_backbone=lambda: start_of(task, backbone),
        features=lambda: _features(task, backbone),
        folder=folder,
        report=report,
        stop_after=limits.stop_after,
        deadline=limits.deadline,
        final=limits.final,
    )


def _features(task: Task, backbone: Backbone, heard: Callable[[], None] = lambda: None) -> Features:
    """Of the network that `start_of` gives; `heard` is called on the way."""

    def network(head: bool) -> nn.Module:
        return start_of(task, backbone) if task.earlier else build(backbone, head=head)

    pixels = pixels_of(task, backbone)
    return extract(task, as_it_starts(task, backbone), pixels, network, progress=lambda done, total: heard())


def features_at_hand(task: Task, backbone: Backbone) -> bool:
    """Whether a job of the task has its features at once."""
    return cached_at("features", task, as_it_starts(task, backbone), task.before_test()).exists()


def judge_on_test(task: Task, backbone: Backbone, net: nn.Module) -> dict[str, float]:
    """Scores on the test split, or nothing where there is none. For the end: choices are made on validation scores."""
    index = task.part(TEST)
    if not len(index):
        return {}
    scores = judge(probabilities_on(task, backbone, net, index), task.labels[index])
    if task.objective == ROBUSTNESS:
        images = pixels_of(task, backbone).array[index]
        scores |= judge_robust(net, images, task.labels[index], backbone, epsilon=task.epsilon)
    return scores | (judge_retention(task, backbone, net) if task.objective == RETENTION else {})


def judge_retention(task: Task, backbone: Backbone, net: nn.Module) -> dict[str, float]:
    """Accuracy on the test images of new and of kept classes, and what of the latter was lost; nothing where none were kept.

    `kept_before` is what the earlier model had among its own classes. The parts `…_told` are accuracies where it is told
    whether an image is of the new task or of those before. What has no kept test images is judged on kept validation images,
    which the choice of the epoch has seen.
    """
    kept = task.part(KEPT_TEST) if len(task.part(KEPT_TEST)) else task.part(KEPT_VALIDATION)
    if not len(kept):
        return {}
    earlier = model.load(Path(task.earlier))
    known, own = np.arange(len(earlier.classes)), np.unique(task.labels[task.part(TRAIN)])
    new = task.part(TEST)
    on_kept, on_new = (probabilities_on(task, backbone, net, index) for index in (kept, new))
    before = probabilities_on(task, backbone, earlier.net, kept)
    labels = task.labels
    found = {
        "new": float((on_new.argmax(1) == labels[new]).mean()),
        "new_told": told_accuracy(on_new, labels[new], own),
        "kept": float((on_kept.argmax(1) == labels[kept]).mean()),
        "kept_told": told_accuracy(on_kept, labels[kept], known),
        "kept_before": float((before.argmax(1) == labels[kept]).mean()),
    }
    return found | {
        "forgotten": found["kept_before"] - found["kept"],
        "forgotten_told": found["kept_before"] - found["kept_told"],
    }


def probabilities_on(task: Task, backbone: Backbone, net: nn.Module, index: np.ndarray) -> np.ndarray:
    """Class probabilities of the task's images at `index`."""
    return predict(net, pixels_of(task, backbone).array, index, backbone)


def provenance(command: str, backbone: Backbone) -> Mapping[str, Any]:
    """Where a figure comes from."""
    packages = {name: version(name) for name in ("automl_tl", "torch", "timm")}
    return {
        "command": command,
        "versions": {"python": platform.python_version(), **packages},
        "hardware": hardware(),
        "speed": cost.speed_for(backbone),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
