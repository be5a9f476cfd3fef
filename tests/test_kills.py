"""benchmarks/faults.py: `kill -9` of five commands at random moments; and that it finds out commands that do lose something."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from importlib import import_module
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import _kills
from _kills import Run, Tally, kill
from _kills_database import copied, facts, note, trials, weakened, what_is_broken
from faults import COMMANDS, WRONG, failed, figures

ALL = 12
COMMAND = f"""
import sqlite3, subprocess, sys, time
way, home = sys.argv[1:]
db = sqlite3.connect(home + "/history.db", isolation_level=None)
db.execute("PRAGMA journal_mode = WAL")
db.execute("CREATE TABLE IF NOT EXISTS trials (id TEXT PRIMARY KEY, status TEXT)")
db.execute("CREATE TABLE IF NOT EXISTS points (trial TEXT, position INTEGER, PRIMARY KEY (trial, position))")
if way == "forgets":
    db.execute("DELETE FROM trials")
if way == "leaves a process":
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"], start_new_session=True)
if way == "at once":
    db.execute("BEGIN")
for number in range({ALL}):
    db.execute("INSERT OR IGNORE INTO trials VALUES (?, 'finished')", [str(number)])
    db.execute("INSERT OR IGNORE INTO points VALUES (?, 0)", [str(number)])
    if way == "forgets curves" and number > 2:
        db.execute("DELETE FROM points WHERE trial = ?", [str(number - 2)])
    end = time.process_time() + 0.06
    while time.process_time() < end:
        pass
if way == "at once":
    db.execute("COMMIT")
"""
"""A dozen trials in less than a second of computing, in several ways, most of them wrong."""


def tried(way: str, folder: Path) -> Tally:
    """A command that records in this way, killed. A part of the trials counts as half taken; some ways may take a part."""

    def begin(place: Path) -> Run:
        home = place / "home"
        home.mkdir(parents=True)

        def wrong(database: Path, expected: object) -> Iterator[tuple[str, str]]:
            if way in ("one by one", "at once") and 0 < (count := len(trials(database))) < ALL:
                yield "half_taken", f"{count} trials"

        def outcome(database: Path) -> object:
            return sorted(trials(database)), place.name if way == "ends otherwise" else ""

        line = [sys.executable, "-c", COMMAND, way, str(home)]
        return Run(home, line, outcome, wrong=wrong)

    return kill(way, begin, folder, 4)


def test_a_command_that_takes_all_at_once_loses_nothing(tmp_path: Path) -> None:
    tally = tried("at once", tmp_path)
    assert (tally.kills, tally.found.total()) == (4, 0)
    assert not failed({"at once": tally})


@pytest.mark.parametrize(
    ("way", "figure"),
    [
        ("one by one", "half_taken"),
        ("forgets", "lost_trials"),
        pytest.param("forgets curves", "lost_trials", marks=pytest.mark.slow),
        pytest.param("leaves a process", "left_running", marks=pytest.mark.slow),
        pytest.param("ends otherwise", "different_ends", marks=pytest.mark.slow),
    ],
)
def test_a_command_that_loses_is_found_out(way: str, figure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_kills, "ENDS_WITHIN", 0.5)
    tally = tried(way, tmp_path)
    assert tally.found[figure] > 0
    assert failed({way: tally})
    assert figures({way: tally})[figure] == tally.found[figure]
    assert {name for name, count in tally.found.items() if count} <= set(WRONG)


def test_nothing_killed_after_its_start_is_no_success() -> None:
    assert failed({"fit": Tally(kills=2, begun=0, ends=1)})
    assert failed({"fit": Tally(kills=2, begun=2, ends=0)})
    assert not failed({"fit": Tally(kills=2, begun=1, ends=1)})


def test_what_a_damaged_database_lost_is_seen(own_home: Path, tmp_path: Path) -> None:
    from automl_tl.history import open_history

    open_history().db.conn.close()
    path = copied(own_home, tmp_path / "copy")
    seen, before = trials(path), facts(path)
    assert len(seen) > 1000
    assert (what_is_broken(path), list(weakened(seen, trials(path)))) == ([], [])
    gone, shorter = sorted(id_ for id_, (_, points) in seen.items() if points > 1)[:2]
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("DELETE FROM points WHERE trial = ? AND position = 0", [shorter])
        database.execute("DELETE FROM points WHERE trial = ?", [gone])
        database.execute("DELETE FROM trials WHERE id = ?", [gone])
    assert len(list(weakened(seen, trials(path)))) == 2
    assert {table for table, rows in facts(path).items() if rows != before[table]} == {"points", "trials"}
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("DELETE FROM trials WHERE id = ?", [shorter])
    assert "refers to none" in what_is_broken(path)[0]
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 40_000] = b"x" * 40_000
    path.write_bytes(content)
    assert what_is_broken(path)


def test_rubbish_is_laid_beside_what_is_whole(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "trial.json").write_text("{}")
    (tmp_path / "run" / "model.safetensors.77.partial").write_text("half")
    assert _kills._spoil(tmp_path) == 1
    rubbish = {path.name for path in tmp_path.rglob("*") if path.is_file() and path.read_bytes() == _kills.RUBBISH}
    assert rubbish == {"trial.json.partial", "trial.json.1.partial", "model.safetensors.77.partial"}
    assert (tmp_path / "run" / "trial.json").read_text() == "{}"
    assert _kills._spoil(tmp_path) == 0, "what was laid is not what a kill left"


def test_the_most_that_was_seen_of_a_trial_is_kept() -> None:
    seen = {"a": (0, 3)}
    note(seen, {"a": (2, 1), "b": (1, 0)})
    assert seen == {"a": (2, 3), "b": (1, 0)}
    assert len(list(weakened(seen, {"a": (2, 2), "b": (0, 5)}))) == 2


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_is_killed_goes_on(command: str, tmp_path: Path) -> None:
    begin = import_module(f"_faults_{command}").prepare(tmp_path)
    tally = kill(command, begin, tmp_path / command, 2)
    assert not failed({command: tally}), tally
