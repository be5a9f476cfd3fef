"""The networks that come with the package, each pretrained from scratch by a recipe of ours."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from automl_tl import Backbone, Features, hookimpl
from automl_tl.cards import build, read_card
from automl_tl.sources import read_sources

if TYPE_CHECKING:
    from torch import nn


class Embedded:
    """A card is trusted to be whole here: one that is not is a fault of the package, and is raised."""

    name = "embedded"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def list(self) -> Iterable[Backbone]:
        return [read_card(card, zoo=self.name) for card in sorted(self.folder.glob("*.json"))]

    def build(self, backbone: Backbone, *, head: bool = False) -> nn.Module:
        return build(backbone, head=head)

    @property
    def reference(self) -> str | None:
        """The backbone that the statistics of the sources were taken with."""
        return self._statistics[0]

    def sources(self) -> Mapping[str, Features]:
        """Source dataset → statistics of its images under `reference`."""
        return self._statistics[1]

    @cached_property
    def _statistics(self) -> tuple[str | None, dict[str, Features]]:
        return read_sources(self.folder)


@hookimpl
def register_backbones() -> list[Embedded]:
    return [Embedded(Path(str(files("automl_tl_plugins.zoos.networks"))))]
