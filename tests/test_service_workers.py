"""The process of a job, and the lines that it and the server write."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from filelock import FileLock
from serving import left_by, wait_until

from automl_tl.service import events
from automl_tl.service.jobs import Jobs


def test_a_worker_that_starts_while_the_server_stops_is_ended(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path)
    job = jobs.submit("profile", {"seed": 0, "zoo": None}, tmp_path / "nowhere")
    os.mkfifo(tmp_path / job.id / "worker.log")  # until somebody reads it, the thread waits between taking the job and its start
    stopping = threading.Thread(target=jobs.stop, daemon=True)
    with FileLock(tmp_path / job.id / "worker.lock"):  # what the worker would wait for, for a minute
        jobs.start()
        wait_until(lambda: jobs.get(job.id).state == "running")
        stopping.start()
        wait_until(lambda: jobs._stopping)
        reader = os.open(tmp_path / job.id / "worker.log", os.O_RDONLY | os.O_NONBLOCK)
        stopping.join(30)
        os.close(reader)
        assert not stopping.is_alive()
    assert Jobs(tmp_path).get(job.id).state == "queued", "it goes on at the next start"


def test_a_worker_ends_with_its_server(tmp_path: Path) -> None:
    job = left_by("running", tmp_path, 1)
    line = [sys.executable, "-m", "automl_tl.service.worker", str(tmp_path / job.id)]
    worker = subprocess.Popen(line, stdin=subprocess.PIPE)
    assert worker.stdin is not None
    worker.stdin.close()  # as the end of the server does, however it ends
    assert worker.wait(300) == 3


WORKER = """#!{python}
import sys, time
from pathlib import Path
from automl_tl import guard
from automl_tl.service import worker

def training(job, folder):
    trial = folder / "run" / "trials" / "abc" / "checkpoints"
    trial.mkdir(parents=True, exist_ok=True)
    with guard.outlived(trial):
        (folder / "there").touch()
        while True:
            try:
                time.sleep(60)
            except KeyboardInterrupt:
                pass  # it hangs

worker._do, sys.argv = training, ["worker", sys.argv[-1]]
worker.main()
"""
"""In place of Python: a worker that is always in the middle of a trial."""


@pytest.mark.parametrize("how", ["stop", "cancel"])
def test_a_trial_is_not_to_blame_that_its_worker_was_ended(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "python").write_text(WORKER.format(python=sys.executable))
    (tmp_path / "python").chmod(0o700)
    monkeypatch.setattr("automl_tl.service.jobs.sys.executable", str(tmp_path / "python"))
    monkeypatch.setattr("automl_tl.service.jobs.GRACE_SECONDS", 0.1)
    jobs = Jobs(tmp_path / "jobs")
    folder = jobs.path(jobs.submit("fit", {}, tmp_path).id)
    jobs.start()
    marks = folder / "run" / "trials" / "abc" / "checkpoints" / "deaths.txt"
    try:
        wait_until((folder / "there").exists)
        assert marks.read_text() == "x"
        if how == "cancel":
            jobs.cancel(folder.name)
            wait_until(lambda: jobs.ended(folder.name))
            assert jobs.get(folder.name).state == "cancelled"
    finally:
        jobs.stop()
    assert not marks.exists()


def test_a_worker_that_hears_nothing_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "python").write_text(f"#!/bin/sh\ntouch {tmp_path}/there\nexec sleep 60\n")
    (tmp_path / "python").chmod(0o700)
    monkeypatch.setattr("automl_tl.service.jobs.sys.executable", str(tmp_path / "python"))
    monkeypatch.setattr("automl_tl.service.jobs.LAST_WORDS", 0.1)
    jobs = Jobs(tmp_path / "jobs")
    jobs.submit("fit", {}, tmp_path)
    jobs.start()
    wait_until((tmp_path / "there").exists)
    start = time.monotonic()
    jobs.stop()
    assert time.monotonic() - start < 10


def test_lines_are_added_where_no_place_can_be_read_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """os.pread is Unix's alone."""
    monkeypatch.delattr(os, "pread", raising=False)
    events.append(tmp_path, "state", {"number": 1})
    with (tmp_path / events.EVENTS).open("ab") as file:
        file.write(b'{"event": "cut o')
    events.append(tmp_path, "state", {"number": 2})
    events.append(tmp_path, "state", {"number": 3})
    assert [event.facts["number"] for event in events.read(tmp_path)] == [1, 2, 3]
    assert (tmp_path / events.EVENTS).read_bytes().count(b"\n") == 4


def test_lines_of_two_writers_never_mix(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: events.append(tmp_path, "epoch", {"number": number, "score": float("nan")}), range(400)))
    found = list(events.read(tmp_path))
    assert sorted(event.facts["number"] for event in found) == list(range(400))
    assert {event.facts["score"] for event in found} == {None}, "JSON has no NaN"
    assert found[-1].end == (tmp_path / events.EVENTS).stat().st_size
    assert list(events.read(tmp_path, found[200].end)) == found[201:]
