"""The database under faults: many writers at once, a process killed at any moment, the power cut at any moment, clocks that jump.

A power cut is staged as what the disk may hold then: the database and its log (WAL) as they were at one instant, and, because
the end of a log may not have reached the disk, the log cut at a random byte after the last commit that was reported as done, or
followed by rubbish.
"""

from __future__ import annotations

import multiprocessing
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from test_history import BACKBONE, task, trial

from automl_tl.errors import HistoryError
from automl_tl.history import History, open_history

WRITER = """
import sys
sys.path.insert(0, sys.argv[1])
import automl_tl.history
automl_tl.history._add_shipped = lambda history: None
from pathlib import Path
from automl_tl.history import open_history
from test_history import BACKBONE, task, trial
with open_history(Path(sys.argv[2])) as history:
    history.record_task(task(), "photos")
    history.record_backbone(BACKBONE)
    {work}
"""
RECORDING = """
    for number in range(int(sys.argv[3]), 10**6):
        history.record_trial(trial(number))
        print(trial(number).id, flush=True)
"""
IMPORTING = """
    print("begin", flush=True)
    history.import_facts(Path(sys.argv[3]))
    print("done", flush=True)
"""


@pytest.fixture(autouse=True)
def nothing_shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("automl_tl.history._add_shipped", lambda history: None)


def start(work: str, path: Path, argument: object) -> subprocess.Popen[str]:
    code = WRITER.replace("    {work}", work.strip("\n"))
    line = [sys.executable, "-c", code, str(Path(__file__).parent), str(path), str(argument)]
    return subprocess.Popen(line, stdout=subprocess.PIPE, text=True)


def recorded(history: History) -> set[str]:
    """The trials in it; a database that was never finished being made has none."""
    assert history.integrity() == []
    return set(history.known())


# Many writers


def _write(path: Path, first: int, count: int) -> None:
    import automl_tl.history

    automl_tl.history._add_shipped = lambda history: None
    with open_history(path) as history:
        history.record_task(task(), "photos")
        history.record_backbone(BACKBONE)
        for number in range(first, first + count):
            history.record_trial(trial(number))


@pytest.mark.parametrize(("writers", "each"), [(4, 30), pytest.param(8, 500, marks=pytest.mark.slow)])
def test_many_processes_write_at_once(writers: int, each: int, tmp_path: Path) -> None:
    """They all begin with no database at all; half of each one's trials are also another's."""
    path, context = tmp_path / "history.db", multiprocessing.get_context("spawn")
    jobs = [(path, first * each // 2, each) for first in range(writers)]
    processes = [context.Process(target=_write, args=job) for job in jobs]
    for process in processes:
        process.start()
    for process in processes:
        process.join(540)
        assert process.exitcode == 0
    with open_history(path) as history:
        assert recorded(history) == {trial(number).id for number in range((writers + 1) * each // 2)}
        assert all(len(history.trial(id).curve) == 2 for id in recorded(history))
        assert history.summary().get("other results", 0) == 0


def _open_fresh(folder: Path, rounds: int, together: Barrier) -> None:
    import automl_tl.history

    automl_tl.history._add_shipped = lambda history: None
    for number in range(rounds):
        together.wait(60)
        with open_history(folder / f"{number}.db") as history:
            history.record_task(task(), "photos")


@pytest.mark.slow
def test_many_processes_open_a_fresh_home_together(tmp_path: Path) -> None:
    rounds, context = 8, multiprocessing.get_context("spawn")
    together = context.Barrier(6)
    processes = [context.Process(target=_open_fresh, args=(tmp_path, rounds, together)) for _ in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    for number in range(rounds):
        with open_history(tmp_path / f"{number}.db") as history:
            assert history.integrity() == []
            assert history.knows("f" * 16)


def test_a_history_that_is_in_use_is_not_to_be_moved_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("automl_tl.history.BUSY_SECONDS", 0.05)
    with closing(sqlite3.connect(tmp_path / "history.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(HistoryError, match=r"history\.db: another process is using it \(.*\); try again") as caught:
            open_history(tmp_path / "history.db")
    assert "move it away" not in str(caught.value)
    open_history(tmp_path / "history.db")


# The power is cut


def photograph(path: Path, process: subprocess.Popen[str], folder: Path) -> Path:
    """The files of the database at one instant: the writer stands still meanwhile."""
    folder.mkdir()
    process.send_signal(signal.SIGSTOP)
    try:
        for suffix in ("", "-wal"):
            if (file := path.with_name(path.name + suffix)).exists():
                shutil.copy(file, folder / file.name)
    finally:
        process.send_signal(signal.SIGCONT)
    return folder / path.name


def lines_until(process: subprocess.Popen[str], deadline: float) -> Iterator[str]:
    assert process.stdout is not None
    while time.monotonic() < deadline and (line := process.stdout.readline()):
        yield line.strip()


@pytest.mark.parametrize("cuts", [4, pytest.param(60, marks=pytest.mark.slow)])
def test_what_was_recorded_survives_a_power_cut(cuts: int, tmp_path: Path) -> None:
    path, rng, done = tmp_path / "history.db", random.Random(cuts), set[str]()
    process = start(RECORDING, path, 0)
    try:
        for cut in range(cuts):
            for line in lines_until(process, time.monotonic() + rng.uniform(0.02, 0.4)):
                done.add(line)
            assert done
            log = path.with_name(f"{path.name}-wal")
            size, data = log.stat().st_size, path.read_bytes()
            before = set(done)
            time.sleep(rng.uniform(0, 0.05))
            copy = photograph(path, process, tmp_path / f"cut{cut}")
            with open_history(copy) as history:
                assert before <= recorded(history)
            torn = photograph(path, process, tmp_path / f"torn{cut}")
            if torn.read_bytes() != data:  # pages were moved from the log, which had reached the disk for that
                continue
            tail = torn.with_name(f"{torn.name}-wal")
            content = tail.read_bytes()
            assert len(content) >= size
            cut_at = rng.randint(size, len(content))
            rubbish = rng.randbytes(rng.randint(0, 10_000)) if rng.random() < 0.5 else b""
            tail.write_bytes(content[:cut_at] + rubbish)
            with open_history(torn) as history:
                assert before <= recorded(history)
    finally:
        process.kill()
        process.communicate()
    with open_history(path) as history:
        assert done <= recorded(history), "nor is anything lost to kill -9"
        number = len(recorded(history))
        history.record_trial(trial(number + 1))


@pytest.mark.parametrize("cuts", [3, pytest.param(40, marks=pytest.mark.slow)])
def test_an_import_is_there_whole_or_not_at_all(cuts: int, tmp_path: Path) -> None:
    """Killed at random moments; what the disk held then is opened, too."""
    with open_history(tmp_path / "large.db") as large:
        large.record_task(task(), "photos")
        large.record_backbone(BACKBONE)
        for number in range(400):
            large.record_trial(trial(number))
        large.export(tmp_path / "text")
    rng, length = random.Random(cuts), 0.5
    for cut in range(cuts):
        path = tmp_path / f"{cut}.db"
        process = start(IMPORTING, path, tmp_path / "text")
        assert process.stdout is not None
        assert process.stdout.readline() == "begin\n"
        begun = time.monotonic()
        if cut == 0:  # the first is left alone, for its length
            assert process.stdout.readline() == "done\n"
            length = time.monotonic() - begun
        time.sleep(rng.uniform(0, 1.1) * length * (cut > 0))
        copy = photograph(path, process, tmp_path / f"cut{cut}")
        process.kill()
        process.communicate()
        for file in (copy, path):
            with open_history(file) as history:
                assert len(recorded(history)) in (0, 400)
                assert history.import_facts(tmp_path / "text")["trials"] in (0, 400)
                assert len(recorded(history)) == 400


# Other faults


def test_clocks_that_jump_do_not_matter(tmp_path: Path) -> None:
    """Nothing is ordered by a date: neither what is newest, nor what is learnt, nor which result came first."""
    dates = ["2026-11-24T10:00:00+00:00", "1970-01-01T00:00:00+00:00", "2038-01-19T03:14:08+00:00", "not a date", ""]
    digests = set()
    for name, order in (("a", dates), ("b", dates[::-1])):
        with open_history(tmp_path / f"{name}.db") as history:
            history.record_task(task(), "photos")
            history.record_backbone(BACKBONE)
            for number, date in enumerate(order):
                history.record_trial(trial(number, provenance={"command": "test", "speed": 1e9, "date": date}))
            assert [one.id for one in history.find()[1]] == [trial(number).id for number in reversed(range(len(dates)))]
            earlier = replace(trial(0), seconds=1.0, provenance={"date": "1970-01-01T00:00:00+00:00", "speed": 1e9})
            history.record_trial(earlier)
            assert history.trial(trial(0).id).seconds == 3.0
            digests.add(history.digest())
    assert len(digests) == 1


def test_a_full_disk_changes_nothing(tmp_path: Path) -> None:
    """SQLite's own limit of pages stands in for the disk's end: the same error at the same place."""
    with open_history(tmp_path / "history.db") as history:
        history.record_task(task(), "photos")
        history.record_backbone(BACKBONE)
        history.record_trial(trial())
        (pages,) = history.db.execute("PRAGMA page_count").fetchone()
        history.db.execute(f"PRAGMA max_page_count = {pages + 2}")
        with pytest.raises(HistoryError, match="full; nothing was changed"):
            history.record_trial(trial(1, error="x" * 50_000))
        count = len(recorded(history))
        history.db.execute("PRAGMA max_page_count = 1000000")
        history.record_trial(trial(2000))
        assert len(recorded(history)) == count + 1
