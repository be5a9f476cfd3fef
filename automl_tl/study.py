"""A study of transfer itself: how much data it saves."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from . import data, registry
from .advice import Progress, recommend
from .backbones import catalogue
from .errors import InputError, TrialError
from .evaluation.efficiency import Curve, Saving, data_saving, fit_curve
from .home import read_json, write_text
from .progress import alone_in
from .records import TARGET, TEST, TRAIN, VALIDATION, Backbone, Candidate, Task
from .space import Int, check, defaults
from .trials import judge_on_test, run_trial

SHARES = (0.05, 0.1, 0.25, 0.5, 1.0)
HELD_OUT = 0.2
"""Test images, where the data names none."""
TRANSFERRED, SCRATCH = "transferred", "from scratch"


@dataclass(frozen=True)
class Run:
    """One model trained on a share of the data."""

    kind: str
    share: float
    seed: int
    images: int
    """Training images; validation images come on top, in the same share."""
    score: float
    """Test accuracy."""
    seconds: float


@dataclass(frozen=True)
class Study:
    """Data efficiency of transfer on one task."""

    task: str
    fingerprint: str
    classes: int
    test_images: int
    candidates: dict[str, Candidate]
    """What was trained, by kind."""
    runs: tuple[Run, ...]
    curves: dict[str, Curve]
    saving: Saving


def study_data(
    location: Any,
    *,
    out: Path | str = "runs/study",
    seeds: int = 3,
    shares: Sequence[float] = SHARES,
    strategy: str | None = None,
    backbone: str | None = None,
    epochs: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Study:
    """Train one network transferred and from scratch, on growing shares of the training and validation images.

    The network and both settings are the best that `recommend` names for all of the data, and stay the same for every share.
    Smaller shares are part of larger ones. The test images stay whole and decide nothing; images without a label stay whole, too.
    The same call again goes on where an interrupted one stopped; `out` gets study.json and study.html.

    Raises:
        InputError: the images; all shares come to one number of training images; or `out` holds another study, or another process
            works in it.
        TrialError: a run failed.
    """
    out, ways = Path(out), _ways(strategy, epochs)
    for other in ("run.json", "unfreezing.json"):
        if (out / other).exists():
            raise InputError(f"{out} holds something else ({other}); choose another --out")
    told = None if progress is None else lambda done, total: progress("reading images", done, total)
    task = data.load_task(location, seed=seed, test=HELD_OUT, progress=told)
    data.check_outside(out, task, ("", location))
    _check_shares(task, shares)
    with alone_in(out):
        candidates, facts = _plan(task, out, ways, strategy, backbone, epochs, seed, progress)
        wanted = [(share, number, kind) for share in sorted(shares) for number in range(seeds) for kind in candidates]
        runs = [Run(**run) for run in _read(out).get("runs", [])]
        for done, (share, number, kind) in enumerate(wanted):
            if progress is not None:
                progress("runs of the study", done, len(wanted))
            if not any((run.share, run.seed, run.kind) == (share, number, kind) for run in runs):
                runs.append(_run(task, candidates[kind], facts, kind, share, number, out))
                _keep(out, {"runs": [asdict(run) for run in runs]})
        if progress is not None:
            progress("runs of the study", len(wanted), len(wanted))
        chosen = set(wanted)
        study = _judge(task, candidates, [run for run in runs if (run.share, run.seed, run.kind) in chosen], seed)
        _keep(out, {"result": facts_of(study)})
        from .report.study import report_study

        report_study(study, out, rows=means_of(study), words=saving_in_words(study))
    return study


def _check_shares(task: Task, shares: Sequence[float]) -> None:
    """Before anything is trained, as no curve goes through a single number of images. Raises InputError."""
    for share in shares:
        if not 0 < share <= 1:
            raise InputError(f"a share of the images is above 0 and at most 1, but one is {share}")
    classes = np.bincount(task.labels[task.part(TRAIN)])
    counts = {sum(_taken(share, int(members)) for members in classes[classes > 0]) for share in shares}
    if len(counts) < 2:
        named = ", ".join(f"{share:.3g}" for share in shares) or "none"
        found = "".join(f": all come to {count} training images" for count in counts)
        raise InputError(
            f"shares of {task.name} ({named}){found}; a learning curve takes two different numbers of training images at least, "
            "so name other shares or add images"
        )


def _ways(strategy: str | None, epochs: int | None) -> list[str]:
    """Strategies that may be studied.

    Raises:
        InputError: there is none, or the one that is asked for, or training from scratch, cannot train for so many epochs.
    """
    known = registry.strategies()
    ways = [registry.lookup("strategy", strategy, known).name] if strategy else _named(pretrained=True)
    if not known[ways[0]].pretrained:
        raise InputError(f"--strategy {strategy}: starts from random weights, so there is no transfer to study")
    scratch = _named(pretrained=False)[0]
    spans = {name: known[name].space.get("epochs") for name in (scratch, *ways)}
    misfits = {
        name: f"--epochs {epochs}: {name} trains for {span.low} to {span.high}"
        for name, span in spans.items()
        if isinstance(span, Int) and epochs is not None and not span.low <= epochs <= span.high
    }
    fitting = [name for name in ways if name not in misfits]
    if scratch in misfits or not fitting:
        raise InputError(next(iter(misfits.values())))
    return fitting


def _plan(
    task: Task,
    out: Path,
    ways: list[str],
    strategy: str | None,
    backbone: str | None,
    epochs: int | None,
    seed: int,
    progress: Progress | None,
) -> tuple[dict[str, Candidate], Backbone]:
    """What to train: asked of the advice once, then kept in `out`."""
    request = {"fingerprint": task.fingerprint, "strategy": strategy, "backbone": backbone, "epochs": epochs, "seed": seed}
    kept = _read(out)
    if kept and kept.get("request") != request:
        raise InputError(f"{out} holds another study; choose another --out or delete it")
    if not kept:
        names = [backbone] if backbone else None
        best = recommend(task, strategies=ways, backbones=names, seed=seed, progress=progress).ranking.items[0].candidate
        # the default setting of the baseline, as nothing is known of how a network does that was never tried untrained
        bare = _named(pretrained=False)[0]
        chosen = {TRANSFERRED: best, SCRATCH: Candidate(best.backbone, bare, defaults(registry.strategies()[bare].space))}
        if epochs is not None:
            chosen = {kind: _shortened(candidate, epochs) for kind, candidate in chosen.items()}
        _keep(out, {"request": request, "candidates": {kind: asdict(candidate) for kind, candidate in chosen.items()}})
        kept = _read(out)
    candidates = {kind: Candidate(**facts) for kind, facts in kept["candidates"].items()}
    return candidates, registry.lookup("backbone", candidates[TRANSFERRED].backbone, catalogue())


def _named(*, pretrained: bool) -> list[str]:
    names = [name for name, strategy in registry.strategies().items() if strategy.pretrained == pretrained]
    if not names:
        raise InputError(f"no strategy that starts from {'pretrained' if pretrained else 'random'} weights is installed")
    return names


def _shortened(candidate: Candidate, epochs: int) -> Candidate:
    if "epochs" not in candidate.hyperparameters:
        return candidate
    space = registry.strategies()[candidate.strategy].space
    return replace(candidate, hyperparameters=check(space, {**candidate.hyperparameters, "epochs": epochs}))


def _run(task: Task, candidate: Candidate, backbone: Backbone, kind: str, share: float, number: int, out: Path) -> Run:
    part = share_of(task, share, seed=number)
    # its own, as the same study may go on with other shares and seeds, and must not take this run for one of those
    folder = out / "checkpoints" / f"{kind.replace(' ', '-')}-{share!r}-{number}"
    trial, fitted = run_trial(part, candidate, backbone, seed=number, folder=folder)
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):  # another run's are there, or there were none at all
        folder.parent.rmdir()
    if fitted is None:
        raise TrialError(f"{kind}, {100 * share:.3g} % of the data, seed {number}: {trial.error}")
    score = judge_on_test(part, backbone, fitted.model)["accuracy"]
    return Run(kind, share, number, len(part.part(TRAIN)), score, trial.seconds)


def share_of(task: Task, share: float, *, seed: int) -> Task:
    """A share of the training and of the validation images, class by class, at least one of each; all test images, and all
    without a label.

    The choice of a share is part of that of every larger one.
    """
    kept = [task.part(TEST), task.part(TARGET)]
    for split in (TRAIN, VALIDATION):
        part = task.part(split)
        order = np.random.default_rng([seed, len(split)]).permutation(part)
        for label in np.unique(task.labels[part]):
            members = order[task.labels[order] == label]
            kept.append(members[: _taken(share, len(members))])
    return data.subset(task, np.sort(np.concatenate(kept)), name=f"{task.name}, {100 * share:.3g} %")


def _taken(share: float, members: int) -> int:
    """How many images of a class with so many are in a share."""
    return min(max(1, math.ceil(share * members - 1e-9)), members)


def _judge(task: Task, candidates: dict[str, Candidate], runs: list[Run], seed: int) -> Study:
    tested = len(task.part(TEST))
    curves = {}
    for kind in candidates:
        own = [run for run in runs if run.kind == kind]
        images, errors = [run.images for run in own], [1 - run.score for run in own]
        curves[kind] = fit_curve(images, errors, smallest=0.5 / tested, seed=seed)
    counts = [run.images for run in runs]
    saving = data_saving(curves[TRANSFERRED], curves[SCRATCH], fewest=min(counts), images=max(counts))
    return Study(task.name, task.fingerprint, len(task.classes), tested, candidates, tuple(runs), curves, saving)


def means_of(study: Study) -> list[tuple[float, int, list[float]]]:
    """Share, training images, and the mean score of each kind in the order of `candidates`."""
    rows = []
    for share in sorted({run.share for run in study.runs}):
        of_share = [run for run in study.runs if run.share == share]
        means = [float(np.mean([run.score for run in of_share if run.kind == kind])) for kind in study.candidates]
        rows.append((share, of_share[0].images, means))
    return rows


def saving_in_words(study: Study) -> str:
    """One sentence, with its doubts."""
    s = study.saving
    if s.factor < 0.01:
        return "The fitted curves of the two do not meet at any useful number of images, so no factor can be given."
    reach = f"{1 - s.error:.1%} right, which training from scratch reaches with {s.images:.0f} images"
    interval = f"95 % interval {_times(s.low)} to {_times(s.high)}{' or more' * (s.high >= s.most)}"
    least = "at least " * (s.factor >= s.most)
    words = f"{least}{_times(s.factor)} times fewer" if s.factor >= 1 else f"{_times(1 / s.factor)} times more"
    sure = "" if s.factor >= 1 else "; that lies outside what was measured, so it rests on the curve's form"
    return f"Transfer takes {words} images for {reach} ({interval}, as times fewer{sure})."


def _times(factor: float) -> str:
    """Two digits, as people write them: 1.5, 150, but not 1.5e+02."""
    return f"{float(f'{factor:.2g}'):,.10g}"


def facts_of(study: Study) -> dict[str, Any]:
    """As JSON: runs, laws, factor."""
    return {
        "task": study.task,
        "fingerprint": study.fingerprint,
        "test_images": study.test_images,
        "runs": [asdict(run) for run in study.runs],
        "laws": {kind: asdict(curve.law) for kind, curve in study.curves.items()},
        "saving": asdict(study.saving),
        "words": saving_in_words(study),
    }


def _read(out: Path) -> dict[str, Any]:
    path = out / "study.json"
    if not path.exists():
        return {}
    return read_json(path, dict, remedy="choose another --out or delete it")


def _keep(out: Path, facts: Mapping[str, Any]) -> None:
    write_text(out / "study.json", json.dumps({**_read(out), **facts}, indent=1))
