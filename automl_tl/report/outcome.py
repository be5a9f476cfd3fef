"""One page about one search: what was asked, what is recommended, and what that rests on."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from automl_tl import model
from automl_tl.cards import sha256
from automl_tl.comparison import Compared, compare, measure_of
from automl_tl.evaluation.adaptation import adaptation
from automl_tl.evaluation.calibration import calibration_error, cooled, reliability
from automl_tl.evaluation.classification import confusion, intervals, judge, per_class
from automl_tl.evaluation.cost import InferenceCost, brief, inference_cost
from automl_tl.exchange import without_folders
from automl_tl.home import write_text
from automl_tl.objectives import ADAPTATION, RETENTION, ROBUSTNESS
from automl_tl.progress import once_each
from automl_tl.records import TEST, TRAIN, VALIDATION, Backbone, Outcome, Task

from .domains import domain_map, gap_maps
from .draw import Dot, Line, floor_of, learning_curves, reliability_diagram, scatter, trade_off
from .measure import Judged, doubts, judge_winner, mistakes

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
    "pgd_accuracy": "accuracy after PGD of 50 steps",
    "robust_accuracy": "accuracy after all attacks",
}
CHOSEN_BY = {
    ADAPTATION: "the mean of the accuracy on labelled images and of how sure, and how different, predictions on the target are",
    RETENTION: "the mean of the accuracy on new and on old classes",
    ROBUSTNESS: "the accuracy on attacked images",
}
"""What the score of a trial is (`objectives.validate`), where it is not its accuracy."""
VERSIONED = ("numpy", "pillow", "scikit-learn", "scipy", "lightgbm", "safetensors")
"""Packages that decide figures, besides those that a trial names itself."""


def pages() -> Environment:
    """The templates of this package: what is put in is escaped, and what is missing is an error."""
    loader = PackageLoader("automl_tl.report", ".")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "figure": _figure,
        "brief": brief,
        "short": _short,
        "without_folders": without_folders,
        "tail": _tail,
        "duration": _duration,
        "breakable": _breakable,
    }
    return environment


def report_outcome(task: Task, outcome: Outcome, backbones: Mapping[str, Backbone]) -> Path:
    """Write `report.html` into the run's folder: one file, which needs nothing else and loads nothing."""
    seed, winner = outcome.winner.seed, outcome.winner
    trained = model.load(outcome.folder / "model")
    trained = replace(trained, backbone=backbones[trained.backbone.name])  # the model itself does not know where its weights lie
    judged = judge_winner(task, trained)
    scores, ranges = judge(judged.probabilities, judged.labels), intervals(judged.probabilities, judged.labels, seed=seed)
    scores |= {name: value for name, value in winner.test.items() if name in ("pgd_accuracy", "robust_accuracy")}
    compared = compare(outcome.trials, backbones, len(task.classes))
    classes, measure = _classes(task, judged), measure_of(outcome.trials)
    page = (
        pages()
        .get_template("page.html")
        .render(
            task=task,
            outcome=outcome,
            folder=shlex.quote(str(outcome.folder)),
            winner=winner,
            backbone=trained.backbone,
            summary=_summary(task, outcome, judged.split, scores["accuracy"], ranges["accuracy"]),
            classes=classes,
            class_bars=[(row["name"], row["count"], row["share"]) for row in classes],
            sizes={split: len(task.part(split)) for split in (TRAIN, VALIDATION, TEST)},
            meta=[(words, outcome.profile.meta[name]) for name, words in META.items() if name in outcome.profile.meta],
            doubted=doubts(task, trained.backbone, seed=seed),
            distances=_by_metric(outcome.profile.distances, reverse=False),
            domains=domain_map(task, outcome.profile.distances, seed=seed),
            scatter=scatter,
            gaps=[(one, scatter(one.groups, "t-SNE of both domains")) for one in gap_maps(task, trained, seed=seed)],
            transferability=_by_metric(outcome.profile.transferability, reverse=True),
            ranked=outcome.ranking.items[:RANKED],
            floor=floor_of([item.low for item in outcome.ranking.items[:RANKED]]),
            known=any((item.low, item.high) != (0.0, 1.0) for item in outcome.ranking.items),
            speeds=[adaptation(trial.curve) for trial in outcome.trials],
            measure=measure,
            chosen_by=CHOSEN_BY.get(task.objective, "what the task asks for"),
            curves=_curves(outcome, measure),
            compared=[(_number(outcome, one), one) for one in sorted(compared, key=lambda one: -one.combined)],
            trade_offs=_trade_offs(outcome, compared, measure),
            scores=[(words, scores[name], ranges.get(name)) for name, words in SCORES.items() if name in scores],
            interval=ranges["accuracy"],
            judged=judged,
            matrix=_matrix(judged) if len(task.classes) <= LARGEST_MATRIX else None,
            pairs=_pairs(task, judged),
            mistakes=mistakes(task, judged),
            reliability=reliability_diagram(reliability(judged.probabilities, judged.labels)),
            temperature=_temperature(trained, judged),
            costs=_costs(outcome, inference_cost(trained.net, trained.backbone.input_size)),
            digest=sha256(outcome.folder / "model" / model.WEIGHTS),
            versions={**winner.provenance.get("versions", {}), **{name: version(name) for name in VERSIONED}},
        )
    )
    path = outcome.folder / "report.html"
    write_text(path, page)
    return path


def _summary(task: Task, outcome: Outcome, split: str, accuracy: float, interval: tuple[float, float]) -> tuple[str, str]:
    """What was asked, and what is recommended."""
    candidate = outcome.winner.candidate
    right, low, high = (f"{100 * value:.1f}" for value in (accuracy, *interval))
    asked = f"A classifier for {len(task.classes)} classes was wanted, from {len(task.part(TRAIN))} training images."
    answer = (
        f"Recommended is {candidate.strategy} on {candidate.backbone}: it classifies {right}\N{NO-BREAK SPACE}% of the {split} "
        f"images correctly (95\N{NO-BREAK SPACE}% interval {low}\N{WORD JOINER}–\N{WORD JOINER}{high}\N{NO-BREAK SPACE}%)."
    )
    return asked, answer


def _classes(task: Task, judged: Judged) -> list[dict[str, Any]]:
    """A row a class: training images, and how the winner fares."""
    counts = np.bincount(task.labels[task.part(TRAIN)], minlength=len(task.classes)).tolist()
    found = per_class(judged.probabilities, judged.labels, task.classes)
    return [
        {"name": one.name, "count": count, "share": count / max(*counts, 1), "scores": one}
        for one, count in zip(found, counts, strict=True)
    ]


def _by_metric(found: Mapping[str, Mapping[str, float]], *, reverse: bool) -> dict[str, list[tuple[str, float, float]]]:
    """metric → (name, value, length of its bar 0–1), by value; with `reverse`, the largest first."""
    metrics = sorted({metric for scores in found.values() for metric in scores})
    tables = {}
    for metric in metrics:
        values = {name: scores[metric] for name, scores in found.items() if metric in scores}
        worst, high = min(values.values()), max(values.values())
        low = 0.0 if worst >= 0 else worst - 0.1 * (high - worst)
        order = sorted(values.items(), key=lambda item: item[1], reverse=reverse)
        tables[metric] = [(name, value, (value - low) / (high - low or 1)) for name, value in order]
    return tables


def _curves(outcome: Outcome, measure: str) -> Markup:
    lines = [
        Line(f"#{number}", [(point.epoch, point.score) for point in trial.curve], trial.id == outcome.winner.id)
        for number, trial in enumerate(outcome.trials, 1)
    ]
    return learning_curves(lines, measure)


def _number(outcome: Outcome, compared: Compared) -> int:
    """Of a trial in the table of trials."""
    return 1 + next(place for place, trial in enumerate(outcome.trials) if trial.id == compared.trial.id)


def _trade_offs(outcome: Outcome, compared: list[Compared], measure: str) -> list[Markup]:
    """Accuracy, or score, by what use costs, and by what training cost."""

    def dot(one: Compared, x: float) -> Dot:
        won = one.trial.id == outcome.winner.id
        return Dot(f"#{_number(outcome, one)}", x, one.standing.score, one.front, won)

    return [
        trade_off([dot(one, 1000 * one.standing.latency) for one in compared], "milliseconds for one image", measure),
        trade_off([dot(one, one.standing.training) for one in compared], "seconds of training", measure),
    ]


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


def _temperature(trained: model.Model, judged: Judged) -> tuple[float, float]:
    """What the logits were divided by, and the calibration error that there would be without."""
    temperature = float(trained.facts.get("temperature", 1.0))
    return temperature, calibration_error(cooled(judged.probabilities, 1 / temperature), judged.labels)


def _costs(outcome: Outcome, cost: InferenceCost) -> dict[str, list[tuple[str, str]]]:
    winner = outcome.winner
    trained = sum(trial.seconds for trial in once_each(outcome.trials))
    weights = (outcome.folder / "model" / model.WEIGHTS).stat().st_size
    return {
        "Choosing": [
            ("the whole search", _duration(outcome.seconds)),
            ("of it, profile of the data", f"{outcome.profile.seconds:.0f} s"),
            ("of it, ranking", f"{outcome.ranking.seconds:.1f} s"),
            ("of it, training the others", f"{trained - winner.seconds:.1f} s"),
        ],
        "Adapting": [
            ("training the winner", f"{winner.seconds:.1f} s"),
            ("its peak memory", f"{winner.memory_mb:.0f} MB"),
        ],
        "Using": cost.in_words(weights),
    }


def _figure(value: float | None) -> str:
    if value is None:
        return "–"
    whole = float(value).is_integer()
    return f"{value:.0f}" if whole else f"{value:.3f}" if 0.001 <= abs(value) < 10 else f"{value:.4g}"


def _duration(seconds: float) -> str:
    """As people say it; seconds where they are few."""
    if seconds < 100:
        return f"{seconds:.0f}\N{NO-BREAK SPACE}s"
    return f"{seconds / 60:.1f}\N{NO-BREAK SPACE}min" if seconds < 6000 else f"{seconds / 3600:.1f}\N{NO-BREAK SPACE}h"


def _breakable(text: str) -> Markup:
    """A name that goes on in the next line after a dot rather than anywhere."""
    return Markup(".<wbr>").join(text.split("."))


def _short(text: object, length: int = 60) -> str:
    """Long names are cut; the page gives the whole in a title."""
    whole = str(text)
    return whole if len(whole) <= length else whole[: length - 1] + "…"


def _tail(text: object) -> str:
    """Of a path, the end tells most."""
    whole = str(text)
    return whole if len(whole) <= 40 else "…" + whole[-39:]
