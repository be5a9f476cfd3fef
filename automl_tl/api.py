"""The friendly layer: each step as one function, and all of them as `fit`."""

from __future__ import annotations

import csv
import json
import os
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from . import data, memory, model, processes, registry
from .along import Along
from .along import read_task as read_task
from .backbones import adopt, catalogue, here
from .budget import Budget, parse_budget
from .candidates import propose
from .comparison import Compared
from .comparison import compare as compare_trials
from .cost import CostModel
from .device import chance_put_back
from .errors import PLUGIN_FAULTS, InputError, InputWarning, PluginError
from .evaluation.adversaries import judge_robust
from .evaluation.calibration import Bin, reliability
from .evaluation.classification import ClassScores, intervals, judge, per_class
from .evaluation.combined import WEIGHTS
from .evaluation.cost import InferenceCost, inference_cost
from .evaluation.robustness import Robustness, robustness
from .experience import Experience, proven
from .exports import Exported, export_run
from .exports.predictor import Predictor, open_predictor
from .facts import backbone_of, profile_of
from .halving import search as search
from .history import History, open_history
from .home import cache, read_json, whole, write_text
from .home import check_writable as check_writable
from .hookspecs import Tracker
from .images import images_below, is_one, passed_over
from .model import as_it_starts
from .objectives import REQUIRED, brings, left_out
from .profiling import look_through
from .profiling import profile_task as _profile_task
from .progress import alone_in, read_trials
from .ranker import rank, ranker_for, shortlist
from .records import EXEMPLARS, Backbone, Candidate, Outcome, Profile, Ranked, Ranking, Task
from .space import check
from .steps import follow
from .workers import open_workers

if TYPE_CHECKING:
    from .strategy import Strategy
    from .unfreezing import Study

Progress = Callable[[str, int, int], None]
LOOKED_AT, FEWEST_LOOKS = 6, 3
"""Backbones that are looked at through the images, before the second ranking; the fewer is for a `fit` that has little time."""
A_LOOK = 20.0
"""Seconds of a budget for each backbone that is looked at: a look takes one or two, and training should get the most."""

SETTINGS = 8
"""Of a strategy, in the second ranking, from its whole space, and as many near its defaults: enough beside those that are proven,
and too few to fill the top of a ranking with copies of one idea."""
KEPT = 1000
"""Candidates of a ranking that a run writes down, beside the best one without epochs of each network; no search gets further."""

DECODED = 2048
"""Images that `predict` has in memory at once, 300 MB at 224 pixels: a whole number of batches, so it moves no prediction."""
CORRUPTED = 500
"""Images that `judge_corrupted` looks at, sixty times over."""

MOST_ADVISING = 0.5
"""Of the budget: reading, profiling and ranking count as spent up to this share, so that there is always time to train."""

load_task = data.load_task


@dataclass(frozen=True)
class Advice:
    """What is recommended for a task, and what that rests on."""

    profile: Profile = field(repr=False)
    ranking: Ranking
    backbones: dict[str, Backbone] = field(repr=False)


@dataclass(frozen=True, eq=False)
class Predictions:
    """Class probabilities of some images."""

    where: tuple[str, ...] = field(repr=False)
    classes: tuple[str, ...]
    probabilities: np.ndarray
    """n×classes."""

    @property
    def labels(self) -> list[str]:
        """The most probable class of each image."""
        return [self.classes[index] for index in self.probabilities.argmax(1)] if len(self.where) else []


@chance_put_back()
def profile_task(task: Task, *, zoo: str | None = None, seed: int = 0, progress: Progress | None = None) -> Profile:
    """Profile a task against every source and every backbone that is at hand."""
    backbones = catalogue(zoo=zoo)
    return _profile_task(task, backbones, look=tuple(backbones)[:LOOKED_AT], seed=seed, progress=progress)


@chance_put_back()
def recommend(
    task: Task,
    *,
    history: History | None = None,
    zoo: str | None = None,
    strategies: Sequence[str] | None = None,
    backbones: Sequence[str] | None = None,
    looks: int = LOOKED_AT,
    seed: int = 0,
    progress: Progress | None = None,
) -> Advice:
    """Rank what could be trained on `task`; nothing is trained.

    Stage 1 ranks every candidate by metadata and names a shortlist of `looks` backbones; stage 2 looks at those through the
    images and ranks again.

    Raises:
        PluginError: an unknown zoo, strategy or backbone.
        InputError: nothing is left to choose from, or `backbones` has others than the earlier model's, where there is one.
    """
    if history is None:
        with open_history() as opened:
            chosen: dict[str, Any] = {"zoo": zoo, "strategies": strategies, "backbones": backbones}
            return recommend(task, history=opened, **chosen, looks=looks, seed=seed, progress=progress)
    if looks < 1:
        raise InputError(f"looks is {looks}; advice takes a look through one network at least")
    known = registry.strategies()
    strategies, backbones = registry.several(strategies), registry.several(backbones)
    at_hand = _at_hand(task, zoo, strategies or (), backbones or ())
    experience = Experience.of(history, without=task.fingerprint, objective=task.objective)
    ranker = ranker_for(experience, cache() / "rankers", seed=seed)
    cost_model = CostModel.learn(experience, strategies=known, seed=seed)
    suited = partial(propose, at_hand, known, seed=seed, met=brings(task), required=REQUIRED[task.objective])
    candidates = suited(only_strategies=strategies, only_backbones=backbones)
    if not candidates:
        raise InputError(_none_left(known, task))
    first = _profile_task(task, at_hand, seed=seed, progress=progress)
    ranking = rank(ranker, candidates, first, at_hand, cost_model, strategies=known, stage=1)
    looked = tuple(shortlist(ranking, at_hand, size=looks))
    second = look_through(first, task, at_hand, look=looked, seed=seed, progress=progress)
    finer = [
        *suited(per_pair=SETTINGS, only_strategies=strategies, only_backbones=looked, proven=proven(experience)),
        *suited(per_pair=SETTINGS, only_strategies=strategies, only_backbones=looked, near=True),
    ]
    several = list({one.id: one for one in finer}.values())
    ranking = rank(ranker, several, second, at_hand, cost_model, strategies=known, stage=2)
    return Advice(replace(second, warnings=(*second.warnings, *_omissions(known, task))), ranking, at_hand)


def _at_hand(task: Task, zoo: str | None, strategies: Sequence[str], backbones: Sequence[str]) -> dict[str, Backbone]:
    """The networks to choose from. Raises PluginError: a name of a zoo, a strategy or a backbone is unknown."""
    known = registry.strategies()
    for name in strategies:
        registry.lookup("strategy", name, known)
    adopt(backbones)
    at_hand = catalogue(zoo=zoo) if not task.earlier else _of_earlier(task, backbones)
    for name in backbones:
        registry.lookup("backbone", name, at_hand)
    return at_hand


def _command() -> str:
    """As it can be typed again: `python -m automl_tl.cli` is named as what it is short for."""
    program = Path(sys.argv[0])
    ours = program.parts[-3:] == ("automl_tl", "cli", "__main__.py")
    return data.shown(shlex.join(["automl-tl" if ours else program.name, *sys.argv[1:]]))


def _of_earlier(task: Task, asked: Sequence[str]) -> dict[str, Backbone]:
    """The one backbone that a task after another goes on with: what is known lies in the earlier model's weights. Where they are
    all that is left of it here, it is looked at as they are.

    Raises:
        InputError: another one is asked for.
    """
    backbone = model.load(Path(task.earlier)).backbone
    others = [name for name in asked if name != backbone.name]
    if others:
        raise InputError(f"--backbone {others[0]}: the model of --after is a {backbone.name}, and only that can go on from it")
    return {backbone.name: here(backbone) or as_it_starts(task, backbone)}


def _omissions(known: dict[str, type[Strategy]], task: Task) -> list[str]:
    """What a task cannot try, and why, for a person."""
    notes = [f"{name} is left out: {advice}" for name, advice in left_out(known, task).items()]
    if task.earlier:
        notes.insert(0, "every candidate goes on from the earlier model, so its backbone is the only one")
    return notes


def _none_left(known: dict[str, type[Strategy]], task: Task) -> str:
    """Why, for a person."""
    met, required = brings(task), REQUIRED[task.objective]
    fit = [name for name, strategy in known.items() if required <= strategy.needs <= met]
    brought = ", ".join(sorted(met)) or "nothing but its images"
    return "; ".join(
        [
            "no candidate is left; widen --strategy, --backbone or --zoo. "
            f"The task brings {brought}; strategies for it: {', '.join(fit) or 'none is installed'}",
            *(f"{name} is left out: {advice}" for name, advice in left_out(known, task).items()),
        ]
    )


def fit(
    location: Any,
    *,
    budget: str | float | Budget = "10m",
    out: Path | str = "runs/fit",
    along: Along | None = None,
    seed: int = 0,
    zoo: str | None = None,
    strategies: Sequence[str] | None = None,
    backbones: Sequence[str] | None = None,
    trackers: Sequence[str | Tracker] = (),
    ray: str | None = None,
    remember: Sequence[str] = (),
    exemplars: int = memory.MOST_EXEMPLARS,
    progress: Progress | None = None,
    told: Callable[[Task, Advice], None] | None = None,
) -> Outcome:
    """From labelled images, and what comes `along` with them, to a trained model: load, profile, recommend, search, report.

    All of it lies in `out`. What a later task `after` this one may need is kept with the model where `remember` asks for it:
    "fisher", "importance", or "exemplars", which are at most `exemplars` of the images themselves (see `memory`).

    The same call again goes on where an interrupted one stopped. `told` hears the advice before the training starts.
    With `ray`, the address of a Ray cluster (see `open_workers`), as many trials train at once as it has workers; `out` and the
    images must then be in folders that all its machines share.

    Raises:
        InputError: the images, or `out` holds the run of something else, or another process works in it, or no cluster answers.
    """
    start = time.monotonic()
    limits, out, kinds = parse_budget(budget), Path(out), memory.check_kinds(remember)
    strategies, backbones = registry.several(strategies), registry.several(backbones)
    if exemplars != memory.MOST_EXEMPLARS and EXEMPLARS not in kinds:
        raise InputError("--exemplars says how many images are kept; ask for them with --remember exemplars")
    task = location if isinstance(location, Task) else read_task(location, along, seed=seed, progress=progress)
    _check_outside(out, location, along or Along(), task)
    if ray is not None and not processes.alone():
        raise InputError("--ray and `accelerate launch` both spread the work; use one of them")
    if not processes.leads():
        return follow(task, seed=seed)
    request = {
        "fingerprint": task.fingerprint,
        "seed": seed,
        "zoo": zoo,
        "strategies": list(strategies or ()),
        "backbones": list(backbones or ()),
        "remember": sorted(kinds),
    }
    check_writable(out)
    if EXEMPLARS in kinds:
        memory.each_of(exemplars, task)
    asked = [trackers] if isinstance(trackers, str) else trackers
    told_of = [_tracker(each) if isinstance(each, str) else each for each in asked]
    with ExitStack() as held:
        held.enter_context(alone_in(out))
        held.enter_context(chance_put_back())
        if changed := _changed(out, request):
            _at_hand(task, zoo, strategies or (), backbones or ())  # a name that was mistyped is to blame, not the folder
            raise InputError(f"{out} holds another run (with other {', '.join(changed)}); choose another --out or delete it")
        workers = None if ray is None else held.enter_context(open_workers(ray))
        history = held.enter_context(open_history())
        history.record_task(task)
        looks = int(min(max(limits.seconds / A_LOOK, FEWEST_LOOKS), LOOKED_AT))
        advice, looked = _advice_of(out) if (out / "advice.json").exists() else (None, 0)
        if advice is None or looked < looks or _outdated(advice):  # with a larger budget, more networks may be looked at
            chosen: dict[str, Any] = {"zoo": zoo, "strategies": strategies, "backbones": backbones}
            whole = recommend(task, history=history, **chosen, looks=looks, seed=seed, progress=progress)
            advice = _keep_advice(out, request, whole, looks)
        for backbone in advice.backbones.values():
            history.record_backbone(backbone)
        history.record_profile(advice.profile)
        if told is not None:
            told(task, advice)
        advised = time.monotonic() - start
        counted = min(advised, MOST_ADVISING * limits.seconds)
        outcome = search(
            task,
            advice.ranking,
            profile=advice.profile,
            backbones=advice.backbones,
            budget=limits,
            folder=out,
            history=history,
            seed=seed,
            spent=counted,
            trackers=told_of,
            remember=kinds,
            exemplars=exemplars,
            command=_command(),
            workers=workers,
        )
        outcome = _advised_for_long(outcome, advised, counted)
        from .report.outcome import report_outcome

        report_outcome(task, outcome, advice.backbones)
    processes.tell(outcome)
    return outcome


def _check_outside(out: Path, location: Any, along: Along, task: Task) -> None:
    """Raises InputError: `out` lies in a folder of images of the task, where the next start would take it for a class."""
    clients = along.clients if isinstance(along.clients, tuple) else ()
    places = [("", location), (" of --source", along.source), (" of --keep", along.keep)]
    for option, place in (*places, *((" of --clients", client) for client in clients)):
        if not isinstance(place, (str, Path)) or not out.resolve().is_relative_to(Path(place).resolve()):
            continue
        if any(isinstance(image, (str, Path)) and Path(image).is_relative_to(place) for image in task.images):
            folder = Path(place).resolve()  # "digits" may be a folder, too, and a run: neither is where the images are
            beside = os.path.relpath(folder.parent / "runs" / folder.name)
            text = f"{out}: lies in the folder of the images{option}; choose another --out, such as {beside}"
            raise InputError(data.shown(text))


def _advised_for_long(outcome: Outcome, advised: float, counted: float) -> Outcome:
    """With a word on what the advice took beyond its share of the budget: nobody should have to wonder where it went."""
    if advised <= counted:
        return outcome
    note = (
        f"the advice took {advised:.0f} s, of which only {counted:.0f} s count as spent, so that half of the budget was left to "
        "train; more time or fewer networks (--backbone) would serve better"
    )
    return replace(outcome, notes=(*outcome.notes, note))


def _tracker(name: str) -> Tracker:
    """Raises PluginError: there is none of that name, or something that it needs is missing."""
    tracker = registry.lookup("tracker", name, registry.trackers())
    try:
        getattr(tracker, "check", lambda: None)()
    except PluginError:
        raise
    except PLUGIN_FAULTS as error:
        raise PluginError(f"tracker {name!r} cannot begin: {type(error).__name__}: {error}") from error
    return tracker


def predict(run: Path | str, images: Path | str | Sequence[Any]) -> Predictions:
    """Classify images with the winner of a run: a folder of images, one image, or a list of paths, PIL images or arrays.

    `run` may also be what `export` wrote: a timm folder, an ONNX file or a torch.export program, or the folder of one.

    Raises:
        InputError: no model in `run`, no image, or one that cannot be read (it is named).
    """
    trained = open_predictor(Path(run))
    listed, where = _unlabelled(images)
    blocks = [slice(start, start + DECODED) for start in range(0, max(len(listed), 1), DECODED)]
    parts = [trained.probabilities(trained.decode(listed[block], where[block])) for block in blocks]
    return Predictions(tuple(where), trained.classes, np.concatenate(parts))


@dataclass(frozen=True)
class DomainScores:
    """How a model fares on the images of one domain."""

    name: str
    images: int
    accuracy: float


@dataclass(frozen=True, eq=False)
class Judgement:
    """How a model fares on labelled images."""

    scores: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    """95 % intervals, of the scores that have one."""
    classes: list[ClassScores]
    reliability: list[Bin]
    """Predictions of like confidence, and how often they are right: what a reliability diagram draws."""
    labels: np.ndarray
    """Of the images, as positions in the model's classes."""
    images: np.ndarray
    """uint8 n×size×size×3, as the model saw them."""
    model: Predictor
    split: str
    """"test", or "all" where there is no test split."""
    domains: list[DomainScores]
    """Of each domain that the images name, by name; none where they name none."""


def evaluate(run: Path | str, location: Any, *, robust: float = 0.0) -> dict[str, float]:
    """Scores of the winner of a run on labelled images: those of the test split, or all where there is none.

    With `robust` above 0, attacks that change each pixel by up to so much (of 0–1) are judged, too (`judge_robust`).

    Raises:
        InputError: a class that the model does not know.
    """
    judgement = judge_model(run, location)
    return judgement.scores | (judge_attacked(run, judgement, robust) if robust > 0 else {})


def judge_model(run: Path | str, location: Any) -> Judgement:
    """`evaluate` with intervals, a table of the classes, and what is needed to look further.

    Raises:
        InputError: a class that the model does not know.
    """
    trained = open_predictor(Path(run))
    listing = data.read_listing(location)
    for warning in listing.warnings:
        warnings.warn(warning, InputWarning, stacklevel=2)
    keep = [i for i, split in enumerate(listing.splits) if split == "test"] if listing.splits is not None else []
    chosen = keep or range(len(listing.images))
    unknown = sorted({listing.labels[i] for i in chosen} - set(trained.classes))
    if unknown:
        raise InputError(
            f"{location} has classes that the model does not know: {', '.join(unknown[:5])}; "
            f"known: {', '.join(trained.classes[:20])}"
        )
    pixels = trained.decode([listing.images[i] for i in chosen], [listing.where[i] for i in chosen])
    labels = np.array([trained.classes.index(listing.labels[i]) for i in chosen])
    found = trained.probabilities(pixels)
    classes = per_class(found, labels, trained.classes)
    bins = reliability(found, labels)
    split = "test" if keep else "all"
    domains = [] if listing.domains is None else _per_domain(found, labels, [listing.domains[i] for i in chosen])
    scores, ranges = judge(found, labels), intervals(found, labels)
    return Judgement(scores, ranges, classes, bins, labels, pixels, trained, split, domains)


def _per_domain(probabilities: np.ndarray, labels: np.ndarray, domains: Sequence[str]) -> list[DomainScores]:
    right, names = probabilities.argmax(axis=1) == labels, np.array(domains)
    places = [(str(name), names == name) for name in np.unique(names)]
    return [DomainScores(name, int(inside.sum()), float(right[inside].mean())) for name, inside in places]


def judge_attacked(run: Path | str, judgement: Judgement, epsilon: float) -> dict[str, float]:
    """Accuracy of a run's model on images whose every pixel an attacker may change by up to `epsilon` (of 0–1).

    Raises:
        InputError: `run` holds no network whose gradients can be had, as an exported one, or one that counts votes.
    """
    trained = model.load(model.model_folder(Path(run)))
    return judge_robust(trained.net, judgement.images, judgement.labels, trained.backbone, epsilon=epsilon)


def judge_cost(run: Path | str) -> tuple[InferenceCost, int]:
    """What the use of a run's model costs on this machine, measured now, and its bytes on disk.

    Raises:
        InputError: `run` holds no network of ours, as an exported one.
    """
    folder = model.model_folder(Path(run))
    trained = model.load(folder)
    return inference_cost(trained.net, trained.backbone.input_size), (folder / model.WEIGHTS).stat().st_size


def judge_corrupted(judgement: Judgement, *, seed: int = 0) -> Robustness:
    """Accuracy under common corruptions, on at most `CORRUPTED` of the images that were judged (a seeded choice)."""
    chosen = np.sort(np.random.default_rng(seed).permutation(len(judgement.labels))[:CORRUPTED])
    return robustness(judgement.model.probabilities, judgement.images[chosen], judgement.labels[chosen], seed=seed)


@chance_put_back()
def compare(run: Path | str, *, weights: Mapping[str, float] = WEIGHTS) -> list[Compared]:
    """The trials of a run, the best combined score first; see `evaluation.combined`.

    Raises:
        InputError: `run` is not a run of `fit`, or a weight is not known.
    """
    folder = Path(run)
    if not (folder / "advice.json").exists():
        raise InputError(f"{folder} holds no run; run `automl-tl fit --out {folder}` first")
    trials = read_trials(folder)
    classes = len(model.load(model.model_folder(folder)).classes)
    found = compare_trials(trials, _advice_of(folder)[0].backbones, classes, weights=weights)
    return sorted(found, key=lambda one: -one.combined)


@chance_put_back()
def export(run: Path | str, *, to: str, out: Path | str | None = None, dry_run: bool = False) -> Exported:
    """The winner of a run for somebody else's program: `to` is "timm", "onnx", "torch" (torch.export) or "hub".

    `out` is a folder (default: `exports/FORM` in the run's), or the hub's OWNER/NAME.

    Raises:
        InputError: the form, the run or `out` cannot be used, or the network does not fit the form.
        PluginError: a package of the form's extra is missing.
    """
    return export_run(Path(run), to=to, out=out, dry_run=dry_run)


def study_unfreezing(
    location: Any,
    *,
    backbone: str | None = None,
    zoo: str | None = None,
    source: Any = None,
    epochs: int = 8,
    seed: int = 0,
    progress: Progress | None = None,
) -> Study:
    """How many layers to unfreeze for these images; of `backbone`, or of the one that is recommended first.

    Raises:
        InputError: the images, or fewer than two epochs.
        PluginError: an unknown backbone or zoo.
    """
    from . import unfreezing

    at_hand = catalogue(zoo=zoo)
    if backbone is not None:
        registry.lookup("backbone", backbone, at_hand)
    task = location if isinstance(location, Task) else read_task(location, seed=seed, progress=progress)
    shown = None if source is None else read_task(source, seed=seed, progress=progress)
    if backbone is None:
        backbone = recommend(task, zoo=zoo, seed=seed, progress=progress).ranking.items[0].candidate.backbone
    return unfreezing.study_unfreezing(task, at_hand[backbone], source=shown, epochs=epochs, seed=seed, progress=progress)


def write_predictions(predictions: Predictions, path: Path) -> None:
    """A CSV: path, label, confidence, and the probability of each class.

    A file is written whole or not at all; what a link leads to is replaced, not the link. A pipe or a device is written to.
    """
    check_file(path)
    if _is_stream(path):
        with path.open("w", newline="", encoding="utf-8") as file:
            _write_rows(predictions, file)
        return
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        _write_rows(predictions, file)


def _write_rows(predictions: Predictions, file: TextIO) -> None:
    writer = csv.writer(file)
    writer.writerow(_columns(predictions.classes))
    for where, label, row in zip(predictions.where, predictions.labels, predictions.probabilities, strict=True):
        writer.writerow([where, label, f"{row.max():.6f}", *(f"{value:.6f}" for value in row)])


def _columns(classes: Sequence[str]) -> list[str]:
    """Of a CSV of predictions, each under a name of its own: a class may be called "label", too."""
    columns = ["path", "label", "confidence"]
    taken = {*columns, *classes}
    for name in classes:
        if name in columns:
            while name in taken:
                name = f"class {name}"
            taken.add(name)
        columns.append(name)
    return columns


def _is_stream(path: Path) -> bool:
    """A pipe, a device, a socket: something that is there and cannot be replaced by a file."""
    return path.exists() and not path.is_file() and not path.is_dir()


def check_file(path: Path) -> None:
    """Worth asking before the work whose result is written there.

    Raises:
        InputError: `path` is a folder, or lies in one that cannot be written to, or is a pipe or device that cannot.
    """
    if path.is_dir():
        raise InputError(f"{path}: is a folder; --out is the file to write")
    if not _is_stream(path):
        check_writable(path.resolve().parent)
    elif not os.access(path, os.W_OK):
        raise InputError(f"{path}: cannot be written to; choose another --out")


def _unlabelled(images: Path | str | Sequence[Any]) -> tuple[list[Any], list[str]]:
    shown = data.shown
    if not isinstance(images, (str, Path)):
        images = [images] if is_one(images) else images
        if not isinstance(images, Iterable):
            raise InputError(f"a {type(images).__name__} is no image; give a folder of images, one image, or a list of images")
        images = list(images)  # a generator gives them once
        return images, [shown(image) if isinstance(image, (str, Path)) else f"image {i}" for i, image in enumerate(images)]
    root = Path(images)
    if root.is_file():
        return [root], [shown(root)]
    found = images_below(root)
    missed = passed_over(root)
    if not found:
        raise InputError(f"{root} is not an image or a folder with images{missed and '; ' + missed}")
    if missed:
        warnings.warn(missed, InputWarning, stacklevel=3)
    return list(found), [shown(path.relative_to(root)) for path in found]


def _changed(out: Path, request: dict[str, Any]) -> list[str]:
    """What `out` holds the run of another request by, for a person; nothing where it is free or the run is the same."""
    path = out / "run.json"
    if not path.exists():
        return []
    before = {"remember": [], **read_json(path, dict, remedy="choose another --out or delete it")}
    changed = [name for name in request if before.get(name) != request[name]]
    if "seed" in changed:  # which splits them otherwise: whether the images are others, too, nobody can tell
        changed = [name for name in changed if name != "fingerprint"]
    return ["images" if name == "fingerprint" else name for name in changed]


def _keep_advice(out: Path, request: dict[str, Any], advice: Advice, looks: int) -> Advice:
    """From now on `out` is this request's; what is kept is what a later start goes on with."""
    items = advice.ranking.items
    probes = {item.candidate.backbone: item for item in reversed(items) if "epochs" not in item.candidate.hyperparameters}
    kept = replace(advice.ranking, items=items[:KEPT] + tuple(item for item in items[KEPT:] if item in probes.values()))
    backbones = {**_backbones_before(out), **advice.backbones}
    used = {item.candidate.backbone for item in kept.items} | _trained(out)
    facts = {
        "looks": looks,
        "profile": asdict(advice.profile),
        "ranking": asdict(kept),
        "backbones": {name: asdict(backbone) for name, backbone in backbones.items() if name in used},
    }
    write_text(out / "run.json", json.dumps(request, indent=1))
    write_text(out / "advice.json", json.dumps(facts, indent=1))
    return replace(advice, ranking=kept, backbones=backbones)


def _backbones_before(out: Path) -> dict[str, Backbone]:
    """Those of the advice that a new one takes the place of: what was trained by then may be at hand no longer."""
    return _advice_of(out)[0].backbones if (out / "advice.json").exists() else {}


def _trained(out: Path) -> set[str]:
    """The networks of the trials in `out`: whatever a new advice ranks, these are compared, and the best of them may go on."""
    return {trial.candidate.backbone for trial in read_trials(out)}


def _advice_of(out: Path) -> tuple[Advice, int]:
    """What an interrupted run was advised: it goes on with the same plan. And how many networks could be looked at for it."""
    return read_json(out / "advice.json", _advice_from, remedy="delete it, and the next start of the run asks for advice anew")


def _outdated(advice: Advice) -> bool:
    """Whether it has what can no longer be trained: a plugin is gone, or its strategy has another space than it had then."""
    known = registry.strategies()
    for item in advice.ranking.items:
        if item.candidate.strategy not in known:
            return True
        try:
            check(known[item.candidate.strategy].space, item.candidate.hyperparameters)
        except InputError:
            return True
    return False


def _advice_from(facts: Mapping[str, Any]) -> tuple[Advice, int]:
    ranking = facts["ranking"]
    items = tuple(
        Ranked(**{**item, "candidate": Candidate(**item["candidate"]), "reasons": tuple(item["reasons"])})
        for item in ranking["items"]
    )
    kept = {name: backbone_of(backbone) for name, backbone in facts["backbones"].items()}
    backbones = {name: here(backbone) or backbone for name, backbone in kept.items()}
    advice = Advice(profile_of(facts["profile"]), Ranking(**{**ranking, "items": items}), backbones)
    return advice, facts.get("looks", LOOKED_AT)
