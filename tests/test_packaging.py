"""The wheel and the editable installation, each in a fresh environment."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("automl_tl", "plugins", "metadb", "pyproject.toml", "README.md", "LICENSE")
PIP = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean copy of what is built."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in COPIED:
        ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
        (shutil.copytree(ROOT / name, copy / name, ignore=ignore) if (ROOT / name).is_dir() else shutil.copy(ROOT / name, copy))
    return copy


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(checkout)]
    subprocess.run(build, check=True, capture_output=True, text=True)
    (built,) = out.glob("*.whl")
    return built


def fresh(folder: Path) -> Path:
    """The Python of a new environment that sees this one's libraries, but not its installation of automl_tl.

    Downloading torch again would take minutes and prove nothing; a link to each library does.
    """
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    script = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    site = Path(subprocess.run([python, "-c", script], check=True, capture_output=True, text=True).stdout.strip())
    for library in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if "automl_tl" not in library.name and not (site / library.name).exists():
            (site / library.name).symlink_to(library)
    return python


def run(python: Path, *words: str, home: Path) -> str:
    """What a command prints, started outside the checkout."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"AUTOML_TL_HOME": str(home)}
    done = subprocess.run([python, *words], cwd=home, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_the_wheel_holds(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    tops = {name.split("/")[0] for name in names if "dist-info" not in name}
    assert tops == {"automl_tl", "automl_tl_plugins"}
    for needed in (
        "automl_tl/py.typed",
        "automl_tl/report/page.html",
        "automl_tl/metadb/trials.jsonl",
        "automl_tl/metadb/SOURCES.md",
        "automl_tl_plugins/zoos/networks/resnet10t_40.tiny_imagenet_64.safetensors",
        "automl_tl_plugins/zoos/networks/timm_architectures.csv",
    ):
        assert needed in names
    assert not [name for name in names if "__pycache__" in name or name.endswith((".pt", ".pkl"))]
    assert wheel.stat().st_size < 20e6


@pytest.mark.parametrize("editable", [pytest.param(False, id="wheel"), pytest.param(True, id="editable", marks=pytest.mark.slow)])
def test_it_works_outside_the_checkout(editable: bool, checkout: Path, wheel: Path, tmp_path: Path) -> None:
    python = fresh(tmp_path / "environment")
    home = tmp_path / "home"
    home.mkdir()
    run(python, *PIP, *(("--editable", str(checkout)) if editable else (str(wheel),)), home=home)
    where = run(python, "-c", "import automl_tl, automl_tl_plugins, automl_tl.metadb; print(automl_tl.__file__)", home=home)
    assert where.startswith(str(checkout if editable else tmp_path / "environment"))
    tool = str(tmp_path / "environment" / "bin" / "automl-tl")
    plugins = json.loads(run(python, tool, "plugins", "list", "--json", home=home))
    assert len(plugins) >= 20
    assert {plugin["error"] for plugin in plugins} == {""}
    assert {plugin["distribution"] for plugin in plugins} == {"automl_tl"}
    summary = run(python, tool, "history", "list", "--limit", "1", home=home)
    assert "trials: " in summary, "the shipped facts are in a new home"
    advice = json.loads(run(python, tool, "recommend", "digits", "--top", "1", "--json", home=home))
    assert "trials over" in advice["basis"]


@pytest.mark.slow
def test_pip_install_with_its_dependencies(checkout: Path, tmp_path: Path) -> None:
    """As a stranger does it: a new environment with nothing in it, everything from the index."""
    venv.create(tmp_path / "environment", with_pip=True)
    python = tmp_path / "environment" / "bin" / "python"
    home = tmp_path / "home"
    home.mkdir()
    constraints = str(ROOT / "constraints.txt")
    run(python, "-m", "pip", "install", "--quiet", "-c", constraints, str(checkout), home=home)
    assert "usage" in run(python, "-m", "automl_tl.cli", "--help", home=home).lower()
    run(python, "-m", "automl_tl.cli", "recommend", "digits", home=home)
