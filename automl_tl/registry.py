"""Who registered what. Plugins are loaded on first use, each on its own, so that a broken one costs only itself."""

from __future__ import annotations

import difflib
import warnings
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy

from . import hookspecs
from .errors import PluginError

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


@cache
def _loaded() -> tuple[pluggy.PluginManager, tuple[Plugin, ...]]:
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    plugins = [_load(manager, point) for point in sorted(entry_points(group=GROUP), key=lambda point: point.name)]
    try:
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise PluginError(f"{error}; known hooks: {', '.join(_hook_names())}") from None
    return manager, tuple(plugins)


def _load(manager: pluggy.PluginManager, point: EntryPoint) -> Plugin:
    distribution = point.dist.name if point.dist else "unknown"
    version = point.dist.version if point.dist else ""
    try:
        module = point.load()
        manager.register(module, name=point.name)
    except Exception as error:  # somebody else's import may raise anything; it is named and the rest go on
        text = f"{type(error).__name__}: {error}"
        warnings.warn(f"plugin {point.name!r} of {distribution} {version} is left out: {text}", PluginWarning, stacklevel=4)
        return Plugin(point.name, distribution, version, error=text)
    hooks = tuple(hook for hook in _hook_names() if hasattr(module, hook))
    return Plugin(point.name, distribution, version, hooks)


def _hook_names() -> list[str]:
    return [name for name in vars(hookspecs) if name.startswith("register_")]


def plugins() -> tuple[Plugin, ...]:
    """Every entry point of the group, also those that failed to load."""
    return _loaded()[1]


@cache
def _collect(hook: str) -> dict[str, Any]:
    manager, _ = _loaded()
    found: dict[str, Any] = {}
    owners: dict[str, str] = {}
    for implementation in getattr(manager.hook, hook).get_hookimpls():
        owner = implementation.plugin_name
        try:
            objects = implementation.function()
        except Exception as error:  # as in _load
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
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise PluginError(f"unknown {kind} {name!r}{hint} Known: {', '.join(known) or 'none'}")


def forget() -> None:
    """Load the plugins anew at the next use (after an installation, in tests)."""
    _loaded.cache_clear()
    _collect.cache_clear()
