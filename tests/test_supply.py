"""What comes with the package: few dependencies, known licences, a quick start, and no word to the network unasked."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

import pytest
from small import QUICK

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DOCUMENT = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
PERMISSIVE = re.compile(r"MIT|BSD|Apache|0BSD|Zlib|CC0|BSL-1\.0|HPND|PSF|Python Software Foundation|ISC")
COPYLEFT = re.compile(r"\bA?GPL|GNU (Affero )?General", re.IGNORECASE)


def name_of(requirement: str) -> str:
    found = re.match(r"[\w.-]+", requirement)
    assert found
    return found[0]


def licence_of(name: str) -> str:
    facts = metadata(name)
    classifiers = [line.rpartition("::")[2].strip() for line in facts.get_all("Classifier") or () if line.startswith("License")]
    return facts.get("License-Expression") or "; ".join(classifiers) or facts.get("License") or ""


def test_every_direct_dependency_is_justified() -> None:
    rows = re.findall(r"^\| ([\w-]+) \| (.+?) \| (.+?) \|$", DOCUMENT.partition("| extra |")[0], flags=re.MULTILINE)
    told = {name: why for name, why, _ in rows if name not in ("package", "---")}
    assert told.keys() == {name_of(each) for each in PROJECT["dependencies"]}
    assert all(why.strip("- ") for why in told.values())


def test_every_extra_is_told_of() -> None:
    rows = re.findall(r"^\| ([\w-]+) \| (.+?) \| .+? \|$", DOCUMENT.partition("| extra |")[2], flags=re.MULTILINE)
    told = {extra: brings.split(", ") for extra, brings in rows if extra != "---"}
    assert told == {extra: list(map(name_of, needs)) for extra, needs in PROJECT["optional-dependencies"].items()}


@pytest.mark.parametrize("name", [name_of(each) for each in PROJECT["dependencies"]])
def test_licences_are_permissive(name: str) -> None:
    licence = licence_of(name)
    assert PERMISSIVE.search(licence), licence
    assert not COPYLEFT.search(licence), licence


def test_licences_of_extras_are_permissive() -> None:
    looked_at = 0
    for extra, needs in PROJECT["optional-dependencies"].items():
        for name in map(name_of, needs):
            try:
                licence = licence_of(name)
            except PackageNotFoundError:  # an extra that is not installed
                continue
            looked_at += 1
            assert not COPYLEFT.search(licence), f"{extra}: {name}: {licence}"
    assert looked_at


@pytest.mark.parametrize(
    ("words", "most", "modules"), [(["-c", "import automl_tl"], 0.5, 150), (["-m", "automl_tl.cli", "--help"], 2.0, 900)]
)
def test_import_budget(words: list[str], most: float, modules: int) -> None:
    """In seconds of the processor, so that a busy machine does not matter; and in modules beyond those of Python alone."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-X", "importtime", *words], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < most
    assert sum(line.startswith("import time:") for line in done.stderr.splitlines()) < modules


BLOCKED = """
import sys

def refuse(event, values):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        raise RuntimeError(f"somebody asked the network: {event} {values[-1]!r}")

sys.addaudithook(refuse)
import numpy as np
from small import arrays
import automl_tl
"""
ADVICE = """
task = automl_tl.load_task(arrays(120), test=0.25)
advice = automl_tl.recommend(task, backbones=[{quick!r}], strategies=["linear-probe"])
assert advice.ranking.items
"""
WHOLE = """
outcome = automl_tl.fit(arrays(200), budget="2 trials", out={out!r}, backbones=[{quick!r}])
assert outcome.winner is not None
assert len(automl_tl.predict({out!r}, arrays(3)[0]).labels) == 3
automl_tl.export({out!r}, to="timm")
"""


@pytest.mark.usefixtures("used_home")
@pytest.mark.parametrize("script", [ADVICE, pytest.param(WHOLE, marks=pytest.mark.slow)], ids=["advice", "whole"])
def test_no_word_to_the_network_unless_asked(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every connection and every look-up of a name refused, and nothing said to be offline."""
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))
    code = BLOCKED + script.format(quick=QUICK, out=str(tmp_path / "run"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
