"""The hooks of automl_tl. Each takes nothing and returns a list of named objects."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pluggy

if TYPE_CHECKING:
    from torch import nn

    from .records import Backbone, Features, Listing, Point, Task, Trial
    from .strategy import Strategy

hookspec = pluggy.HookspecMarker("automl_tl")
hookimpl = pluggy.HookimplMarker("automl_tl")


class Zoo(Protocol):
    """A place that pretrained networks come from.

    A zoo may also have `reference` (the name of a backbone) and `sources()` (source dataset → Features: statistics of the
    source's images under that backbone); then tasks are measured against those sources, if that backbone is the embedded zoo's.
    A zoo with `on_request = True` is only listed when it is asked for by name, apart from the backbones that its `cached()`, if
    it has that, says are on this machine already.
    A zoo with a `prefix` adds single networks whose name starts with it: `add(name) -> Backbone` (facts only) and `remove(name)`;
    it may look for them: `search(words, domain=…, limit=…) -> Iterable[Offer]`.
    """

    name: str

    def list(self) -> Iterable[Backbone]:
        """Facts only: no download, no weights read."""

    def build(self, backbone: Backbone, *, head: bool = False) -> nn.Module:
        """The network with its weights: images to N×num_features, or with `head` to N×num_classes source logits."""


class Format(Protocol):
    """A reader of labelled images."""

    name: str

    def matches(self, location: Any) -> bool:
        """Whether `open` should be tried; cheap, and never raises."""

    def open(self, location: Any) -> Listing:
        """List the images without decoding them. Raises InputError that names file or row."""


class Metric(Protocol):
    """A number that compares a target with a source, or says how well a network suits a target."""

    name: str
    kind: str
    """"distance" (target and source), "transferability" (target with labels) or "familiarity" (target with `norms`)."""

    def score(self, target: Features, source: Features | None) -> float:
        """One float; for transferability and familiarity, higher is better."""


class Tracker(Protocol):
    """Somebody who wants to know how a search goes. One that raises later than at `opened` is told no more; the search goes on.

    A tracker may also have `check()`, which is called before any image is read and raises PluginError where something that
    the tracker needs is missing.
    """

    name: str

    def opened(self, task: Task, seconds: float, folder: Path) -> None:
        """A search begins in `folder`, with this much time (infinite where the budget is not time)."""

    def started(self, trial: Trial) -> None: ...

    def epoch(self, trial: Trial, point: Point) -> None: ...

    def finished(self, trial: Trial) -> None: ...


@hookspec
def register_strategies() -> list[type[Strategy]]:  # type: ignore[empty-body]
    """Strategy subclasses."""


@hookspec
def register_backbones() -> list[Zoo]:  # type: ignore[empty-body]
    """Zoos."""


@hookspec
def register_formats() -> list[Format]:  # type: ignore[empty-body]
    """Readers of labelled images."""


@hookspec
def register_metrics() -> list[Metric]:  # type: ignore[empty-body]
    """Distances and transferability scores."""


@hookspec
def register_trackers() -> list[Tracker]:  # type: ignore[empty-body]
    """Trackers."""
