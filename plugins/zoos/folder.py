"""Networks in folders that the user added: a card and a safetensors file each."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING

from automl_tl import Backbone, hookimpl
from automl_tl.cards import build, folders, read_folder
from automl_tl.errors import ZooError
from automl_tl.registry import PluginWarning

if TYPE_CHECKING:
    from torch import nn


class Folders:
    name = "folder"

    def list(self) -> Iterable[Backbone]:
        """Raises ZooError where two folders have a network of one name."""
        found: dict[str, Backbone] = {}
        for folder in folders():
            if not folder.is_dir():
                text = f"the added folder of networks {folder} is gone; its networks are left out"
                warnings.warn(text, PluginWarning, stacklevel=2)
            for backbone in read_folder(folder, zoo=self.name).backbones:
                if backbone.name in found:
                    both = f"{found[backbone.name].weights}, {backbone.weights}"
                    remedy = "rename one, or forget its folder with `automl-tl zoo remove`"
                    raise ZooError(f"{backbone.name}: is in two added folders: {both}; {remedy}")
                found[backbone.name] = backbone
        return found.values()

    def build(self, backbone: Backbone, *, head: bool = False) -> nn.Module:
        return build(backbone, head=head)


@hookimpl
def register_backbones() -> list[Folders]:
    return [Folders()]
