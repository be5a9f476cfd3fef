"""Adversarial training on cifar10: clean and robust accuracy against standard fine-tuning, at two sizes of change.

Judged by PGD-50 with restarts and an ensemble of foolbox, on test images, never by the attack of the training.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from _report import unpacked

from automl_tl import Candidate, Task, load_task
from automl_tl.backbones import catalogue
from automl_tl.evaluation.adversaries import judge_robust
from automl_tl.objectives import harden
from automl_tl.pixels import pixels_of
from automl_tl.records import TEST, TRAIN, VALIDATION
from automl_tl.registry import strategies
from automl_tl.space import defaults
from automl_tl.trials import judge_on_test, run_trial

BACKBONE = "resnet10t_24.tiny_imagenet_64"
TRAINED, JUDGED, EPOCHS = 4000, 512, 12
SETTINGS = {"rate": 0.008, "backbone_rate": 1.0, "norms": "moving", "batch_size": 32}
"""Of all four alike; chosen for PGD on validation images, of four settings that 1,500 training images were tried with."""
STRATEGIES = {"standard": "fine-tuning", "pgd": "pgd", "trades": "trades", "fast": "fast-adversarial"}


def evidence(folder: Path, *, quick: bool) -> tuple[list[tuple[str, ...]], dict[str, float]]:
    """Rows of the table, and accuracies (0–1): cifar_clean_… and cifar_robust…_…."""
    folder.mkdir(parents=True, exist_ok=True)
    rows, figures = [], {}
    for size in (8,) if quick else (8, 4):
        runs = {name: _run(folder, name, size, quick=quick) for name in STRATEGIES}
        for name, strategy in STRATEGIES.items():
            figures[f"cifar_clean_{name}" if size == 8 else f"cifar_clean{size}_{name}"] = runs[name]["accuracy"]
            figures[f"cifar_robust{size}_{name}"] = runs[name]["robust_accuracy"]
            figures[f"cifar_pgd50_{size}_{name}"] = runs[name]["pgd_accuracy"]
            if name != "standard":
                base = f"cifar10, robust at {size}/255: fine-tuning {runs['standard']['robust_accuracy']:.3f}"
                shown = f"{runs[name]['robust_accuracy']:.3f} (clean {runs[name]['accuracy']:.3f})"
                rows.append((base, strategy, shown, strategies()[strategy].paper))
    figures |= {"cifar_trained": float(TRAINED), "cifar_attacked": float(JUDGED), "cifar_epochs": float(EPOCHS)}
    return rows, figures


def _run(folder: Path, name: str, size: int, *, quick: bool) -> dict[str, float]:
    path = folder / f"cifar{'_quick' if quick else ''}_{name}_{size}.json"
    if path.exists():
        return dict(json.loads(path.read_text(encoding="utf-8")))
    trained, judged, epochs = (400, 32, 3) if quick else (TRAINED, JUDGED, EPOCHS)
    task = _some(load_task(unpacked("cifar10", folder)), trained)
    backbone, space = catalogue()[BACKBONE], strategies()[STRATEGIES[name]].space
    hard = harden(task, size / 255)
    asked = task if name == "standard" else hard
    with tempfile.TemporaryDirectory() as scratch:
        candidate = Candidate(BACKBONE, STRATEGIES[name], {**defaults(space), **SETTINGS, "epochs": epochs})
        trial, fitted = run_trial(asked, candidate, backbone, seed=0, folder=Path(scratch))
    if fitted is None:
        raise SystemExit(trial.error)
    index = task.part(TEST)
    images, labels = pixels_of(task, backbone).array[index], task.labels[index]
    found = judge_on_test(task, backbone, fitted.model)
    found |= judge_robust(fitted.model, images, labels, backbone, epsilon=size / 255, most=judged)
    path.write_text(json.dumps({**found, "seconds": trial.seconds}, indent=1), encoding="utf-8")
    return found


def _some(task: Task, count: int) -> Task:
    """So many training images, an eighth as many validation images, 1,000 test images."""
    rng = np.random.default_rng(0)
    most = {TRAIN: count, VALIDATION: count // 8, TEST: 1000}
    return replace(task, splits={name: np.sort(rng.permutation(part)[: most[name]]) for name, part in task.splits.items()})
