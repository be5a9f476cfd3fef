"""A separate distribution, installed with pip into a temporary place, is on the same road as the built-ins."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pictures import lay
from PIL import Image
from small import arrays

SOURCE = Path(__file__).parent / "thirdparty" / "automl_tl_extra"
BACKBONE = "mobilenetv4_small_050.tiny_imagenet_64"
Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory, make_home: Callable[[], Path]) -> Command:
    """`automl-tl` in an environment where the distribution is installed, with a home of its own."""
    place, copy = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("source") / "automl_tl_extra"
    shutil.copytree(SOURCE, copy)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(place), str(copy)], check=True, capture_output=True, text=True)
    home = make_home()
    environment = {**os.environ, "PYTHONPATH": str(place), "AUTOML_TL_HOME": str(home)}

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "automl_tl.cli", *map(str, words)]
        return subprocess.run(line, env=environment, cwd=home, capture_output=True, text=True, check=False)

    return run


@pytest.fixture(scope="module")
def listed(command: Command) -> subprocess.CompletedProcess[str]:
    return command("plugins", "list", "--json")


def facts(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_it_is_listed_with_its_origin(listed: subprocess.CompletedProcess[str]) -> None:
    plugins = {plugin["name"]: plugin for plugin in facts(listed)}
    assert plugins["nearest_mean"]["distribution"] == "automl_tl_extra"
    assert plugins["nearest_mean"]["version"] == "0.3"
    assert plugins["nearest_mean"]["hooks"] == ["register_strategies"]


def test_one_that_cannot_be_imported_is_named_and_breaks_nothing(listed: subprocess.CompletedProcess[str]) -> None:
    plugins = {plugin["name"]: plugin for plugin in facts(listed)}
    assert plugins["unimportable"]["error"] == "ImportError: needs a library that nobody has"
    assert plugins["strategies.linear_probe"]["error"] == ""
    assert "'unimportable' of automl_tl_extra 0.3 is left out" in listed.stderr


@pytest.mark.slow
def test_it_is_ranked(command: Command) -> None:
    ranking = facts(command("recommend", "digits", "--backbone", BACKBONE, "--top", 1000, "--json"))["ranking"]
    assert "nearest-centre" in {item["candidate"]["strategy"] for item in ranking}


def test_it_is_trained_and_recorded_and_one_that_raises_costs_only_itself(command: Command, tmp_path: Path) -> None:
    classes: dict[str, list[Image.Image]] = {}
    for number, (image, label) in enumerate(zip(*arrays(150), strict=True)):
        classes.setdefault(f"{'train' if number % 4 else 'test'}/{label}", []).append(Image.fromarray(image))
    place = lay(tmp_path / "handwriting", classes)
    only = ("--strategy", "nearest-centre", "--strategy", "stumbles", "--backbone", BACKBONE)
    outcome = facts(command("fit", place, "--budget", "6 trials", *only, "--out", tmp_path / "run", "--json"))
    assert outcome["winner"]["candidate"]["strategy"] == "nearest-centre"
    assert outcome["winner"]["test"]["accuracy"] > 0.5
    failed = [trial for trial in outcome["trials"] if trial["status"] == "failed"]
    assert failed
    assert {trial["candidate"]["strategy"] for trial in failed} == {"stumbles"}
    assert failed[0]["error"] == "stumbles: RuntimeError: stumbled in the second epoch"
    assert failed[0]["validation"] == {}
    found = facts(command("history", "list", "--task", "handwriting", "--limit", 5000, "--json"))
    recorded = {trial["id"]: trial for trial in found}
    for trial in outcome["trials"]:
        assert recorded[trial["id"]]["status"] == trial["status"]
    report = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "stumbled in the second epoch" in report
