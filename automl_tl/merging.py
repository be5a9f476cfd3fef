"""Facts from elsewhere into the database: all of them or, if one is wrong, none.

Every fact is checked first, and the trials are laid into temporary tables: others may write to the history meanwhile. One
transaction then takes all in. Facts are named by their content, so merging twice changes nothing.
"""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager

from sqlite_utils import Database

from .errors import HistoryError
from .exchange import Facts
from .records import Candidate, trial_id
from .rows import TRIAL_COLUMNS, point_values, put_backbone, put_profile, put_task, put_trial, trial_of_row, trial_values

BATCH = 2000


def merge(db: Database, facts: Facts, writing: Callable[[], AbstractContextManager[None]]) -> dict[str, int]:
    """How many facts of each kind were new; `writing` opens the transaction. `other results`: of trials that are known.

    What is known stays: the name of a task, the facts of a backbone, the numbers of a profile, which grows; trials as in
    `rows.put_trial`.

    Raises:
        HistoryError: names the place of the wrong fact; nothing was added.
    """
    tasks, backbones, profiles = list(facts.tasks), list(facts.backbones), list(facts.profiles)
    known_tasks = {row[0] for row in db.conn.execute("SELECT fingerprint FROM tasks")} | {task.fingerprint for task in tasks}
    known_backbones = {row[0] for row in db.conn.execute("SELECT name FROM backbones")} | {b.name for b in backbones}
    for profile in profiles:
        strange = set(profile.transferability) - known_backbones
        if profile.fingerprint not in known_tasks or strange:
            raise HistoryError(f"profile of {profile.fingerprint}: its task or a backbone is nowhere; add its line first")
    _make_temporary_tables(db)
    try:
        _lay_out(db, facts, known_tasks, known_backbones)
        with writing():
            counts = {
                "tasks": sum([put_task(db, task) for task in tasks]),
                "backbones": sum([put_backbone(db, backbone, replace_known=False) for backbone in backbones]),
                "profiles": sum([put_profile(db, profile, newest_counts=False) for profile in profiles]),
            }
            return counts | _take_in(db)
    finally:
        for table in ("incoming", "incoming_points"):
            db.conn.execute(f"DROP TABLE temp.{table}")


def _make_temporary_tables(db: Database) -> None:
    for table, like in (("incoming", "trials"), ("incoming_points", "points")):
        db.conn.execute(f"DROP TABLE IF EXISTS temp.{table}")
        db.conn.execute(f"CREATE TEMP TABLE {table} AS SELECT * FROM main.{like} WHERE 0")


def _lay_out(db: Database, facts: Facts, tasks: Collection[str], backbones: Collection[str]) -> None:
    """All trials, numbered from 1, with their points under their numbers."""
    stranger, numbered = "", enumerate(facts.trials, 1)
    db.conn.execute("BEGIN")
    try:
        while batch := list(itertools.islice(numbered, BATCH)):
            for number, trial in batch:
                candidate: Candidate = trial.candidate
                if not stranger and (trial.task not in tasks or candidate.backbone not in backbones):
                    stranger = f"{facts.place} {number}: its task or backbone is nowhere; add its line first"
                if not stranger and trial.id != trial_id(trial.task, candidate, trial.seed):
                    stranger = f"{facts.place} {number}: {trial.id!r} is not the id of this task, candidate and seed"
            slots = ", ?" * TRIAL_COLUMNS
            db.conn.executemany(f"INSERT INTO incoming VALUES (?{slots})", [(n, *trial_values(t)) for n, t in batch])
            points = (values for number, trial in batch for values in point_values(trial, number))
            db.conn.executemany("INSERT INTO incoming_points VALUES (?, ?, ?, ?, ?, ?, ?, ?)", points)
        if stranger:
            raise HistoryError(stranger)
        db.conn.execute("CREATE INDEX temp.incoming_points_of ON incoming_points (trial)")
    except sqlite3.Error as error:
        raise HistoryError(f"no room for a temporary copy of the facts: {error}; nothing was changed") from None
    finally:
        if db.conn.in_transaction:
            db.conn.execute("COMMIT")


def _take_in(db: Database) -> dict[str, int]:
    """Trials that are new by sets of rows; what else is said of known ones, one by one."""
    (first,) = db.conn.execute("SELECT coalesce(max(number), 0) FROM trials").fetchone()
    columns = "id, task, backbone, strategy, hyperparameters, seed, status, accuracy, validation, test, seconds, memory_mb,"
    columns += " artefact, error, provenance, speed, hash"
    new = db.conn.execute(
        f"INSERT INTO trials SELECT number + ?, {columns} FROM incoming WHERE true ORDER BY number ON CONFLICT (id) DO NOTHING",
        [first],
    ).rowcount
    db.conn.execute(
        "INSERT INTO points SELECT t.id, p.position, p.epoch, p.seconds, p.loss, p.score, p.memory_mb, p.note"
        " FROM trials t JOIN incoming_points p ON p.trial = t.number - ? WHERE t.number > ?",
        [first, first],
    )
    rest = db.conn.execute(
        "SELECT i.* FROM incoming i JOIN trials t ON t.id = i.id WHERE t.number <> i.number + ? AND NOT"
        " (t.hash = i.hash AND t.status = i.status AND t.error = i.error AND (t.test = i.test OR i.test = '{}'))",
        [first],
    ).fetchall()
    said = [put_trial(db, trial_of_row(db, row, points="incoming_points", key=row[0])) for row in rest]
    return {"trials": new, "more of trials": said.count("more"), "other results": said.count("other")}
