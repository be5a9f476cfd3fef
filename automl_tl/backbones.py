"""The backbones at hand, whichever zoo they come from."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from . import registry
from .errors import PLUGIN_FAULTS, AutomlError, HistoryError, InputError, ZooError
from .facts import backbone_facts, backbone_of
from .records import Backbone, Offer

if TYPE_CHECKING:
    from torch import nn

    from .hookspecs import Zoo

T = TypeVar("T")
_UNITS = {"": 1, "k": 1e3, "m": 1e6, "b": 1e9}


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
        for backbone in _told(each, each.list) if name == zoo else offered(each):
            if backbone.name in found:
                both = f"{found[backbone.name].zoo!r} and {backbone.zoo!r}"
                remedy = "rename one, or forget it with `automl-tl zoo remove`"
                raise ZooError(f"{backbone.name}: is in two zoos, {both}; {remedy}")
            found[backbone.name] = backbone
    return found


def here(backbone: Backbone) -> Backbone | None:
    """What the catalogue has by this name, if it is the same network: what was kept of it elsewhere, or some time ago, does not
    know where its weights lie here and now."""
    known = catalogue().get(backbone.name)
    return known if known is not None and (known.zoo, known.digest) == (backbone.zoo, backbone.digest) else None


def offered(zoo: Zoo) -> list[Backbone]:
    """What a zoo has for everybody: all, or what is on this machine of one that is listed on request only."""
    return _told(zoo, getattr(zoo, "cached", tuple) if getattr(zoo, "on_request", False) else zoo.list)


def _told(zoo: Zoo, ask: Callable[[], Iterable[Backbone]]) -> list[Backbone]:
    """What a zoo says that it has. One that says nonsense, or nothing, is named, and the others go on without it."""
    try:
        found = list(ask())
        for backbone in found:
            if not isinstance(backbone, Backbone):
                raise TypeError(f"{backbone!r} is no automl_tl.Backbone")
            if backbone.zoo != zoo.name:
                raise ValueError(f"the zoo of {backbone.name!r} is given as {backbone.zoo!r}; expected {zoo.name!r}")
            _check_facts(backbone)
        return found
    except AutomlError:  # in words, with what to do
        raise
    except PLUGIN_FAULTS as error:
        text = f"zoo {zoo.name!r} is left out, as its networks cannot be listed: {type(error).__name__}: {error}"
        warnings.warn(text, registry.PluginWarning, stacklevel=1)
        return []


def _check_facts(backbone: Backbone) -> None:
    """Raises ValueError: a fact is none that the history could read again, which would then give no advice at all."""
    try:
        backbone_of(backbone_facts(backbone))
    except (HistoryError, TypeError) as error:
        raise ValueError(f"{backbone.name!r}: {error}") from None


def on_request() -> dict[str, list[Backbone]]:
    """The networks of zoos that are only listed by name, without those that this machine already holds."""
    found = {}
    for name, zoo in registry.zoos().items():
        if getattr(zoo, "on_request", False):
            here = {backbone.name for backbone in offered(zoo)}
            found[name] = [backbone for backbone in _told(zoo, zoo.list) if backbone.name not in here]
    return found


def build(backbone: Backbone, *, head: bool = False) -> nn.Module:
    """The network with its weights: images to N×num_features, or with `head` to N×num_classes source logits.

    Raises:
        PluginError: nobody registered its zoo.
        ZooError: the weights cannot be had.
    """
    zoo = registry.lookup("zoo", backbone.zoo, registry.zoos())
    return _done(zoo, f"build {backbone.name!r}", lambda: zoo.build(backbone, head=head))


def _done(zoo: Zoo, what: str, work: Callable[[], T]) -> T:
    """What comes of a zoo's `work`; one that stumbles is named."""
    try:
        return work()
    except AutomlError:  # in words, with what to do
        raise
    except PLUGIN_FAULTS as error:
        raise ZooError(f"zoo {zoo.name!r} cannot {what}: {type(error).__name__}: {error}") from error


@dataclass(frozen=True)
class Wanted:
    """Which networks are wanted; what is None or empty does not matter."""

    max_params: float | None = None
    licences: Sequence[str] = ()
    """One of these, as the card has it."""
    source: str | None = None
    """In the name of the source dataset."""
    domain: str | None = None
    """In the words of the source domain."""

    def suits(self, network: Backbone | Offer) -> bool:
        """Small and capital letters are the same; what a network does not say does not suit."""
        if self.max_params is not None and (network.params is None or network.params > self.max_params):
            return False
        if self.licences and network.licence.lower() not in {licence.lower() for licence in self.licences}:
            return False
        texts = ((self.source, network.source_dataset), (self.domain, network.source_domain))
        return all(wanted is None or wanted.lower() in text.lower() for wanted, text in texts)


def narrowed(backbones: Mapping[str, Backbone], wanted: Wanted) -> dict[str, Backbone]:
    """Those that suit."""
    return {name: backbone for name, backbone in backbones.items() if wanted.suits(backbone)}


def parse_count(text: str) -> float:
    """A number of parameters.

    >>> [parse_count(text) for text in ("5M", "300k", "1.2B", "1000")]
    [5000000.0, 300000.0, 1200000000.0, 1000.0]

    Raises:
        InputError: it is none.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmb]?)", text.strip().lower())
    if found is None:
        raise InputError(f"{text!r} is no number of parameters; write 5M, 300k or 1.2B")
    return float(found[1]) * _UNITS[found[2]]


def add(name: str) -> Backbone | None:
    """Make a network known by its name, such as hf-hub:OWNER/NAME; None where no zoo has names of this form.

    Raises:
        ZooError: there is no such network, or it cannot be used.
    """
    zoo = _owner(name)
    return None if zoo is None else _done(zoo, f"add {name!r}", lambda: zoo.add(name))


def remove(name: str) -> bool:
    """Forget a network that was added by name; False where no zoo has names of this form."""
    zoo = _owner(name)
    if zoo is not None:
        _done(zoo, f"remove {name!r}", lambda: zoo.remove(name))
    return zoo is not None


def _owner(name: str) -> Any:
    return next((zoo for zoo in registry.zoos().values() if name.startswith(getattr(zoo, "prefix", name + " "))), None)


def adopt(names: Sequence[str]) -> None:
    """`add` those of `names` that a zoo can look up and that are not at hand yet."""
    unknown = [name for name in names if _owner(name) is not None]
    at_hand = catalogue() if unknown else {}
    for name in unknown:
        if name not in at_hand:
            add(name)


def search(words: str, wanted: Wanted, *, limit: int = 20) -> list[Offer]:
    """Networks beyond the catalogue that suit, from every zoo that can look for some.

    Raises:
        ZooError: a zoo cannot be asked.
    """
    zoos: list[Any] = [zoo for zoo in registry.zoos().values() if hasattr(zoo, "search")]
    return [offer for zoo in zoos for offer in _found(zoo, words, wanted.domain, limit) if wanted.suits(offer)]


def _found(zoo: Any, words: str, domain: str | None, limit: int) -> list[Offer]:
    return _done(zoo, "search", lambda: list(zoo.search(words, domain=domain, limit=limit)))
