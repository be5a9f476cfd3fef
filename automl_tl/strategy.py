"""The five seams of a training method, and what a method is given to work with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn
from torch.nn import functional as F

from .records import Backbone, Features, Point, Task
from .space import Choice, Float, Int, Space, Value

if TYPE_CHECKING:
    from .importance import PathIntegral
    from .pixels import Pixels

# The hyperparameters that the training loop itself understands. A strategy lists in its `space` those that it lets vary;
# the loop uses the default of the others. `epochs` are those of the first of the `cycles`, of which a search adds more by itself
# (see `restarts`).
TRAINING: dict[str, Float | Int | Choice] = {
    "rate": Float(1e-5, 1e-1, 1e-3, log=True),
    "backbone_rate": Float(0.01, 1.0, 0.1, log=True),
    "epochs": Int(1, 100, 15),
    "cycles": Int(1, 100, 1),
    "batch_size": Choice((16, 32, 64, 128), 32),
    "optimiser": Choice(("adamw", "sgd"), "adamw"),
    "weight_decay": Float(1e-6, 0.3, 0.02, log=True),
    "label_smoothing": Float(0.0, 0.3, 0.0),
    "dropout": Float(0.0, 0.6, 0.0),
    "augmentation": Choice(("none", "light", "medium", "strong"), "light"),
    "flip": Choice((False, True), False),
    "randaugment": Choice((0, 3, 6, 9), 0, usual=0.7),
    "mixup": Choice((0.0, 0.2, 1.0), 0.0, usual=0.7),
    "cutmix": Choice((0.0, 0.5, 1.0), 0.0, usual=0.7),
    "l1": Choice((0.0, 0.001, 0.01), 0.0, usual=0.7),
    "ema": Choice((0.0, 0.9, 0.99), 0.0, usual=0.7),
}
REGULARISERS: Space = {name: TRAINING[name] for name in ("randaugment", "mixup", "cutmix", "l1", "ema")}
"""Off unless asked for, and off in most draws: `space = {..., **REGULARISERS}` lets a strategy vary them all."""


@dataclass(frozen=True)
class Batch:
    """One step's images and labels, on the device."""

    images: Tensor
    """N×3×size×size, normalised for the backbone."""
    labels: Tensor
    """N, int64."""
    target: Tensor | None = None
    """N×3×size×size: unlabelled images of the domain that counts, for strategies that need "target"."""
    mixed: Tensor | None = None
    """N, int64: labels of the images that were mixed into these (mixup, CutMix); only where the hyperparameters ask for it."""
    own: Tensor | None = None
    """N, 0–1: how much of each image is its own and not the one mixed in."""

    def part(self, share: slice) -> Batch:
        """Some of its images, with all that belongs to them."""
        return Batch(*(None if each is None else each[share] for each in vars(self).values()))  # type: ignore[arg-type]

    def tensors(self) -> list[Tensor]:
        return [each for each in vars(self).values() if each is not None]


@dataclass
class Room:
    """What fits into memory at once; one object for a job and all its copies."""

    pieces: int = 1
    """The loop takes each batch in so many, one after the other: more than one since memory did not suffice for it whole."""


@dataclass
class Job:
    """One candidate to train: everything a strategy may use."""

    task: Task
    backbone: Backbone
    strategy: str
    hyperparameters: Mapping[str, Value]
    seed: int
    pixels: Pixels
    """Decoded images of the whole task at the backbone's input size."""
    build_backbone: Callable[[], nn.Module]
    features: Callable[[], Features]
    """Frozen features of the task's images, in task order, computed once and cached; rows of test images are not a number."""
    folder: Path
    """The trial's own folder. For checkpoints; gone once nothing can go on from them."""
    report: Callable[[Point], bool]
    """Tell of an epoch; True means stop here, with a checkpoint to go on from."""
    stop_after: float = float("inf")
    """Stop after this epoch, with a checkpoint to go on from: a rung of successive halving."""
    deadline: float = float("inf")
    """`time.monotonic()` after which no further epoch starts."""
    final: bool = False
    """What `stop_after` ends will not go on, as the epochs of the budget are used up then: it is like a deadline."""
    room: Room = field(default_factory=Room)
    spent: float = 0.0
    """Seconds that the strategy took for what the loop is to begin with: they count with the first epoch's."""
    path: PathIntegral | None = None
    """Adds up what each weight does for the loss, where that is to be remembered."""


@dataclass
class Fitted:
    """What training leaves."""

    model: nn.Module
    curve: list[Point]
    probabilities: np.ndarray
    """Validation images × classes, of `model` as it is kept."""
    complete: bool = True
    """False: stopped at `stop_after` or at the deadline, and can go on."""
    notes: tuple[str, ...] = ()
    """What was found on the way, in words; kept as the note of the curve's last point, and told of the winner."""
    importance: dict[str, Tensor] | None = None
    """Of each weight, where it was asked for (`Job.path`) and could be had."""


def cross_entropy(logits: Tensor, batch: Batch, smoothing: float = 0.0) -> Tensor:
    """Of n×classes logits and the batch's labels; an image that was mixed counts for both its labels, by their shares."""
    if batch.mixed is None or batch.own is None:
        return F.cross_entropy(logits, batch.labels, label_smoothing=smoothing)
    of_own, of_mixed = (
        F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none") for labels in (batch.labels, batch.mixed)
    )
    return (batch.own * of_own + (1 - batch.own) * of_mixed).mean()


class Classifier(nn.Module):
    """A headless backbone and a head: images to logits."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.backbone(images))
        return logits


class _Hyperparameters(SimpleNamespace):
    def __getattr__(self, name: str) -> Value:
        raise AttributeError(f"`self.hp` has no {name!r}; the strategy's `space` has {', '.join(vars(self)) or 'nothing'}")


class Strategy:
    """A training method. Every seam has a working default: all weights train at one rate on cross-entropy.

    Subclasses override what their paper changes; none inherits from another strategy. `self.hp` holds the
    hyperparameters by name, `self.facts` the facts of the backbone.
    """

    name: str
    space: Space = {}
    needs: frozenset[str] = frozenset()
    """What a task must bring, in the words of `objectives.brings`: "target", "source", "earlier model", "kept images", "clients",
    "epsilon" … A candidate with an unmet need is dropped."""
    target_beside: bool = True
    """Whether, where "target" is needed, each batch has as many of the target's images beside it; False spares fetching them."""
    paper: str = ""
    pretrained: bool = True
    """False: starts from random weights, so it is what transfer is measured against."""

    def __init__(self, hyperparameters: Mapping[str, Value], backbone: Backbone) -> None:
        self.hp: Any = _Hyperparameters(**hyperparameters)
        self.facts = backbone

    def build(self, backbone: nn.Module, num_classes: int) -> Classifier:
        """Head, frozen parts, adapters. The loop trains what has `requires_grad`."""
        head = nn.Linear(self.facts.num_features, num_classes)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        dropout = float(getattr(self.hp, "dropout", 0.0))
        return Classifier(backbone, nn.Sequential(nn.Dropout(dropout), head) if dropout > 0 else head)

    def param_groups(self, model: Classifier) -> Iterator[tuple[float, list[nn.Parameter]]]:
        """(Factor on the rate, parameters) pairs."""
        yield 1.0, list(model.parameters())

    def start_epoch(self, model: Classifier, epoch: int) -> None:
        """What changes as it goes; called after `model.train()`, also for the first epoch (0)."""

    def loss(self, model: Classifier, batch: Batch) -> Tensor:
        """A scalar to descend on."""
        return cross_entropy(model(batch.images).float(), batch, float(getattr(self.hp, "label_smoothing", 0.0)))

    def run(self, job: Job) -> Fitted:
        """Train. Override only what is not one descent on one loss."""
        from . import loop

        return loop.fit(self, job)

    @classmethod
    def requires(cls, hyperparameters: Mapping[str, Value]) -> frozenset[str]:
        """What a candidate with these hyperparameters needs. Override where some ask for more than `needs`."""
        return cls.needs

    @classmethod
    def cost(cls, backbone: Backbone, images: int, hyperparameters: Mapping[str, Value]) -> float:
        """Multiply-adds of training on `images` images: for predicting seconds before anything was measured.

        Default: a forward and a backward pass (three times the forward's work) for each image and epoch.
        """
        epochs = float(hyperparameters.get("epochs", TRAINING["epochs"].default))
        return 3.0 * backbone.macs * images * epochs
