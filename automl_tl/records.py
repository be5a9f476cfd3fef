"""What travels between the steps: frozen records, no behaviour beyond what follows from their fields."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .space import Value

TRAIN, VALIDATION, TEST = "train", "validation", "test"
# What may come with a task besides its own images (see `objectives`):
TARGET = "target"
"""Images of the domain that counts, while those of `TRAIN` are of another; nobody uses their labels (-1 where unknown)."""
SOURCE = "source"
"""Labelled images of other classes, to learn to learn from; their labels are numbers of their own."""
KEPT, KEPT_VALIDATION, KEPT_TEST = "kept", "kept validation", "kept test"
"""Images of what an earlier model knows and must not forget."""
FISHER, IMPORTANCE, EXEMPLARS, STATISTICS = "fisher", "importance", "exemplars", "statistics"
"""What a model may remember for a later task, each in a safetensors file of this name beside it (see `memory`)."""
PUBLIC = "public"
"""Images that every federated client may see; nobody uses their labels."""
INTERPOLATIONS = ("nearest", "bilinear", "bicubic")
"""How an image may be made smaller."""
KEPT_UNTESTED = (
    "what is left of the old classes was measured on kept validation images, which helped to choose the model, and which the "
    "earlier one may have been trained on; give --keep a folder with test/ for a figure that is free of both"
)
"""What is said of such a winner, and what its figures are then called."""
CENTER, SQUASH, BORDER = "center", "squash", "border"
CROP_MODES = {CENTER: "shorter side", SQUASH: "both sides", BORDER: "longer side"}
"""timm's names → what of an image becomes floor(input_size / crop_pct) pixels, before its centre is taken."""
Colour = tuple[int, int, int]
BLACK: Colour = (0, 0, 0)
LARGEST_SIDE = 4096
"""Pixels of the images that a network may ask for."""
PRINTED = 5
"""Candidates of a ranking that are printed, of what may be a thousand."""


@dataclass(frozen=True, eq=False)
class Listing:
    """What a format reader found: one entry an image, nothing decoded yet."""

    name: str
    images: Sequence[Any]
    """Each a path, a PIL image, encoded bytes, or a uint8 array H×W or H×W×3."""
    labels: Sequence[str]
    """Class name of each image."""
    where: Sequence[str]
    """Where a person finds each image, for messages: a path, or "row 12"."""
    splits: Sequence[str] | None = None
    """"train", "validation", "test" or "target" (no label) of each image, where the data says so."""
    groups: Sequence[str] | None = None
    """Images of one group (patient, tile, writer) stay in one split."""
    domains: Sequence[str] | None = None
    warnings: Sequence[str] = ()
    """What the reader passed over, or took in a way that may not be meant."""


@dataclass(frozen=True, eq=False)
class Task:
    """Labelled images to learn from, split, checked and ready."""

    name: str
    images: Sequence[Any] = field(repr=False)
    """As in `Listing`, without those that could not be read."""
    labels: np.ndarray
    """int64, index into `classes`."""
    classes: tuple[str, ...]
    splits: Mapping[str, np.ndarray] = field(repr=False)
    """Positions of the images of each split; disjoint, but that labelled images of the domain that counts are in `TRAIN` and in
    `TARGET`. There may be no "test"."""
    fingerprint: str
    """Hash of pixels, labels and splits: the same data is the same task wherever it lies."""
    where: Sequence[str] = field(repr=False)
    hashes: np.ndarray = field(repr=False)
    """uint64 content hash of each image: key of the decode-once cache."""
    sizes: np.ndarray | None = field(default=None, repr=False)
    """N×2 int: width and height in pixels as stored."""
    warnings: tuple[str, ...] = ()
    objective: str = "accuracy"
    """What counts: one of `objectives.REQUIRED`."""
    epsilon: float = 0.0
    """Largest change of a pixel (of 0–1) that a robust model must stand."""
    earlier: str = ""
    """Folder of the model whose knowledge must not be forgotten."""
    clients: np.ndarray | None = None
    """N int: whose image it is, 0…clients-1; -1: nobody's."""
    modified: np.ndarray | None = None
    """N int64: when the file of each image, or its place, was last changed before it was read, in ns; 0: it is no file."""

    def part(self, split: str) -> np.ndarray:
        """Positions of the images of `split`; none where the task has no such split."""
        return self.splits.get(split, np.empty(0, dtype=np.int64))

    def before_test(self) -> np.ndarray:
        """Positions of all images but those of the last evaluation."""
        others = np.ones(len(self.labels), dtype=bool)
        for split in (TEST, KEPT_TEST):
            others[self.part(split)] = False
        return np.flatnonzero(others)


@dataclass(frozen=True)
class Backbone:
    """Facts of one pretrained network, known without its weights."""

    name: str
    zoo: str
    architecture: str
    """timm name, for those that timm builds."""
    family: str
    source_dataset: str
    source_domain: str
    input_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    crop_pct: float
    params: int
    """Without the source head."""
    macs: int
    """Multiply-adds of one image at `input_size`."""
    num_features: int
    num_classes: int = 0
    """Of the source head; 0: there is none."""
    source_accuracy: float | None = None
    licence: str = ""
    kwargs: Mapping[str, Any] = field(default_factory=dict, hash=False)
    weights: str = ""
    """Where the weights are: a file, or a repository of the hub."""
    digest: str = ""
    """sha256 of the weights, where known."""
    download_bytes: int = 0
    crop_mode: str = CENTER
    """One of `CROP_MODES`."""

    @property
    def fill(self) -> Colour:
        """What timm lays around an image that is smaller than the square."""
        if self.crop_mode != BORDER:
            return BLACK
        red, green, blue = (round(255 * min(max(value, 0), 1)) for value in self.mean)
        return red, green, blue


@dataclass(frozen=True)
class Offer:
    """A network that a search found and that a zoo can add by its name: only what is known before its config is read."""

    name: str
    zoo: str
    params: int | None
    """With the source head."""
    licence: str
    source_dataset: str
    source_domain: str
    downloads: int | None = None


@dataclass(frozen=True, eq=False)
class Norms:
    """What a network's batch norms see of a task's images, beside what they saw of the source's; one entry a channel."""

    layer: np.ndarray
    """Number of the batch norm that the channel belongs to."""
    mean: np.ndarray
    variance: np.ndarray
    source_mean: np.ndarray
    source_variance: np.ndarray


@dataclass(frozen=True, eq=False)
class Features:
    """Frozen features of a set of images, or stored statistics of a source."""

    values: np.ndarray
    """n×d."""
    labels: np.ndarray | None = None
    """n, 0…classes-1."""
    probabilities: np.ndarray | None = None
    """n×(source classes): what the source head says."""
    mean: np.ndarray | None = None
    """d: mean over all images of a source of which `values` are only a sample."""
    factor: np.ndarray | None = None
    """d×r: covariance of the whole source is factor @ factor.T."""
    norms: Norms | None = None
    """Of a network with batch norms."""


@dataclass(frozen=True)
class Profile:
    """Numbers about a task, all known before any training."""

    task: str
    fingerprint: str
    meta: Mapping[str, float]
    distances: Mapping[str, Mapping[str, float]]
    """source dataset → metric → value."""
    transferability: Mapping[str, Mapping[str, float]]
    """backbone → metric → value; of the backbones that were looked at."""
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Candidate:
    """One thing that could be trained."""

    backbone: str
    strategy: str
    hyperparameters: Mapping[str, Value] = field(hash=False, default_factory=dict)

    @property
    def id(self) -> str:
        """Hash of all fields: the same candidate has the same id on every machine."""
        text = json.dumps([self.backbone, self.strategy, dict(self.hyperparameters)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Ranked:
    """A candidate with what is expected of it."""

    candidate: Candidate
    score: float
    """Predicted validation score, 0–1."""
    low: float
    high: float
    """90 % interval of `score`."""
    seconds: float
    """Predicted training time on this machine."""
    memory_mb: float
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ranking:
    """Candidates, best first."""

    items: tuple[Ranked, ...]
    basis: str
    """What the advice rests on, for a person: "412 trials over 14 tasks", or "transferability scores only: …"."""
    stage: int
    """1: from metadata alone; 2: after a look through the images."""
    seconds: float = 0.0

    def __repr__(self) -> str:
        """The best few, as a notebook prints whatever a cell ends with."""
        lines = [f"Ranking of {len(self.items)} candidates from {self.basis}"]
        for place, item in enumerate(self.items[:PRINTED], 1):
            one, expected = item.candidate, f"{item.score:.3f} ({item.low:.2f}–{item.high:.2f}), {item.seconds:.0f} s"
            settings = ", ".join(f"{name} {value}" for name, value in one.hyperparameters.items() if value)
            lines.append(f"{place}. {one.strategy} on {one.backbone}: {expected}; {settings or 'no settings'}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Point:
    """One point of a learning curve."""

    epoch: float
    seconds: float
    """Since the start of the trial, validation included."""
    loss: float | None
    """Mean training loss of the epoch."""
    score: float
    """Validation score."""
    memory_mb: float = 0.0
    note: str = ""


@dataclass(frozen=True)
class Trial:
    """One candidate trained. A trial that failed has a status and an error, never a score."""

    id: str
    task: str
    """Fingerprint."""
    candidate: Candidate
    seed: int
    status: str
    """"finished", "stopped" (halved away: a score, but not its last), or "failed"."""
    curve: tuple[Point, ...] = ()
    validation: Mapping[str, float] = field(default_factory=dict)
    test: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    memory_mb: float = 0.0
    artefact: str = ""
    """Folder of the trained model, relative to the run's folder."""
    error: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Which command, versions, hardware and its measured speed, date."""

    @property
    def note(self) -> str:
        """What it found on the way, in words, such as how many groups of layers it trained."""
        return self.curve[-1].note if self.curve else ""

    @property
    def score(self) -> float | None:
        """What the task's objective makes of the validation images: their accuracy, unless it asks for something else."""
        return self.validation.get("score", self.validation.get("accuracy"))


@dataclass(frozen=True)
class Grown:
    """What a trial scored on its way, and in the end."""

    hyperparameters: Mapping[str, Value]
    early: float
    """The best score until the place in question."""
    best: float


@dataclass(frozen=True)
class Outcome:
    """All that came of one search."""

    task: str
    profile: Profile = field(repr=False)
    ranking: Ranking = field(repr=False)
    trials: tuple[Trial, ...] = field(repr=False)
    winner: Trial
    folder: Path
    seconds: float
    rule: str
    """How the winner was chosen, in words."""
    interrupted: bool = False
    """By Ctrl-C, before the budget was spent."""
    remembered: Mapping[str, int] = field(default_factory=dict)
    """What was kept with the model for a later task (see `memory`), in bytes."""
    notes: tuple[str, ...] = ()
    """What nobody should overlook of how it came out."""


def trial_id(task: str, candidate: Candidate, seed: int) -> str:
    """The name of a trial: the same work is the same trial, so nothing is run or stored twice."""
    return hashlib.sha256(f"{task}/{candidate.id}/{seed}".encode()).hexdigest()[:16]
