"""Facts from elsewhere into the database: all of them or, if one is wrong, none.

Every fact is checked first, and the trials are laid into temporary tables: others may write to the history meanwhile. One
transaction then takes all in. Facts are named by their content, so merging twice changes nothing.

What the package ships is noted as such, so that a later version can correct it or take it back, and nothing else.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import sqlite3
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from sqlite_utils import Database

from .errors import HistoryError, HistoryUnusable
from .exchange import PROFILES, TRIALS, Facts, to_json
from .facts import TaskFacts, backbone_facts, profile_of, trial_of
from .records import Backbone, Candidate, Profile, Trial, trial_id
from .rows import (
    TRIAL_COLUMNS,
    other_results,
    point_values,
    put_backbone,
    put_profile,
    put_task,
    put_trial,
    trial_of_row,
    trial_values,
)

BATCH = 2000
DIGEST, MARKS = "shipped", "shipped facts"
"""Names in the table `state`: which facts of the package are in, and what they were."""


def merge(
    db: Database, facts: Facts, writing: Callable[[], AbstractContextManager[None]], *, shipped: str = ""
) -> dict[str, int]:
    """How many facts of each kind were new; `writing` opens the transaction. `other results`: of trials that are known.

    What is known stays: the name of a task, the facts of a backbone, the numbers of a profile, which grows; trials as in
    `rows.put_trial`. Not so where `shipped`, a digest, says that these are the facts of the package: then what came as one of
    those before, and is none any more, goes.

    Raises:
        HistoryError: names the place of the wrong fact; nothing was added.
    """
    tasks, backbones, profiles = list(facts.tasks), list(facts.backbones), list(facts.profiles)
    known_tasks = {row[0] for row in db.conn.execute("SELECT fingerprint FROM tasks")} | {task.fingerprint for task in tasks}
    known_backbones = {row[0] for row in db.conn.execute("SELECT name FROM backbones")} | {b.name for b in backbones}
    for number, profile in enumerate(profiles, 1):
        strange = set(profile.transferability) - known_backbones
        if profile.fingerprint not in known_tasks or strange:
            raise HistoryError(f"{facts.places[PROFILES]} {number}: its task or a backbone is nowhere; add its line first")
    _make_temporary_tables(db)
    try:
        _lay_out(db, facts, known_tasks, known_backbones)
        with writing():
            if shipped:
                marks = _take_back(db, tasks, backbones, profiles)
                db.conn.execute("INSERT OR REPLACE INTO state VALUES (?, ?), (?, ?)", [DIGEST, shipped, MARKS, to_json(marks)])
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
                    stranger = f"{facts.places[TRIALS]} {number}: its task or backbone is nowhere; add its line first"
                if not stranger and trial.id != trial_id(trial.task, candidate, trial.seed):
                    stranger = f"{facts.places[TRIALS]} {number}: {trial.id!r} is not the id of this task, candidate and seed"
            slots = ", ?" * TRIAL_COLUMNS
            db.conn.executemany(f"INSERT INTO incoming VALUES (?{slots})", [(n, *trial_values(t)) for n, t in batch])
            points = (values for number, trial in batch for values in point_values(trial, number))
            db.conn.executemany("INSERT INTO incoming_points VALUES (?, ?, ?, ?, ?, ?, ?, ?)", points)
        if stranger:
            raise HistoryError(stranger)
        db.conn.execute("CREATE INDEX temp.incoming_points_of ON incoming_points (trial)")
    except sqlite3.Error as error:
        raise HistoryUnusable(f"no room for a temporary copy of the facts: {error}; nothing was changed") from None
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
        " (t.status <> 'failed' AND t.hash = i.hash AND t.status = i.status AND t.error = i.error"
        " AND (t.test = i.test OR i.test = '{}'))",
        [first],
    ).fetchall()
    said = [put_trial(db, trial_of_row(db, row, points="incoming_points", key=row[0])) for row in rest]
    return {"trials": new, "more of trials": said.count("more"), "other results": said.count("other")}


def _take_back(
    db: Database, tasks: Sequence[TaskFacts], backbones: Sequence[Backbone], profiles: Sequence[Profile]
) -> dict[str, dict[str, Any]]:
    """Remove or correct what was shipped and is not among the shipped facts any more; what is shipped now, to be noted."""
    state = dict(db.conn.execute("SELECT name, value FROM state"))
    before = {"tasks": {}, "backbones": {}, "profiles": {}, "trials": {}, **json.loads(state.get(MARKS, "{}"))}
    now: dict[str, dict[str, Any]] = {
        "tasks": {task.fingerprint: to_json(vars(task)) for task in tasks},
        "backbones": {backbone.name: to_json(backbone_facts(backbone)) for backbone in backbones},
        "profiles": {profile.fingerprint: to_json(vars(profile)) for profile in profiles},
    }
    # of a home that was filled before anything was noted, what is the same as a shipped fact was shipped
    unnoted = DIGEST in state and MARKS not in state
    now["trials"] = _take_back_trials(db, before["trials"], _incoming_marks(db), unnoted=unnoted)
    differs = {
        kind: [(name, text) for name, text in before[kind].items() if now[kind].get(name) != text]
        for kind in ("tasks", "backbones", "profiles")
    }
    for task, text in differs["profiles"]:
        _take_back_profile(db, task, profile_of(json.loads(text)), withdrawn=task not in now["profiles"])
    corrected = {backbone.name: backbone for backbone in backbones}
    for name, text in differs["backbones"]:
        if (text,) != db.conn.execute("SELECT facts FROM backbones WHERE name = ?", [name]).fetchone():
            continue
        if name in corrected:
            put_backbone(db, corrected[name])
        elif not _refers(db, "backbone", name, "trials", "scores"):
            db.conn.execute("DELETE FROM backbones WHERE name = ?", [name])
    right = {task.fingerprint: task for task in tasks}
    for task, text in differs["tasks"]:
        row = db.conn.execute("SELECT * FROM tasks WHERE fingerprint = ?", [task]).fetchone()
        if row is None or to_json(vars(TaskFacts(*row))) != text:
            continue
        if task in right:
            values = list(vars(right[task]).values())
            db.conn.execute("INSERT OR REPLACE INTO tasks VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)
        elif not _refers(db, "task", task, "trials", "profiles"):
            db.conn.execute("DELETE FROM tasks WHERE fingerprint = ?", [task])
    return now


def _take_back_trials(
    db: Database, before: Mapping[str, Sequence[str]], now: Mapping[str, set[str]], *, unnoted: bool
) -> dict[str, list[str]]:
    """The marks of shipped results by trial, without those that the user had already."""
    for id_, marks in before.items():
        gone = set(marks) - now.get(id_, set())
        if gone:
            known = _results(db, id_)
            left = [trial for trial in known if _mark(trial) not in gone]
            if len(left) < len(known):
                for table, column in (("other_results", "trial"), ("points", "trial"), ("trials", "id")):
                    db.conn.execute(f"DELETE FROM {table} WHERE {column} = ?", [id_])
                for trial in left:
                    put_trial(db, trial)
    noted = {}
    for id_, told in now.items():
        shipped = told & set(before.get(id_, ()))
        if shipped != told:
            shipped |= told if unnoted else told - {_mark(trial) for trial in _results(db, id_)}
        noted[id_] = sorted(shipped)
    return noted


def _take_back_profile(db: Database, task: str, shipped: Profile, *, withdrawn: bool) -> None:
    """Its numbers go; what the user's own looks added stays, and all of it where only trials of the user's own need it still."""
    row = db.conn.execute("SELECT facts FROM profiles WHERE task = ?", [task]).fetchone()
    if row is None or (withdrawn and _refers(db, "task", task, "trials")):
        return
    known = profile_of(json.loads(row[0]))
    own = replace(
        known,
        meta=_apart(known.meta, shipped.meta),
        distances=_each_apart(known.distances, shipped.distances),
        transferability=_each_apart(known.transferability, shipped.transferability),
    )
    for table in ("meta_features", "distances", "scores", "profiles"):
        db.conn.execute(f"DELETE FROM {table} WHERE task = ?", [task])
    if own.meta or own.distances or own.transferability:
        put_profile(db, own, newest_counts=True)


def _each_apart(
    known: Mapping[str, Mapping[str, float]], shipped: Mapping[str, Mapping[str, float]]
) -> dict[str, dict[str, float]]:
    found = {name: _apart(numbers, shipped.get(name, {})) for name, numbers in known.items()}
    return {name: numbers for name, numbers in found.items() if numbers}


def _apart(known: Mapping[str, float], shipped: Mapping[str, float]) -> dict[str, float]:
    """What is known without what was shipped just so."""
    return {name: number for name, number in known.items() if shipped.get(name) != number}


def _incoming_marks(db: Database) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for row in db.conn.execute("SELECT * FROM incoming"):
        trial = trial_of_row(db, row, points="incoming_points", key=row[0])
        found.setdefault(trial.id, set()).add(_mark(trial))
    return found


def _results(db: Database, id_: str) -> list[Trial]:
    rows = db.conn.execute("SELECT * FROM trials WHERE id = ?", [id_]).fetchall()
    return [trial_of_row(db, row) for row in rows] + [trial_of(json.loads(text)) for text in other_results(db, id_)]


def _mark(trial: Trial) -> str:
    """Of all that is said of a trial's result: one of the user's own has another, if only by where its model lies.

    Field by field, as it is compared with what an earlier version noted, which may have had fewer.
    """
    curve = [(point.epoch, point.seconds, point.loss, point.score, point.memory_mb, point.note) for point in trial.curve]
    told = [trial.status, trial.validation, trial.test, trial.seconds, trial.memory_mb, trial.artefact, trial.error]
    return hashlib.sha256(to_json([*told, trial.provenance, curve]).encode()).hexdigest()[:16]


def _refers(db: Database, column: str, value: str, *tables: str) -> bool:
    return any(db.conn.execute(f"SELECT 1 FROM {table} WHERE {column} = ? LIMIT 1", [value]).fetchone() for table in tables)
