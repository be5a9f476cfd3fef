"""Who has the better model sooner? Three ways of searching, each with the same clock, on sets that the history has never seen.

    python benchmarks/search.py [--json FILE] [--svg FILE] [--clock SECONDS] [--sets NAME ...] [--quick]

For each set and way: a process and a home of its own, whose history has no trial of that source dataset. The clock runs from the
images on the disk on, so that reading them, and our advice with learning the ranker for it, count. The ways have the same
networks, strategies, hyperparameters and training loop:

- *ours*: `fit`.
- *Optuna*: random search with successive halving: its `RandomSampler` draws network, strategy and hyperparameters, and its
  `SuccessiveHalvingPruner` (a third goes on at epochs 1, 3, 9, 27) hears of every epoch.
- *best on average*: the candidates of the history, the one that beat the largest mean share of its tasks' trials first (shrunk by
  two average trials), each trained to its end.

A curve is the test accuracy of the model that is best on the validation images by then: of all trials that ended, were paused or
pruned, each as it was at its best epoch. Test images are looked at after the clock has stopped. Before the first model it is a
guess. `auc_…` is a curve's mean over the clock in percent; `seconds_ratio_to_99` how many times as long as ours Optuna takes to
99 % of the best accuracy that any of the three ends with (geometric mean of the sets; who never gets there counts with the whole
clock, so the true ratio may be larger).

Needs optuna (pip install -e '.[bench]').
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from _chart import Line, chart
from _report import arguments, table, write
from fit import SETS, home_without, images_of

from automl_tl import Backbone, Candidate, Fitted, Point, Task, Trial, load_task, model
from automl_tl.api import fit
from automl_tl.backbones import catalogue
from automl_tl.candidates import propose
from automl_tl.errors import AutomlError, BudgetError
from automl_tl.experience import Experience
from automl_tl.extras import require
from automl_tl.history import open_history
from automl_tl.objectives import brings
from automl_tl.progress import RESERVE
from automl_tl.registry import strategies
from automl_tl.space import Choice, Float, Int, Space, Value
from automl_tl.trials import Limits, judge_on_test, run_trial

CLOCK, QUICK_CLOCK = 60.0, 20.0
REDUCTION = 3
"""Of Optuna's pruner, and the first rung: as in our search."""
SVG = Path(__file__).resolve().parents[1] / "docs" / "images" / "search.svg"

Curve = list[tuple[float, float]]
"""Seconds from which on a model is the best by validation, and its test accuracy."""


@dataclass
class Incumbents:
    """The models that were the best by validation, each from a time on; also a tracker of our own search."""

    folder: Path
    clock: float
    name: str = "incumbents"
    started_at: float = field(default_factory=time.perf_counter)
    kept: list[tuple[float, Path]] = field(default_factory=list)
    best: tuple[float, float] = (-1.0, -math.inf)

    def seconds(self) -> float:
        return time.perf_counter() - self.started_at

    def left(self) -> float:
        """Seconds for training; our search keeps the same reserve."""
        return self.clock * (1 - RESERVE) - self.seconds()

    def offer(self, trial: Trial, keep: Callable[[Path], Any]) -> None:
        """Have `keep` write the model of a trial that has come so far, if it is in time and the best."""
        standing = trial.score or 0.0, -trial.validation.get("log_loss", math.inf)
        seconds = self.seconds()
        if trial.validation and seconds <= self.clock and standing > self.best:
            self.best = standing
            path = self.folder / f"incumbent-{len(self.kept)}"
            keep(path)
            self.kept.append((seconds, path))

    def opened(self, task: Task, seconds: float, folder: Path) -> None:
        self.run = folder

    def started(self, trial: Trial) -> None: ...

    def epoch(self, trial: Trial, point: Point) -> None: ...

    def finished(self, trial: Trial) -> None:
        if trial.artefact:
            self.offer(trial, lambda path: shutil.copytree(self.run / trial.artefact, path))

    def judged(self, task: Task) -> Curve:
        """The curve."""
        models = [(seconds, model.load(path)) for seconds, path in self.kept]
        return [(seconds, judge_on_test(task, one.backbone, one.net)["accuracy"]) for seconds, one in models]


@dataclass(frozen=True, eq=False)
class Trainer:
    """What a way that is not ours may do: train a candidate for the clock's rest."""

    task: Task
    backbones: Mapping[str, Backbone]
    incumbents: Incumbents

    def train(self, candidate: Candidate, report: Callable[[Point], bool] = lambda point: False) -> tuple[Trial, Fitted | None]:
        backbone = self.backbones[candidate.backbone]
        limits = Limits(deadline=time.monotonic() + self.incumbents.left())
        with tempfile.TemporaryDirectory() as folder:
            trial, fitted = run_trial(self.task, candidate, backbone, seed=0, folder=Path(folder), limits=limits, report=report)
        if fitted is not None:
            net = fitted.model
            self.incumbents.offer(trial, lambda path: model.save(path, net, backbone, candidate, self.task.classes, {}))
        return trial, fitted

    def pairs(self) -> dict[str, list[str]]:
        """Strategies and backbones that `fit` would choose from."""
        proposed = propose(self.backbones, strategies(), seed=0, per_pair=1, met=brings(self.task))
        return {name: sorted({getattr(one, name) for one in proposed}) for name in ("strategy", "backbone")}


def ours(images: Path, incumbents: Incumbents) -> None:
    """`fit`, which stops by itself."""
    with suppress(BudgetError):  # no model in time
        fit(images, budget=incumbents.clock, out=incumbents.folder / "run", trackers=[incumbents])


def with_optuna(images: Path, incumbents: Incumbents) -> None:
    """Random search with successive halving."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    trainer = Trainer(load_task(images), catalogue(), incumbents)
    known, pairs, met = strategies(), trainer.pairs(), brings(trainer.task)

    def objective(trial: Any) -> float:
        names = {name: trial.suggest_categorical(name, options) for name, options in pairs.items()}
        strategy = known[names["strategy"]]
        values = suggested(trial, strategy.name, strategy.space)
        if not strategy.requires(values) <= met:
            raise optuna.TrialPruned

        def report(point: Point) -> bool:
            trial.report(point.score, step=math.floor(point.epoch))
            return bool(trial.should_prune())

        done, _ = trainer.train(Candidate(names["backbone"], strategy.name, values), report)
        if done.score is None:
            raise AutomlError(done.error)
        if done.status == "stopped":
            raise optuna.TrialPruned
        return done.score

    sampler = optuna.samplers.RandomSampler(seed=0)
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=REDUCTION)
    study = optuna.create_study(direction="maximize", sampler=sampler, pruner=pruner)
    study.optimize(objective, timeout=max(incumbents.left(), 0.0), catch=(AutomlError,))


def suggested(trial: Any, strategy: str, space: Space) -> dict[str, Value]:
    """A draw of `space`, distributed as our own draws are."""
    values: dict[str, Value] = {}
    for key, parameter in space.items():
        name = f"{strategy}.{key}"
        if isinstance(parameter, Float):
            values[key] = trial.suggest_float(name, parameter.low, parameter.high, log=parameter.log)
        elif isinstance(parameter, Int):
            values[key] = trial.suggest_int(name, parameter.low, parameter.high)
        elif isinstance(parameter, Choice):
            usual = parameter.usual and trial.suggest_float(f"{name}, usual", 0.0, 1.0) < parameter.usual
            values[key] = parameter.default if usual else trial.suggest_categorical(name, parameter.options)
    return values


def best_on_average(images: Path, incumbents: Incumbents) -> None:
    """A fixed list, from the first on."""
    trainer = Trainer(load_task(images), catalogue(), incumbents)
    with open_history() as history:
        order = by_mean_standing(Experience.of(history))
    pairs = trainer.pairs()
    for candidate in order:
        if incumbents.left() <= 0:
            return
        if candidate.strategy in pairs["strategy"] and candidate.backbone in pairs["backbone"]:
            trainer.train(candidate)


def by_mean_standing(experience: Experience) -> list[Candidate]:
    """The candidates of a history by the mean share of a task's trials that they beat; shrunk by two average trials."""
    trials = experience.trials
    standings: dict[str, list[float]] = {}
    candidates: dict[str, Candidate] = {}
    for task in sorted(set(trials.task)):
        rows = np.flatnonzero(trials.task == task)
        standing = trials.score[rows].argsort().argsort() / max(len(rows) - 1, 1)
        for row, value in zip(rows, standing, strict=True):
            candidate = Candidate(trials.backbone[row], trials.strategy[row], trials.hyperparameters[row])
            candidates[candidate.id] = candidate
            standings.setdefault(candidate.id, [0.5, 0.5]).append(float(value))
    return sorted(candidates.values(), key=lambda candidate: (-float(np.mean(standings[candidate.id])), candidate.id))


WAYS: dict[str, Callable[[Path, Incumbents], None]] = {
    "ours": ours,
    "optuna": with_optuna,
    "best_on_average": best_on_average,
}


def raced(way: str, name: str, images: Path, clock: float) -> Curve:
    """One way on one set, in a home of its own."""
    with tempfile.TemporaryDirectory() as folder, home_without(name, Path(folder) / "home"):
        with open_history() as history:
            if any(facts.source_dataset == name for facts in history.tasks().values()):
                raise SystemExit(f"the history knows {name}")
        incumbents = Incumbents(Path(folder), clock)
        WAYS[way](images, incumbents)
        return incumbents.judged(load_task(images))


def at(curve: Curve, second: float, guess: float) -> float:
    """Test accuracy at a time."""
    return next((accuracy for since, accuracy in reversed(curve) if since <= second), guess)


def area(curve: Curve, clock: float, guess: float) -> float:
    """Mean over the clock."""
    starts, heights = [0.0, *(since for since, _ in curve)], [guess, *(accuracy for _, accuracy in curve)]
    return sum((end - start) * height for start, end, height in zip(starts, [*starts[1:], clock], heights, strict=True)) / clock


def seconds_to(curve: Curve, goal: float, clock: float) -> float:
    return next((since for since, accuracy in curve if accuracy >= goal), clock)


def figures(found: Mapping[str, Mapping[str, Curve]], guesses: Mapping[str, float], clock: float) -> dict[str, float]:
    """One number each; and of each set what each way ends with."""
    ends = {name: {way: at(curves[way], clock, guesses[name]) for way in WAYS} for name, curves in found.items()}
    figures = {
        f"auc_{way}": 100 * float(np.mean([area(found[name][way], clock, guesses[name]) for name in found])) for way in WAYS
    }
    for way, key in (("optuna", "seconds_ratio_to_99"), ("best_on_average", "seconds_ratio_to_99_best_on_average")):
        logs = []
        for name, curves in found.items():
            goal = 0.99 * max(ends[name].values())
            logs.append(math.log(seconds_to(curves[way], goal, clock) / seconds_to(curves["ours"], goal, clock)))
        figures[key] = math.exp(float(np.mean(logs)))
    for way in WAYS:
        figures[f"first_model_seconds_{way}"] = float(np.mean([seconds_to(found[name][way], 0.0, clock) for name in found]))
        figures[f"end_{way}"] = 100 * float(np.mean([ends[name][way] for name in found]))
        figures |= {f"{name}_end_{way}": 100 * ends[name][way] for name in found}
    return {**figures, "clock_seconds": clock, "sets": len(found)}


def picture(found: Mapping[str, Mapping[str, Curve]], guesses: Mapping[str, float], clock: float) -> str:
    """Mean curves of the sets."""
    lines = []
    for way in WAYS:
        times = [float(time) for time in np.linspace(0, clock, 241)]
        means = [100 * float(np.mean([at(curves[way], time, guesses[name]) for name, curves in found.items()])) for time in times]
        lines.append(Line(f"{way.replace('_', ' ')} {means[-1]:.1f} %", list(zip(times, means, strict=True))))
    ticks = [(clock * part / 6, f"{clock * part / 6:.0f}") for part in range(7)]
    title = f"Test accuracy (%) of the best model so far, mean of {len(found)} sets"
    return chart(title, "seconds, advice included", lines, ticks)


def main() -> None:
    require("bench", "optuna")
    options = options_of()
    kept = options.json.with_suffix(".partial") if options.json else None  # of a run that was stopped; the next goes on
    before = json.loads(kept.read_text()) if kept and kept.exists() else {}
    found: dict[str, dict[str, Curve]] = before.get("curves", {}) if before.get("clock") == options.clock else {}
    guesses: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.sets:
            images = images_of(name, Path(folder))
            guesses[name] = 1 / sum(path.is_dir() for path in (images / "train").iterdir())
            for way in WAYS:
                if way in found.setdefault(name, {}):
                    continue
                with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
                    found[name][way] = curve = process.submit(raced, way, name, images, options.clock).result()
                told = ", ".join(f"{100 * accuracy:.1f} % at {second:.0f} s" for second, accuracy in curve) or "no model in time"
                print(f"{name}, {way}: {told}", flush=True)
                if kept:
                    kept.write_text(json.dumps({"clock": options.clock, "curves": found}))
    found = {name: found[name] for name in options.sets}
    report(options, found, guesses)
    if kept:
        kept.unlink()


def options_of() -> argparse.Namespace:
    parser = arguments(__doc__, f"one set, {QUICK_CLOCK:g} seconds each way, no picture")
    parser.add_argument("--clock", type=float, help=f"seconds of each way on each set; {CLOCK:g} where nothing is said")
    parser.add_argument("--sets", nargs="+", choices=SETS, help="all where nothing is said")
    parser.add_argument("--svg", type=Path, help=f"the picture; {SVG.name} of docs/images where nothing is said")
    options = parser.parse_args()
    options.clock = options.clock or (QUICK_CLOCK if options.quick else CLOCK)
    options.sets = options.sets or (SETS[1:2] if options.quick else list(SETS))
    options.svg = options.svg or (None if options.quick else SVG)
    return options


def report(options: argparse.Namespace, found: Mapping[str, Mapping[str, Curve]], guesses: Mapping[str, float]) -> None:
    clock, ways = options.clock, tuple(WAYS)
    rows: list[Sequence[object]] = []
    for name, curves in found.items():
        ends = [100 * at(curves[way], clock, guesses[name]) for way in ways]
        rows.append((name, *ends, *(100 * area(curves[way], clock, guesses[name]) for way in ways)))
    columns = ("set", *(f"{way} at the end" for way in ways), *(f"{way} mean" for way in ways))
    table(f"Test accuracy (%), {clock:g} s each", columns, rows)
    numbers = figures(found, guesses, clock)
    table("Figures", ("figure", "value"), [(name, f"{value:.4g}") for name, value in numbers.items()])
    write(options.json, numbers)
    if options.svg:
        options.svg.parent.mkdir(parents=True, exist_ok=True)
        options.svg.write_text(picture(found, guesses, clock), encoding="utf-8")


if __name__ == "__main__":
    main()
