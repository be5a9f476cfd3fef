"""The friendly layer: each step as one function, and all of them as `fit`."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import memory, model, processes, registry
from .advice import LOOKED_AT, Advice, Progress, advice_of, at_hand_for, changes, keep_advice, outdated
from .advice import recommend as recommend
from .along import Along
from .along import read_task as read_task
from .backbones import catalogue
from .budget import Budget, parse_budget
from .comparison import Compared
from .comparison import compare as compare_trials
from .data import check_outside, shown
from .data import load_task as load_task
from .device import chance_put_back
from .errors import PLUGIN_FAULTS, InputError, PluginError
from .evaluation.combined import WEIGHTS
from .exports import Exported, export_run
from .halving import search as search
from .history import open_history
from .home import check_writable as check_writable
from .hookspecs import Tracker
from .judging import evaluate as evaluate
from .judging import judge_attacked as judge_attacked
from .judging import judge_corrupted as judge_corrupted
from .judging import judge_cost as judge_cost
from .judging import judge_model as judge_model
from .predictions import Predictions as Predictions
from .predictions import check_file as check_file
from .predictions import predict as predict
from .predictions import write_predictions as write_predictions
from .profiling import profile_task as _profile_task
from .progress import alone_in, read_trials
from .records import EXEMPLARS, Outcome, Profile, Task
from .steps import follow
from .workers import open_workers

if TYPE_CHECKING:
    from .unfreezing import Study

FEWEST_LOOKS = 3
"""Backbones that a `fit` with little time looks at; one with more, up to `LOOKED_AT`."""
A_LOOK = 20.0
"""Seconds of a budget for each backbone that is looked at: a look takes one or two, and training should get the most."""
MOST_ADVISING = 0.5
"""Of the budget: reading, profiling and ranking count as spent up to this share, so that there is always time to train."""


@chance_put_back()
def profile_task(task: Task, *, zoo: str | None = None, seed: int = 0, progress: Progress | None = None) -> Profile:
    """Profile a task against every source, and against the first `LOOKED_AT` of the backbones at hand."""
    backbones = catalogue(zoo=zoo)
    return _profile_task(task, backbones, look=tuple(backbones)[:LOOKED_AT], seed=seed, progress=progress)


def _command() -> str:
    """As it can be typed again: `python -m automl_tl.cli` is named as what it is short for."""
    program = Path(sys.argv[0])
    ours = program.parts[-3:] == ("automl_tl", "cli", "__main__.py")
    return shown(shlex.join(["automl-tl" if ours else program.name, *sys.argv[1:]]))


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
    "fisher", "importance", "statistics", or "exemplars", which are at most `exemplars` of the images themselves (see `memory`).

    The same call again goes on where an interrupted one stopped. `told` hears the advice before the training starts.
    With `ray`, the address of a Ray cluster (see `open_workers`), as many trials train at once as it has workers; `out` and the
    images must then be in folders that all its machines share.

    Raises:
        InputError: the images, or `out` holds the run of something else, or another process works in it, or no cluster answers.
    """
    if isinstance(location, Task) and along is not None:
        raise InputError("what comes along with a task is read with it: give `along` to `api.read_task`")
    start = time.monotonic()
    limits, out, kinds = parse_budget(budget), Path(out), memory.check_kinds(remember)
    strategies, backbones = registry.several(strategies), registry.several(backbones)
    if exemplars != memory.MOST_EXEMPLARS and EXEMPLARS not in kinds:
        raise InputError("--exemplars says how many images are kept; ask for them with --remember exemplars")
    asked = [trackers] if isinstance(trackers, str) else trackers
    told_of = [_tracker(each) if isinstance(each, str) else each for each in asked] if processes.leads() else []
    task = location if isinstance(location, Task) else read_task(location, along, seed=seed, progress=progress)
    along = along or Along()
    clients = along.clients if isinstance(along.clients, tuple) else ()
    beside = [("--source", along.source), ("--keep", along.keep), *(("--clients", client) for client in clients)]
    check_outside(out, task, ("", location), *beside)
    if ray is not None and not processes.alone():
        raise InputError("--ray and `accelerate launch` both spread the work; use one of them")
    if not processes.leads():
        return follow(task, seed=seed)
    request = {
        "fingerprint": task.fingerprint,
        "seed": seed,
        "zoo": zoo,
        "strategies": sorted(set(strategies or ())),
        "backbones": sorted(set(backbones or ())),
        "remember": sorted(kinds),
    }
    check_writable(out)
    if EXEMPLARS in kinds:
        memory.each_of(exemplars, task)
    with ExitStack() as held:
        held.enter_context(alone_in(out))
        held.enter_context(chance_put_back())
        if others := changes(out, request):
            at_hand_for(task, zoo, strategies or (), backbones or ())  # a name that was mistyped is to blame, not the folder
            raise InputError(f"{out} holds another run (with other {', '.join(others)}); choose another --out or delete it")
        workers = None if ray is None else held.enter_context(open_workers(ray))
        history = held.enter_context(open_history())
        history.record_task(task)
        looks = int(min(max(limits.seconds / A_LOOK, FEWEST_LOOKS), LOOKED_AT))
        advice, looked = advice_of(out) if (out / "advice.json").exists() else (None, 0)
        if advice is None or looked < looks or outdated(advice):  # with a larger budget, more networks may be looked at
            chosen: dict[str, Any] = {"zoo": zoo, "strategies": strategies, "backbones": backbones}
            whole = recommend(task, history=history, **chosen, looks=looks, seed=seed, progress=progress)
            advice = keep_advice(out, request, whole, looks)
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
    found = compare_trials(trials, advice_of(folder)[0].backbones, classes, weights=weights)
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
    known = source if source is None or isinstance(source, Task) else read_task(source, seed=seed, progress=progress)
    if backbone is None:
        backbone = recommend(task, zoo=zoo, seed=seed, progress=progress).ranking.items[0].candidate.backbone
    return unfreezing.study_unfreezing(task, at_hand[backbone], source=known, epochs=epochs, seed=seed, progress=progress)
