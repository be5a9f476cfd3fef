"""What the documents say is true: hooks, commands, snippets."""

from __future__ import annotations

import inspect
import re
import types
from pathlib import Path
from typing import Any

import pytest
import typer

import automl_tl
from automl_tl import hookspecs
from automl_tl.cli import app
from automl_tl.testing import check_strategy

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NETWORKS = (ROOT / "docs" / "networks.md").read_text(encoding="utf-8")
PLUGINS = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")


def commands(group: Any, prefix: str = "") -> list[str]:
    found = []
    for name, command in group.commands.items():
        inner = getattr(command, "commands", None)
        found += commands(command, f"{prefix}{name} ") if inner else [f"{prefix}{name}"]
    return found


def snippets(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.parametrize("name", [name for name in vars(hookspecs) if name.startswith("register_")])
def test_every_hook_is_described_with_its_signature(name: str) -> None:
    returns = inspect.signature(getattr(hookspecs, name)).return_annotation
    assert f"### `{name}() -> {returns}`" in PLUGINS


def test_every_command_is_in_the_readme_and_has_help() -> None:
    group = typer.main.get_command(app)
    for command in commands(group):
        assert command.split()[0] in README
        assert command.split()[-1] in README, command


def test_the_strategies_and_networks_of_the_documents_are_those_there_are() -> None:
    from automl_tl.backbones import catalogue
    from automl_tl.registry import strategies

    for name in strategies():
        assert f"| `{name}` |" in README
    for name, backbone in catalogue().items():
        if backbone.zoo == "embedded":
            assert f"`{name}`" in NETWORKS


@pytest.mark.parametrize("page", [pytest.param(README, id="README", marks=pytest.mark.slow), pytest.param(PLUGINS, id="plugins")])
def test_the_example_plugin_passes_the_kit(page: str) -> None:
    (code,) = [text for text in snippets(page, "python") if "class Confident" in text]
    module = types.ModuleType("automl_tl_confident")
    exec(compile(code, "automl_tl_confident.py", "exec"), vars(module))
    (strategy,) = module.register_strategies()
    strategy.__module__ = "automl_tl_confident"
    check_strategy(strategy, draws=0)


def test_the_imports_of_the_readme_exist() -> None:
    for code in snippets(README, "python"):
        for names in re.findall(r"^from automl_tl import (.+)$", code, flags=re.MULTILINE):
            for name in names.split(","):
                assert hasattr(automl_tl, name.strip()), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target, part in re.findall(r"\]\(([^)#:]*)#?([^):]*)\)", text):
        to = (page.parent / target).resolve() if target else page
        assert to.exists(), target
        if part:
            headings = re.findall(r"^#+ (.+)$", to.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert part in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}, part


def test_every_page_can_be_reached_from_the_readme() -> None:
    linked = set(re.findall(r"\]\((docs/[\w-]+\.md)", README))
    assert linked == {f"docs/{page.name}" for page in PAGES[1:]}
