"""The budgeted search: successive halving over a ranking, then whatever still fits.

1. *Looks*: the best-ranked candidates that cost next to nothing (probes on cached features) are trained outright.
2. *A bracket*: the most promising candidates train for a third of their epochs, as in successive halving (Jamieson and
   Talwalkar, 2016).
3. *The rest*: what to do with the seconds that are left is planned, with what is alike counted together, and the first step of
   the plan is taken; then the next plan is made. A step takes a paused trial to the end, a new one to a third, or the best so
   far through another cycle (see `restarts`). As in freeze-thaw optimisation (Swersky et al., 2014), a paused trial is judged by
   what it may become (see `growth`).

What is promising is told by the ranking, corrected by what the trials so far showed (see `surrogate`).

With several workers as many trials train at once, each chosen as if those that still train had come out as expected (the kriging
believer of Ginsbourger et al., 2010).

Every trial is on disk and in the history before the next one starts, so a search that was killed goes on where it stood.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from . import memory, registry
from .budget import Budget
from .cost import speed_for
from .crowning import RULE, crown, notes_on
from .device import settled
from .errors import PLUGIN_FAULTS, PluginError
from .growth import Growths
from .history import History
from .hookspecs import Tracker
from .planning import plan_within
from .progress import Search, cycles_of, epochs_asked, leader, note_spent, recall_spent, recall_trials
from .records import VALIDATION, Backbone, Candidate, Grown, Outcome, Profile, Ranked, Ranking, Task, Trial
from .restarts import next_cycle
from .steps import advance, carry_out, settle_next
from .surrogate import Observed, Surrogate
from .trials import features_at_hand
from .workers import Workers

ETA = 3
LOOK_SHARE, MOST_LOOKS, LOOK_TRIALS = 0.03, 6, 4
"""A look takes at most so much of the time; there are so many at most, and no more than one in so many of the trials."""
BRACKET_SHARE, MOST_ENTRANTS = 0.75, 9
WORTHWHILE = 0.1
"""Of what the first entrant promises: what promises less is no entrant, as the time is better spent on those that are."""
MOST_FAILURES = 2
"""Of a strategy, none of whose trials went well: from then on it is not tried."""
LEAST_PRICE = 0.03
"""Of the time: what is added to a candidate's seconds, lest a search only ever tries what is cheap."""
SHORTEST = 0.25
"""Of a training: with time for less of it, it would hardly have begun when its rate has to come down (see `loop`)."""
PLANNED, DRAWN = 40, 512
"""Candidates that plans are made of, and futures in which these are weighed."""


@settled()
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

    Ctrl-C ends it with the best model so far, if there is one. A second call with the same arguments goes on where the first one
    stopped.

    Raises:
        BudgetError: no candidate gave a model in the time.
    """
    spaces = {name: strategy.space for name, strategy in registry.strategies().items()}
    surrogate = Surrogate(ranking.items, backbones, spaces, validation_images=len(task.part(VALIDATION)))
    grown = history.growths(1 / ETA, without=task.fingerprint, objective=task.objective)
    state = Search(
        task=task,
        backbones=backbones,
        ranking=ranking,
        budget=budget,
        folder=folder,
        seed=seed,
        history=history,
        trackers=list(trackers),
        command=command,
        spent_before=recall_spent(folder) + spent,
        surrogate=surrogate,
        growths=Growths(grown, spaces),
        workers=workers,
        carry_out=partial(carry_out, task),
        remember=remember,
        exemplars=exemplars,
        unseen=_unseen(task, ranking, backbones),
    )
    (folder / "trials").mkdir(parents=True, exist_ok=True)
    recall_trials(state)
    known = state.trials | state.earlier
    for tracker in trackers:
        try:
            tracker.opened(task, budget.seconds - state.spent_before, folder)
        except PLUGIN_FAULTS as error:  # nothing is trained yet, so that nothing is lost
            raise PluginError(f"tracker {tracker.name!r} cannot begin: {type(error).__name__}: {error}") from error
    interrupted = False
    try:
        _look(state)
        for item in _entrants(state):
            if item.candidate.strategy not in _hopeless(state):
                advance(state, item, _rung(item.candidate))
        _go_on(state)
    except KeyboardInterrupt:
        if not any(trial.artefact for trial in (state.trials | state.earlier).values()):
            raise  # there is nothing yet to end with
        interrupted = True
    state.trials |= state.earlier
    used = () if interrupted or not known or state.trials != known else _nothing_more(state, recall_spent(folder))
    winner, remembered = crown(state)
    rule = f"interrupted; of what was trained until then, {RULE}" if interrupted else RULE
    if state.trials != known:  # else it had ended already: asking again costs it nothing
        note_spent(state)
    trials = tuple(state.trials.values())
    return Outcome(
        task.fingerprint,
        profile,
        ranking,
        trials,
        winner,
        folder,
        recall_spent(folder),
        rule,
        interrupted,
        remembered,
        (*notes_on(task, winner), *used),
    )


def _nothing_more(state: Search, spent: float) -> tuple[str, ...]:
    """Why a start after others trained nothing, for a person: it is no failure, but looks like one."""
    budget = state.budget
    if state.time_left() <= 0:
        limit = f"{budget.seconds:.0f} s"
    elif state.trials_left() < 1:
        limit = "1 trial" if budget.trials == 1 else f"{budget.trials:.0f} trials"
    elif state.epochs_left() <= 0:
        limit = "1 epoch" if budget.epochs == 1 else f"{budget.epochs:.0f} epochs"
    else:
        return ()
    return (f"the budget of {limit} is used up ({spent:.0f} s spent); nothing more was trained; give more to go on",)


def _unseen(task: Task, ranking: Ranking, backbones: Mapping[str, Backbone]) -> dict[str, float]:
    """Seconds for a pass of all images through each network of the ranking whose features are not at hand: only samples of large
    tasks were looked at. Trials of the history had theirs, so no prediction has this in it."""
    names = {item.candidate.backbone for item in ranking.items}
    images = len(task.before_test())
    return {
        name: images * float(backbones[name].macs) / speed_for(backbones[name])
        for name in sorted(names)
        if not features_at_hand(task, backbones[name])
    }


def _look(state: Search) -> None:
    """Candidates without epochs (probes) whose predicted seconds are a small share of the budget, one a backbone, best first."""
    cheap = state.budget.seconds * LOOK_SHARE if math.isfinite(state.budget.seconds) else 0.0
    most = min(MOST_LOOKS, state.budget.trials // LOOK_TRIALS)
    looked: set[str] = set()
    for item in state.ranking.items:
        backbone = item.candidate.backbone
        probe = math.isinf(_rung(item.candidate))
        if probe and state.expected_seconds(item) <= cheap and backbone not in looked and len(looked) < most:
            looked.add(backbone)
            advance(state, item, math.inf)


def _entrants(state: Search) -> list[Ranked]:
    """As many promising candidates as a bracket can afford, none of which would be cut off too early.

    Each is chosen as if those before had come out as expected: what is much like them promises less then, as the top of a
    ranking is often one idea many times (the kriging believer of Ginsbourger et al., 2010).
    """
    chosen: list[Ranked] = []
    believed: list[Observed] = []
    least, left = 0.0, state.time_left()
    dearest, epochs = BRACKET_SHARE * left, BRACKET_SHARE * state.budget.epochs  # of all: a later start decides as the first
    money = dearest * (1 if state.workers is None else state.workers.size)
    while len(chosen) < min(MOST_ENTRANTS, state.trials_left()):
        most = min(dearest, money)
        affordable = (
            (promise, item)
            for promise, item in _in_order(state, believed)
            if item not in chosen
            and _price(state, item) <= most
            and (_least(item.candidate) * state.expected_seconds(item) <= left or state.id_of(item.candidate) in state.earlier)
            and _on_average(epochs_asked(item.candidate)) <= epochs
            and epochs_asked(item.candidate) <= state.budget.epochs
        )
        promise, item = next(affordable, (0.0, None))
        if item is None or promise < least:
            break
        least = least or WORTHWHILE * promise
        money -= _price(state, item)
        epochs -= _on_average(epochs_asked(item.candidate))
        chosen.append(item)
        expected = state.surrogate.expected(item.candidate, [*_observed(state), *believed])
        believed.append(Observed(item.candidate, expected, believed=True))
    return chosen


def _price(state: Search, item: Ranked) -> float:
    """Seconds that an entrant costs on average; nothing where an earlier start paid them."""
    return 0.0 if state.id_of(item.candidate) in state.earlier else _on_average(state.expected_seconds(item))


def _least(candidate: Candidate) -> float:
    """Share of its seconds that must be left for it to begin; strategies without epochs cannot be cut off."""
    return SHORTEST if math.isfinite(_rung(candidate)) else 1.0


def _on_average(whole: float) -> float:
    """Of what an entrant takes to its end: a third for all, the rest for a third of them."""
    return whole * (1 / ETA + (1 - 1 / ETA) / ETA)


def _go_on(state: Search) -> None:
    """Spend what is left on what promises most for its seconds."""
    while True:
        item = _next(state) if state.epochs_left() > 0 and state.time_left() > 0 else None
        if item is None and not state.training:
            return
        if item is None:
            settle_next(state)  # what comes of it may leave room for more
        elif not advance(state, item, _rung(item.candidate) if state.id_of(item.candidate) not in state.trials else math.inf):
            state.stuck.add(state.id_of(item.candidate))


def _next(state: Search) -> Ranked | None:
    """A paused candidate to be taken further, or a new one to be begun; what an earlier start did comes first.

    One whose end is out of reach may still go as far as the time does, a new one if that is far enough; it promises the less
    then, the less of its way it can go. The best so far may go through another cycle if there is time for all of it.
    """
    observed = _observed(state)
    promise = state.surrogate.improvement(observed)
    timed, items, left = math.isfinite(state.budget.seconds), state.ranking.items, state.time_left()
    prices = {place: _seconds_to_end(state, items[place]) if timed else 0.0 for place in _options(state)}
    done = [place for place in prices if state.id_of(items[place].candidate) in state.earlier]
    begun = {place for place in prices if state.id_of(items[place].candidate) in state.trials}
    fitting = [place for place in prices if place in begun or _least(items[place].candidate) * prices[place] < left]
    if done or not timed:
        best = max(done or fitting, key=lambda place: float(promise[place]), default=None)
        return None if best is None else items[best]
    if not fitting and prices and not state.trials and not state.training:
        return items[min(prices, key=lambda place: prices[place])]  # better a cut-off model than none
    way = {place: min(left / prices[place], 1.0) if prices[place] else 1.0 for place in fitting}
    worth = {place: float(promise[place]) * way[place] for place in fitting}
    floor = LEAST_PRICE * state.budget.seconds
    costs = {place: min(prices[place], left) + floor for place in fitting}
    shortlist = list(dict.fromkeys([*_best(worth), *_best({place: worth[place] / costs[place] for place in fitting})]))
    rng = np.random.default_rng((state.seed, len(state.trials)))
    chosen, gains = [items[place] for place in shortlist], np.zeros((DRAWN, 0))
    if shortlist:
        gains = state.surrogate.draw(observed, shortlist, DRAWN, rng) - state.surrogate.goal(observed)
        gains *= [way[place] for place in shortlist]
    dues = [costs[place] for place in shortlist]
    again = next_cycle(state)
    if again is not None and again.seconds <= left:
        chosen, dues = [*chosen, again.item], [*dues, again.seconds + floor]
        gains = np.column_stack([gains, rng.normal(0.0, again.spread, DRAWN)])
    plan = plan_within(np.maximum(gains, 0), np.array(dues), left + floor)
    return chosen[plan[0]] if plan else _more_of_the_leader(state, begun)


def _more_of_the_leader(state: Search, paused: Iterable[int]) -> Ranked | None:
    """Who would win now, if it is one of those at the places `paused`; else another cycle of it, whatever the last one led to.

    Where the validation images have nothing left to tell, nothing promises more; but the last epochs, at low rates, are for other
    images, too, and so is more training in time that nobody else asks for.
    """
    first = leader(state)
    items = (state.ranking.items[place] for place in paused)
    goes_on = next((item for item in items if first is not None and state.id_of(item.candidate) == first.id), None)
    again = next_cycle(state, whatever=True) if goes_on is None else None
    return again.item if again is not None and again.seconds * SHORTEST <= state.time_left() else goes_on


def _best(worth: Mapping[int, float]) -> list[int]:
    return sorted(worth, key=lambda place: -worth[place])[:PLANNED]


def _seconds_to_end(state: Search, item: Ranked) -> float:
    """Of a paused trial as long as its epochs took so far; of another as predicted."""
    trial = state.trials.get(state.id_of(item.candidate))
    if trial is None or not trial.curve:
        return state.expected_seconds(item)
    reached, epochs = trial.curve[-1].epoch, epochs_asked(item.candidate)
    if not 0 < reached < epochs:  # some strategies begin at 0, or go through their epochs several times
        return state.expected_seconds(item) * (1 - 1 / ETA)
    return trial.seconds / reached * (epochs - reached)


def _options(state: Search) -> Iterable[int]:
    """Places in the ranking of what can go on or be begun."""
    hopeless, more = _hopeless(state), _may_finish_more(state)
    for place, item in enumerate(state.ranking.items):
        id_ = state.id_of(item.candidate)
        trial = state.trials.get(id_)
        if id_ in state.stuck or id_ in state.training:
            continue
        new = trial is None and state.trials_left() >= 1 and item.candidate.strategy not in hopeless
        paused = trial is not None and trial.status == "stopped" and more
        if new or paused:
            yield place


def _may_finish_more(state: Search) -> bool:
    """Where time is no limit, only a third of what was begun is taken to the end."""
    if math.isfinite(state.budget.seconds):
        return True
    begun = [trial for trial in state.trials.values() if math.isfinite(_rung(trial.candidate)) and trial.curve]
    ended = sum(trial.status == "finished" or trial.id in state.training for trial in begun)
    return ended < math.ceil(len(begun) / ETA)


def _in_order(state: Search, believed: Sequence[Observed]) -> Iterable[tuple[float, Ranked]]:
    """Untried candidates and what they promise, the most promising first; `believed` counts like trials."""
    promise = state.surrogate.improvement([*_observed(state), *believed])
    hopeless = _hopeless(state)
    for place in np.argsort(-promise, kind="stable"):
        item = state.ranking.items[place]
        tried = state.id_of(item.candidate) in state.trials or state.id_of(item.candidate) in state.training
        if not tried and item.candidate.strategy not in hopeless:
            yield float(promise[place]), item


def _hopeless(state: Search) -> set[str]:
    """Strategies that only ever failed here; what failed after a pause did, too, though its model was kept."""
    statuses: dict[str, list[str]] = defaultdict(list)
    for trial in state.trials.values():
        statuses[trial.candidate.strategy].append("failed" if trial.error else trial.status)
    return {name for name, found in statuses.items() if len(found) >= MOST_FAILURES and set(found) == {"failed"}}


def _observed(state: Search) -> list[Observed]:
    """What the trials of this search showed; those that still train as what is expected of them."""
    ended: dict[str, list[Grown]] = defaultdict(list)
    for trial in state.trials.values():
        if trial.status == "finished" and (grown := _grown(trial)) is not None:
            ended[trial.candidate.strategy].append(grown)
    seen = [
        Observed(
            trial.candidate,
            trial.score,
            state.growths.foretell(trial.candidate, ended[trial.candidate.strategy]) if trial.status == "stopped" else None,
        )
        for trial in state.trials.values()
        if trial.score is not None
    ]
    for one in state.training.values():
        if cycles_of(one.item.candidate) > 1:
            continue  # the ranking has no such candidate, and what it goes on from is among the trials
        seen.append(Observed(one.item.candidate, state.surrogate.expected(one.item.candidate, seen), believed=True))
    return seen


def _grown(trial: Trial) -> Grown | None:
    """What a trial scored where it would have been paused, and in the end; None where it has no such place."""
    early = [point.score for point in trial.curve if point.epoch <= _rung(trial.candidate)]
    if math.isinf(_rung(trial.candidate)) or not early:
        return None
    return Grown(trial.candidate.hyperparameters, max(early), max(point.score for point in trial.curve))


def _rung(candidate: Candidate) -> float:
    """A third of the epochs; strategies without epochs have no rungs, and neither has another cycle."""
    if cycles_of(candidate) > 1:
        return math.inf
    return math.ceil(epochs_asked(candidate) / ETA) or math.inf
