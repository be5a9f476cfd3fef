"""Another cycle for the best so far: what a search may do that no ranking has in it.

A number of epochs is chosen before anybody has seen a learning curve. Where time is left, the best trial may go on from its best
weights, its schedule begun anew (see `loop.fit`), as a trial of its own that has one cycle more. It takes over the checkpoint, so
that only the new cycle is trained.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from .loop import CHECKPOINT
from .progress import Search, another_cycle, cycles_of, epochs_of, leader
from .records import Candidate, Ranked
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


def next_cycle(state: Search) -> Again | None:
    """Of the trial that would win now, if it has ended and can go on."""
    first = leader(state)
    if first is None or first.status != "finished" or not first.curve:
        return None
    again = another_cycle(first.candidate)
    id_ = state.id_of(again)
    if id_ in state.trials or id_ in state.training or id_ in state.stuck or state.trials_left() < 1:
        return None
    known = id_ in state.earlier
    if not known and not any((_checkpoints(state, one) / CHECKPOINT).exists() for one in (first.candidate, again)):
        return None
    last, epochs = first.curve[-1], float(first.candidate.hyperparameters.get("epochs", TRAINING["epochs"].default))
    seconds = last.seconds / last.epoch * epochs
    score = float(first.score or 0.0)
    item = Ranked(again, score, score, score, last.seconds + seconds, first.memory_mb, ("goes on where the best trial ended",))
    return Again(item, 0.0 if known else seconds, SPREAD / cycles_of(first.candidate))


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
    for trial in state.trials.values():
        paused = trial.status == "stopped" and not trial.error
        best = first is not None and trial.id == first.id and trial.status == "finished"
        if not paused and not best:
            shutil.rmtree(_checkpoints(state, trial.candidate), ignore_errors=True)


def _one_cycle_less(candidate: Candidate) -> Candidate:
    values = {**candidate.hyperparameters, "cycles": cycles_of(candidate) - 1}
    if values["cycles"] == 1:
        del values["cycles"]
    return replace(candidate, hyperparameters=values)


def _checkpoints(state: Search, candidate: Candidate) -> Path:
    return state.folder / "trials" / state.id_of(candidate) / "checkpoints"
