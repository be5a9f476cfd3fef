"""The budgeted search: successive halving over a ranking, then whatever still fits.

1. *Looks*: the best-ranked candidates that cost next to nothing (probes on cached features) are trained outright.
2. *Halving*: the most promising candidates train for a third of their epochs; the better third goes on to the end
   (Jamieson and Talwalkar, 2016).
3. *The rest*: as long as the predicted seconds fit, the next candidate is trained to a third, and to the end if it stands among
   the better third there.

What is promising is told by the ranking, corrected by what the trials so far showed (see `surrogate`).

Every trial is on disk and in the history before the next one starts, so a search that was killed goes on where it stood.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from . import model, processes, registry
from .budget import Budget
from .errors import BudgetError
from .facts import trial_of
from .history import History
from .home import write_text
from .hookspecs import Tracker
from .records import VALIDATION, Backbone, Candidate, Outcome, Point, Profile, Ranked, Ranking, Task, Trial, trial_id
from .surrogate import Observed, Surrogate
from .trials import Limits, judge_on_test, run_trial

RULE = (
    "best validation accuracy; ties go to the lower validation log-loss, then to the fewer seconds; "
    "kept as it was at its best epoch; the test images were used once, for this winner alone"
)
ETA = 3
LOOK_SHARE, MOST_LOOKS = 0.03, 6
BRACKET_SHARE, MOST_ENTRANTS = 0.75, 9
MOST_FAILURES = 2
"""Of a strategy, none of whose trials went well: from then on it comes last."""
RESERVE = 0.02
"""Share of the time kept for the test images and the report."""


@dataclass
class _Search:
    """The state of one search; `folder` holds all of it, too."""

    task: Task
    backbones: Mapping[str, Backbone]
    ranking: Ranking
    budget: Budget
    folder: Path
    seed: int
    history: History
    trackers: Sequence[Tracker]
    command: str
    spent_before: float
    surrogate: Surrogate
    started: float = field(default_factory=time.monotonic)
    trials: dict[str, Trial] = field(default_factory=dict)
    earlier: dict[str, Trial] = field(default_factory=dict)
    """Trials of an earlier start, until this one comes to them: it decides in the same order, so it decides the same."""
    pace: list[float] = field(default_factory=list)
    """log(real / predicted seconds) of the finished trials."""

    def spent(self) -> float:
        return self.spent_before + time.monotonic() - self.started

    def time_left(self) -> float:
        return self.budget.seconds * (1 - RESERVE) - self.spent()

    def epochs_left(self) -> float:
        trained = (*self.trials.values(), *self.earlier.values())
        return self.budget.epochs - sum(trial.curve[-1].epoch for trial in trained if trial.curve)

    def trials_left(self) -> float:
        return self.budget.trials - len(self.trials)

    def expected_seconds(self, item: Ranked) -> float:
        """The prediction, corrected by how wrong it has been here so far."""
        pace = math.exp(sum(self.pace) / (len(self.pace) + 1)) if self.pace else 1.0
        return item.seconds * pace


def search(
    task: Task,
    ranking: Ranking,
    *,
    profile: Profile,
    backbones: Mapping[str, Backbone],
    budget: Budget,
    folder: Path,
    history: History,
    seed: int = 0,
    spent: float = 0.0,
    trackers: Sequence[Tracker] = (),
    command: str = "",
) -> Outcome:
    """Train the top of `ranking` on `task` within `budget`; everything lies in `folder`, the winner in `folder/model`.

    `spent` seconds of the budget are gone already: they went into the advice.

    Ctrl-C ends it with the best model so far. A second call with the same arguments goes on where the first one stopped.

    Raises:
        BudgetError: no candidate gave a model in the time.
    """
    spaces = {name: strategy.space for name, strategy in registry.strategies().items()}
    surrogate = Surrogate(ranking.items, backbones, spaces, validation_images=len(task.part(VALIDATION)))
    before = _spent(folder) + spent
    state = _Search(task, backbones, ranking, budget, folder, seed, history, trackers, command, before, surrogate)
    (folder / "trials").mkdir(parents=True, exist_ok=True)
    _recall(state)
    for tracker in trackers:
        tracker.opened(task, budget.seconds - state.spent_before)
    interrupted = False
    try:
        _look(state)
        _halve(state, _entrants(state))
        _fill(state)
    except KeyboardInterrupt:
        interrupted = True
    state.trials |= state.earlier
    winner = _crown(state)
    rule = f"interrupted; of what was trained until then, {RULE}" if interrupted else RULE
    _note_spent(state)
    trials = tuple(state.trials.values())
    return Outcome(task.fingerprint, profile, ranking, trials, winner, folder, state.spent(), rule)


def follow(task: Task, *, seed: int) -> Outcome:
    """What the other processes of `accelerate launch` do during a search: train along, until the first one has the outcome."""
    while not isinstance(order := processes.hear(), Outcome):
        candidate, backbone, folder, limits = order
        run_trial(task, candidate, backbone, seed=seed, folder=folder, limits=limits)
    return order


def _look(state: _Search) -> None:
    """The candidates whose predicted seconds are a small share of the budget, one a backbone, best first."""
    cheap = state.budget.seconds * LOOK_SHARE if math.isfinite(state.budget.seconds) else 0.0
    looked: set[str] = set()
    for item in state.ranking.items:
        backbone = item.candidate.backbone
        if item.seconds <= cheap and backbone not in looked and len(looked) < MOST_LOOKS:
            looked.add(backbone)
            _advance(state, item, math.inf)


def _entrants(state: _Search) -> list[Ranked]:
    """As many promising candidates as a bracket can afford.

    Each is chosen as if those before had come out as expected: what is much like them promises less then, as the top of a
    ranking is often one idea many times (the kriging believer of Ginsbourger et al., 2010).
    """
    chosen: list[Ranked] = []
    believed: list[Observed] = []
    money = BRACKET_SHARE * state.time_left()
    while len(chosen) < min(MOST_ENTRANTS, state.trials_left()):
        affordable = (item for item in _in_order(state, believed) if item not in chosen and _price(state, item) <= money)
        item = next(affordable, None)
        if item is None:
            break
        money -= _price(state, item)
        chosen.append(item)
        expected = state.surrogate.expected(item.candidate, [*_observed(state), *believed])
        believed.append(Observed(item.candidate, expected))
    return chosen


def _price(state: _Search, item: Ranked) -> float:
    """Seconds that an entrant costs on average: a third for all, the rest for a third of them."""
    if _id(state, item) in state.earlier:
        return 0.0
    return state.expected_seconds(item) * (1 / ETA + (1 - 1 / ETA) / ETA)


def _halve(state: _Search, entrants: list[Ranked]) -> None:
    """All to the first rung, the better third to the end."""
    for item in entrants:
        _advance(state, item, _rung(item.candidate))
    standing = sorted((item for item in entrants if _score(state, item) is not None), key=lambda item: _key(state, item))
    for item in standing[-max(1, math.ceil(len(standing) / ETA)) :][::-1]:
        _advance(state, item, math.inf)


def _fill(state: _Search) -> None:
    """Spend what is left on what still fits."""
    while True:
        order = sorted(_in_order(state), key=lambda item: _id(state, item) not in state.earlier)
        fitting = [
            item for item in order if _id(state, item) in state.earlier or state.expected_seconds(item) < state.time_left()
        ]
        if not fitting and not state.trials and order:
            fitting = [min(order, key=state.expected_seconds)]  # better a cut-off model than none
        if not fitting or state.trials_left() < 1 or state.epochs_left() <= 0 or state.time_left() <= 0:
            return
        item = fitting[0]
        _advance(state, item, _rung(item.candidate))
        scores = sorted(score for trial in state.trials.values() if (score := _at_rung(trial)) is not None)
        own = _at_rung(state.trials[_id(state, item)])
        if own is not None and own >= scores[-math.ceil(len(scores) / ETA)]:
            _advance(state, item, math.inf)


def _in_order(state: _Search, believed: Sequence[Observed] = ()) -> Iterable[Ranked]:
    """Untried candidates, the most promising first; those of a strategy that only ever failed here come last."""
    promise = state.surrogate.improvement([*_observed(state), *believed])
    statuses: dict[str, list[str]] = defaultdict(list)
    for trial in state.trials.values():
        statuses[trial.candidate.strategy].append(trial.status)
    hopeless = {name for name, found in statuses.items() if len(found) >= MOST_FAILURES and set(found) == {"failed"}}
    last = np.array([item.candidate.strategy in hopeless for item in state.ranking.items], dtype=bool)
    return [item for i in np.lexsort((-promise, last)) if _id(state, item := state.ranking.items[i]) not in state.trials]


def _observed(state: _Search) -> list[Observed]:
    """What the trials of this search showed."""
    return [
        Observed(trial.candidate, trial.score, paused=trial.status == "stopped")
        for trial in state.trials.values()
        if trial.score is not None
    ]


def _advance(state: _Search, item: Ranked, epochs: float) -> None:
    """Train a candidate up to `epochs`, unless that was done before or the budget is used up."""
    id_ = _id(state, item)
    if id_ in state.earlier:
        state.trials[id_] = state.earlier.pop(id_)
    before = state.trials.get(id_)
    if before is not None and (before.status != "stopped" or (before.curve and before.curve[-1].epoch >= epochs)):
        return
    if (before is None and state.trials_left() < 1) or state.time_left() <= 0 or state.epochs_left() <= 0:
        return
    reached = before.curve[-1].epoch if before is not None and before.curve else 0.0
    limits = Limits(min(epochs, reached + state.epochs_left()), time.monotonic() + state.time_left())
    candidate = item.candidate
    planned = Trial(id_, state.task.fingerprint, candidate, state.seed, "running")
    for tracker in state.trackers:
        tracker.started(planned)

    def report(point: Point) -> bool:
        _note_spent(state)
        for tracker in state.trackers:
            tracker.epoch(planned, point)
        return False

    backbone = state.backbones[candidate.backbone]
    processes.tell((candidate, backbone, state.folder / "trials" / id_ / "checkpoints", limits))
    trial, fitted = run_trial(
        state.task,
        candidate,
        backbone,
        seed=state.seed,
        folder=state.folder / "trials" / id_ / "checkpoints",
        limits=limits,
        report=report,
        command=state.command,
    )
    if fitted is not None and trial.validation and _standing(trial) >= _best_other(state, id_):
        folder = state.folder / "trials" / id_
        facts = {"validation": dict(trial.validation), "task": state.task.name, "provenance": dict(trial.provenance)}
        model.save(folder, fitted.model, backbone, candidate, state.task.classes, facts)
        trial = replace(trial, artefact=f"trials/{id_}")
    if trial.status == "finished":
        state.pace.append(math.log(trial.seconds / max(item.seconds, 1e-6)))
    _remember(state, trial)
    if trial.status != "stopped":
        shutil.rmtree(state.folder / "trials" / id_ / "checkpoints", ignore_errors=True)
    for tracker in state.trackers:
        tracker.finished(trial)


def _crown(state: _Search) -> Trial:
    """The winner, judged on the test images, its model in `folder/model`."""
    scored = [trial for trial in state.trials.values() if trial.validation and trial.artefact]
    if not scored:
        failed = [trial.error for trial in state.trials.values() if trial.error]
        cause = f"every trial failed, the last with: {failed[-1]}" if failed else "no trial ended in time; give more time"
        raise BudgetError(f"no model was trained within the budget: {cause}")
    winner = max(scored, key=_standing)
    trained = model.load(state.folder / winner.artefact)
    if not winner.test:
        winner = replace(winner, test=judge_on_test(state.task, trained.backbone, trained.net))
        _remember(state, winner)
    facts = {**trained.facts, "test": dict(winner.test), "trial": winner.id, "fingerprint": state.task.fingerprint}
    model.save(state.folder / "model", trained.net, trained.backbone, trained.candidate, trained.classes, facts)
    return winner


def _remember(state: _Search, trial: Trial) -> None:
    """In the history and in the run's folder, before anything else happens."""
    state.trials[trial.id] = trial
    state.history.record_trial(trial)
    path = state.folder / "trials" / trial.id / "trial.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(asdict(trial), indent=1))


def _recall(state: _Search) -> None:
    """Trials of an earlier start of the same search."""
    for item in state.ranking.items:
        path = state.folder / "trials" / _id(state, item) / "trial.json"
        if path.exists():
            trial = read_trial(path)
            state.earlier[trial.id] = trial
            state.history.record_trial(trial)


def read_trial(path: Path) -> Trial:
    """A trial as the search wrote it."""
    return trial_of(json.loads(path.read_text(encoding="utf-8")))


def _spent(folder: Path) -> float:
    path = folder / "spent.json"
    return float(json.loads(path.read_text())["seconds"]) if path.exists() else 0.0


def _note_spent(state: _Search) -> None:
    write_text(state.folder / "spent.json", json.dumps({"seconds": round(state.spent(), 3)}))


def _id(state: _Search, item: Ranked) -> str:
    return trial_id(state.task.fingerprint, item.candidate, state.seed)


def _rung(candidate: Candidate) -> float:
    """A third of the epochs; strategies without epochs have no rungs."""
    epochs = candidate.hyperparameters.get("epochs")
    return math.ceil(float(epochs) / ETA) if isinstance(epochs, (int, float)) else math.inf


def _at_rung(trial: Trial) -> float | None:
    """Best validation score up to the first rung."""
    scores = [point.score for point in trial.curve if point.epoch <= _rung(trial.candidate)]
    return max(scores, default=None)


def _score(state: _Search, item: Ranked) -> float | None:
    trial = state.trials.get(_id(state, item))
    return trial.score if trial is not None else None


def _key(state: _Search, item: Ranked) -> tuple[float, float, float]:
    return _standing(state.trials[_id(state, item)])


def _standing(trial: Trial) -> tuple[float, float, float]:
    return trial.score or 0.0, -trial.validation.get("log_loss", math.inf), -trial.seconds


def _best_other(state: _Search, id_: str) -> tuple[float, float, float]:
    """Standing of the best finished trial but this one. A paused one may yet fail, and its model with it."""
    others = (trial for trial in state.trials.values() if trial.status == "finished" and trial.id != id_)
    return max((_standing(trial) for trial in others), default=(-1.0, -math.inf, 0.0))
