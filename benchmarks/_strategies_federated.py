"""Federated training: rounds from a pretrained and from a random start, mild and strong skew, accuracy at a price of privacy.

Clients are simulated (Flower's server loop, messages and averaging), and share classes by a Dirichlet distribution. Rounds are
judged on validation images of the server's own; figures are of test images at the end, unless they are rounds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from _report import unpacked

from automl_tl import Candidate, Task, load_task
from automl_tl.backbones import catalogue
from automl_tl.objectives import federate
from automl_tl.records import PUBLIC, TEST, TRAIN, VALIDATION
from automl_tl.registry import strategies
from automl_tl.space import defaults
from automl_tl.trials import judge_on_test, run_trial

BACKBONE = "mobilenetv4_small_050.tiny_imagenet_64"
CLIENTS, ROUNDS, ROUNDS_SCRATCH = 4, 8, 24
SKEWS = {"mild": 1.0, "strong": 0.1}
NAMES = {"fedavg": "fedavg", "fedprox": "fedprox", "distillation": "federated-distillation"}
TRAINED, TRAINED_PRIVATE = 800, 8000
EPSILONS, SEEDS, ROUNDS_PRIVATE = (1.0, 3.0, 8.0), 3, 10
SHARE = 0.9
"""The target is this share of the best validation accuracy that the pretrained start reaches in all its rounds."""


def evidence(folder: Path, *, quick: bool) -> tuple[list[tuple[str, ...]], dict[str, float]]:
    """Rows of the table, rounds to the target, and test accuracies (0–1)."""
    folder.mkdir(parents=True, exist_ok=True)
    rows, figures = [], {"fed_clients": float(CLIENTS)}
    for part in (_private, _starts, _skews):
        more, found = part(folder, quick)
        rows += more
        figures |= found
    return rows, figures


def _starts(folder: Path, quick: bool) -> tuple[list[tuple[str, ...]], dict[str, float]]:
    """Rounds to the target. A start that never gets there is counted as one round more than it was given."""
    pretrained = _learn(folder, "fedavg", "mild", {"epochs": 2 if quick else ROUNDS}, quick=quick)
    random = _learn(folder, "fedavg", "mild", {"epochs": 2 if quick else ROUNDS_SCRATCH, "start": "random"}, quick=quick)
    target = SHARE * max(pretrained["curve"])
    first, second = (_rounds_to(target, run["curve"]) for run in (pretrained, random))
    reached = second <= len(random["curve"])
    figures = {
        "fed_target": target,
        "fed_rounds_pretrained": float(first),
        "fed_rounds_scratch": float(second),
        "fed_rounds_scratch_reached": float(reached),
        "fed_rounds_scratch_over_pretrained": second / first,
    }
    base = f"sign_digits, rounds to {target:.3f} from a random start: {'' if reached else 'not in '}{second - (not reached)}"
    return [(base, "fedavg, pretrained start", str(first), strategies()["fedavg"].paper)], figures


def _skews(folder: Path, quick: bool) -> tuple[list[tuple[str, ...]], dict[str, float]]:
    rows, figures = [], {}
    for skew in ("strong",) if quick else SKEWS:
        runs = {name: _learn(folder, name, skew, {"epochs": 2 if quick else ROUNDS}, quick=quick) for name in NAMES}
        figures |= {f"fed_accuracy_{name}_{skew}": run["accuracy"] for name, run in runs.items()}
        base = f"sign_digits, {skew} skew: fedavg {runs['fedavg']['accuracy']:.3f}"
        for name in ("fedprox", "distillation"):
            rows.append((base, NAMES[name], f"{runs[name]['accuracy']:.3f}", strategies()[NAMES[name]].paper))
    return rows, figures


def _private(folder: Path, quick: bool) -> tuple[list[tuple[str, ...]], dict[str, float]]:
    """The mean over seeds; and probes of all training images in one place, which is private to nobody, and of the public ones
    alone, with which the server begins.
    """
    seeds = 1 if quick else SEEDS
    plain, public = (
        _probe(folder, "linear-probe", {}, 0, splits, quick=quick)["accuracy"] for splits in ((TRAIN, PUBLIC), (PUBLIC,))
    )
    rows = []
    figures = {"fed_accuracy_not_private": plain, "fed_accuracy_public_alone": public, "fed_private_seeds": float(seeds)}
    for epsilon in EPSILONS:
        values = {"epochs": 2 if quick else ROUNDS_PRIVATE, "epsilon": epsilon}
        runs = [_probe(folder, "dp-fedavg", values, seed, quick=quick) for seed in range(seeds)]
        accuracies = [run["accuracy"] for run in runs]
        figures[f"fed_accuracy_eps{epsilon:g}"] = float(np.mean(accuracies))
        base = f"cifar10, linear probe on all images in one place: {plain:.3f}, on the public ones alone: {public:.3f}"
        shown = f"{np.mean(accuracies):.3f} ± {np.std(accuracies):.3f} ({runs[0]['note']})"
        rows.append((base, f"dp-fedavg, ε = {epsilon:g}", shown, strategies()["dp-fedavg"].paper))
    return rows, figures


def _learn(folder: Path, name: str, skew: str, values: Mapping[str, Any], *, quick: bool) -> dict[str, Any]:
    path = folder / f"{'quick_' if quick else ''}{name}_{skew}_{values.get('start', 'pretrained')}_{values['epochs']}.json"
    if path.exists():
        return dict(json.loads(path.read_text(encoding="utf-8")))
    task = _some(load_task(unpacked("sign_digits", folder)), 200 if quick else TRAINED)
    return _trial(path, federate(task, CLIENTS, skew=SKEWS[skew]), NAMES[name], values, 0)


def _probe(
    folder: Path, strategy: str, values: Mapping[str, Any], seed: int, splits: Sequence[str] = (), *, quick: bool
) -> dict[str, Any]:
    """Of federated images, or of those in `splits` as if they were in one place."""
    path = folder / f"{'quick_' if quick else ''}{strategy}_{values.get('epsilon', '+'.join(splits))}_{seed}.json"
    if path.exists():
        return dict(json.loads(path.read_text(encoding="utf-8")))
    whole = _some(load_task(unpacked("cifar10", folder)), 1000 if quick else TRAINED_PRIVATE)
    task = federate(whole, CLIENTS, skew=SKEWS["mild"])
    if splits:
        gathered = np.sort(np.concatenate([task.part(split) for split in splits]))
        task = replace(whole, splits={**whole.splits, TRAIN: gathered})
    return _trial(path, task, strategy, values, seed)


def _trial(path: Path, task: Task, strategy: str, values: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """One candidate trained and judged; kept at `path`, and on its way there beside it."""
    backbone = catalogue()[BACKBONE]
    candidate = Candidate(BACKBONE, strategy, {**defaults(strategies()[strategy].space), **values})
    work = path.with_suffix("")
    trial, fitted = run_trial(task, candidate, backbone, seed=seed, folder=work)
    if fitted is None:
        raise SystemExit(trial.error)
    found = {
        "accuracy": judge_on_test(task, backbone, fitted.model)["accuracy"],
        "curve": [point.score for point in trial.curve],
        "note": trial.curve[-1].note,
        "seconds": trial.seconds,
    }
    path.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return found


def _rounds_to(target: float, curve: list[float]) -> int:
    return next((number for number, score in enumerate(curve, 1) if score >= target), len(curve) + 1)


def _some(task: Task, count: int) -> Task:
    """So many training images, a quarter as many validation images (at most 400), all test images."""
    rng = np.random.default_rng(0)
    most = {TRAIN: count, VALIDATION: min(count // 4, 400), TEST: len(task.labels)}
    return replace(task, splits={name: np.sort(rng.permutation(part)[: most[name]]) for name, part in task.splits.items()})
