"""Who registered what, and what is said when something is wrong with it. Plugins here are real entry points on disk."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from automl_tl import registry
from automl_tl.errors import PluginError
from automl_tl.registry import PluginWarning


@pytest.fixture(autouse=True)
def anew() -> Iterator[None]:
    registry.forget()
    yield
    registry.forget()


def install(place: Path, name: str, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A distribution `name` with one entry point of that name, as pip leaves it."""
    (place / f"{name}.py").write_text(code)
    facts = place / f"{name}-1.2.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    (facts / "entry_points.txt").write_text(f"[automl_tl]\n{name} = {name}\n")
    monkeypatch.syspath_prepend(str(place))


def strategy(name: str) -> str:
    return f"""
import automl_tl

class Mine(automl_tl.Strategy):
    name = {name!r}

@automl_tl.hookimpl
def register_strategies():
    return [Mine]
"""


def test_the_built_ins_are_there() -> None:
    assert {"linear-probe", "fine-tuning", "gradual-unfreezing", "from-scratch"} <= registry.strategies().keys()
    assert {"embedded", "timm", "folder"} <= registry.zoos().keys()
    assert {"frechet", "mmd2", "coral"} <= registry.metrics("distance").keys()
    assert {"logme", "h-score", "leep", "nce", "knn", "linear-probe"} <= registry.metrics("transferability").keys()
    assert "console" in registry.trackers()


def test_a_new_plugin_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "ours_a", strategy("ours"), monkeypatch)
    assert "ours" in registry.strategies()
    (plugin,) = [plugin for plugin in registry.plugins() if plugin.name == "ours_a"]
    assert (plugin.distribution, plugin.version, plugin.hooks) == ("ours_a", "1.2", ("register_strategies",))


def test_one_name_twice_names_both_owners(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "ours_b", strategy("linear-probe"), monkeypatch)
    with pytest.raises(PluginError, match=r"'linear-probe' is registered twice.*'(ours_b|strategies.linear_probe)' and by"):
        registry.strategies()


def test_a_misspelt_hook_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "ours_c", strategy("ours").replace("register_strategies", "register_strategy"), monkeypatch)
    with pytest.raises(PluginError, match=r"register_strategy.*known hooks: register_strategies"):
        registry.strategies()


def test_a_plugin_that_cannot_be_imported_costs_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "ours_d", "import nothing_of_that_name", monkeypatch)
    with pytest.warns(PluginWarning, match=r"'ours_d' of ours_d 1\.2 is left out: ModuleNotFoundError"):
        assert "linear-probe" in registry.strategies()
    (plugin,) = [plugin for plugin in registry.plugins() if plugin.name == "ours_d"]
    assert plugin.error == "ModuleNotFoundError: No module named 'nothing_of_that_name'"


def test_a_hook_that_raises_costs_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "ours_e", strategy("ours").replace("return [Mine]", "return [Mine, 1 / 0]"), monkeypatch)
    with pytest.warns(PluginWarning, match=r"register_strategies of plugin 'ours_e' is left out: ZeroDivisionError"):
        assert "ours" not in registry.strategies()


@pytest.mark.parametrize(
    ("plugin", "given", "why"),
    [
        ("ours_g", "return None", "TypeError: 'NoneType' object is not iterable"),
        ("ours_h", "return Mine", "TypeError: 'type' object is not iterable"),
        ("ours_i", "yield Mine; 1 / 0", "ZeroDivisionError"),
    ],
    ids=["nothing", "one class", "a generator that raises"],
)
def test_a_hook_that_gives_no_list_costs_only_itself(
    plugin: str, given: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, plugin, strategy("ours").replace("return [Mine]", given), monkeypatch)
    with pytest.warns(PluginWarning, match=f"register_strategies of plugin '{plugin}' is left out: {why}"):
        known = registry.strategies()
    assert "linear-probe" in known
    assert "ours" not in known


def test_a_thing_without_a_name_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "ours_f", strategy(""), monkeypatch)
    with pytest.raises(PluginError, match="which has no name"):
        registry.strategies()


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(PluginError, match=r"unknown strategy 'liner-probe'; did you mean 'linear-probe'\?.*fine-tuning"):
        registry.lookup("strategy", "liner-probe", registry.strategies())


def test_an_unknown_name_that_is_like_no_other() -> None:
    with pytest.raises(PluginError, match=r"^unknown strategy 'nope'\. Known: .*fine-tuning"):
        registry.lookup("strategy", "nope", registry.strategies())


def test_loading_is_quiet() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        registry.plugins()
