"""One step of a search: a candidate is trained further, here or by a worker, and what comes of it is settled."""

from __future__ import annotations

import math
import platform
import shutil
import time
import warnings
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, wait
from contextlib import suppress
from dataclasses import replace
from typing import Any

from . import checkpoint, guard, model, processes, registry
from .errors import PLUGIN_FAULTS, AutomlError, InputError, WorkerLost
from .evaluation.classification import judge
from .loop import epochs_in
from .progress import Search, Step, Training, cycles_of, epochs_asked, epochs_of, note_spent, record_trial, standing
from .records import IMPORTANCE, VALIDATION, Backbone, Outcome, Point, Ranked, Task, Trial
from .restarts import shared_epochs, sweep, take_over
from .strategy import Fitted
from .trials import Limits, features_at_hand, probabilities_on, run_trial

FRESH = "fresh"
"""Folder in a trial's own: a model that has yet to show that it can be kept, beside the one that was kept before."""
FEW = 32
"""Validation images that a model which is kept must have something to say of."""
NOTED_EVERY = 2.0
"""Seconds, while workers train: what was spent is on disk."""


def advance(state: Search, item: Ranked, epochs: float) -> bool:
    """Train a candidate up to `epochs`, or have a worker begin it; whether there was anything to do and the budget for it."""
    id_ = state.id_of(item.candidate)
    recalled = id_ in state.earlier
    if recalled:
        whole = state.earlier[id_]
        known = _as_of(whole, epochs)
        _count(state, item, known)
        state.trials[id_] = known
        if known is whole:
            del state.earlier[id_]
            if whole.error:
                state.stuck.add(id_)
    before = state.trials.get(id_)
    reached = epochs_of(before)
    if before is not None and (before.status != "stopped" or before.error or reached >= epochs):
        return recalled
    if (before is None and state.trials_left() < 1) or state.time_left() <= 0 or state.epochs_left() <= 0:
        return recalled
    candidate = item.candidate
    reached = max(reached, shared_epochs(state, candidate))
    most = reached + state.epochs_left()
    limit, final = min(epochs, most), most <= epochs
    backbone, folder = state.backbones[candidate.backbone], state.folder / "trials" / id_
    left, bar = state.time_left(), _best_other(state, id_)
    take_over(state, candidate)
    silence, trace = guard.silence(state.expected_seconds(item), left), IMPORTANCE in state.remember
    step = Step(candidate, backbone, state.seed, folder, limit, final, time.time() + left, silence, bar, state.command, trace)
    if state.workers is None:
        began = time.monotonic()
        trial = _train(state, item, step)
        _seen(state, backbone, time.monotonic() - began - trial.seconds + (before.seconds if before is not None else 0.0))
        _settle(state, item, trial)
        return True
    cycles = range(1, cycles_of(candidate) + 1)
    most = min(limit, sum(epochs_in(cycle, int(epochs_asked(candidate) or 1)) for cycle in cycles)) - reached
    state.training[id_] = Training(item, step, most, state.workers.submit(state.carry_out, step))
    while len(state.training) >= state.workers.size:
        settle_next(state)
    return True


def _train(state: Search, item: Ranked, step: Step) -> Trial:
    """Carry the step out here. Where Ctrl-C ends it, what it had reached may be the best so far: it is settled, too.

    That is what its last checkpoint says. Where it has none yet, or cannot be had from it, the trial stays as it was before, and
    the next start goes on with it.
    """
    planned, heard = _planned(state, step), 0
    _tell(state, "started", planned)

    def report(point: Point) -> bool:
        nonlocal heard
        heard += 1
        note_spent(state)
        _tell(state, "epoch", planned, point)
        return False

    with suppress(KeyboardInterrupt):
        return carry_out(state.task, step, report=report)
    if heard and processes.alone():  # out of the handler, which would hold on to the memory of what it interrupted
        reached = carry_out(state.task, replace(step, deadline=0.0))  # no time for another epoch
        if reached.status != "failed" and epochs_of(reached) > epochs_of(state.trials.get(reached.id)):
            _settle(state, item, reached)
    raise KeyboardInterrupt


def _as_of(trial: Trial, epochs: float) -> Trial:
    """A trial of an earlier start as it was when it had trained so far: decisions are repeated as they were made."""
    curve = tuple(point for point in trial.curve if point.epoch <= epochs)
    if not curve or trial.status == "failed":
        return trial
    if len(curve) == len(trial.curve):  # what failed after its pause had to be asked to go beyond it
        return replace(trial, error="") if trial.error and epochs <= epochs_of(trial) else trial
    best = max(point.score for point in curve)
    return replace(trial, status="stopped", curve=curve, validation={"accuracy": best, "score": best}, error="")


def _best_other(state: Search, id_: str) -> tuple[float, float, float]:
    """Standing of the best finished trial but this one. A paused one may yet fail, and its model with it."""
    others = (trial for trial in state.trials.values() if trial.status == "finished" and trial.id != id_)
    return max((standing(trial) for trial in others), default=(-1.0, -math.inf, 0.0))


def _planned(state: Search, step: Step) -> Trial:
    return Trial(state.id_of(step.candidate), state.task.fingerprint, step.candidate, step.seed, "running")


def carry_out(task: Task, step: Step, *, report: Callable[[Point], bool] = lambda point: False) -> Trial:
    """Train as the step says, here, wherever that is; a model that may be the winner's is kept in the trial's folder."""
    if not step.folder.parent.is_dir():
        raise InputError(
            f"{step.folder.parent} is not there on {platform.node()}: --out must lie in a folder that all machines share"
        )
    limits = Limits(step.epochs, time.monotonic() + (step.deadline - time.time()), step.silence, step.final)
    checkpoints = step.folder / "checkpoints"
    processes.tell((step.candidate, step.backbone, checkpoints, limits))
    trial, fitted = run_trial(
        task,
        step.candidate,
        step.backbone,
        seed=step.seed,
        folder=checkpoints,
        limits=limits,
        report=report,
        command=step.command,
        trace=step.trace,
    )
    if fitted is not None and trial.validation and standing(trial) >= step.bar:
        return _keep(task, step, trial, fitted)
    return trial


def _keep(task: Task, step: Step, trial: Trial, fitted: Fitted) -> Trial:
    """The trial with its model on disk, or a failed one: a strategy may leave what cannot be built again from its weights, or
    what says nothing. Until that is known, what the trial had kept when it was paused stays where it is."""
    facts = {"validation": dict(trial.validation), "task": task.name, "provenance": dict(trial.provenance)}
    fresh = step.folder / FRESH
    shutil.rmtree(fresh, ignore_errors=True)  # of a start that was killed
    try:
        model.save(fresh, fitted.model, step.backbone, step.candidate, task.classes, facts)
        kept, few = model.load(fresh), task.part(VALIDATION)[:FEW]
        judge(probabilities_on(task, step.backbone, kept.net, few), task.labels[few])
    except AutomlError as error:
        shutil.rmtree(fresh, ignore_errors=True)
        words = f"{step.candidate.strategy}: left a model that cannot be kept: {error}"
        return replace(trial, status="failed", curve=(), validation={}, memory_mb=0.0, error=words)
    if fitted.importance is not None:
        checkpoint.save(checkpoint.beside(fresh, IMPORTANCE), fitted.importance, {})
    for path in sorted(fresh.iterdir(), key=lambda path: path.name == model.WEIGHTS):  # what says how good it is, first
        path.replace(step.folder / path.name)
    fresh.rmdir()
    return replace(trial, artefact=f"trials/{trial.id}")


def follow(task: Task, *, seed: int) -> Outcome:
    """What the other processes of `accelerate launch` do during a search: train along, until the first one has the outcome."""
    while not isinstance(order := processes.hear(), Outcome):
        candidate, backbone, folder, limits = order
        run_trial(task, candidate, backbone, seed=seed, folder=folder, limits=limits)
    return order


def settle_next(state: Search) -> None:
    """Settle what the next worker brings."""
    futures = {one.future: one for one in state.training.values()}
    while not (done := wait(futures, timeout=NOTED_EVERY, return_when=FIRST_COMPLETED).done):
        note_spent(state)
    for one in [one for future, one in futures.items() if future in done]:
        planned = _planned(state, one.step)
        try:
            trial = one.future.result()
        except WorkerLost as lost:
            trial = replace(planned, status="failed", error=f"{planned.candidate.strategy}: {lost}")
        _tell(state, "started", planned)  # only now: trackers know of one trial at a time
        for point in trial.curve:
            if point.epoch > epochs_of(state.trials.get(trial.id)):
                _tell(state, "epoch", planned, point)
        del state.training[trial.id]
        _seen(state, one.step.backbone)
        _settle(state, one.item, trial)


def _settle(state: Search, item: Ranked, trial: Trial) -> None:
    """What came of a step, for good. A paused trial that fails, or has no time for another epoch, keeps the model it has."""
    before = state.trials.get(trial.id)
    no_further = trial.status != "finished" and epochs_of(trial) <= epochs_of(before)
    if no_further and before is not None and before.artefact:
        trial = replace(before, error=trial.error)
    if no_further and trial.status == "stopped":
        state.stuck.add(trial.id)
    _count(state, item, trial)
    record_trial(state, trial)
    sweep(state)
    _tell(state, "finished", trial)


def _seen(state: Search, backbone: Backbone, took: float | None = None) -> None:
    """Once a network's features are at hand, nobody pays for them again; what others' will take is corrected by these."""
    if backbone.name not in state.unseen or not features_at_hand(state.task, backbone):
        return
    expected = state.unseen.pop(backbone.name)
    if took is not None and expected > 0:
        state.unseen = {name: seconds * max(took, 0.0) / expected for name, seconds in state.unseen.items()}


def _count(state: Search, item: Ranked, trial: Trial) -> None:
    """How long a trial took until now, against what was predicted; once, however often it was paused. Not of another cycle, whose
    seconds were no prediction."""
    if cycles_of(trial.candidate) > 1:
        return
    before = state.trials.get(trial.id)
    for sign, one in ((-1, before), (1, trial)):
        if one is not None and one.status in ("finished", "stopped"):
            state.taken += sign * (one.curve[-1].seconds if one.curve else one.seconds)
            state.foreseen += sign * item.seconds * _share(one)


def _share(trial: Trial) -> float:
    """Of its epochs that it has trained."""
    epochs = epochs_asked(trial.candidate)
    if trial.status == "finished" or not epochs:
        return 1.0
    return min(epochs_of(trial) / epochs, 1.0)


def _tell(state: Search, event: str, *words: Any) -> None:
    """The trackers hear of an event; one that stumbles hears no more, as a night's search must not end with its diary."""
    for tracker in tuple(state.trackers):
        try:
            getattr(tracker, event)(*words)
        except PLUGIN_FAULTS as error:  # often of somebody's server
            state.trackers.remove(tracker)
            text = f"plugin: tracker {tracker.name!r} stumbled at {event!r} and is told no more: {type(error).__name__}: {error}"
            warnings.warn(text, registry.PluginWarning, stacklevel=2)
