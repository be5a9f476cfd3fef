"""How well a model does on labelled images, whoever trained it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import model
from .data import check_labelled, read_listing
from .errors import InputError, InputWarning
from .evaluation.adversaries import judge_robust
from .evaluation.calibration import Bin, reliability
from .evaluation.classification import ClassScores, intervals, judge, per_class
from .evaluation.cost import InferenceCost, inference_cost
from .evaluation.robustness import Robustness, robustness
from .exports.predictor import Predictor, open_predictor
from .records import TARGET, TEST

CORRUPTED = 500
"""Images that `judge_corrupted` looks at, sixty times over."""


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
    """"test", or "all" (that have a label) where there is no test split."""
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
        InputError: a class that the model does not know, or no labels at all.
    """
    trained = open_predictor(Path(run))
    listing = read_listing(location)
    for warning in listing.warnings:
        warnings.warn(warning, InputWarning, stacklevel=2)
    splits = [""] * len(listing.images) if listing.splits is None else listing.splits
    keep = [i for i, split in enumerate(splits) if split == TEST]
    chosen = keep or [i for i, split in enumerate(splits) if split != TARGET]
    if not chosen:
        raise InputError(f"{listing.name}: no image has a label to judge by; `predict` needs none")
    check_labelled(listing, chosen)
    unknown = sorted({listing.labels[i] for i in chosen} - set(trained.classes))
    if unknown:
        raise InputError(
            f"{listing.name} has classes that the model does not know: {', '.join(unknown[:5])}; "
            f"known: {', '.join(trained.classes[:20])}"
        )
    pixels = trained.decode([listing.images[i] for i in chosen], [listing.where[i] for i in chosen])
    labels = np.array([trained.classes.index(listing.labels[i]) for i in chosen])
    found = trained.probabilities(pixels)
    classes = per_class(found, labels, trained.classes)
    bins = reliability(found, labels)
    split = TEST if keep else "all"
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
