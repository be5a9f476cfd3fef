"""What a history's database says after a kill. It is copied with its log and the copy is opened: the next start of the command
finds what the kill left, not what a look at it has repaired."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

Trials = dict[str, tuple[int, int]]
"""Trial → how far its status is, and the points of its curve; neither ever becomes less."""
FAR = {"stopped": 0, "failed": 1, "finished": 2}
FACTS = {
    "tasks": "*",
    "backbones": "*",
    "profiles": "*",
    "meta_features": "*",
    "distances": "*",
    "scores": "*",
    "trials": "id, task, backbone, strategy, hyperparameters, seed, status, validation, test, seconds, error, provenance, hash",
    "points": "*",
    "other_results": "*",
}
"""Table → what of its rows is a fact, and not the order in which they came."""


def copied(home: Path, folder: Path) -> Path:
    """A copy of the database and its log, where they are; the process that wrote them is dead, or only reads."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in ("history.db", "history.db-wal"):
        if (home / name).exists():
            shutil.copy(home / name, folder / name)
    return folder / "history.db"


def what_is_broken(path: Path) -> list[str]:
    """What SQLite finds wrong with it. A start that was killed early has made none: nothing is wrong with that."""
    if not path.exists():
        return []
    try:
        with closing(sqlite3.connect(path)) as database:
            found = [text for (text,) in database.execute("PRAGMA integrity_check") if text != "ok"]
            return found + [
                f"a row of {row[0]} refers to none of {row[2]}" for row in database.execute("PRAGMA foreign_key_check")
            ]
    except sqlite3.DatabaseError as error:
        return [str(error)]


def trials(path: Path) -> Trials:
    """The trials in it; none where it was never made, or has no tables yet."""
    if not path.exists():
        return {}
    with closing(sqlite3.connect(path)) as database:
        made = database.execute("SELECT count(*) FROM sqlite_master WHERE name IN ('trials', 'points')").fetchone()
        return _trials(database) if made == (2,) else {}


def read_live(path: Path) -> Trials | None:
    """What somebody reads who never writes, while others do; None where it cannot be read now."""
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
            return _trials(database)
    except sqlite3.OperationalError:
        return None


def _trials(database: sqlite3.Connection) -> Trials:
    sql = "SELECT t.id, t.status, (SELECT count(*) FROM points p WHERE p.trial = t.id) FROM trials t"
    return {id_: (FAR[status], points) for id_, status, points in database.execute(sql)}


def note(seen: Trials, now: Trials) -> None:
    """Keep the most that was ever seen of each trial."""
    for id_, (far, points) in now.items():
        most_far, most_points = seen.get(id_, (0, 0))
        seen[id_] = max(far, most_far), max(points, most_points)


def weakened(seen: Trials, now: Trials) -> Iterator[str]:
    """In words, the trials that were seen and are gone, or have a weaker status or fewer points than they had."""
    for id_, (far, points) in seen.items():
        if id_ not in now:
            yield f"trial {id_} is gone"
        elif now[id_][0] < far or now[id_][1] < points:
            yield f"trial {id_} had status {far} and {points} points, and has {now[id_]}"


def learnt(path: Path) -> dict[str, Any]:
    """What was found out, without what differs from run to run: seconds, dates, the order of recording."""
    with closing(sqlite3.connect(path)) as database:
        rows = database.execute("SELECT id, status, validation, test, error FROM trials").fetchall()
        curves: dict[str, list[tuple[float, ...]]] = {}
        for id_, *point in database.execute("SELECT trial, epoch, loss, score FROM points ORDER BY trial, position"):
            curves.setdefault(id_, []).append(tuple(point))
        profiles = {task: json.loads(text) for task, text in database.execute("SELECT task, facts FROM profiles")}
        tasks = set(database.execute("SELECT * FROM tasks"))
        others = database.execute("SELECT count(*) FROM other_results").fetchone()
    numbers = {task: [facts[name] for name in ("meta", "distances", "transferability")] for task, facts in profiles.items()}
    return {
        "trials": {row[0]: (row[1:], curves.get(row[0])) for row in rows},
        "profiles": numbers,
        "tasks": tasks,
        "again": others,
    }


def facts(path: Path) -> dict[str, str]:
    """Table → a hash of its facts; the same for a table that is empty, and for one that was never made."""
    rows: dict[str, list[str]] = {table: [] for table in FACTS}
    if path.exists():
        with closing(sqlite3.connect(path)) as database:
            made = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            for table in made & FACTS.keys():
                rows[table] = sorted(map(repr, database.execute(f"SELECT {FACTS[table]} FROM {table}")))
    return {table: hashlib.sha256("\n".join(lines).encode()).hexdigest() for table, lines in rows.items()}
