"""`kill -9` at random moments: the next start goes on, and nothing that was finished is missing."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small import QUICK, TINY

from automl_tl.history import open_history

ENDED = {"finished", "failed"}


def command(out: Path) -> list[str]:
    only = ["--backbone", TINY, "--backbone", QUICK, "--strategy", "linear-probe", "--strategy", "fine-tuning"]
    limits = ["--budget", "4 trials + 12 epochs"]
    return [sys.executable, "-m", "automl_tl.cli", "fit", "digits", *limits, *only, "--out", str(out), "--json"]


def finished(out: Path) -> set[str]:
    """Trials that the run's folder says are done; every file that is there must be whole."""
    trials = [json.loads(path.read_text()) for path in out.glob("trials/*/trial.json")]
    return {trial["id"] for trial in trials if trial["status"] in ENDED}


def start(out: Path, home: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "AUTOML_TL_HOME": str(home), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command(out), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def check(out: Path, home: Path, monkeypatch: pytest.MonkeyPatch, seen: set[str]) -> set[str]:
    """What was finished before is still there, in the folder and in a sound database."""
    done = finished(out)
    assert seen <= done
    monkeypatch.setenv("AUTOML_TL_HOME", str(home))
    if (home / "history.db").exists():
        with open_history() as history:
            assert history.integrity() == []
            assert {id_ for id_ in done if history.known().get(id_) not in ENDED} == set()
    return done


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_kill_minus_nine(kills: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, out, rng, seen = tmp_path / "home", tmp_path / "run", random.Random(kills), set[str]()
    begun = time.monotonic()
    whole = start(tmp_path / "whole", tmp_path / "quiet home")
    expected, errors = whole.communicate(timeout=600)
    assert whole.returncode == 0, errors
    length = time.monotonic() - begun
    for _ in range(kills):
        process = start(out, home)
        try:
            process.communicate(timeout=rng.uniform(0.1, 0.7) * length)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
        seen = check(out, home, monkeypatch, seen)
    last = start(out, home)
    printed, errors = last.communicate(timeout=600)
    assert last.returncode == 0, errors
    check(out, home, monkeypatch, seen)
    one, other = json.loads(expected), json.loads(printed)
    assert other["winner"]["id"] == one["winner"]["id"]
    assert other["winner"]["test"] == one["winner"]["test"]
    assert {trial["id"] for trial in other["trials"]} == {trial["id"] for trial in one["trials"]}
    assert not list(out.rglob("*.partial")) or kills  # leftovers of killed writers are never taken for whole


def test_interrupt_from_the_keyboard_ends_cleanly(tmp_path: Path) -> None:
    process = start(tmp_path / "run", tmp_path / "home")
    deadline = time.monotonic() + 300
    while not list((tmp_path / "run").glob("trials/*/model.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=300)
    assert "Traceback" not in errors
    assert process.returncode in (0, 130), errors
    if process.returncode == 0:
        assert json.loads(printed)["winner"]["test"]["accuracy"] > 0.3
