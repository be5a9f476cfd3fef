"""Another cycle for the best so far: what a search may do that no ranking has in it.

A number of epochs is chosen before anybody has seen a learning curve. Where time is left, the best trial may go on from its best
weights, its schedule begun anew (see `loop.fit`), as a trial of its own that has one cycle more. It takes over the checkpoint, so
that only the new cycle is trained.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from .loop import CHECKPOINT, epochs_in
from .progress import Search, another_cycle, cycles_of, epochs_of, leader
from .records import Candidate, Ranked, Trial
from .strategy import TRAINING

SPREAD = 0.5
"""Logits of the validation score that a second cycle gains or loses, a third half of that. What loses is not kept."""


@dataclass(frozen=True)
class Again:
    """Another cycle that there may be."""

    item: Ranked
    """Its seconds count from the first epoch on, as those of a trial do."""
    seconds: float
    """Of the cycle alone."""
    spread: float
    """Logits."""


def next_cycle(state: Search, *, whatever: bool = False) -> Again | None:
    """Of the trial that would win now, if it has ended and can go on; `whatever`: of its newest cycle, wherever that led."""
    first = leader(state)
    last = first if first is None or not whatever else _newest(state, first)
    if first is None or last is None or last.status != "finished" or not last.curve:
        return None
    again = another_cycle(last.candidate)
    id_ = state.id_of(again)
    if id_ in state.trials or id_ in state.training or id_ in state.stuck or state.trials_left() < 1:
        return None
    known = id_ in state.earlier
    if not known and not any((_checkpoints(state, one) / CHECKPOINT).exists() for one in (last.candidate, again)):
        return None
    point, epochs = last.curve[-1], last.candidate.hyperparameters.get("epochs", TRAINING["epochs"].default)
    seconds = point.seconds / point.epoch * epochs_in(cycles_of(again), int(epochs))
    score = float(first.score or 0.0)
    item = Ranked(again, score, score, score, point.seconds + seconds, last.memory_mb, ("goes on where the best trial ended",))
    return Again(item, 0.0 if known else seconds, SPREAD / cycles_of(last.candidate))


def _newest(state: Search, trial: Trial) -> Trial:
    """The last of its cycles: it ended with the best weights of all of them."""
    while (after := state.trials.get(state.id_of(another_cycle(trial.candidate)))) is not None:
        trial = after
    return trial


def take_over(state: Search, candidate: Candidate) -> None:
    """Move the checkpoint that `candidate` goes on from into its folder, if there is one."""
    if cycles_of(candidate) == 1:
        return
    before, own = _checkpoints(state, _one_cycle_less(candidate)), _checkpoints(state, candidate)
    if before.exists() and not own.exists():
        own.parent.mkdir(parents=True, exist_ok=True)
        before.rename(own)


def shared_epochs(state: Search, candidate: Candidate) -> float:
    """That the trial which `candidate` goes on from has trained."""
    return epochs_of(state.trials.get(state.id_of(_one_cycle_less(candidate)))) if cycles_of(candidate) > 1 else 0.0


def sweep(state: Search) -> None:
    """Remove the checkpoints that nothing can go on from."""
    first = leader(state)
    newest = None if first is None else _newest(state, first)
    for trial in state.trials.values():
        paused = trial.status == "stopped" and not trial.error
        best = newest is not None and trial.id == newest.id and trial.status == "finished"
        if not paused and not best:
            shutil.rmtree(_checkpoints(state, trial.candidate), ignore_errors=True)


def _one_cycle_less(candidate: Candidate) -> Candidate:
    values = {**candidate.hyperparameters, "cycles": cycles_of(candidate) - 1}
    if values["cycles"] == 1:
        del values["cycles"]
    return replace(candidate, hyperparameters=values)


def _checkpoints(state: Search, candidate: Candidate) -> Path:
    return state.folder / "trials" / state.id_of(candidate) / "checkpoints"
