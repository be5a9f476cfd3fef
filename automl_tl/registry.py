"""Who registered what. Plugins are loaded on first use, each on its own, so that a broken one costs only itself."""

from __future__ import annotations

import difflib
import warnings
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy

from . import hookspecs
from .errors import PLUGIN_FAULTS, PluginError

if TYPE_CHECKING:
    from .hookspecs import Format, Metric, Tracker, Zoo
    from .strategy import Strategy

GROUP = "automl_tl"
T = TypeVar("T")


@dataclass(frozen=True)
class Plugin:
    """One entry point, loaded or not."""

    name: str
    distribution: str
    version: str
    hooks: tuple[str, ...] = ()
    error: str = ""


class PluginWarning(UserWarning):
    """A plugin could not be loaded; the others work."""


KINDS = {
    "register_strategies": "strategies",
    "register_backbones": "zoos",
    "register_formats": "formats",
    "register_metrics": "metrics",
    "register_trackers": "trackers",
}
"""Hook → how the entry points begin (`zoos.mine`) that bring nothing else: they are loaded when that is asked for."""


@cache
def _loaded(hook: str) -> tuple[pluggy.PluginManager, tuple[Plugin, ...]]:
    """Every plugin that may have `hook`; with "", all. Listing networks, say, need not wait for strategies to import torch."""
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    others = {kind for kind in KINDS.values() if hook and kind != KINDS[hook]}
    plugins = []
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        if point.name.partition(".")[0] not in others:
            module, plugin = _load(point)
            plugins.append(plugin)
            if module is not None:
                manager.register(module, name=point.name)
    try:
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise PluginError(f"{error}; known hooks: {', '.join(_hook_names())}") from None
    return manager, tuple(plugins)


@cache
def _load(point: EntryPoint) -> tuple[ModuleType | None, Plugin]:
    """The module, and what to tell of it; a failure is warned of once."""
    distribution = point.dist.name if point.dist else "unknown"
    version = point.dist.version if point.dist else ""
    try:
        module = point.load()
    except PLUGIN_FAULTS as error:  # an import may raise anything; it is named and the rest go on
        text = f"{type(error).__name__}: {error}"
        warnings.warn(f"plugin {point.name!r} of {distribution} {version} is left out: {text}", PluginWarning, stacklevel=4)
        return None, Plugin(point.name, distribution, version, error=text)
    hooks = tuple(hook for hook in _hook_names() if hasattr(module, hook))
    return module, Plugin(point.name, distribution, version, hooks)


def _hook_names() -> list[str]:
    return [name for name in vars(hookspecs) if name.startswith("register_")]


def plugins() -> tuple[Plugin, ...]:
    """Every entry point of the group, also those that failed to load."""
    return _loaded("")[1]


@cache
def _collect(hook: str) -> dict[str, Any]:
    manager, _ = _loaded(hook)
    found: dict[str, Any] = {}
    owners: dict[str, str] = {}
    for implementation in getattr(manager.hook, hook).get_hookimpls():
        owner = implementation.plugin_name
        try:
            objects = list(implementation.function())  # of a generator this is where it may raise
        except PLUGIN_FAULTS as error:  # as in _load
            text = f"{type(error).__name__}: {error}"
            warnings.warn(f"{hook} of plugin {owner!r} is left out: {text}", PluginWarning, stacklevel=3)
            continue
        for thing in objects:
            name = getattr(thing, "name", None)
            if not isinstance(name, str) or not name:
                raise PluginError(f"{hook} of plugin {owner!r} gave {thing!r}, which has no name")
            if name in found:
                raise PluginError(f"{name!r} is registered twice in {hook}: by {owners[name]!r} and by {owner!r}; remove one")
            found[name], owners[name] = thing, owner
    return dict(sorted(found.items()))


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
    raise PluginError(f"unknown {kind} {name!r}{hint} Known: {', '.join(known) or 'none'}")


def forget() -> None:
    """Load the plugins anew at the next use (after an installation, in tests)."""
    _loaded.cache_clear()
    _load.cache_clear()
    _collect.cache_clear()
