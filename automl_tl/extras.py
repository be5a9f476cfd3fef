"""Packages that only some people need."""

from __future__ import annotations

from importlib import import_module

from .errors import PluginError


def require(extra: str, *modules: str) -> None:
    """Check that the packages of an optional extra can be imported.

    Raises:
        PluginError: one cannot; names it and the extra.
    """
    for module in modules:
        try:
            import_module(module)
        except ImportError as error:
            text = f"{extra} needs the package {module.partition('.')[0]}, which cannot be imported here ({error})"
            raise PluginError(f"{text}: pip install 'automl_tl[{extra}]'") from None
