"""Who registered what. Plugins are loaded on first use, each on its own, so that a broken one costs only itself."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy

from . import hookspecs
from .errors import PLUGIN_FAULTS, PluginError

if TYPE_CHECKING:
    from .hookspecs import Format, Metric, Tracker, Zoo
    from .strategy import Strategy

GROUP = "automl_tl"
T = TypeVar("T")
Hooks = Mapping[str, Callable[[], Iterable[Any]]]


@dataclass(frozen=True)
class Plugin:
    """One entry point, loaded or not."""

    name: str
    distribution: str
    version: str
    hooks: tuple[str, ...] = ()
    error: str = ""

    def __str__(self) -> str:
        return f"plugin {self.name!r} of {self.distribution} {self.version}".rstrip()


class PluginWarning(UserWarning):
    """A plugin, or something of it, is left out; the others work."""


KINDS = {
    "register_strategies": "strategies",
    "register_backbones": "zoos",
    "register_formats": "formats",
    "register_metrics": "metrics",
    "register_trackers": "trackers",
}
"""Hook → how the entry points begin (`zoos.mine`) that bring nothing else: they are loaded when that is asked for."""
METHODS = {
    "register_backbones": ("list", "build"),
    "register_formats": ("matches", "open"),
    "register_metrics": ("score",),
    "register_trackers": ("opened", "started", "epoch", "finished"),
}
"""Hook → what each of its things is asked for, whoever needs it."""
LISTED = 50
"""Names that a message lists of all that are known: timm alone has more than a thousand networks."""
METRICS = ("distance", "transferability", "familiarity")
"""The kinds that somebody asks for; see `hookspecs.Metric`."""


def _loaded(hook: str) -> Iterator[tuple[Plugin, Hooks]]:
    """Every plugin that may have `hook`; with "", all. Listing networks, say, need not wait for strategies to import torch."""
    others = tuple(f"{kind}." for kind in KINDS.values() if hook and kind != KINDS[hook])
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        if not point.name.startswith(others):
            yield _load(point)


@cache
def _load(point: EntryPoint) -> tuple[Plugin, Hooks]:
    """What to tell of a plugin, and what it implements; a failure is warned of once."""
    plugin = Plugin(point.name, point.dist.name if point.dist else "unknown", point.dist.version if point.dist else "")
    try:
        hooks = _hooks(point.load())
    except PLUGIN_FAULTS as error:  # an import may raise anything; it is named and the rest go on
        text = f"{type(error).__name__}: {error}"
        warnings.warn(f"{plugin} is left out: {text}", PluginWarning, stacklevel=4)
        return replace(plugin, error=text), {}
    return replace(plugin, hooks=tuple(hooks)), hooks


def _hooks(module: object) -> Hooks:
    """What a plugin implements. It has a manager of its own, so that a slip in it is no slip in the others.

    Raises:
        PluginError: it implements a hook that nobody knows, one that wants arguments, or none.
    """
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    try:
        manager.register(module)
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise PluginError(f"{' '.join(str(error).split())}; known hooks, which take nothing: {', '.join(KINDS)}") from None
    hooks = {hook: found.function for hook in KINDS for found in getattr(manager.hook, hook).get_hookimpls()}
    if not hooks:
        raise PluginError(f"it marks no function with @automl_tl.hookimpl; known hooks: {', '.join(KINDS)}")
    return hooks


def plugins() -> tuple[Plugin, ...]:
    """Every entry point of the group, also those that failed to load."""
    return tuple(plugin for plugin, _ in _loaded(""))


@cache
def _collect(hook: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    owners: dict[str, Plugin] = {}
    for plugin, hooks in _loaded(hook):
        try:
            objects = list(hooks[hook]()) if hook in hooks else []  # of a generator this is where it may raise
        except PLUGIN_FAULTS as error:  # as in _load
            text = f"{type(error).__name__}: {error}"
            warnings.warn(f"{hook} of {plugin} is left out: {text}", PluginWarning, stacklevel=3)
            continue
        for thing in objects:
            if wrong := wrong_with(hook, thing):
                warnings.warn(f"{hook} of {plugin}: {thing!r} is left out: {wrong}", PluginWarning, stacklevel=3)
            elif thing.name in found:
                both = f"by {owners[thing.name]} and by {plugin}"
                raise PluginError(f"{thing.name!r} is registered twice in {hook}: {both}; remove one")
            else:
                found[thing.name], owners[thing.name] = thing, plugin
    return dict(sorted(found.items()))


def wrong_with(hook: str, thing: Any) -> str:
    """What would break everybody who asks for the things of `hook`; nothing where `thing` is as promised."""
    if not isinstance(name := getattr(thing, "name", None), str) or not name:
        return f"its name is {name!r}; expected a text"
    if hook == "register_strategies":
        return _wrong_strategy(thing)
    if isinstance(thing, type):
        return "it is a class; give an object of it"
    if missing := [method for method in METHODS[hook] if not callable(getattr(thing, method, None))]:
        return f"it has no {', '.join(missing)}"
    if hook == "register_metrics" and (kind := getattr(thing, "kind", None)) not in METRICS:
        return f"its kind is {kind!r}; expected one of {', '.join(METRICS)}"
    return ""


def _wrong_strategy(thing: Any) -> str:
    from .space import Parameter
    from .strategy import Strategy

    if not isinstance(thing, type) or not issubclass(thing, Strategy):
        return "it is no subclass of automl_tl.Strategy"
    space, needs = thing.space, thing.needs
    if not isinstance(space, Mapping):
        return f"its space is {space!r}; expected a dict of names to Float, Int or Choice"
    for name, parameter in space.items():
        if not isinstance(name, str) or not isinstance(parameter, Parameter):
            return f"its space has {name!r}: {parameter!r}; expected a name and a Float, Int or Choice"
    if not isinstance(needs, (set, frozenset)) or not all(isinstance(need, str) for need in needs):
        return f"its needs are {needs!r}; expected a frozenset of texts"
    return ""


def strategies() -> dict[str, type[Strategy]]:
    return _collect("register_strategies")


def zoos() -> dict[str, Zoo]:
    return _collect("register_backbones")


def formats() -> dict[str, Format]:
    return _collect("register_formats")


def metrics(kind: str) -> dict[str, Metric]:
    return {name: metric for name, metric in _collect("register_metrics").items() if metric.kind == kind}


def trackers() -> dict[str, Tracker]:
    return _collect("register_trackers")


def lookup(kind: str, name: str, known: dict[str, T]) -> T:
    """`known[name]`, or an error that lists what there is.

    Raises:
        PluginError: nobody registered that name.
    """
    if name in known:
        return known[name]
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    told = [*list(known)[:LISTED], *["…"] * (len(known) > LISTED)]
    raise PluginError(f"unknown {kind} {name!r}{hint} Known: {', '.join(told) or 'none'}")


def several(names: str | Iterable[Any] | None) -> list[str] | None:
    """Names that were given: one alone is a list of one, not of its letters; those of an array are plain texts."""
    if names is None:
        return None
    return [names] if isinstance(names, str) else [str(name) for name in names]


def forget() -> None:
    """Load the plugins anew at the next use (after an installation, in tests)."""
    _load.cache_clear()
    _collect.cache_clear()
