"""Who registered what, and what is said when something is wrong with it. Plugins here are real entry points on disk."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from small import QUICK, digits

from automl_tl import api, cards, registry
from automl_tl.backbones import Wanted, add, build, catalogue, search
from automl_tl.data import read_listing
from automl_tl.errors import PluginError, ZooError
from automl_tl.profiling import reference_encoder
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


def test_a_plugin_may_be_called_like_a_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what begins with "metrics." says that it brings nothing but metrics."""
    install(tmp_path, "metrics", strategy("ours"), monkeypatch)
    assert "ours" in registry.strategies()


def test_one_name_twice_names_both_owners(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "ours_b", strategy("linear-probe"), monkeypatch)
    both = r"by plugin 'ours_b' of ours_b 1\.2 and by plugin 'strategies\.linear_probe' of automl_tl .*; remove one"
    with pytest.raises(PluginError, match=f"'linear-probe' is registered twice in register_strategies: {both}"):
        registry.strategies()


@pytest.mark.parametrize(
    ("plugin", "before", "after", "why"),
    [
        (
            "ours_c",
            "register_strategies",
            "register_strategy",
            "unknown hook 'register_strategy'.*; known hooks.*: register_strat",
        ),
        (
            "ours_j",
            "strategies()",
            "strategies(config)",
            r"strategies\(config\) .*'config'.*; known hooks, which take nothing: regi",
        ),
        ("ours_k", "@automl_tl.hookimpl", "", "it marks no function with @automl_tl.hookimpl"),
    ],
    ids=["misspelt", "with an argument", "unmarked"],
)
def test_a_hook_that_is_none_costs_only_its_plugin(
    plugin: str, before: str, after: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, plugin, strategy("ours").replace(before, after), monkeypatch)
    with pytest.warns(PluginWarning, match=rf"plugin '{plugin}' of {plugin} 1\.2 is left out: PluginError: .*{why}"):
        known = registry.strategies()
    assert "linear-probe" in known
    assert "ours" not in known
    (told,) = [each for each in registry.plugins() if each.name == plugin]
    assert told.hooks == ()
    assert "hook" in told.error, "as `plugins list` shows it"


def test_a_plugin_that_cannot_be_imported_costs_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "ours_d", "import nothing_of_that_name", monkeypatch)
    with pytest.warns(PluginWarning, match=r"'ours_d' of ours_d 1\.2 is left out: ModuleNotFoundError"):
        assert "linear-probe" in registry.strategies()
    (plugin,) = [plugin for plugin in registry.plugins() if plugin.name == "ours_d"]
    assert plugin.error == "ModuleNotFoundError: No module named 'nothing_of_that_name'"


def test_a_hook_that_raises_costs_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "ours_e", strategy("ours").replace("return [Mine]", "return [Mine, 1 / 0]"), monkeypatch)
    with pytest.warns(
        PluginWarning, match=r"register_strategies of plugin 'ours_e' of ours_e 1\.2 is left out: ZeroDivisionError"
    ):
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
    with pytest.warns(PluginWarning, match=rf"register_strategies of plugin '{plugin}' of {plugin} 1\.2 is left out: {why}"):
        known = registry.strategies()
    assert "linear-probe" in known
    assert "ours" not in known


MINE = """
import automl_tl

class Mine:
    name = "ours"
    kind = "distance"
    def score(self, target, source): return 1.0
    def list(self): return []
    def build(self, backbone, *, head=False): raise KeyError("weights")
    def matches(self, location): return True
    def open(self, location): return None
    def check(self): raise ImportError("no such library")
    def opened(self, task, seconds, folder): pass
    def started(self, trial): pass
    def epoch(self, trial, point): pass
    def finished(self, trial): pass

@automl_tl.hookimpl
def HOOK():
    return [Mine()]
"""
"""Whatever a hook may want, but a strategy."""


@pytest.mark.parametrize(
    ("plugin", "hook", "before", "after", "why"),
    [
        ("thing_a", "register_strategies", "class Mine", "class Mine", "it is no subclass of automl_tl.Strategy"),
        ("thing_b", "register_strategies", "Mine()", "Mine", "it is no subclass of automl_tl.Strategy"),
        ("thing_c", "register_metrics", 'kind = "distance"', "", "its kind is None; expected one of distance, transferability"),
        ("thing_d", "register_metrics", '"distance"', '"distanse"', "its kind is 'distanse'; expected one of distance"),
        ("thing_e", "register_metrics", "Mine()", "Mine", "it is a class; give an object of it"),
        ("thing_f", "register_metrics", '"ours"', '""', "its name is ''; expected a text"),
        ("thing_g", "register_formats", "def open(", "def read(", "it has no open"),
        ("thing_h", "register_backbones", "def list(", "def listed(", "it has no list"),
        ("thing_i", "register_trackers", "def epoch(", "def epochs(", "it has no epoch"),
    ],
)
def test_a_thing_that_is_not_as_promised_is_left_out(
    plugin: str, hook: str, before: str, after: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, plugin, MINE.replace(before, after).replace("HOOK", hook), monkeypatch)
    everything = {
        "register_strategies": registry.strategies,
        "register_metrics": lambda: registry.metrics("distance"),
        "register_formats": registry.formats,
        "register_backbones": registry.zoos,
        "register_trackers": registry.trackers,
    }
    with pytest.warns(
        PluginWarning, match=rf"^{hook} of plugin '{plugin}' of {plugin} 1\.2: <.*{plugin}.Mine.*> is left out: {why}"
    ):
        known = everything[hook]()
    assert known, "the others are there"
    assert not {"ours", ""} & known.keys()


@pytest.mark.parametrize(
    ("plugin", "line", "why"),
    [
        ("ours_l", "space = {'rate': 0.1}", "its space has 'rate': 0.1; expected a name and a Float, Int or Choice"),
        ("ours_m", "space = ['rate']", r"its space is \['rate'\]; expected a dict"),
        ("ours_n", "needs = 'target'", "its needs are 'target'; expected a frozenset of texts"),
        ("ours_o", "needs = {1}", r"its needs are \{1\}; expected a frozenset of texts"),
    ],
)
def test_a_strategy_that_would_break_all_advice_is_left_out(
    plugin: str, line: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, plugin, strategy("ours").replace("name = 'ours'", f"name = 'ours'; {line}"), monkeypatch)
    with pytest.warns(PluginWarning, match=f"plugin '{plugin}' .* is left out: {why}"):
        known = registry.strategies()
    assert "linear-probe" in known
    assert "ours" not in known


@pytest.mark.parametrize(
    ("plugin", "body", "why"),
    [
        ("zoo_a", "raise KeyError('where')", "KeyError: 'where'"),
        ("zoo_b", "return ['resnet']", "TypeError: 'resnet' is no automl_tl.Backbone"),
        ("zoo_c", "yield next(iter(automl_tl_zoo()))", "ValueError: the zoo of '.*' is given as 'embedded'; expected 'ours'"),
        ("zoo_y", "yield mine(params=1.5e6)", r"ValueError: 'mine': params: expected a whole number, but got 1500000\.0"),
        ("zoo_z", "yield mine(interpolation='area')", "ValueError: 'mine': interpolation: expected one of nearest, bilinear"),
    ],
)
def test_a_zoo_that_cannot_be_listed_costs_only_itself(
    plugin: str, body: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = MINE.replace("HOOK", "register_backbones").replace("return []", body)
    code += "def automl_tl_zoo(): return automl_tl.registry.zoos()['embedded'].list()\n"
    code += "import dataclasses\ndef mine(**facts):\n"
    code += "    return dataclasses.replace(next(iter(automl_tl_zoo())), name='mine', zoo='ours', **facts)\n"
    install(tmp_path, plugin, code, monkeypatch)
    said = f"^zoo 'ours' is left out, as its networks cannot be listed: {why}"
    with pytest.warns(PluginWarning, match=said):
        assert QUICK in catalogue()
    with pytest.warns(PluginWarning, match=said):
        assert QUICK in cards._taken()
    if plugin == "zoo_a":
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        line = [sys.executable, "-m", "automl_tl.cli", "zoo", "list"]
        done = subprocess.run(line, env=environment, capture_output=True, text=True, check=True)
        assert done.stderr == f"warning: {said[1:]}\n"


@pytest.mark.parametrize(("plugin", "body"), [("zoo_e", "raise TypeError('where')"), ("zoo_f", "return None")])
def test_a_zoo_whose_sources_cannot_be_had_costs_only_them(
    plugin: str, body: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = MINE.replace('"ours"', f'"ours"\n    reference = "mine"\n    def sources(self): {body}')
    install(tmp_path, plugin, code.replace("HOOK", "register_backbones"), monkeypatch)
    with pytest.warns(PluginWarning, match="^the sources of zoo 'ours' are left out: TypeError: "):
        found = reference_encoder()
    assert found is not None
    assert "tiny_imagenet" in found[1]


def test_a_zoo_that_cannot_build_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "zoo_d", MINE.replace("HOOK", "register_backbones"), monkeypatch)
    with pytest.raises(ZooError, match=f"^zoo 'ours' cannot build '{QUICK}': KeyError: 'weights'"):
        build(replace(catalogue()[QUICK], zoo="ours"))


def test_a_zoo_that_cannot_be_asked_for_more_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the first that is asked."""
    lines = ('"aa"', 'prefix = "aa:"', "def add(self, name): return self.shelf", "def search(self, words, **how): yield 1 / 0")
    code = MINE.replace('"ours"', "\n    ".join(lines))
    install(tmp_path, "zoo_g", code.replace("HOOK", "register_backbones"), monkeypatch)
    with pytest.raises(ZooError, match=r"^zoo 'aa' cannot add 'aa:one': AttributeError: .* no attribute 'shelf'"):
        add("aa:one")
    with pytest.raises(ZooError, match=r"^zoo 'aa' cannot search: ZeroDivisionError: division by zero$"):
        search("small", Wanted())


def test_a_reader_that_cannot_say_whether_it_matches_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = MINE.replace("HOOK", "register_formats").replace("return True", "raise KeyError('where')")
    install(tmp_path, "reader_a", code.replace('"ours"', '"aa"'), monkeypatch)
    with pytest.warns(PluginWarning, match="^reader 'aa' is passed over, as its `matches` raised KeyError: 'where'"):
        assert len(read_listing("digits").images) == 1797


@pytest.mark.parametrize(
    ("plugin", "body", "why"),
    [
        ("reader_b", "raise KeyError('where')", "KeyError: 'where'"),
        ("reader_c", "return None", "TypeError: expected an automl_tl.Listing, but got None"),
        (
            "reader_d",
            "return automl_tl.Listing('x', [b''] * 2, ['a'], ['1', '2'])",
            "ValueError: expected .* 2 images, but labels has 1",
        ),
        (
            "reader_e",
            "return automl_tl.Listing('x', [b''], ['a'], ['1'], splits=[])",
            "ValueError: .* 1 images, but splits has 0",
        ),
        ("reader_f", "return automl_tl.Listing('x', [b''], None, ['1'])", "TypeError"),
    ],
)
def test_a_reader_that_breaks_is_named(plugin: str, body: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = MINE.replace("HOOK", "register_formats").replace("return None", body)
    install(tmp_path, plugin, code.replace('"ours"', '"aa"'), monkeypatch)
    with pytest.raises(PluginError, match=f"^reader 'aa': {why}"):
        read_listing("digits")


def test_a_tracker_whose_check_breaks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "tracker_a", MINE.replace("HOOK", "register_trackers"), monkeypatch)
    with pytest.raises(PluginError, match=r"^tracker 'ours' cannot begin: ImportError: no such library"):
        api.fit(digits(), budget="1 trials", trackers=["ours"], out=tmp_path / "run")


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(PluginError, match=r"unknown strategy 'liner-probe'; did you mean 'linear-probe'\?.*fine-tuning"):
        registry.lookup("strategy", "liner-probe", registry.strategies())


def test_an_unknown_name_that_is_like_no_other() -> None:
    with pytest.raises(PluginError, match=r"^unknown strategy 'nope'\. Known: .*fine-tuning"):
        registry.lookup("strategy", "nope", registry.strategies())


def test_of_very_many_known_names_some_are_listed() -> None:
    with pytest.raises(PluginError, match=r"^unknown backbone 'x19'; did you mean 'x199'\? Known: x0, .*x50, …$"):
        registry.lookup("backbone", "x19", {f"x{number}": number for number in range(200) if number != 19})


def test_loading_is_quiet() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        registry.plugins()
