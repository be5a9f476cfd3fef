"""One page about one search: what was asked, what is recommended, and what that rests on."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from automl_tl import model
from automl_tl.evaluation.classification import bootstrap_interval, confusion, judge, reliability
from automl_tl.home import write_text
from automl_tl.records import TEST, TRAIN, VALIDATION, Backbone, Outcome, Task
from automl_tl.trials import probabilities_on

from .draw import Line, learning_curves, reliability_diagram

RANKED = 15
LARGEST_MATRIX = 25
"""Classes up to which the whole confusion matrix is shown."""
PAIRS = 10
META = {
    "images": "training images",
    "classes": "classes",
    "smallest_class": "images of the smallest class",
    "imbalance": "largest class over smallest",
    "side": "median side in pixels",
    "colourfulness": "colourfulness (0–1)",
    "contrast": "contrast (0–1)",
    "pixel_entropy": "entropy of grey values (bits, of 6)",
    "between_share": "share of feature variance between classes",
    "effective_dimension": "effective dimension of the features",
}
SCORES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro-F1",
    "auroc": "AUROC",
    "log_loss": "log-loss",
    "ece": "calibration error (ECE)",
}


@dataclass(frozen=True, eq=False)
class Judged:
    """The winner's predictions on the images it is judged on."""

    split: str
    probabilities: np.ndarray
    labels: np.ndarray
    seconds: float


def report_outcome(task: Task, outcome: Outcome, backbones: Mapping[str, Backbone]) -> Path:
    """Write `report.html` into the run's folder: one file, which needs nothing else and loads nothing."""
    loader = PackageLoader("automl_tl.report", ".")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"figure": _figure, "short": _short}
    judged = _judge(task, outcome)
    scores, classes = judge(judged.probabilities, judged.labels), _classes(task, judged)
    backbone = backbones[outcome.winner.candidate.backbone]
    page = environment.get_template("page.html").render(
        task=task,
        outcome=outcome,
        winner=outcome.winner,
        backbone=backbone,
        summary=_summary(task, outcome, judged),
        classes=classes,
        class_bars=[(row["name"], row["count"], row["share"]) for row in classes],
        sizes={split: len(task.part(split)) for split in (TRAIN, VALIDATION, TEST)},
        meta=[(words, outcome.profile.meta[name]) for name, words in META.items() if name in outcome.profile.meta],
        distances=_by_metric(outcome.profile.distances),
        transferability=_by_metric(outcome.profile.transferability),
        ranked=outcome.ranking.items[:RANKED],
        known=any((item.low, item.high) != (0.0, 1.0) for item in outcome.ranking.items),
        curves=_curves(outcome),
        scores=[(words, scores[name]) for name, words in SCORES.items() if name in scores],
        interval=bootstrap_interval(judged.probabilities.argmax(1) == judged.labels),
        judged=judged,
        matrix=_matrix(judged) if len(task.classes) <= LARGEST_MATRIX else None,
        pairs=_pairs(task, judged),
        reliability=reliability_diagram(reliability(judged.probabilities, judged.labels)),
        costs=_costs(outcome, judged, backbone),
        digest=hashlib.sha256((outcome.folder / "model" / model.WEIGHTS).read_bytes()).hexdigest(),
    )
    path = outcome.folder / "report.html"
    write_text(path, page)
    return path


def _judge(task: Task, outcome: Outcome) -> Judged:
    """On the test images, or on the validation images where there are none."""
    split = TEST if len(task.part(TEST)) else VALIDATION
    trained = model.load(outcome.folder / "model")
    start = time.perf_counter()
    probabilities = probabilities_on(task, trained.backbone, trained.net, task.part(split))
    return Judged(split, probabilities, task.labels[task.part(split)], time.perf_counter() - start)


def _summary(task: Task, outcome: Outcome, judged: Judged) -> tuple[str, str]:
    """What was asked, and what is recommended."""
    candidate = outcome.winner.candidate
    accuracy = float((judged.probabilities.argmax(1) == judged.labels).mean())
    low, high = bootstrap_interval(judged.probabilities.argmax(1) == judged.labels)
    asked = f"A classifier for {len(task.classes)} classes was wanted, from {len(task.part(TRAIN))} training images."
    answer = (
        f"{candidate.strategy} on {candidate.backbone} is recommended: it classifies {100 * accuracy:.1f} % of the "
        f"{judged.split} images rightly (95 % interval {100 * low:.1f}–{100 * high:.1f} %)."
    )
    return asked, answer


def _classes(task: Task, judged: Judged) -> list[dict[str, Any]]:
    """A row a class: images, and precision and recall of the winner."""
    counts = np.bincount(task.labels[task.part(TRAIN)], minlength=len(task.classes))
    matrix = confusion(judged.probabilities, judged.labels)
    right, truth, said = np.diag(matrix), matrix.sum(1), matrix.sum(0)
    return [
        {
            "name": name,
            "count": int(counts[code]),
            "share": counts[code] / max(counts.max(), 1),
            "judged": int(truth[code]),
            "recall": right[code] / truth[code] if truth[code] else None,
            "precision": right[code] / said[code] if said[code] else None,
        }
        for code, name in enumerate(task.classes)
    ]


def _by_metric(found: Mapping[str, Mapping[str, float]]) -> dict[str, list[tuple[str, float, float]]]:
    """metric → (name, value, length of its bar 0–1), in the order of the names."""
    metrics = sorted({metric for scores in found.values() for metric in scores})
    tables = {}
    for metric in metrics:
        values = {name: scores[metric] for name, scores in found.items() if metric in scores}
        worst, high = min(values.values()), max(values.values())
        low = 0.0 if worst >= 0 else worst - 0.1 * (high - worst)
        tables[metric] = [(name, value, (value - low) / (high - low or 1)) for name, value in values.items()]
    return tables


def _curves(outcome: Outcome) -> Any:
    lines = [
        Line(f"#{number}", [(point.epoch, point.score) for point in trial.curve], trial.id == outcome.winner.id)
        for number, trial in enumerate(outcome.trials, 1)
    ]
    return learning_curves(lines)


def _matrix(judged: Judged) -> list[list[tuple[int, float]]]:
    """Rows of (count, share of the true class)."""
    matrix = confusion(judged.probabilities, judged.labels)
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    return [[(int(count), float(share)) for count, share in zip(*row, strict=True)] for row in zip(matrix, shares, strict=True)]


def _pairs(task: Task, judged: Judged) -> list[tuple[str, str, int]]:
    """The commonest mistakes: true class, predicted class, how often."""
    matrix = confusion(judged.probabilities, judged.labels)
    np.fill_diagonal(matrix, 0)
    order = np.argsort(-matrix, axis=None, kind="stable")[:PAIRS]
    cells = [divmod(int(cell), len(task.classes)) for cell in order]
    return [(task.classes[true], task.classes[said], int(matrix[true, said])) for true, said in cells if matrix[true, said]]


def _costs(outcome: Outcome, judged: Judged, backbone: Backbone) -> list[tuple[str, str]]:
    winner = outcome.winner
    trained = sum(trial.seconds for trial in outcome.trials)
    weights = (outcome.folder / "model" / model.WEIGHTS).stat().st_size
    return [
        ("the whole search", f"{outcome.seconds:.0f} s"),
        ("of it, profile of the data", f"{outcome.profile.seconds:.0f} s"),
        ("of it, training the winner", f"{winner.seconds:.1f} s"),
        ("of it, training the others", f"{trained - winner.seconds:.1f} s"),
        ("peak memory of the winner", f"{winner.memory_mb:.0f} MB"),
        ("prediction", f"{len(judged.labels) / max(judged.seconds, 1e-9):.0f} images a second in batches"),
        ("multiply-adds an image", f"{backbone.macs / 1e6:.0f} million"),
        ("parameters", f"{backbone.params / 1e6:.2f} million"),
        ("model on disk", f"{weights / 1e6:.1f} MB"),
    ]


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}" if 0.001 <= abs(value) < 10 else f"{value:.4g}"


def _short(text: object, length: int = 60) -> str:
    """Long names are cut; the page gives the whole in a title."""
    whole = str(text)
    return whole if len(whole) <= length else whole[: length - 1] + "…"
