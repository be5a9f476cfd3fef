"""The budgeted search: successive halving over a ranking, then whatever still fits.

1. *Looks*: the best-ranked candidates that cost next to nothing (probes on cached features) are trained outright.
2. *A bracket*: the most promising candidates train for a third of their epochs, as in successive halving (Jamieson and
   Talwalkar, 2016).
3. *The rest*: whatever promises the largest improvement for its seconds comes next, as long as the predicted seconds fit: a
   paused trial goes on to the end, or a new one is trained to a third. As in freeze-thaw optimisation (Swersky et al., 2014), a
   paused trial is judged by what it may become, which the learning curves of the history tell.

What is promising is told by the ranking, corrected by what the trials so far showed (see `surrogate`).

With several workers as many trials train at once, each chosen as if those that still train had come out as expected (the kriging
believer of Ginsbourger et al., 2010).

Every trial is on disk and in the history before the next one starts, so a search that was killed goes on where it stood.
"""

from __future__ import annotations

import json
import math
import platform
import shutil
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from . import checkpoint, memory, model, processes, registry
from .budget import Budget
from .errors import BudgetError, InputError, PluginError, WorkerLost
from .evaluation.calibration import choose_temperature
from .facts import trial_of
from .history import History
from .home import write_text
from .hookspecs import Tracker
from .records import (
    IMPORTANCE,
    TEST,
    TRAIN,
    VALIDATION,
    Backbone,
    Candidate,
    Outcome,
    Point,
    Profile,
    Ranked,
    Ranking,
    Task,
    Trial,
    trial_id,
)
from .surrogate import Growth, Observed, Surrogate, growth_of
from .trials import Limits, judge_on_test, pixels_of, probabilities_on, run_trial
from .workers import Workers

RULE = (
    "best validation accuracy; ties go to the lower validation log-loss, then to the fewer seconds; "
    "kept as it was at its best epoch; the test images were used once, for this winner alone"
)
ETA = 3
LOOK_SHARE, MOST_LOOKS = 0.03, 6
BRACKET_SHARE, MOST_ENTRANTS = 0.75, 9
MOST_FAILURES = 2
"""Of a strategy, none of whose trials went well: from then on it is not tried."""
LEAST_PRICE = 0.03
"""Of the time: what is added to a candidate's seconds, lest a search only ever tries what is cheap."""
RESERVE = 0.02
"""Share of the time kept for the test images and the report."""
NOTED_EVERY = 2.0
"""Seconds, while workers train: what was spent is on disk."""


@dataclass(frozen=True)
class _Step:
    """One candidate to be trained now."""

    candidate: Candidate
    backbone: Backbone
    seed: int
    folder: Path
    """Of the trial."""
    epochs: float
    """In all, not only now."""
    deadline: float
    """`time.time()`: machines agree on that one."""
    bar: tuple[float, float, float]
    """Standing from which on the model is kept."""
    command: str
    trace: bool
    """Whether the importance of the weights is added up on the way."""


@dataclass(frozen=True)
class _Training:
    """A step that a worker has been given."""

    item: Ranked
    step: _Step
    epochs: float
    """That it may train now."""
    future: Future[Trial]


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
    trackers: list[Tracker]
    command: str
    spent_before: float
    surrogate: Surrogate
    growth: Mapping[str, Growth]
    """Of each strategy, from a third of the epochs to the end."""
    workers: Workers | None
    """None: this process trains, one trial at a time."""
    remember: frozenset[str]
    """What is kept with the winner for a later task."""
    exemplars: int
    started: float = field(default_factory=time.monotonic)
    trials: dict[str, Trial] = field(default_factory=dict)
    earlier: dict[str, Trial] = field(default_factory=dict)
    """Trials of an earlier start, until this one comes to them: it decides in the same order, so it decides the same."""
    stuck: set[str] = field(default_factory=set)
    """Paused trials that cannot go on in the time."""
    pace: list[float] = field(default_factory=list)
    """log(real / predicted seconds) of the finished trials."""
    training: dict[str, _Training] = field(default_factory=dict)
    """By trial; what workers do now."""

    def __post_init__(self) -> None:
        self.carry_out = partial(_carry_out, self.task)

    def spent(self) -> float:
        return self.spent_before + time.monotonic() - self.started

    def time_left(self) -> float:
        return self.budget.seconds * (1 - RESERVE) - self.spent()

    def epochs_left(self) -> float:
        trained = {**self.trials, **self.earlier}.values()
        promised = sum(one.epochs for one in self.training.values())
        return self.budget.epochs - promised - sum(map(_reached, trained))

    def trials_left(self) -> float:
        return self.budget.trials - len(self.trials.keys() | self.training.keys())

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
    remember: frozenset[str] = frozenset(),
    exemplars: int = memory.MOST_EXEMPLARS,
    command: str = "",
    workers: Workers | None = None,
) -> Outcome:
    """Train the top of `ranking` on `task` within `budget`; everything lies in `folder`, the winner in `folder/model`.

    `spent` seconds of the budget are gone already: they went into the advice. With `workers` as many trials train at once;
    `folder` must be one that all of them see.
    `remember` and `exemplars`: see `memory`.

    Ctrl-C ends it with the best model so far. A second call with the same arguments goes on where the first one stopped.

    Raises:
        BudgetError: no candidate gave a model in the time.
    """
    spaces = {name: strategy.space for name, strategy in registry.strategies().items()}
    surrogate = Surrogate(ranking.items, backbones, spaces, validation_images=len(task.part(VALIDATION)))
    before = _spent(folder) + spent
    grown = history.growths(1 / ETA, objective=task.objective)
    growth = {name: growth_of(grown.get(name, ())) for name in spaces}
    told = list(trackers)
    state = _Search(
        task=task,
        backbones=backbones,
        ranking=ranking,
        budget=budget,
        folder=folder,
        seed=seed,
        history=history,
        trackers=told,
        command=command,
        spent_before=before,
        surrogate=surrogate,
        growth=growth,
        workers=workers,
        remember=remember,
        exemplars=exemplars,
    )
    (folder / "trials").mkdir(parents=True, exist_ok=True)
    _recall(state)
    for tracker in trackers:
        try:
            tracker.opened(task, budget.seconds - state.spent_before, folder)
        except Exception as error:  # somebody's plugin; nothing is trained yet, so that nothing is lost
            raise PluginError(f"tracker {tracker.name!r} cannot begin: {type(error).__name__}: {error}") from error
    interrupted = False
    try:
        _look(state)
        for item in _entrants(state):
            _advance(state, item, _rung(item.candidate))
        _go_on(state)
    except KeyboardInterrupt:
        interrupted = True
    state.trials |= state.earlier
    winner, remembered = _crown(state)
    rule = f"interrupted; of what was trained until then, {RULE}" if interrupted else RULE
    _note_spent(state)
    trials = tuple(state.trials.values())
    return Outcome(task.fingerprint, profile, ranking, trials, winner, folder, state.spent(), rule, interrupted, remembered)


def follow(task: Task, *, seed: int) -> Outcome:
    """What the other processes of `accelerate launch` do during a search: train along, until the first one has the outcome."""
    while not isinstance(order := processes.hear(), Outcome):
        candidate, backbone, folder, limits = order
        run_trial(task, candidate, backbone, seed=seed, folder=folder, limits=limits)
    return order


def _look(state: _Search) -> None:
    """Candidates without epochs (probes) whose predicted seconds are a small share of the budget, one a backbone, best first."""
    cheap = state.budget.seconds * LOOK_SHARE if math.isfinite(state.budget.seconds) else 0.0
    looked: set[str] = set()
    for item in state.ranking.items:
        backbone = item.candidate.backbone
        probe = math.isinf(_rung(item.candidate))
        if probe and item.seconds <= cheap and backbone not in looked and len(looked) < MOST_LOOKS:
            looked.add(backbone)
            _advance(state, item, math.inf)


def _entrants(state: _Search) -> list[Ranked]:
    """As many promising candidates as a bracket can afford.

    Each is chosen as if those before had come out as expected: what is much like them promises less then, as the top of a
    ranking is often one idea many times (the kriging believer of Ginsbourger et al., 2010).
    """
    chosen: list[Ranked] = []
    believed: list[Observed] = []
    dearest = BRACKET_SHARE * state.time_left()
    money = dearest * (1 if state.workers is None else state.workers.size)
    while len(chosen) < min(MOST_ENTRANTS, state.trials_left()):
        most = min(dearest, money)
        affordable = (item for item in _in_order(state, believed) if item not in chosen and _price(state, item) <= most)
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


def _go_on(state: _Search) -> None:
    """Spend what is left on what promises most for its seconds."""
    while True:
        item = _next(state) if state.epochs_left() > 0 and state.time_left() > 0 else None
        if item is None and not state.training:
            return
        if item is None:
            _await(state)  # what comes of it may leave room for more
        elif not _advance(state, item, _rung(item.candidate) if _id(state, item) not in state.trials else math.inf):
            state.stuck.add(_id(state, item))


def _next(state: _Search) -> Ranked | None:
    """A paused candidate to be taken to the end, or a new one to be begun; what an earlier start did comes first."""
    promise = state.surrogate.improvement(_observed(state))
    timed, items = math.isfinite(state.budget.seconds), state.ranking.items
    prices = {place: _seconds_to_end(state, items[place]) if timed else 0.0 for place in _options(state)}
    done = {place for place in prices if _id(state, items[place]) in state.earlier}
    fitting = [place for place in prices if place in done or prices[place] < state.time_left()]
    if not fitting and prices and not state.trials and not state.training:
        return items[min(prices, key=lambda place: prices[place])]  # better a cut-off model than none
    floor = LEAST_PRICE * state.budget.seconds if timed else 1.0
    best = max(fitting, key=lambda place: (place in done, promise[place] / (prices[place] + floor)), default=None)
    return None if best is None else items[best]


def _seconds_to_end(state: _Search, item: Ranked) -> float:
    """Of a paused trial as long as its epochs took so far; of another as predicted."""
    trial = state.trials.get(_id(state, item))
    if trial is None or not trial.curve:
        return state.expected_seconds(item)
    reached, epochs = trial.curve[-1].epoch, float(item.candidate.hyperparameters.get("epochs", 0))
    if reached >= epochs:  # some strategies go through their epochs several times
        return state.expected_seconds(item) * (1 - 1 / ETA)
    return trial.seconds / reached * (epochs - reached)


def _options(state: _Search) -> Iterable[int]:
    """Places in the ranking of what can go on or be begun."""
    hopeless, more = _hopeless(state), _may_finish_more(state)
    for place, item in enumerate(state.ranking.items):
        id_ = _id(state, item)
        trial = state.trials.get(id_)
        if id_ in state.stuck or id_ in state.training:
            continue
        new = trial is None and state.trials_left() >= 1 and item.candidate.strategy not in hopeless
        paused = trial is not None and trial.status == "stopped" and more
        if new or paused:
            yield place


def _may_finish_more(state: _Search) -> bool:
    """Where time is no limit, only a third of what was begun is taken to the end."""
    if math.isfinite(state.budget.seconds):
        return True
    begun = [trial for trial in state.trials.values() if math.isfinite(_rung(trial.candidate)) and trial.curve]
    ended = sum(trial.status == "finished" or trial.id in state.training for trial in begun)
    return ended < math.ceil(len(begun) / ETA)


def _in_order(state: _Search, believed: Sequence[Observed]) -> Iterable[Ranked]:
    """Untried candidates, the most promising first; `believed` counts like trials."""
    promise = state.surrogate.improvement([*_observed(state), *believed])
    hopeless = _hopeless(state)
    for place in np.argsort(-promise, kind="stable"):
        item = state.ranking.items[place]
        tried = _id(state, item) in state.trials or _id(state, item) in state.training
        if not tried and item.candidate.strategy not in hopeless:
            yield item


def _hopeless(state: _Search) -> set[str]:
    """Strategies that only ever failed here."""
    statuses: dict[str, list[str]] = defaultdict(list)
    for trial in state.trials.values():
        statuses[trial.candidate.strategy].append(trial.status)
    return {name for name, found in statuses.items() if len(found) >= MOST_FAILURES and set(found) == {"failed"}}


def _observed(state: _Search) -> list[Observed]:
    """What the trials of this search showed; those that still train as what is expected of them."""
    seen = [
        Observed(
            trial.candidate,
            trial.score,
            state.growth.get(trial.candidate.strategy, Growth()) if trial.status == "stopped" else None,
        )
        for trial in state.trials.values()
        if trial.score is not None
    ]
    for one in state.training.values():
        seen.append(Observed(one.item.candidate, state.surrogate.expected(one.item.candidate, seen)))
    return seen


def _advance(state: _Search, item: Ranked, epochs: float) -> bool:
    """Train a candidate up to `epochs`, or have a worker begin it; whether there was anything to do and the budget for it."""
    id_ = _id(state, item)
    recalled = id_ in state.earlier
    if recalled:
        whole = state.earlier[id_]
        state.trials[id_] = _as_of(whole, epochs)
        if state.trials[id_] is whole:
            del state.earlier[id_]
    before = state.trials.get(id_)
    reached = _reached(before)
    if before is not None and (before.status != "stopped" or reached >= epochs):
        return recalled
    if (before is None and state.trials_left() < 1) or state.time_left() <= 0 or state.epochs_left() <= 0:
        return recalled
    candidate, limit = item.candidate, min(epochs, reached + state.epochs_left())
    backbone, folder = state.backbones[candidate.backbone], state.folder / "trials" / id_
    deadline, bar = time.time() + state.time_left(), _best_other(state, id_)
    step = _Step(candidate, backbone, state.seed, folder, limit, deadline, bar, state.command, IMPORTANCE in state.remember)
    if state.workers is None:
        planned = _planned(state, step)
        _tell(state, "started", planned)

        def report(point: Point) -> bool:
            _note_spent(state)
            _tell(state, "epoch", planned, point)
            return False

        _settle(state, item, _carry_out(state.task, step, report=report))
        return True
    most = min(limit, float(candidate.hyperparameters.get("epochs", 1))) - reached
    state.training[id_] = _Training(item, step, most, state.workers.submit(state.carry_out, step))
    while len(state.training) >= state.workers.size:
        _await(state)
    return True


def _planned(state: _Search, step: _Step) -> Trial:
    task = state.task.fingerprint
    return Trial(trial_id(task, step.candidate, step.seed), task, step.candidate, step.seed, "running")


def _carry_out(task: Task, step: _Step, *, report: Callable[[Point], bool] = lambda point: False) -> Trial:
    """Train as the step says, here, wherever that is; a model that may be the winner's is kept in the trial's folder."""
    if not step.folder.parent.is_dir():
        raise InputError(
            f"{step.folder.parent} is not there on {platform.node()}: --out must lie in a folder that all machines share"
        )
    limits = Limits(step.epochs, time.monotonic() + (step.deadline - time.time()))
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
    if fitted is not None and trial.validation and _standing(trial) >= step.bar:
        facts = {"validation": dict(trial.validation), "task": task.name, "provenance": dict(trial.provenance)}
        model.save(step.folder, fitted.model, step.backbone, step.candidate, task.classes, facts)
        if fitted.importance is not None:
            checkpoint.save(checkpoint.beside(step.folder, IMPORTANCE), fitted.importance, {})
        trial = replace(trial, artefact=f"trials/{trial.id}")
    return trial


def _await(state: _Search) -> None:
    """Settle what the next worker brings."""
    futures = {one.future: one for one in state.training.values()}
    while not (done := wait(futures, timeout=NOTED_EVERY, return_when=FIRST_COMPLETED).done):
        _note_spent(state)
    for one in [one for future, one in futures.items() if future in done]:
        planned = _planned(state, one.step)
        try:
            trial = one.future.result()
        except WorkerLost as lost:
            trial = replace(planned, status="failed", error=f"{planned.candidate.strategy}: {lost}")
        _tell(state, "started", planned)  # only now: trackers know of one trial at a time
        for point in trial.curve:
            if point.epoch > _reached(state.trials.get(trial.id)):
                _tell(state, "epoch", planned, point)
        del state.training[trial.id]
        _settle(state, one.item, trial)


def _settle(state: _Search, item: Ranked, trial: Trial) -> None:
    """What came of a step, for good."""
    if trial.status == "finished":
        state.pace.append(math.log(trial.seconds / max(item.seconds, 1e-6)))
    if trial.status == "stopped" and _reached(trial) <= _reached(state.trials.get(trial.id)):  # no further epoch fits
        state.stuck.add(trial.id)
    _remember(state, trial)
    if trial.status != "stopped":
        shutil.rmtree(state.folder / "trials" / trial.id / "checkpoints", ignore_errors=True)
    _tell(state, "finished", trial)


def _reached(trial: Trial | None) -> float:
    """Epochs that it has trained."""
    return trial.curve[-1].epoch if trial is not None and trial.curve else 0.0


def _tell(state: _Search, event: str, *words: Any) -> None:
    """The trackers hear of an event; one that stumbles hears no more, as a night's search must not end with its diary."""
    for tracker in tuple(state.trackers):
        try:
            getattr(tracker, event)(*words)
        except Exception as error:  # somebody's plugin, and often somebody's server
            state.trackers.remove(tracker)
            text = f"plugin: tracker {tracker.name!r} stumbled at {event!r} and is told no more: {type(error).__name__}: {error}"
            warnings.warn(text, registry.PluginWarning, stacklevel=2)


def _crown(state: _Search) -> tuple[Trial, dict[str, int]]:
    """The winner, its confidence set right on the validation images, judged on the test images, its model in `folder/model`.

    With the bytes of what is remembered beside it.
    """
    scored = [trial for trial in state.trials.values() if trial.validation and trial.artefact]
    if not scored:
        failed = [trial.error for trial in state.trials.values() if trial.error]
        cause = f"every trial failed, the last with: {failed[-1]}" if failed else "no trial ended in time; give more time"
        raise BudgetError(f"no model was trained within the budget: {cause}")
    winner = max(scored, key=_standing)
    trained = model.load(state.folder / winner.artefact)
    validation = state.task.part(VALIDATION)
    probabilities = probabilities_on(state.task, trained.backbone, trained.net, validation)
    temperature = choose_temperature(probabilities, state.task.labels[validation], seed=state.seed)
    model.cool(trained.net, temperature)
    if not winner.test:
        winner = replace(winner, test=judge_on_test(state.task, trained.backbone, trained.net))
        _remember(state, winner)
    facts = {
        **trained.facts,
        "test": dict(winner.test),
        "temperature": temperature,
        "trial": winner.id,
        "fingerprint": state.task.fingerprint,
        "images": {split: len(state.task.part(split)) for split in (TRAIN, VALIDATION, TEST)},
    }
    remembered = _remember_for_later(state, winner, trained, temperature)
    facts |= {"remembered": remembered} if remembered else {}
    model.save(state.folder / "model", trained.net, trained.backbone, trained.candidate, trained.classes, facts)
    return winner, remembered


def _remember_for_later(state: _Search, winner: Trial, trained: model.Model, temperature: float) -> dict[str, int]:
    if not state.remember:
        return {}
    found = memory.recall(state.folder / winner.artefact, IMPORTANCE)
    importance = None if found is None else memory.cooled(found[0], temperature)
    return memory.remember(
        state.folder / "model",
        trained.net,
        state.task,
        pixels_of(state.task, trained.backbone).array,
        trained.backbone,
        kinds=state.remember,
        importance=importance,
        most=state.exemplars,
        seed=state.seed,
    )


def _remember(state: _Search, trial: Trial) -> None:
    """In the history and in the run's folder, before anything else happens."""
    state.trials[trial.id] = trial
    state.history.record_trial(trial)
    path = state.folder / "trials" / trial.id / "trial.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(asdict(trial), indent=1))


def _recall(state: _Search) -> None:
    """Trials of an earlier start of the same search."""
    for path in sorted((state.folder / "trials").glob("*/trial.json")):
        trial = read_trial(path)
        state.earlier[trial.id] = trial
        state.history.record_trial(trial)


def read_trial(path: Path) -> Trial:
    """A trial as the search wrote it."""
    return trial_of(json.loads(path.read_text(encoding="utf-8")))


def _as_of(trial: Trial, epochs: float) -> Trial:
    """A trial of an earlier start as it was when it had trained so far: decisions are repeated as they were made."""
    curve = tuple(point for point in trial.curve if point.epoch <= epochs)
    if len(curve) == len(trial.curve) or not curve or trial.status == "failed":
        return trial
    best = max(point.score for point in curve)
    return replace(trial, status="stopped", curve=curve, validation={"accuracy": best, "score": best})


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


def _standing(trial: Trial) -> tuple[float, float, float]:
    return trial.score or 0.0, -trial.validation.get("log_loss", math.inf), -trial.seconds


def _best_other(state: _Search, id_: str) -> tuple[float, float, float]:
    """Standing of the best finished trial but this one. A paused one may yet fail, and its model with it."""
    others = (trial for trial in state.trials.values() if trial.status == "finished" and trial.id != id_)
    return max((_standing(trial) for trial in others), default=(-1.0, -math.inf, 0.0))
