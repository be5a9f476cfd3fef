"""The backbones at hand, whichever zoo they come from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import registry
from .errors import ZooError
from .records import Backbone

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

    from .hookspecs import Zoo


def catalogue(*, zoo: str | None = None) -> dict[str, Backbone]:
    """Every backbone at hand, by name. Nothing is downloaded.

    A zoo that is listed on request only adds what this machine already holds of it, or, where it is `zoo`, everything.

    Raises:
        PluginError: nobody registered `zoo`.
        ZooError: two zoos have a backbone of one name.
    """
    zoos = registry.zoos()
    if zoo is not None:
        registry.lookup("zoo", zoo, zoos)
    found: dict[str, Backbone] = {}
    for name, each in zoos.items():
        for backbone in _offered(each, asked_for=name == zoo):
            if backbone.name in found:
                owners = f"{found[backbone.name].zoo!r} and {backbone.zoo!r}"
                raise ZooError(f"{backbone.name}: is in two zoos, {owners}; rename or remove one")
            found[backbone.name] = backbone
    return found


def _offered(zoo: Zoo, *, asked_for: bool) -> Iterable[Backbone]:
    if asked_for or not getattr(zoo, "on_request", False):
        return zoo.list()
    cached = getattr(zoo, "cached", None)
    return cached() if cached is not None else ()


def on_request() -> dict[str, list[Backbone]]:
    """The networks of zoos that are only listed by name, without those that this machine already holds."""
    found = {}
    for name, zoo in registry.zoos().items():
        if getattr(zoo, "on_request", False):
            here = {backbone.name for backbone in _offered(zoo, asked_for=False)}
            found[name] = [backbone for backbone in zoo.list() if backbone.name not in here]
    return found


def build(backbone: Backbone, *, head: bool = False) -> nn.Module:
    """The network with its weights: images to N×num_features, or with `head` to N×num_classes source logits.

    Raises:
        PluginError: nobody registered its zoo.
        ZooError: the weights cannot be had.
    """
    return registry.lookup("zoo", backbone.zoo, registry.zoos()).build(backbone, head=head)
