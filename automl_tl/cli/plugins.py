"""What extends automl_tl: `plugins …`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from .console import print_json, print_table
from .options import AsJson

group = typer.Typer(help="The plugins that extend automl_tl.", no_args_is_help=True)


@group.command("list")
def plugins_list(json: AsJson = False) -> None:
    """Every plugin, with its origin and what it provides."""
    from automl_tl.registry import plugins

    if json:
        print_json([asdict(plugin) for plugin in plugins()])
        return
    rows = [(p.name, f"{p.distribution} {p.version}", ", ".join(p.hooks) or f"failed: {p.error}") for p in plugins()]
    print_table("", ("plugin", "distribution", "hooks"), rows)


@group.command("new")
def plugins_new(
    name: Annotated[str, typer.Argument(help="Name of the strategy: lower-case words joined by hyphens.")],
    out: Annotated[Path, typer.Option(help="Folder in which the package's folder is created.")] = Path("."),
) -> None:
    """Write an installable package with a working strategy and its test."""
    from automl_tl.scaffold import write_plugin

    folder = write_plugin(name, out)
    print(f"{folder}: a package with a strategy that works; next:")
    print(f"  pip install -e {folder}")
    print(f"  pytest {folder}")
    print(f"  automl-tl recommend digits --strategy {name}")
