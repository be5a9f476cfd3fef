"""Feature extraction, fine-tuning, regularisation and depth: each against training from scratch, on targets near and far.

The backbone was pretrained on photographs (Tiny ImageNet); scenes from the air are near to those, signs and hands are not. All
strategies train with their defaults, but for fewer epochs; each run is kept in the folder as it ends, so a second call goes on.
Test accuracy, mean over seeds.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
from _report import unpacked

from automl_tl import Candidate, Task
from automl_tl.backbones import catalogue
from automl_tl.campaign import TaskPlan, make_task
from automl_tl.registry import strategies
from automl_tl.space import Value, defaults
from automl_tl.trials import judge_on_test, run_trial
from automl_tl.unfreezing import study_unfreezing

BACKBONE = "resnet10t_24.tiny_imagenet_64"
SETS = {"rsscn7": 30, "traffic_signs": 15, "sign_digits": 20}
"""Training images a class."""
STRATEGIES = (
    *("linear-probe", "knn", "nearest-mean", "lda"),
    *("fine-tuning", "last-blocks", "gradual-unfreezing", "layerwise-decay", "l2-sp", "bias-norm", "lora"),
)
SCRATCH = "from-scratch"
EPOCHS, SCRATCH_EPOCHS = 8, 20
OPTIONS: dict[str, dict[str, Value]] = {
    "weight_decay": {"weight_decay": 0.3},
    "l1": {"l1": 0.001},
    "label_smoothing": {"label_smoothing": 0.1},
    "mixup": {"mixup": 0.2},
    "cutmix": {"cutmix": 1.0},
    "randaugment": {"randaugment": 6},
    "ema": {"ema": 0.9},
}
"""Of the training loop, each alone against training from scratch without it, where there is most to regularise."""
PAPERS = {
    "weight_decay": "Loshchilov and Hutter (2019)",
    "l1": "Tibshirani (1996); soft thresholding: Daubechies et al. (2004)",
    "label_smoothing": "Szegedy et al. (2016)",
    "mixup": "Zhang et al. (2018)",
    "cutmix": "Yun et al. (2019)",
    "randaugment": "Cubuk et al. (2020)",
    "ema": "Polyak and Juditsky (1992)",
}
REGULARISED = "sign_digits"
SEEDS = 2


def evidence(folder: Path, *, quick: bool) -> tuple[list[tuple[str, ...]], dict[str, float]]:
    """Rows of the table, and mean test accuracies (0–1) by set and strategy."""
    folder.mkdir(parents=True, exist_ok=True)
    seeds, sets = (1, ["sign_digits"]) if quick else (SEEDS, list(SETS))
    rows, figures = [], {}
    for name in sets:
        task = _task(folder, name)
        scratch = _mean(folder, task, SCRATCH, {}, seeds, quick=quick)
        figures[f"{name}_from_scratch"] = scratch
        for strategy in STRATEGIES:
            score = _mean(folder, task, strategy, {}, seeds, quick=quick)
            figures[f"{name}_{strategy.replace('-', '_')}"] = score
            rows.append((f"{name}: from scratch {scratch:.3f}", strategy, f"{score:.3f}", strategies()[strategy].paper))
        figures |= _study(folder, task, quick=quick)
    rows += [_depth_row(name, figures) for name in sets]
    task, base = _task(folder, REGULARISED), figures[f"{REGULARISED}_from_scratch"]
    for option, values in OPTIONS.items():
        score = _mean(folder, task, SCRATCH, values, seeds, quick=quick)
        figures[f"{REGULARISED}_from_scratch_{option}"] = score
        said = ", ".join(f"{key} {value}" for key, value in values.items())
        rows.append((f"{REGULARISED}: from scratch {base:.3f}", said, f"{score:.3f}", PAPERS[option]))
    return rows, figures


def _task(folder: Path, name: str) -> Task:
    unpacked(name, folder)
    return make_task(folder, TaskPlan(name, name, name, per_class=SETS[name], most_judged=300))


def _mean(folder: Path, task: Task, strategy: str, values: Mapping[str, Value], seeds: int, *, quick: bool) -> float:
    return float(np.mean([_run(folder, task, strategy, values, seed, quick=quick) for seed in range(seeds)]))


def _run(folder: Path, task: Task, name: str, values: Mapping[str, Value], seed: int, *, quick: bool) -> float:
    """Test accuracy of one training; read if it is there already."""
    space = strategies()[name].space
    epochs = (5 if quick else SCRATCH_EPOCHS) if name == SCRATCH else (3 if quick else EPOCHS)
    few = {"epochs": 2 if name == "gradual-unfreezing" else epochs} if "epochs" in space else {}
    complete = {**defaults(space), **few, **values}
    candidate = Candidate(BACKBONE, name, complete)
    path = folder / f"{task.name}_{name}_{candidate.id}_{seed}.json"
    if not path.exists():
        backbone = catalogue()[BACKBONE]
        with tempfile.TemporaryDirectory() as scratch:
            trial, fitted = run_trial(task, candidate, backbone, seed=seed, folder=Path(scratch))
        if fitted is None:
            raise SystemExit(f"{name} on {task.name} failed: {trial.error}")
        found = judge_on_test(task, backbone, fitted.model)
        path.write_text(json.dumps({**found, "seconds": trial.seconds}), encoding="utf-8")
    return float(json.loads(path.read_text(encoding="utf-8"))["accuracy"])


def _study(folder: Path, task: Task, *, quick: bool) -> dict[str, float]:
    """The depth that is enough, and what depth 0, that depth and all layers score and forget."""
    path = folder / f"{task.name}_depths{'_quick' if quick else ''}.json"
    if not path.exists():
        study = study_unfreezing(task, catalogue()[BACKBONE], epochs=2 if quick else 5)
        path.write_text(json.dumps({**asdict(study), "enough": study.enough}), encoding="utf-8")
    facts = json.loads(path.read_text(encoding="utf-8"))
    figures = {f"{task.name}_depth_enough": float(facts["enough"])}
    for what, depth in (("head", facts["depths"][0]), ("enough", facts["depths"][facts["enough"]]), ("all", facts["depths"][-1])):
        figures |= {f"{task.name}_depth_{what}_score": depth["score"], f"{task.name}_depth_{what}_changed": depth["changed"]}
    return figures


def _depth_row(name: str, figures: Mapping[str, float]) -> tuple[str, ...]:
    head, every = (figures[f"{name}_depth_{what}_score"] for what in ("head", "all"))
    enough, changed = figures[f"{name}_depth_enough"], figures[f"{name}_depth_enough_changed"]
    figure = f"{enough:.0f} groups: {figures[f'{name}_depth_enough_score']:.3f}, {changed:.0%} of source answers changed"
    said = f"{name}, validation: head alone {head:.3f}, all layers {every:.3f}"
    return said, "unfreeze-study", figure, "Yosinski et al. (2014)"
