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

import numpy as np
import pytest
from PIL import Image
from small import QUICK, arrays

from automl_tl import fit, predict
from automl_tl.cli import main
from automl_tl.errors import InputError, PluginError
from automl_tl.history import open_history
from automl_tl.progress import alone_in


def command(images: Path, out: Path) -> list[str]:
    """Two fine-tunings that are paused and taken up again, and a probe that is finished in between."""
    only = ["--backbone", QUICK, "--strategy", "linear-probe", "--strategy", "fine-tuning"]
    limits = ["--budget", "3 trials + 14 epochs"]
    return [sys.executable, "-m", "automl_tl.cli", "fit", str(images), *limits, *only, "--out", str(out), "--json"]


def recorded(out: Path) -> dict[str, float]:
    """Trials that the run's folder says are finished or paused, and the epochs of each; every file must be whole."""
    trials = [json.loads(path.read_text()) for path in out.glob("trials/*/trial.json")]
    return {trial["id"]: trial["curve"][-1]["epoch"] if trial["curve"] else 0 for trial in trials}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of real handwriting."""
    folder = tmp_path_factory.mktemp("digits")
    for number, (image, label) in enumerate(zip(*arrays(300), strict=True)):
        of_class = folder / ("train" if number % 4 else "test") / str(label)
        of_class.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(of_class / f"{number}.png")
    return folder


def start(images: Path, out: Path, home: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "AUTOML_TL_HOME": str(home), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command(images, out), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def check(out: Path, home: Path, monkeypatch: pytest.MonkeyPatch, seen: dict[str, float]) -> dict[str, float]:
    """What was recorded before is still there, no epoch shorter, in the folder and in a sound database."""
    now = recorded(out)
    assert all(now.get(id_, -1) >= epochs for id_, epochs in seen.items())
    monkeypatch.setenv("AUTOML_TL_HOME", str(home))
    if (home / "history.db").exists():
        with open_history() as history:
            assert history.integrity() == []
            assert now.keys() <= history.known().keys()
    return now


def test_one_process_at_a_time_works_in_a_folder(
    images: Path, tmp_path: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    monkeypatch.setattr(sys, "argv", command(images, out)[2:])
    with alone_in(out), pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert f"another process is working in {out}; wait for it, or choose another --out" in capsys.readouterr().err
    assert not out.exists(), "nothing came into it"


def test_a_process_that_is_killed_gives_its_folder_free(tmp_path: Path) -> None:
    program = "import sys, time\nfrom pathlib import Path\nfrom automl_tl.progress import alone_in\n"
    program += "with alone_in(Path(sys.argv[1])):\n    print('there', flush=True)\n    time.sleep(300)\n"
    out = tmp_path / "runs" / "photos"
    holder = subprocess.Popen([sys.executable, "-c", program, str(out)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    with holder:
        assert holder.stdout.readline() == "there\n"
        with pytest.raises(InputError, match=r"another process is working in .*photos; wait for it"), alone_in(out):
            pass
        holder.kill()
    with alone_in(out):
        (out / "kept").touch()
    with alone_in(out):
        assert (out / "kept").exists()


def test_a_folder_that_nothing_came_into_is_not_left(images: Path, tmp_path: Path, own_home: Path) -> None:
    with pytest.raises(PluginError, match="nosuch"):
        fit(images, budget="1 trials", out=tmp_path / "runs" / "photos", strategies=["nosuch"])
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("kills", [1, 10])
def test_kill_minus_nine(kills: int, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, out, rng, seen = tmp_path / "home", tmp_path / "run", random.Random(kills), dict[str, float]()
    begun = time.monotonic()
    whole = start(images, tmp_path / "whole", tmp_path / "quiet home")
    expected, errors = whole.communicate(timeout=600)
    assert whole.returncode == 0, errors
    length = time.monotonic() - begun
    for _ in range(kills):
        process = start(images, out, home)
        try:
            process.communicate(timeout=rng.uniform(0.1, 0.7) * length)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
        seen = check(out, home, monkeypatch, seen)
    last = start(images, out, home)
    printed, errors = last.communicate(timeout=600)
    assert last.returncode == 0, errors
    assert check(out, home, monkeypatch, seen), "there was something to lose"
    one, other = json.loads(expected), json.loads(printed)
    assert other["winner"]["id"] == one["winner"]["id"]
    assert other["winner"]["test"] == one["winner"]["test"]
    assert {trial["id"] for trial in other["trials"]} == {trial["id"] for trial in one["trials"]}
    unseen = images / "test"
    np.testing.assert_array_equal(predict(out, unseen).probabilities, predict(tmp_path / "whole", unseen).probabilities)


@pytest.mark.slow
def test_interrupt_from_the_keyboard_ends_cleanly(images: Path, tmp_path: Path) -> None:
    process = start(images, tmp_path / "run", tmp_path / "home")
    deadline = time.monotonic() + 300
    while not list((tmp_path / "run").glob("trials/*/model.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=300)
    assert "Traceback" not in errors
    assert process.returncode == 130, errors
    if printed:
        assert json.loads(printed)["winner"]["test"]["accuracy"] > 0.3
