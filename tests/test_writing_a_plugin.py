"""docs/writing-a-plugin.md, executed from its first command to its last, as a reader would."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from automl_tl.errors import InputError
from automl_tl.scaffold import write_plugin
from automl_tl.testing import check_strategy

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "writing-a-plugin.md").read_text(encoding="utf-8")
FOLDER = "automl_tl_head_start"
PIP = ("--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation", "--upgrade", "--target")
Command = Callable[[str], str]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("desk")


@pytest.fixture(scope="module")
def command(place: Path, tmp_path_factory: pytest.TempPathFactory, make_home: Callable[[], Path]) -> Command:
    """Runs a line of the page; what `pip` installs goes into a temporary place."""
    site, home = tmp_path_factory.mktemp("site"), make_home()
    environment = {**os.environ, "PYTHONPATH": str(site), "AUTOML_TL_HOME": str(home)}
    modules = {"automl-tl": ["automl_tl.cli"], "pytest": ["pytest", "-p", "no:cacheprovider"], "pip": ["pip"]}

    def run(line: str) -> str:
        program, *words = shlex.split(line)
        if program == "pip":
            words[1:1] = [*PIP, str(site)]
        done = subprocess.run(
            [sys.executable, "-m", *modules[program], *words],
            env=environment,
            cwd=place,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return run


@pytest.mark.slow
def test_the_page_leads_to_a_ranked_and_trained_strategy(place: Path, command: Command) -> None:
    blocks = re.findall(r"```(sh|python)\n(.*?)```", PAGE, flags=re.DOTALL)
    assert [language for language, _ in blocks] == ["sh", "sh", "python", "sh"]
    said: dict[str, str] = {}
    for language, text in blocks:
        if language == "python":
            (place / FOLDER / f"{FOLDER}.py").write_text(text, encoding="utf-8")
            continue
        for line in text.splitlines():
            said[line] = command(line)
    files = {str(path.relative_to(place / FOLDER)) for path in (place / FOLDER).rglob("*") if path.is_file()}
    for named in ("pyproject.toml", f"{FOLDER}.py", f"tests/test_{FOLDER}.py", "README.md"):
        assert named in files
        assert f"`{named}`" in PAGE
    assert "head-start" in said["automl-tl plugins list"]
    assert "1 passed" in said[f"pytest {FOLDER}"]
    assert "head-start" in said["automl-tl recommend digits --strategy head-start --top 3"]
    assert "Winner: head-start on" in said['automl-tl fit digits --strategy head-start --budget "1 trials" --out run']


def test_what_is_written_passes_the_kit(tmp_path: Path) -> None:
    folder = write_plugin("my-method", tmp_path)
    module = types.ModuleType("automl_tl_my_method")
    exec(compile((folder / "automl_tl_my_method.py").read_text(encoding="utf-8"), "automl_tl_my_method.py", "exec"), vars(module))
    (strategy,) = module.register_strategies()
    assert (strategy.__name__, strategy.name) == ("MyMethod", "my-method")
    check_strategy(strategy, draws=0)


def test_a_name_that_is_none_or_is_taken_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'My Method' is no name"):
        write_plugin("My Method", tmp_path)
    with pytest.raises(InputError, match="a strategy 'linear-probe' already"):
        write_plugin("linear-probe", tmp_path)
    for name in ("none", "true", "false"):
        with pytest.raises(InputError, match=f"'{name}' is no name for a strategy: Python keeps {name.capitalize()} for itself"):
            write_plugin(name, tmp_path)
    with pytest.raises(InputError, match="there is a Python package automl_tl_plugins already"):
        write_plugin("plugins", tmp_path)
    with pytest.raises(InputError, match=r"pyproject.toml: is not a folder that can be written to; choose another --out"):
        write_plugin("my-method", Path(__file__).parents[1] / "pyproject.toml" / "inside")
    folder = write_plugin("my-method", tmp_path)
    assert folder == tmp_path / "automl_tl_my_method"
    with pytest.raises(InputError, match="is there already"):
        write_plugin("my-method", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["automl_tl_my_method"], "nothing half-written is left"
    assert "class MyMethod(" in (folder / "automl_tl_my_method.py").read_text(encoding="utf-8")
    assert not [path for path in folder.rglob("*") if path.is_file() and "$" in path.read_text(encoding="utf-8")]
