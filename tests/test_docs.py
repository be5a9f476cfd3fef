"""What the documents say is true: hooks, commands, snippets."""

from __future__ import annotations

import importlib
import inspect
import re
import types
from pathlib import Path
from typing import Any

import pytest
import typer

from automl_tl import hookspecs
from automl_tl.cli import app
from automl_tl.testing import check_strategy

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NETWORKS = (ROOT / "docs" / "networks.md").read_text(encoding="utf-8")
PLUGINS = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")


def commands(group: Any, prefix: str = "") -> dict[str, Any]:
    found = {}
    for name, command in group.commands.items():
        inner = getattr(command, "commands", None)
        found |= commands(command, f"{prefix}{name} ") if inner else {f"{prefix}{name}": command}
    return found


def snippets(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.parametrize("name", [name for name in vars(hookspecs) if name.startswith("register_")])
def test_every_hook_is_described_with_its_signature(name: str) -> None:
    returns = inspect.signature(getattr(hookspecs, name)).return_annotation
    assert f"### `{name}() -> {returns}`" in PLUGINS


def test_every_command_is_in_the_readme_and_has_help() -> None:
    for name, command in commands(typer.main.get_command(app)).items():
        assert name.split()[0] in README
        assert name.split()[-1] in README, name
        assert command.help, name
        for parameter in command.params:
            assert getattr(parameter, "help", None), f"{name}: {parameter.name} has no help"


def test_every_option_is_on_some_page() -> None:
    pages = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    options = {one for command in commands(typer.main.get_command(app)).values() for each in command.params for one in each.opts}
    for option in sorted(one for one in options if one.startswith("--")):
        assert re.search(rf"{option}(?![\w-])", pages), option


def test_every_setting_that_a_ranking_prints_is_explained() -> None:
    from automl_tl.registry import strategies
    from automl_tl.strategy import TRAINING

    rows = (ROOT / "docs" / "strategies.md").read_text(encoding="utf-8").split("| setting | what it is |")[1].split("\n\n")[0]
    explained = {name for row in rows.splitlines() for name in re.findall(r"`([a-z0-9_]+)`", row.split("|")[1] if row else "")}
    assert explained == {*TRAINING, *(name for strategy in strategies().values() for name in strategy.space)}


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
        for module, names in re.findall(r"^from (automl_tl[\w.]*) import (.+)$", code, flags=re.MULTILINE):
            for name in names.split(","):
                assert hasattr(importlib.import_module(module), name.strip()), name


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
