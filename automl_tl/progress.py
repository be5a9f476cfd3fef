"""How far a search has come: what it has trained, what trains now, what it may still spend. The run's folder holds it, too."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from filelock import FileLock, Timeout

from .budget import Budget
from .errors import InputError
from .facts import trial_of
from .growth import Growths
from .history import History
from .home import read_json, write_text
from .hookspecs import Tracker
from .records import Backbone, Candidate, Ranked, Ranking, Task, Trial, trial_id
from .surrogate import Surrogate
from .workers import Workers

RESERVE = 0.02
"""Share of the time kept for the test images and the report."""
UNSURE = 5.0
"""Seconds that a search must have trained until its own pace counts as much as the prediction."""
LOCK = ".lock"
"""Held by who works in a folder; of a process that ends the system takes it back, however it ends, so it may stay there."""


@dataclass(frozen=True)
class Step:
    """One candidate to be trained now."""

    candidate: Candidate
    backbone: Backbone
    seed: int
    folder: Path
    """Of the trial."""
    epochs: float
    """In all, not only now."""
    final: bool
    """The budget has no epoch more."""
    deadline: float
    """`time.time()`: machines agree on that one."""
    silence: float
    """Seconds without an epoch that ended, from which on it is taken to hang."""
    bar: tuple[float, float, float]
    """Standing from which on the model is kept."""
    command: str
    trace: bool
    """Whether the importance of the weights is added up on the way."""


@dataclass(frozen=True)
class Training:
    """A step that a worker has been given."""

    item: Ranked
    step: Step
    epochs: float
    """That it may train now."""
    future: Future[Trial]


@dataclass
class Search:
    """The state of one search; `folder` holds all of it, too."""

    task: Task
    backbones: Mapping[str, Backbone]
    ranking: Ranking
    budget: Budget
    folder: Path
    seed: int
    history: History
    trackers: list[Tracker]
    command: str
    spent_before: float
    surrogate: Surrogate
    growths: Growths
    """From a third of the epochs to the end."""
    workers: Workers | None
    """None: this process trains, one trial at a time."""
    carry_out: Callable[[Step], Trial]
    """What workers do with a step: one object for all, as a cluster sends it once, with the task that is bound to it."""
    remember: frozenset[str]
    """What is kept with the winner for a later task."""
    exemplars: int
    started: float = field(default_factory=time.monotonic)
    trials: dict[str, Trial] = field(default_factory=dict)
    earlier: dict[str, Trial] = field(default_factory=dict)
    """Trials of an earlier start, until this one comes to them: it decides in the same order, so it decides the same."""
    stuck: set[str] = field(default_factory=set)
    """Paused trials that cannot go on in the time, or at all: their last step failed, and `Trial.error` says how."""
    taken: float = 0.0
    """Seconds of the trials that went well."""
    foreseen: float = 0.0
    """Seconds that were predicted for as far as they came."""
    training: dict[str, Training] = field(default_factory=dict)
    """By trial; what workers do now."""
    unseen: dict[str, float] = field(default_factory=dict)
    """Seconds for the features of networks that have yet to look at all images: whoever is first pays them."""

    def spent(self) -> float:
        """Seconds, with those of earlier starts."""
        return self.spent_before + time.monotonic() - self.started

    def time_left(self) -> float:
        """Seconds until training has to end, as the winner is still to be judged and reported."""
        return self.budget.seconds * (1 - RESERVE) - self.spent()

    def epochs_left(self) -> float:
        """What trains now counts as trained, so that two workers never share the last epochs."""
        trained = once_each({**self.trials, **self.earlier}.values())
        promised = sum(one.epochs for one in self.training.values())
        return self.budget.epochs - promised - sum(map(epochs_of, trained))

    def trials_left(self) -> float:
        """What trains now counts, too; what was paused is one trial, however often it goes on."""
        return self.budget.trials - len(self.trials.keys() | self.training.keys())

    def id_of(self, candidate: Candidate) -> str:
        """Of the trial that it is or will be in this search."""
        return trial_id(self.task.fingerprint, candidate, self.seed)

    def expected_seconds(self, item: Ranked) -> float:
        """The prediction, corrected by how wrong it has been here so far; long trials tell more of that than short ones. Features
        that have yet to be computed come on top."""
        trained = item.seconds * (self.taken + UNSURE) / (self.foreseen + UNSURE)
        return trained + self.unseen.get(item.candidate.backbone, 0.0)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Nobody else works in the folder meanwhile. It is made; if nothing came into it, it is gone again afterwards. Where the work
    fails nothing new stays, so that a folder of something else is as it was.

    Raises:
        InputError: another process works there, or it cannot be made.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    lock, new, done = FileLock(folder / LOCK, timeout=0), not (folder / LOCK).exists(), False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise InputError(f"another process is working in {folder}; wait for it, or choose another --out") from None
    except OSError as error:
        raise InputError(f"{folder}: cannot be made or used: {error.strerror}; choose another --out") from None
    try:
        yield
        done = True
    finally:
        with suppress(OSError):
            if (new and not done) or [path.name for path in folder.iterdir()] == [LOCK]:
                (folder / LOCK).unlink()  # while it is held: nobody can have got it in between
            for path in made:
                path.rmdir()
        lock.release()


def cycles_of(candidate: Candidate) -> int:
    return int(candidate.hyperparameters.get("cycles", 1))


def another_cycle(candidate: Candidate) -> Candidate:
    """The same, and then once more from the best weights so far."""
    return replace(candidate, hyperparameters={**candidate.hyperparameters, "cycles": cycles_of(candidate) + 1})


def once_each(trials: Iterable[Trial]) -> list[Trial]:
    """Of the trials of a search those whose epochs and seconds no other one has, too, as it goes on where they ended."""
    known = {trial.candidate.id: trial for trial in trials}
    return [trial for trial in known.values() if another_cycle(trial.candidate).id not in known]


def epochs_asked(candidate: Candidate) -> float:
    """That its hyperparameters name, of one cycle; 0 where it has none, as probes have."""
    epochs = candidate.hyperparameters.get("epochs")
    return float(epochs) if isinstance(epochs, (int, float)) else 0.0


def epochs_of(trial: Trial | None) -> float:
    """Epochs that it has trained."""
    return trial.curve[-1].epoch if trial is not None and trial.curve else 0.0


def standing(trial: Trial) -> tuple[float, float, float]:
    """By which the winner is chosen, and before that which models are worth keeping: the larger, the better.

    Nothing of it hangs on the clock: two trials that came to one model, as those that rolled back to its start, would take turns.
    """
    return trial.score or 0.0, -trial.validation.get("log_loss", math.inf), -epochs_of(trial)


def leader(state: Search) -> Trial | None:
    """Who would win now; of two that stand alike, who was begun first."""
    return max((trial for trial in state.trials.values() if trial.validation and trial.artefact), key=standing, default=None)


def record_trial(state: Search, trial: Trial) -> None:
    """In the history and in the run's folder, before anything else happens."""
    state.trials[trial.id] = trial
    state.history.record_trial(trial)
    path = state.folder / "trials" / trial.id / "trial.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(asdict(trial), indent=1))


def recall_trials(state: Search) -> None:
    """Trials of an earlier start of the same search. Those that a new advice does not rank are never come to, but were begun."""
    ranked = {state.id_of(item.candidate) for item in state.ranking.items}
    for trial in read_trials(state.folder):
        waits = trial.id in ranked or cycles_of(trial.candidate) > 1
        (state.earlier if waits else state.trials)[trial.id] = trial
        state.history.record_trial(trial)


def read_trials(folder: Path) -> list[Trial]:
    """The trials in a run's folder, as the search wrote them.

    Raises:
        InputError: one is damaged.
    """
    remedy = "delete it, and the trial goes on from its last checkpoint, if it has one"
    return [read_json(path, trial_of, remedy=remedy) for path in sorted(folder.glob("trials/*/trial.json"))]


def recall_spent(folder: Path) -> float:
    """Seconds that earlier starts of the search took: one that was killed gets no second budget.

    Raises:
        InputError: the file that says so is damaged.
    """
    path = folder / "spent.json"
    if not path.exists():
        return 0.0
    return read_json(path, lambda facts: float(facts["seconds"]), remedy="delete it, and the run gets its time anew")


def note_spent(state: Search) -> None:
    """On disk, as this process may be killed at any time."""
    write_text(state.folder / "spent.json", json.dumps({"seconds": round(state.spent(), 3)}))
