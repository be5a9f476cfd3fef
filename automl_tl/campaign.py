"""Filling the history: a plan of tasks and a sample of candidates for each, carried out by several workers.

A plan is JSON: where the images are, which tasks to make of them, how many trials each. What is in the history already is
not run again, so a campaign that was stopped goes on, and a larger plan fills only its gaps.
"""

from __future__ import annotations

import itertools
import json
import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from . import model, registry
from .along import fraction
from .backbones import catalogue
from .candidates import PER_PAIR, propose
from .cost import multiply_adds
from .data import altered, load_task, subset
from .device import device
from .errors import AutomlError, InputError, WorkerLost
from .evaluation.robustness import CORRUPTIONS, SEVERITIES, corrupt
from .history import History
from .objectives import REQUIRED, adapt, brings, federate, harden, learn_to_learn, retain
from .profiling import profile_task
from .records import TEST, TRAIN, VALIDATION, Backbone, Candidate, Profile, Task, Trial, trial_id
from .space import Space, Value, check
from .trials import Limits, judge_on_test, run_trial
from .workers import open_workers, results

MOST_SILENCE = 3600.0
"""Seconds that a trial, which is small, may take without an epoch that ended; a longer one hangs."""
COPY_SIDE = 128
"""Pixels of the longer side of an image that is copied with a change."""
_KINDS: dict[str, tuple[str, Any]] = {
    "str": ("a text", str),
    "int": ("a whole number", int),
    "int | None": ("a whole number", (int, type(None))),
    "float": ("a number", (int, float)),
    "bool": ("true or false", bool),
}
"""Of the fields of a plan, by what they are declared as."""
Part = TypeVar("Part", bound="Plan | TaskPlan")


@dataclass(frozen=True)
class TaskPlan:
    """One task, derived from a set of images."""

    name: str
    location: str
    """Relative to the data folder, or a name that a reader knows."""
    source_dataset: str
    """Tasks of one source dataset leave together when one is left out."""
    classes: int | None = None
    """Take so many classes, drawn by `seed`."""
    per_class: int | None = None
    """Keep at most so many training images a class."""
    most_judged: int = 400
    """Keep at most so many validation and as many test images."""
    validation: float = 0.2
    seed: int = 0
    copy: str = ""
    """Of what the images are copies: "grey", or a corruption and its severity 1–5, such as "fog 3"."""
    source: str = ""
    """Location of labelled images of another domain (adaptation): of those at `location`, or of their copies, labels are used to
    judge alone. Where both are one location, they share no image."""
    others: str = ""
    """Location of labelled images of other classes (few-shot); where it is `location`, of all classes that the task leaves."""
    after: str = ""
    """Folder of a run or a model, beside the images, whose knowledge must not be forgotten (retention)."""
    keep: str = ""
    """Location of images of what `after` knows; without it none are kept."""
    clients: int = 0
    """Among how many simulated clients the training images are (federation)."""
    skew: float = 1.0
    """Of the clients: small values give each few classes."""
    robust: str = ""
    """By how much an attacker may change a pixel, such as "8/255" (robustness)."""


@dataclass(frozen=True)
class Plan:
    """A campaign."""

    tasks: tuple[TaskPlan, ...]
    trials: int
    """For each task."""
    seed: int = 0
    most_multiply_adds: float = 2e12
    """Candidates that need more are left out: a campaign is many small trials."""
    strategies: tuple[str, ...] = ()
    backbones: tuple[str, ...] = ()
    """Empty: all."""
    near: bool = False
    """Settings differ from the defaults in a few hyperparameters only; otherwise they are drawn from the whole space."""
    settings: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)
    """Values that these hyperparameters take in all combinations, the others at their defaults. Empty: draws."""
    shares: Mapping[str, float] = field(default_factory=dict)
    """Relative number of trials of a strategy: 1, the most, where nothing is said."""


@dataclass(frozen=True)
class Unit:
    """One piece of work for a worker: a trial, or (without a candidate) the profile of a task."""

    data: str
    plan: TaskPlan
    candidate: Candidate | None
    look: tuple[str, ...]
    """Backbones that a profile looks at."""
    seed: int


def read_plan(path: Path) -> Plan:
    """Read a plan.

    Raises:
        InputError: not JSON, or a field that a plan does not have.
    """
    try:
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        tasks = tuple(_checked(TaskPlan(**task)) for task in facts.pop("tasks"))
        for name in ("strategies", "backbones"):
            facts[name] = tuple(registry.several(facts.get(name, ())) or ())
        facts["settings"] = {name: tuple(values) for name, values in facts.get("settings", {}).items()}
        facts["shares"] = {name: float(share) for name, share in facts.get("shares", {}).items()}
        return _checked(Plan(tasks=tasks, **facts))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"cannot read the plan {path}: {error}; see metadb/plan.json for an example") from None


def _checked(part: Part) -> Part:
    """Raises TypeError: a field is of another kind than it says."""
    for one in fields(part):
        words, kind = _KINDS.get(str(one.type), ("", object))
        if not isinstance(value := getattr(part, one.name), kind):
            raise TypeError(f"{one.name} is {value!r}; expected {words}")
    return part


def build_history(
    plan: Plan,
    data: Path,
    history: History,
    *,
    workers: int | None = None,
    ray: str | None = None,
    say: Callable[[str], None],
    command: str = "",
) -> int:
    """Run what `plan` asks for and `history` lacks; the number of trials run.

    The work is done by at most so many `workers`, those of a Ray cluster where `ray` says which (see `open_workers`); there
    `data` must be the same folder on every machine. Only this process writes.
    """
    with open_workers(ray, most=workers) as crew:
        units = _gaps(plan, data, history)
        trials = sum(unit.candidate is not None for unit in units)
        say(f"{trials} trials and {len(units) - trials} profiles to run on {crew.size} workers")
        count = 0
        for unit, result in results(crew, partial(run_unit, command=command, alone=crew.size == 1), units):
            if isinstance(result, WorkerLost):
                result = _failed(unit, result)
            if isinstance(result, Profile):
                history.record_profile(result)
                say(f"profile of {result.task}: {result.seconds:.1f} s")
            elif isinstance(result, Trial):
                history.record_trial(result)
                count += 1
                say(f"{count}/{trials} {_in_words(result)}")
            else:
                say(f"no profile of {unit.plan.name}: {result}")
    return count


def _gaps(plan: Plan, data: Path, history: History) -> list[Unit]:
    """What `plan` asks for and `history` lacks, once; the tasks and backbones of all that are recorded by then.

    Tasks of two plans are one where their images are the same, such as grey images and their grey copies.
    """
    backbones, strategies = catalogue(), registry.strategies()
    for name in plan.backbones:
        registry.lookup("backbone", name, backbones)
    for name in (*plan.strategies, *plan.shares):
        registry.lookup("strategy", name, strategies)
    for name in plan.settings:
        if not any(name in strategies[one].space for one in plan.strategies or strategies):
            raise InputError(f"settings: no strategy of the plan has a hyperparameter {name!r}")
    done = {id_ for id_, status in history.known().items() if status != "stopped"}
    seen = {fingerprint: set(profile.transferability) for fingerprint, profile in history.profiles().items()}
    units: list[Unit] = []
    for task_plan in plan.tasks:
        task = make_task(data, task_plan)
        history.record_task(task, task_plan.source_dataset)
        suited = _suited(task, backbones)
        asked = [name for name in plan.backbones or suited if name in suited]
        unseen = [name for name in asked if name not in seen.get(task.fingerprint, ())]
        if unseen:
            units.append(Unit(str(data), task_plan, None, tuple(unseen), plan.seed))
            seen.setdefault(task.fingerprint, set()).update(unseen)
        for candidate in sample_candidates(plan, task, suited):
            if (id_ := trial_id(task.fingerprint, candidate, plan.seed)) not in done:
                units.append(Unit(str(data), task_plan, candidate, (), plan.seed))
                done.add(id_)
    for backbone in backbones.values():
        if not plan.backbones or backbone.name in plan.backbones:
            history.record_backbone(backbone)
    return units


def _suited(task: Task, backbones: Mapping[str, Backbone]) -> Mapping[str, Backbone]:
    """Those that the task can be trained on: what goes on from an earlier model has its network."""
    if not task.earlier:
        return backbones
    name = model.load(Path(task.earlier)).backbone.name
    return {name: registry.lookup("backbone", name, dict(backbones))}


def _failed(unit: Unit, lost: WorkerLost) -> Trial | WorkerLost:
    """A trial that no worker survived, as a fact; a profile is left for the next time."""
    if unit.candidate is None:
        return lost
    task = _task(unit.data, unit.plan).fingerprint
    id_ = trial_id(task, unit.candidate, unit.seed)
    return Trial(id_, task, unit.candidate, unit.seed, "failed", error=f"{unit.candidate.strategy}: {lost}")


def _in_words(trial: Trial) -> str:
    candidate, score = trial.candidate, float("nan") if trial.score is None else trial.score
    what = f"{candidate.strategy} on {candidate.backbone}: {trial.status}"
    return f"{what} {score:.3f} in {trial.seconds:.1f} s {trial.error}".rstrip()


def run_unit(unit: Unit, *, command: str = "", alone: bool = True) -> Trial | Profile:
    """A worker's work; whether it is `alone` on its device."""
    task, backbones = _task(unit.data, unit.plan), _catalogue()
    if unit.candidate is None:
        return profile_task(task, backbones, look=unit.look, seed=unit.seed)
    backbone = backbones[unit.candidate.backbone]
    wall, worked = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        limits = Limits(silence=MOST_SILENCE)
        trial, fitted = run_trial(
            task, unit.candidate, backbone, seed=unit.seed, folder=Path(folder), limits=limits, command=command
        )
    if device().type == "cpu":
        trial = _own_seconds(trial, (time.process_time() - worked) / max(time.perf_counter() - wall, 1e-9))
    elif not alone:  # how long it took tells nothing of what it costs; without a speed nobody learns from it
        trial = replace(trial, provenance={name: fact for name, fact in trial.provenance.items() if name != "speed"})
    try:
        return trial if fitted is None else replace(trial, test=judge_on_test(task, backbone, fitted.model))
    except AutomlError as error:  # as in `crowning`: a network may fail on other images than those it was chosen by
        words = f"{unit.candidate.strategy}: its model is no good: {error}"
        return replace(trial, status="failed", curve=(), validation={}, error=words)


def _own_seconds(trial: Trial, share: float) -> Trial:
    """With the seconds that its one thread computed, not those that it waited for other programs on the machine."""
    share = min(share, 1.0)
    curve = tuple(replace(point, seconds=point.seconds * share) for point in trial.curve)
    return replace(trial, curve=curve, seconds=max(trial.seconds * share, 1e-6))


@cache
def _catalogue() -> dict[str, Backbone]:
    return catalogue()


@cache
def _task(data: str, plan: TaskPlan) -> Task:
    return make_task(Path(data), plan)


def make_task(data: Path, plan: TaskPlan) -> Task:
    """The task that `plan` describes: fewer classes, fewer images, the same seeded choice everywhere."""
    if plan.source == plan.location and not plan.per_class:
        raise InputError(f"{plan.name}: source and location are one; say with per_class how many images of a class each takes")
    first = plan.per_class or 0 if plan.source == plan.location else 0
    splits = (TRAIN, TEST) if plan.source else (TRAIN, VALIDATION, TEST)
    task = _copied(_drawn(data, plan.location, plan, first=first, splits=splits), plan.copy, plan.seed)
    if plan.source:
        task = replace(adapt(_drawn(data, plan.source, plan), task, labelled=False), name=plan.name)
    if plan.others:
        task = learn_to_learn(task, _others(data, plan, task.classes))
    if plan.after:
        earlier = model.model_folder(data / plan.after)
        kept = _drawn(data, plan.keep, plan) if plan.keep else None
        task = retain(task, earlier, model.load(earlier).classes, kept)
    if plan.clients:
        task = federate(task, plan.clients, skew=plan.skew, seed=plan.seed)
    return harden(task, fraction(plan.robust, f"{plan.name}: robust")) if plan.robust else task


def _drawn(
    data: Path, location: str, plan: TaskPlan, *, first: int = 0, splits: tuple[str, ...] = (TRAIN, VALIDATION, TEST)
) -> Task:
    """Some classes and images of those at `location`, and of their splits; of each class from the training image `first` on."""
    task = _whole(data, location, plan)
    rng = np.random.default_rng(plan.seed)
    labels = np.arange(len(task.classes))
    if plan.classes is not None and plan.classes < len(labels):
        labels = np.sort(rng.permutation(labels)[: plan.classes])
    keep = []
    for split, most in ((TRAIN, None), (VALIDATION, plan.most_judged), (TEST, plan.most_judged)):
        part = rng.permutation(task.part(split))
        part = part[np.isin(task.labels[part], labels)]
        if split == TRAIN and plan.per_class is not None:
            part = np.concatenate([part[task.labels[part] == label][first : first + plan.per_class] for label in labels])
        if split in splits:
            keep.append(part if most is None else _proportionally(part, task.labels[part], most))
    return subset(task, np.sort(np.concatenate(keep)), name=plan.name)


def _others(data: Path, plan: TaskPlan, taken: Sequence[str]) -> Task:
    """All images at `plan.others` of classes that are not `taken`."""
    whole = _whole(data, plan.others, plan)
    if plan.others != plan.location:
        return whole
    return subset(whole, np.flatnonzero(~np.isin(np.array(whole.classes)[whole.labels], taken)), name=whole.name)


def _whole(data: Path, location: str, plan: TaskPlan) -> Task:
    place = data / location if (data / location).exists() else location
    return load_task(place, name=plan.name, seed=plan.seed, validation=plan.validation)


def _copied(task: Task, how: str, seed: int) -> Task:
    """The images changed as `how` says; as they are where it says nothing.

    Raises:
        InputError: no such corruption.
    """
    if not how:
        return task
    kind, _, severity = how.rpartition(" ")
    if how == "grey":
        return altered(
            task, lambda image, _: np.repeat(image.mean(2, keepdims=True), 3, 2).astype(np.uint8), name=task.name, side=COPY_SIDE
        )
    if kind not in CORRUPTIONS or severity not in map(str, SEVERITIES):
        raise InputError(
            f"{task.name}: a copy is 'grey', or one of {', '.join(CORRUPTIONS)} with a severity, such as 'fog 3', not {how!r}"
        )
    return altered(
        task, lambda image, place: corrupt(image[None], kind, int(severity), seed=seed + place)[0], name=task.name, side=COPY_SIDE
    )


def _proportionally(part: np.ndarray, labels: np.ndarray, most: int) -> np.ndarray:
    """At most about `most` of `part`, every class in its share and with at least one image."""
    if len(part) <= most:
        return part
    shares = [part[labels == label] for label in np.unique(labels)]
    return np.concatenate([share[: max(1, round(len(share) * most / len(part)))] for share in shares])


def _contrasts(plain: Candidate, plan: Plan, space: Space) -> list[Candidate]:
    """A candidate at its defaults in all combinations of the plan's settings that its strategy knows."""
    names = [name for name in plan.settings if name in space]
    combinations = itertools.product(*(plan.settings[name] for name in names))
    changed = [check(space, {**plain.hyperparameters, **dict(zip(names, values, strict=True))}) for values in combinations]
    return [replace(plain, hyperparameters=values) for values in changed]


def sample_candidates(plan: Plan, task: Task, backbones: Mapping[str, Backbone]) -> list[Candidate]:
    """`plan.trials` candidates: every backbone and strategy in turn, defaults first, then draws; not only the good ones."""
    known = registry.strategies()
    proposed = propose(
        backbones,
        known,
        seed=plan.seed,
        per_pair=1 if plan.settings else PER_PAIR,
        near=plan.near,
        met=brings(task),
        required=REQUIRED[task.objective],
        only_strategies=plan.strategies or None,
        only_backbones=plan.backbones or None,
    )
    if plan.settings:
        proposed = [one for plain in proposed for one in _contrasts(plain, plan, known[plain.strategy].space)]
    pairs: dict[tuple[str, str], list[Candidate]] = {}
    for candidate in proposed:
        backbone = backbones[candidate.backbone]
        work = multiply_adds(known[candidate.strategy], backbone, len(task.part(TRAIN)), candidate.hyperparameters)
        # a share of nothing would be asked for ever where nothing else is left
        if work <= plan.most_multiply_adds and plan.shares.get(candidate.strategy, 1.0) > 0:
            pairs.setdefault((candidate.backbone, candidate.strategy), []).append(candidate)
    rng = random.Random(f"{plan.seed}/{task.fingerprint}")
    chosen: list[Candidate] = []
    while pairs and len(chosen) < plan.trials:
        order = sorted(pairs)
        rng.shuffle(order)
        for pair in order:
            if len(chosen) == plan.trials:
                break
            if rng.random() > plan.shares.get(pair[1], 1.0):
                continue
            options = pairs[pair]
            chosen.append(options.pop(0 if rng.random() < 0.4 else rng.randrange(len(options))))
            if not options:
                del pairs[pair]
    return chosen
