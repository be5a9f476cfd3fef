"""Work on processes and on a Ray cluster: the same work, the same facts, whoever does it and whatever becomes of them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from small import QUICK, TINY, arrays, digits

from automl_tl import fit, predict
from automl_tl.campaign import Plan, TaskPlan, build_history
from automl_tl.errors import AutomlError, InputError, PluginError, WorkerLost
from automl_tl.history import open_history
from automl_tl.records import Trial
from automl_tl.workers import open_workers, results

DIGITS = TaskPlan("few digits", "digits", "digits", per_class=8, most_judged=60)
PLAN = Plan((DIGITS,), trials=3, strategies=("linear-probe", "from-scratch"), backbones=(TINY, QUICK))
SAID = ("trials", "strategies", "backbones")


def divided(unit: int) -> tuple[float, int]:
    import torch

    return 1 / unit, torch.get_num_threads()


def fatal(unit: int) -> int:
    if unit == 0:
        os._exit(1)
    return unit


def test_every_unit_comes_back_and_errors_are_those_of_the_work() -> None:
    with open_workers(most=1) as workers:
        assert workers.size == 1
        assert dict(results(workers, divided, [1, 2, 4, 5])) == {1: (1.0, 1), 2: (0.5, 1), 4: (0.25, 1), 5: (0.2, 1)}
        with pytest.raises(ZeroDivisionError):
            list(results(workers, divided, [1, 0]))


@pytest.mark.slow
def test_a_unit_that_no_process_survives_is_given_up_and_the_others_are_done() -> None:
    with open_workers(most=2) as workers:
        found = dict(results(workers, fatal, range(4)))
    assert str(found.pop(0)) == "lost 4 workers (no memory left?)"
    assert found == {1: 1, 2: 2, 3: 3}


def test_no_cluster_or_no_package_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    for address in ("127.0.0.1:1", "nonsense"):
        with pytest.raises(InputError, match=rf"--ray {address}.*'local' starts one"), open_workers(address):
            pass
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(PluginError, match=r"pip install 'automl_tl\[ray\]'"), open_workers("local"):
        pass


@pytest.mark.slow
def test_on_ray_a_unit_that_no_worker_survives_is_given_up_and_the_others_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    with open_workers("local", most=1) as workers, pytest.raises(AutomlError, match="No module named 'test_workers'; install"):
        list(results(workers, divided, [1]))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    with open_workers("local", most=2) as workers:
        assert workers.size == 2
        found = dict(results(workers, fatal, range(4)))
        with pytest.raises(ZeroDivisionError, match=r"^division by zero$"):
            list(results(workers, divided, [0]))
    assert isinstance(found.pop(0), WorkerLost)
    assert found == {1: 1, 2: 2, 3: 3}


def kill_one_at_work(killed: list[int], *, after: float) -> None:
    """Kill the first Ray worker under this process that has been working for `after` seconds."""
    since: dict[int, float] = {}
    while not killed:
        time.sleep(0.1)
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "ray::_on_one_thread" not in " ".join(process.cmdline()):
                    since.pop(process.pid, None)
                elif time.monotonic() - since.setdefault(process.pid, time.monotonic()) > after:
                    process.kill()
                    killed.append(process.pid)
                    return


def facts(trial: Trial) -> dict[str, Any]:
    """What a trial came to, without what differs from run to run."""
    curve = [(point.epoch, point.loss, point.score) for point in trial.curve]
    return {"status": trial.status, "curve": curve, "validation": trial.validation, "test": trial.test}


def built(history: Path, **options: Any) -> dict[str, dict[str, Any]]:
    with open_history(history) as opened:
        before = opened.known().keys()
        build_history(PLAN, Path("."), opened, workers=2, say=lambda text: None, **options)
        return {id_: facts(opened.trial(id_)) for id_ in opened.known().keys() - before}


@pytest.mark.slow
def test_ray_and_processes_give_the_same_trials_though_a_worker_is_killed(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    killed: list[int] = []
    killer = threading.Thread(target=kill_one_at_work, args=(killed,), kwargs={"after": 2.0}, daemon=True)
    killer.start()
    by_ray = built(tmp_path / "ray.db", ray="local")
    assert killed, "nobody was killed: the trials are too short for this test"
    assert by_ray == built(tmp_path / "processes.db"), "to the last bit"
    assert len(by_ray) == PLAN.trials
    assert {trial["status"] for trial in by_ray.values()} == {"finished"}


@pytest.mark.slow
def test_a_build_on_ray_that_is_interrupted_goes_on_where_it_stopped(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    path = tmp_path / "plan.json"
    count = 9  # so many that the last cannot have ended before the first is heard of
    path.write_text(json.dumps({"tasks": [vars(DIGITS)], **{name: getattr(PLAN, name) for name in SAID}, "trials": count}))
    line = [
        sys.executable,
        "-m",
        "automl_tl.cli",
        "history",
        "build",
        str(path),
        "--data",
        ".",
        "--ray",
        "local",
        "--workers",
        "2",
    ]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stderr is not None
        heard = next((text for text in first.stdout if text.startswith(f"1/{count} ")), "")
        under = psutil.Process(first.pid).children(recursive=True)
        first.send_signal(signal.SIGINT)
        done = 1 + first.stdout.read().count(f"/{count} ")
        said = first.stderr.read()
    assert heard, said
    assert first.returncode == 130, said
    assert "error: interrupted; the same command goes on where it stopped" in said.splitlines()
    assert done < count
    assert under
    assert psutil.wait_procs(under, timeout=60)[1] == []
    second = subprocess.run(line, capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stderr
    assert f"{count - done} trials and " in second.stdout.splitlines()[0]
    assert second.stdout.splitlines()[-1] == f"{count - done} trials added"


@pytest.mark.slow
def test_a_fit_on_ray_survives_the_loss_of_a_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.chdir(tmp_path)
    killed: list[int] = []
    threading.Thread(target=kill_one_at_work, args=(killed,), kwargs={"after": 2.0}, daemon=True).start()
    chosen = {"strategies": ["fine-tuning"], "backbones": [QUICK], "trackers": ["tensorboard"]}
    outcome = fit(digits(), budget="3 trials + 60 epochs", out="run", ray="local", **chosen)  # type: ignore[arg-type]
    assert killed, "nobody was killed: the trials are too short for this test"
    assert len(outcome.trials) == 3
    assert sum(trial.curve[-1].epoch for trial in outcome.trials) <= 60
    assert "failed" not in {trial.status for trial in outcome.trials}
    assert outcome.winner.test["accuracy"] > 0.3
    assert predict("run", arrays(20)[0]).probabilities.shape == (20, 10)
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 3
    with open_history() as history:
        assert {trial.id for trial in outcome.trials} <= history.known().keys()
