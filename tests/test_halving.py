"""The search on real images: what it trains and what it keeps. That it says the same twice: test_determinism.py."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from small import QUICK, TINY, digits

from automl_tl import Candidate, Fitted, Outcome, Profile, Ranked, Ranking, Task, Trial, checkpoint, features, loop, search, steps
from automl_tl.backbones import catalogue
from automl_tl.budget import parse_budget
from automl_tl.crowning import RULE
from automl_tl.errors import BudgetError
from automl_tl.evaluation.calibration import cooled
from automl_tl.halving import _hopeless, _more_of_the_leader, _seconds_to_end, _unseen
from automl_tl.history import open_history
from automl_tl.loop import CHECKPOINT
from automl_tl.model import load
from automl_tl.progress import UNSURE, Search, cycles_of, once_each, read_trials
from automl_tl.records import TEST, Point, trial_id
from automl_tl.registry import strategies
from automl_tl.restarts import next_cycle, sweep
from automl_tl.space import defaults
from automl_tl.trials import Limits, probabilities_on
from automl_tl.workers import Workers

pytestmark = pytest.mark.usefixtures("used_home")


def ranked(strategy: str, backbone: str, score: float, seconds: float = 5.0, **changed: object) -> Ranked:
    values = {**defaults(strategies()[strategy].space), **changed}
    return Ranked(Candidate(backbone, strategy, values), score, score - 0.1, score + 0.1, seconds, 100.0)  # type: ignore[arg-type]


few = partial(digits, count=120)
"""Enough to tell which trial goes on."""


class InTurn:
    """Workers that share one thread of this process: several trials are begun, and each ends before the next one trains."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.most = 0
        self._begun: list[Future[Any]] = []
        self._thread = ThreadPoolExecutor(1)

    def submit(self, run: Callable[[Any], Any], unit: Any, /) -> Future[Any]:
        self._begun = [future for future in self._begun if not future.done()]
        self._begun.append(self._thread.submit(run, unit))
        self.most = max(self.most, len(self._begun))
        return self._begun[-1]


def run(
    items: list[Ranked], out: Path, budget: str, seed: int = 0, workers: Workers | None = None, **task_options: object
) -> Outcome:
    task, backbones = few(**task_options), catalogue()
    profile = Profile(task.name, task.fingerprint, {}, {}, {})
    with open_history() as history:
        history.record_task(task)
        for backbone in backbones.values():
            history.record_backbone(backbone)
        return search(
            task,
            Ranking(tuple(items), "a test", 2),
            profile=profile,
            backbones=backbones,
            budget=parse_budget(budget),
            folder=out,
            history=history,
            seed=seed,
            workers=workers,
        )


def test_halving_takes_the_better_third_to_the_end(tmp_path: Path) -> None:
    rates = (0.0003, 0.002, 0.005)
    items = [ranked("fine-tuning", QUICK, 0.9 - i / 100, rate=rate, epochs=6) for i, rate in enumerate(rates)]
    items[2] = ranked("fine-tuning", TINY, 0.88, rate=0.005, epochs=6)  # at most two of a pair enter
    outcome = run(items, tmp_path, "3 trials")
    reached = {trial.id: trial.curve[-1].epoch for trial in outcome.trials}
    assert sorted(reached.values()) == [2, 2, 6], "a third of the epochs each, and one to the end"
    finished = next(trial for trial in outcome.trials if trial.status == "finished")
    at_rung = {trial.id: max(point.score for point in trial.curve if point.epoch <= 2) for trial in outcome.trials}
    assert at_rung[finished.id] == max(at_rung.values())
    assert {trial.status for trial in outcome.trials} == {"finished", "stopped"}


def test_the_winner_is_kept_by_the_rule_and_judged_once(tmp_path: Path) -> None:
    items = [ranked("linear-probe", name, 0.9) for name in (TINY, QUICK)]
    outcome = run(items, tmp_path, "2 trials")
    key = [(trial.validation["accuracy"], -trial.validation["log_loss"], -trial.seconds) for trial in outcome.trials]
    assert outcome.winner.id == outcome.trials[key.index(max(key))].id
    assert outcome.rule == RULE
    assert [bool(trial.test) for trial in outcome.trials].count(True) == 1
    task, kept = few(), load(tmp_path / "model")
    index = task.part(TEST)
    right = probabilities_on(task, kept.backbone, kept.net, index).argmax(1) == task.labels[index]
    assert outcome.winner.test["accuracy"] == pytest.approx(right.mean())
    with open_history() as history:
        assert history.trial(outcome.winner.id).test == outcome.winner.test


def test_a_winner_of_votes_has_the_temperature_that_it_is_said_to_have(tmp_path: Path) -> None:
    """One vote for all among 50 makes it too modest on zeros and ones."""
    outcome = run([ranked("knn", TINY, 0.9, neighbours=50)], tmp_path, "1 trials", classes=2)
    task, kept, before = few(classes=2), load(tmp_path / "model"), load(tmp_path / outcome.winner.artefact)
    assert kept.facts["temperature"] < 0.9
    said = [probabilities_on(task, one.backbone, one.net, task.part(TEST)) for one in (before, kept)]
    np.testing.assert_allclose(said[1], cooled(said[0], kept.facts["temperature"]), atol=1e-6)


@pytest.mark.slow
def test_a_paused_leader_goes_to_its_end_though_nothing_promises_more(tmp_path: Path) -> None:
    """Zeros and ones are told apart after a third of the epochs, and nobody expected as much: no draw surpasses all right."""
    items = [ranked("fine-tuning", QUICK, 0.2, seconds=3.0, epochs=6)]
    outcome = run(items, tmp_path, "60s", classes=2)
    assert outcome.winner.validation["accuracy"] == 1.0
    assert max(point.score for point in outcome.winner.curve[:2]) == 1.0
    begun = next(trial for trial in outcome.trials if trial.candidate == items[0].candidate)
    assert (begun.status, begun.curve[-1].epoch) == ("finished", 6)


def test_the_best_goes_through_more_cycles_while_there_is_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each goes on from the checkpoint of the one before, and its epochs count once; killed in the middle of one, the search
    goes on there."""
    train, began = steps.run_trial, list[tuple[int, float]]()

    def watched(task: Task, candidate: Candidate, *others: Any, folder: Path, **named: Any) -> tuple[Trial, Fitted | None]:
        path = folder / CHECKPOINT
        began.append((cycles_of(candidate), checkpoint.load(path)[1]["epoch"] if path.exists() else 0))
        if kills and began[-1] == kills[-1]:
            kills.pop()
            train(task, candidate, *others, folder=folder, **{**named, "limits": Limits(stop_after=8)})
            raise SystemExit
        return train(task, candidate, *others, folder=folder, **named)

    monkeypatch.setattr(steps, "run_trial", watched)
    items = [ranked("fine-tuning", QUICK, 0.6, seconds=3.0, epochs=6), ranked("linear-probe", TINY, 0.5, seconds=0.1)]
    kills = [(2, 6)]
    with pytest.raises(SystemExit):
        run(items, tmp_path, "120s + 11 epochs", count=240)
    outcome = run(items, tmp_path, "120s + 11 epochs", count=240)
    assert began[-2:] == [(2, 6), (2, 8)]
    once, twice = (trial for trial in outcome.trials if trial.candidate.strategy == "fine-tuning")
    assert [point.score for point in twice.curve[:6]] == [point.score for point in once.curve]
    assert (once.status, len(once.curve)) == ("finished", 6)
    assert (twice.status, len(twice.curve)) == ("stopped", 10), "and the probe is the eleventh"
    assert twice.validation["accuracy"] >= once.validation["accuracy"]
    assert [path.parent.name for path in (tmp_path / "trials").glob("*/checkpoints")] == [twice.id]
    assert load(tmp_path / "model").candidate == outcome.winner.candidate


@pytest.mark.parametrize(
    ("item", "begins"),
    [
        (ranked("fine-tuning", QUICK, 0.9, seconds=170.0, epochs=3), True),
        (ranked("fine-tuning", QUICK, 0.9, seconds=340.0, epochs=3), False),
        (ranked("lda", QUICK, 0.9, seconds=170.0), False),
    ],
    ids=["a third", "a sixth", "a probe, which cannot be cut off"],
)
def test_what_cannot_end_begins_where_there_is_time_for_a_quarter(tmp_path: Path, item: Ranked, begins: bool) -> None:
    looked = ranked("linear-probe", TINY, 0.5, seconds=0.1)
    outcome = run([looked, item], tmp_path, "60s")
    assert (item.candidate in {trial.candidate for trial in outcome.trials}) == begins


def test_the_last_epochs_of_a_budget_bring_the_rate_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 12 epochs there are 8: 4 are a third, after which it pauses, and 4 the rest."""
    schedule, places = loop.schedule, list[float]()

    def noted(done: float) -> float:
        places.append(done)
        return schedule(done)

    monkeypatch.setattr(loop, "schedule", noted)
    outcome = run([ranked("fine-tuning", QUICK, 0.9, epochs=12)], tmp_path, "8 epochs")
    half = len(places) // 2
    assert (outcome.winner.status, outcome.winner.curve[-1].epoch) == ("stopped", 8)
    assert places[half - 1] < 1 / 3 == pytest.approx(places[half])
    assert schedule(places[-1]) < 0.02


@pytest.mark.parametrize(
    "budget", [*(pytest.param(b, marks=pytest.mark.slow) for b in ("5 epochs", "1 trials")), "4 epochs + 2 trials"]
)
def test_budgets_are_kept(tmp_path: Path, budget: str) -> None:
    items = [ranked("fine-tuning", QUICK, 0.9 - i / 100, rate=0.001 * (i + 1), epochs=4) for i in range(3)]
    outcome = run(items, tmp_path, budget)
    limits = parse_budget(budget)
    assert sum(trial.curve[-1].epoch for trial in outcome.trials) <= limits.epochs
    assert len(outcome.trials) <= limits.trials


def test_looks_leave_few_trials_to_what_was_advised(tmp_path: Path) -> None:
    probes = [ranked("nearest-mean", name, 0.5, seconds=0.1) for name in (TINY, QUICK, "resnet10t_24.tiny_imagenet_64")]
    outcome = run([ranked("fine-tuning", QUICK, 0.95, epochs=3), *probes], tmp_path, "60s + 1 trials")
    assert [trial.candidate.strategy for trial in outcome.trials] == ["fine-tuning"]


def test_epochs_are_kept_for_what_is_begun(tmp_path: Path) -> None:
    """Four of them, a third each, would leave too few for any to end."""
    ways = ("fine-tuning", "l2-sp", "layerwise-decay", "bias-norm")
    outcome = run([ranked(strategy, QUICK, 0.9, epochs=9) for strategy in ways], tmp_path, "14 epochs")
    assert "finished" in {trial.status for trial in outcome.trials}


def test_a_budget_of_seconds_is_kept(tmp_path: Path) -> None:
    items = [ranked("fine-tuning", QUICK, 0.9, seconds=3.0, epochs=40, rate=0.001 * (i + 1)) for i in range(4)]
    outcome = run(items, tmp_path, "6s")
    ends = [[0.0, *(point.seconds for point in trial.curve)] for trial in outcome.trials]
    longest = max(later - sooner for seconds in ends for sooner, later in pairwise(seconds))
    assert outcome.seconds < 6 + 3 * longest + 3, "no epoch begins that would end too late; judging and saving come on top"


def test_what_a_paused_trial_took_corrects_what_is_expected_of_the_others() -> None:
    """Predicted 30 s, took 2 s for a third: as the whole takes 6, others are expected to take less, too, and each second counts
    once, when the trial is paused and when it ends."""
    item, other = ranked("fine-tuning", QUICK, 0.9, seconds=30.0, epochs=3), ranked("fine-tuning", TINY, 0.8, seconds=60.0)
    points = [Point(epoch, 2.0 * epoch, 1.0, 0.5, 100.0) for epoch in (1, 2, 3)]
    state = SimpleNamespace(trials={}, taken=0.0, foreseen=0.0, unseen={QUICK: 7.0})
    for status, curve in (("stopped", points[:1]), ("stopped", points[:2]), ("finished", points)):
        trial = Trial("a", "task", item.candidate, 0, status, curve=tuple(curve), seconds=curve[-1].seconds)
        steps._count(state, item, trial)  # type: ignore[arg-type]
        state.trials["a"] = trial
        assert (state.taken, state.foreseen) == (2.0 * len(curve), pytest.approx(10.0 * len(curve)))
    assert Search.expected_seconds(state, other) == pytest.approx(60 * (6 + UNSURE) / (30 + UNSURE))  # type: ignore[arg-type]


def test_features_that_nobody_has_computed_have_a_price_until_somebody_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a large task only a sample was looked at. Seconds of the pass through all of it are no probe's: they would be foretold
    of every other candidate."""
    items = [ranked("lda", name, 0.9, seconds=0.01) for name in (QUICK, TINY)]
    task, backbones = few(), catalogue()
    expected = _unseen(task, Ranking(tuple(items), "a test", 2), backbones)
    assert set(expected) == {QUICK, TINY}
    state = SimpleNamespace(taken=0.0, foreseen=0.0, unseen=expected, task=task)
    assert Search.expected_seconds(state, items[0]) == pytest.approx(0.01 + expected[QUICK])  # type: ignore[arg-type]

    slow = features._forward

    def slowly(*words: Any) -> Any:
        time.sleep(1.0)
        return slow(*words)

    monkeypatch.setattr(features, "_forward", slowly)
    assert max(trial.seconds for trial in run(items, tmp_path, "2 trials").trials) < 1.0
    assert not _unseen(task, Ranking(tuple(items), "a test", 2), backbones)
    steps._seen(state, backbones[QUICK], 2 * expected[QUICK])  # type: ignore[arg-type]
    assert state.unseen == {TINY: pytest.approx(2 * expected[TINY])}, "what the others take is corrected"


def test_a_cycle_that_a_worker_trains_is_not_taken_for_a_candidate_of_the_ranking(tmp_path: Path) -> None:
    items = [ranked("fine-tuning", QUICK, 0.6, seconds=3.0, epochs=6)]
    outcome = run(items, tmp_path, "120s + 13 epochs", workers=InTurn(2))
    assert {cycles_of(trial.candidate) for trial in outcome.trials} > {1}


def test_what_was_paused_before_its_first_epoch_still_has_a_price() -> None:
    """Gradual unfreezing begins with a point of its head alone, at epoch 0, from which no pace can be told."""
    item = ranked("gradual-unfreezing", QUICK, 0.9, seconds=30.0, epochs=3)
    begun = Trial("a", "task", item.candidate, 0, "stopped", curve=(Point(0, 0.0, None, 0.5),), seconds=0.1)
    state = SimpleNamespace(trials={"a": begun}, id_of=lambda _: "a", expected_seconds=lambda item: item.seconds)
    assert _seconds_to_end(state, item) == pytest.approx(20.0)  # type: ignore[arg-type]


def test_a_paused_trial_that_fails_later_counts_against_its_strategy() -> None:
    candidate = ranked("fine-tuning", QUICK, 0.9).candidate
    failed = Trial("a", "task", candidate, 0, "failed", error="out of memory")
    kept = replace(failed, id="b", status="stopped", validation={"accuracy": 0.5}, artefact="trials/b")
    state = SimpleNamespace(trials={"a": failed, "b": kept})
    assert _hopeless(state) == {"fine-tuning"}  # type: ignore[arg-type]
    state.trials["b"] = replace(kept, error="")
    assert _hopeless(state) == set()  # type: ignore[arg-type]


def test_a_search_that_is_taken_up_again_trains_nothing_twice(tmp_path: Path) -> None:
    items = [ranked("linear-probe", TINY, 0.9), ranked("linear-probe", QUICK, 0.8)]
    first = run(items, tmp_path, "1 trials")
    second = run(items, tmp_path, "2 trials")
    assert second.trials[0] == replace(first.trials[0], test=second.trials[0].test) or second.trials[0] == first.trials[0]
    assert len(second.trials) == 2


@pytest.mark.parametrize("killed_in", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_search_that_was_killed_decides_as_if_it_had_not_been(
    killed_in: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [ranked("fine-tuning", QUICK, 0.9 - i / 100, rate=0.001 * (i + 1), epochs=4) for i in range(3)]
    items.append(ranked("fine-tuning", TINY, 0.8, epochs=4))
    whole = run(items, tmp_path / "a", "3 trials + 8 epochs")
    calls, train = [0], steps.run_trial

    def killed(*arguments: object, **options: object) -> object:
        calls[0] += 1
        if calls[0] > killed_in:
            raise SystemExit
        return train(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(steps, "run_trial", killed)
    with pytest.raises(SystemExit):
        run(items, tmp_path / "b", "3 trials + 8 epochs")
    monkeypatch.setattr(steps, "run_trial", train)
    resumed = run(items, tmp_path / "b", "3 trials + 8 epochs")
    reached = [{trial.id: (trial.status, len(trial.curve)) for trial in outcome.trials} for outcome in (whole, resumed)]
    assert reached[0] == reached[1]
    assert whole.winner.id == resumed.winner.id


@pytest.mark.slow
def test_a_trial_that_went_on_without_getting_better_can_still_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its best epoch lies before the pause: the model is that of the paused trial, and it cost more seconds."""
    train, paused = steps.run_trial, dict[str, Mapping[str, float]]()

    def gets_no_better(task: Task, candidate: Candidate, *others: Any, **named: Any) -> tuple[Trial, Fitted | None]:
        trial, fitted = train(task, candidate, *others, **named)
        return replace(trial, validation=paused.setdefault(trial.id, trial.validation)), fitted

    monkeypatch.setattr(steps, "run_trial", gets_no_better)
    items = [ranked("fine-tuning", QUICK, 0.9 - i / 100, rate=0.001 * (i + 1), epochs=4) for i in range(3)]
    items.append(ranked("fine-tuning", TINY, 0.8, epochs=4))
    outcome = run(items, tmp_path, "3 trials + 8 epochs", count=240)
    (finished,) = (trial for trial in outcome.trials if trial.status == "finished")
    assert finished.curve[-1].epoch == 4
    assert finished.validation == paused[finished.id]
    assert outcome.winner.id == finished.id
    assert load(tmp_path / "model").candidate == finished.candidate


@pytest.mark.parametrize("how", ["raises", pytest.param("leaves what cannot be kept", marks=pytest.mark.slow)])
def test_a_paused_trial_that_fails_later_keeps_its_model(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It wins with it, as before; it is not tried again, and the run and the history tell its error."""
    train, tried = steps.run_trial, list[str]()

    def fails_when_taken_up_again(task: Task, candidate: Candidate, *others: Any, **named: Any) -> tuple[Trial, Fitted | None]:
        trial, fitted = train(task, candidate, *others, **named)
        tried.append(candidate.strategy)
        if candidate.strategy == "linear-probe":
            return replace(trial, validation={**trial.validation, "accuracy": 0.1}), fitted
        if tried.count(candidate.strategy) > 1 and how == "raises":
            return replace(trial, status="failed", validation={}, curve=(), error="out of memory"), None
        if tried.count(candidate.strategy) > 1 and fitted is not None:
            torch.nn.init.constant_(next(fitted.model.parameters()), math.nan)
        return trial, fitted

    monkeypatch.setattr(steps, "run_trial", fails_when_taken_up_again)
    tuned = ranked("fine-tuning", QUICK, 0.9, rate=0.005, epochs=6)
    outcome = run([tuned, ranked("linear-probe", TINY, 0.8)], tmp_path, "2 trials")
    words, winner = "out of memory" if how == "raises" else "left a model that cannot be kept", outcome.winner
    assert sorted(tried) == ["fine-tuning", "fine-tuning", "linear-probe"]
    assert (winner.candidate, winner.status, winner.curve[-1].epoch) == (tuned.candidate, "stopped", 2)
    assert words in winner.error
    assert winner in outcome.trials
    assert winner in read_trials(tmp_path)
    assert {path.name for path in (tmp_path / winner.artefact).iterdir()} == {"model.json", "model.safetensors", "trial.json"}
    with open_history() as history:
        told = history.trial(winner.id)
    assert (told.status, told.error, told.test) == ("stopped", winner.error, winner.test)
    task, kept = few(), load(tmp_path / "model")
    right = probabilities_on(task, kept.backbone, kept.net, task.part(TEST)).argmax(1) == task.labels[task.part(TEST)]
    assert winner.test["accuracy"] == pytest.approx(right.mean())


@pytest.mark.slow
def test_a_search_that_was_killed_remembers_what_failed_after_its_pause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first to be taken up again fails, and another one is taken up in its place, also by a later start."""
    items = [ranked("fine-tuning", QUICK, 0.9 - i / 100, rate=0.001 * (i + 1), epochs=4) for i in range(3)]
    train = steps.run_trial

    def tried(out: Path, *, kills: list[int]) -> tuple[list[str], Outcome]:
        calls: list[str] = []

        def fails(task: Task, candidate: Candidate, *others: Any, **named: Any) -> tuple[Trial, Fitted | None]:
            if len(calls) in kills:
                kills.remove(len(calls))
                raise SystemExit
            trial, fitted = train(task, candidate, *others, **named)
            calls.append(trial.id)
            if calls.count(trial.id) == 2 and len(calls) == len(set(calls)) + 1:
                return replace(trial, status="failed", validation={}, curve=(), error="out of memory"), None
            return trial, fitted

        monkeypatch.setattr(steps, "run_trial", fails)
        while kills:
            with pytest.raises(SystemExit):
                run(items, out, "3 trials + 8 epochs")
        return calls, run(items, out, "3 trials + 8 epochs")

    calls, whole = tried(tmp_path / "a", kills=[])
    assert (len(calls), len(set(calls))) == (5, 3)
    told = {trial.id: (trial.status, trial.curve[-1].epoch, trial.error) for trial in whole.trials}
    assert sorted(told.values()) == [("finished", 4, ""), ("stopped", 2, ""), ("stopped", 2, "out of memory")]
    again, resumed = tried(tmp_path / "b", kills=[2, 4])
    assert again == calls
    assert {trial.id: (trial.status, trial.curve[-1].epoch, trial.error) for trial in resumed.trials} == told
    assert resumed.winner.id == whole.winner.id


def test_a_paused_trial_whose_next_epoch_does_not_fit_stays_paused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last epoch took an hour, says its checkpoint. It is taken up once, finds no time, and is the winner as it is."""
    train, reached = steps.run_trial, list[float]()

    def slow(*arguments: Any, folder: Path, **named: Any) -> tuple[Trial, Fitted | None]:
        trial, fitted = train(*arguments, folder=folder, **named)
        reached.append(trial.curve[-1].epoch)
        tensors, facts = checkpoint.load(folder / CHECKPOINT)
        facts["last"] = 3600.0
        checkpoint.save(folder / CHECKPOINT, tensors, facts)
        return trial, fitted

    monkeypatch.setattr(steps, "run_trial", slow)
    outcome = run([ranked("fine-tuning", QUICK, 0.9, seconds=3.0, epochs=6)], tmp_path, "120s", classes=2)
    assert reached == [2, 2]
    assert (outcome.winner.status, outcome.winner.curve[-1].epoch, outcome.winner.error) == ("stopped", 2, "")
    assert outcome.winner.curve[-1].seconds < 3600
    with open_history() as history:
        assert history.trial(outcome.winner.id).test == outcome.winner.test
    assert outcome.winner.test


def test_another_cycle_is_of_what_ended_and_left_a_checkpoint(tmp_path: Path) -> None:
    """A strategy whose space has no epochs trains the loop's fifteen. Each cycle is twice as long as the one before,
    and a third one promises half as much as the second."""
    candidate = Candidate(QUICK, "plain", {"rate": 0.01})
    curve = tuple(Point(epoch, 2.0 * epoch, 1.0, 0.5) for epoch in range(1, 13))  # it stopped early
    scores = {"accuracy": 0.5, "log_loss": 1.0}
    ended = Trial("", "f", candidate, 0, "finished", curve, scores, {}, 24.0, artefact="trials/x")
    state = SimpleNamespace(trials={}, earlier={}, training={}, stuck=set(), folder=tmp_path)
    state.id_of, state.trials_left = partial(trial_id, "f", seed=0), lambda: math.inf
    for cycles, spread, seconds in ((1, 0.5, 60.0), (2, 0.25, 120.0)):
        leading = replace(ended, id=trial_id("f", candidate, 0), candidate=candidate)
        state.trials = {leading.id: leading}
        assert next_cycle(state) is None  # type: ignore[arg-type]
        path = tmp_path / "trials" / leading.id / "checkpoints" / CHECKPOINT
        path.parent.mkdir(parents=True)
        path.touch()
        again = next_cycle(state)  # type: ignore[arg-type]
        assert again is not None
        candidate = Candidate(QUICK, "plain", {"rate": 0.01, "cycles": cycles + 1})
        assert (again.item.candidate, again.seconds, again.spread) == (candidate, seconds, spread)
        assert again.item.seconds == 24.0 + seconds
        state.trials = {leading.id: replace(leading, status="stopped")}
        assert next_cycle(state) is None  # type: ignore[arg-type]


def test_a_cycle_that_led_nowhere_is_followed_by_another_where_nothing_else_promises_more(tmp_path: Path) -> None:
    """From the checkpoint of the newest; it is of the two cycles' trial, though that of one cycle would win."""
    tuned = {"rate": 0.01, "epochs": 3}
    state = SimpleNamespace(trials={}, earlier={}, training={}, stuck=set(), folder=tmp_path)
    state.id_of, state.trials_left, state.time_left = partial(trial_id, "f", seed=0), lambda: math.inf, lambda: 12.0
    for cycles, loss in ((1, 0.5), (2, 0.6)):
        candidate = Candidate(QUICK, "plain", tuned if cycles == 1 else {**tuned, "cycles": cycles})
        curve = tuple(Point(epoch, float(epoch), 1.0, 0.5) for epoch in range(1, 3 * (2**cycles - 1) + 1))
        scores, id_ = {"accuracy": 0.5, "log_loss": loss}, trial_id("f", candidate, 0)
        ended = Trial(id_, "f", candidate, 0, "finished", curve, scores, {}, curve[-1].seconds, artefact=f"trials/{id_}")
        state.trials[id_] = ended
    path = tmp_path / "trials" / id_ / "checkpoints" / CHECKPOINT
    path.parent.mkdir(parents=True)
    path.touch()
    sweep(state)  # type: ignore[arg-type]
    assert path.exists(), "another cycle can go on from it"
    assert next_cycle(state) is None  # type: ignore[arg-type]
    state.ranking = SimpleNamespace(items=[])
    third = _more_of_the_leader(state, [])  # type: ignore[arg-type]
    assert third is not None
    assert (third.candidate.hyperparameters["cycles"], third.seconds) == (3, 21.0)
    state.time_left = lambda: 3.0
    assert _more_of_the_leader(state, []) is not None, "a quarter of its twelve seconds"  # type: ignore[arg-type]
    state.time_left = lambda: 2.9
    assert _more_of_the_leader(state, []) is None  # type: ignore[arg-type]


def test_what_cycles_share_counts_once() -> None:
    """The second trial has the epochs of the first, and the third those of both."""
    scores = {"accuracy": 0.5}
    tuned, probe = {"rate": 0.01}, Candidate(QUICK, "linear-probe", {})
    candidates = [Candidate(QUICK, "plain", values) for values in (tuned, {**tuned, "cycles": 2}, {**tuned, "cycles": 3})]
    trials = [Trial(str(i), "f", one, 0, "finished", (), scores) for i, one in enumerate([*candidates, probe])]
    assert [trial.id for trial in once_each(trials)] == ["2", "3"]
    assert [trial.id for trial in once_each(trials[:1])] == ["0"]


def test_what_a_new_advice_does_not_rank_counts_as_begun(tmp_path: Path) -> None:
    """And is what the others are compared with."""
    before = run([ranked("linear-probe", TINY, 0.9)], tmp_path, "1 trials")
    after = run([ranked("linear-probe", QUICK, 0.9), ranked("knn", QUICK, 0.8)], tmp_path, "2 trials")
    assert [trial.candidate.backbone for trial in after.trials] == [TINY, QUICK]
    assert after.trials[0].id == before.winner.id


def test_nothing_in_time_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match="give more time"):
        run([], tmp_path, "1 trials")


def test_interruption_ends_with_the_best_so_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = steps.run_trial

    def interrupted(task: object, candidate: Candidate, *rest: object, **options: object) -> object:
        if candidate.backbone == QUICK:
            raise KeyboardInterrupt
        return trained(task, candidate, *rest, **options)

    monkeypatch.setattr(steps, "run_trial", interrupted)
    items = [ranked("linear-probe", TINY, 0.9), ranked("linear-probe", QUICK, 0.8)]
    outcome = run(items, tmp_path, "2 trials")
    assert outcome.rule.startswith("interrupted; ")
    assert outcome.winner.candidate.backbone == TINY
    assert json.loads((tmp_path / "trials" / outcome.winner.id / "trial.json").read_text())["status"] == "finished"
    assert math.isfinite(outcome.seconds)


def test_what_was_training_when_it_was_interrupted_may_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody who has waited for most of a long training does not get the probe of its beginning."""
    items = [ranked("linear-probe", TINY, 0.5, seconds=0.1), ranked("fine-tuning", QUICK, 0.9, rate=0.004, epochs=12)]
    whole = run(items, tmp_path / "whole", "2 trials")
    train, left = loop.train_epoch, 7

    def interrupted(*rest: Any, **options: Any) -> float:
        nonlocal left
        left -= 1
        if not left:
            raise KeyboardInterrupt
        return train(*rest, **options)

    monkeypatch.setattr(loop, "train_epoch", interrupted)
    first = run(items, tmp_path / "run", "2 trials")
    assert first.interrupted
    (winner,) = [trial for trial in first.trials if trial.candidate.strategy == "fine-tuning"]
    assert first.winner.id == winner.id
    assert winner.status == "stopped"
    assert 4 < winner.curve[-1].epoch <= 6, "a checkpoint is at most some epochs old"
    assert load(tmp_path / "run" / "model").candidate == winner.candidate
    monkeypatch.setattr(loop, "train_epoch", train)
    again = run(items, tmp_path / "run", "2 trials")
    assert reached(again) == reached(whole)
    assert again.winner.validation == whole.winner.validation
    assert again.winner.test == whole.winner.test


def test_an_interrupt_before_anything_is_kept_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither an untrained network nor a failure for want of memory stands for what was interrupted."""
    items = [ranked("fine-tuning", QUICK, 0.9, rate=0.004, epochs=4)]
    save = loop._Kept.save
    monkeypatch.setattr(loop._Kept, "save", lambda *rest, **options: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(items, tmp_path, "1 trials")
    monkeypatch.setattr(loop._Kept, "save", save)
    assert not list(tmp_path.glob("trials/*/trial.json"))
    carry_out, steps_done = steps.carry_out, []

    def second_fails(task: Task, step: Any, **options: Any) -> Trial:
        steps_done.append(step)
        if len(steps_done) == 1:
            carry_out(task, replace(step, epochs=2), **options)
            raise KeyboardInterrupt
        return replace(carry_out(task, replace(step, epochs=0)), status="failed", error="no memory")

    monkeypatch.setattr(steps, "carry_out", second_fails)
    monkeypatch.setattr("automl_tl.halving.carry_out", second_fails)
    with pytest.raises(KeyboardInterrupt):
        run(items, tmp_path, "1 trials")
    assert len(steps_done) == 2
    assert not list(tmp_path.glob("trials/*/trial.json"))
    monkeypatch.undo()
    outcome = run(items, tmp_path, "1 trials")
    assert outcome.winner.status == "finished"
    assert outcome.winner.curve[-1].epoch == 4


def reached(outcome: Outcome) -> dict[str, tuple[str, float]]:
    return {trial.id: (trial.status, trial.curve[-1].epoch) for trial in outcome.trials}


@pytest.mark.slow
def test_one_worker_decides_as_this_process_does(tmp_path: Path) -> None:
    items = [ranked("fine-tuning", QUICK, 0.9 - i / 100, rate=0.001 * (i + 1), epochs=3) for i in range(2)]
    alone = run(items, tmp_path / "a", "2 trials + 4 epochs")
    one = run(items, tmp_path / "b", "2 trials + 4 epochs", workers=InTurn(1))
    assert reached(one) == reached(alone)
    assert one.winner.validation == alone.winner.validation
    assert one.winner.test == alone.winner.test


def test_two_workers_keep_the_budget_and_go_on_where_they_were_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = [ranked("linear-probe", QUICK, 0.95, seconds=0.1)]
    items += [ranked("fine-tuning", QUICK, 0.9 - i / 100, rate=0.001 * (i + 1), epochs=3) for i in range(3)]
    trained: list[tuple[str, float]] = []
    train = steps.run_trial

    def counted(task: Task, candidate: Candidate, *others: Any, **named: Any) -> tuple[Trial, Fitted | None]:
        if len(trained) == 3:
            raise KeyboardInterrupt
        trial, fitted = train(task, candidate, *others, **named)
        trained.append((trial.id, trial.curve[-1].epoch))
        return trial, fitted

    monkeypatch.setattr(steps, "run_trial", counted)
    first = run(items, tmp_path, "4 trials + 6 epochs", workers=InTurn(2))
    assert first.interrupted
    before = list(trained)
    monkeypatch.setattr(steps, "run_trial", train)
    two = InTurn(2)
    outcome = run(items, tmp_path, "4 trials + 6 epochs", workers=two)
    assert two.most == 2
    assert len(outcome.trials) == 4
    assert sum(epoch for _, epoch in reached(outcome).values()) <= 6
    assert all(reached(outcome)[id_][1] >= epoch for id_, epoch in before), "nothing is forgotten"
    assert load(tmp_path / "model").candidate == outcome.winner.candidate
