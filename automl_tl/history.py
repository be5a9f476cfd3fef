"""The task-history database: SQLite through sqlite-utils, beside the facts that the package ships as text.

One writer at a time, any number of readers (WAL). What is recorded once is never lost or weakened: a finished trial stays
finished. `metadb/` and `export` have the same form: `tasks.csv`, `backbones.jsonl`, `profiles.jsonl`, `trials.jsonl`.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import os
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from sqlite_utils import Database, Migrations

from .errors import HistoryError
from .facts import TaskFacts, backbone_facts, backbone_of, profile_of, task_facts_of, trial_of
from .home import home, write_text
from .records import TEST, TRAIN, VALIDATION, Backbone, Candidate, Point, Profile, Task, Trial

TASKS, BACKBONES, PROFILES, TRIALS = "tasks.csv", "backbones.jsonl", "profiles.jsonl", "trials.jsonl"
BUSY_SECONDS = 60.0
_RANK = {"stopped": 0, "failed": 1, "finished": 2}
"""A paused trial may go on, and fail; what finished stays so, whatever is said of it later."""

migrations = Migrations("automl_tl")


@migrations()
def m001_tables(db: Database) -> None:
    """The first schema. `hash` is 40 bits of what the ranker learns from a row; sums of it name a state of the history."""
    for statement in (
        "CREATE TABLE tasks (fingerprint TEXT PRIMARY KEY, name TEXT, source_dataset TEXT, classes INTEGER, train INTEGER,"
        " validation INTEGER, test INTEGER) WITHOUT ROWID",
        "CREATE TABLE backbones (name TEXT PRIMARY KEY, source_dataset TEXT, params INTEGER, macs INTEGER, facts TEXT,"
        " hash INTEGER) WITHOUT ROWID",
        "CREATE TABLE profiles (task TEXT PRIMARY KEY REFERENCES tasks, facts TEXT, hash INTEGER) WITHOUT ROWID",
        "CREATE TABLE meta_features (task TEXT REFERENCES tasks, name TEXT, value REAL, PRIMARY KEY (task, name)) WITHOUT ROWID",
        "CREATE TABLE sources (name TEXT PRIMARY KEY) WITHOUT ROWID",
        "CREATE TABLE distances (task TEXT REFERENCES tasks, source TEXT REFERENCES sources, metric TEXT, value REAL,"
        " PRIMARY KEY (task, source, metric)) WITHOUT ROWID",
        "CREATE TABLE scores (task TEXT REFERENCES tasks, backbone TEXT REFERENCES backbones, metric TEXT, value REAL,"
        " PRIMARY KEY (task, backbone, metric)) WITHOUT ROWID",
        "CREATE TABLE trials (number INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, task TEXT NOT NULL REFERENCES tasks,"
        " backbone TEXT NOT NULL REFERENCES backbones, strategy TEXT, hyperparameters TEXT, seed INTEGER, status TEXT,"
        " accuracy REAL, validation TEXT, test TEXT, seconds REAL, memory_mb REAL, artefact TEXT, error TEXT,"
        " provenance TEXT, speed REAL, hash INTEGER)",
        "CREATE INDEX trials_by_task ON trials (task, status)",
        "CREATE TABLE points (trial TEXT REFERENCES trials (id), position INTEGER, epoch REAL, seconds REAL, loss REAL,"
        " score REAL, memory_mb REAL, note TEXT, PRIMARY KEY (trial, position)) WITHOUT ROWID",
        "CREATE TABLE state (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID",
    ):
        db.execute(statement)


@migrations()
def m002_objectives(db: Database) -> None:
    """Scores of tasks that ask for something else than accuracy are not learnt from together with those that do."""
    db.execute("ALTER TABLE tasks ADD COLUMN objective TEXT NOT NULL DEFAULT 'accuracy'")


@dataclass(frozen=True, eq=False)
class Table:
    """Columns of the finished trials, for learning."""

    task: list[str]
    source_dataset: list[str]
    backbone: list[str]
    strategy: list[str]
    hyperparameters: list[dict[str, Any]]
    score: np.ndarray
    seconds: np.ndarray
    memory_mb: np.ndarray
    images: np.ndarray
    speed: np.ndarray


class History:
    """An open history. Use it in a `with` block."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.db = Database(connection)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.db.conn.close()

    # Recording: each call is one transaction

    def record_task(self, task: Task, source_dataset: str = "") -> None:
        facts = TaskFacts(
            task.fingerprint,
            task.name,
            source_dataset or task.name,
            len(task.classes),
            len(task.part(TRAIN)),
            len(task.part(VALIDATION)),
            len(task.part(TEST)),
            task.objective,
        )
        with self._writing():
            self._put_task(facts)

    def record_backbone(self, backbone: Backbone) -> None:
        with self._writing():
            self._put_backbone(backbone)

    def record_profile(self, profile: Profile) -> None:
        """Later looks add to earlier ones: transferability of further backbones, distances to further sources."""
        with self._writing():
            known = self._rows("SELECT facts FROM profiles WHERE task = ?", [profile.fingerprint])
            if known:
                before = profile_of(json.loads(known[0][0]))
                profile = replace(
                    profile,
                    meta={**before.meta, **profile.meta},
                    distances={**before.distances, **profile.distances},
                    transferability={**before.transferability, **profile.transferability},
                )
            self._put_profile(profile)

    def record_trial(self, trial: Trial) -> None:
        """Add a trial, or more of a trial: a finished one is only ever completed by its test scores.

        Raises:
            HistoryError: its task or its backbone was never recorded.
        """
        with self._writing():
            self._put_trial(trial)

    # Asking

    def trial(self, id: str) -> Trial:
        """Raises HistoryError if there is no such trial."""
        rows = self._rows("SELECT * FROM trials WHERE id = ?", [id])
        if not rows:
            raise HistoryError(f"no trial {id!r} in the history; `automl-tl history list` names them")
        return self._trial(rows[0])

    def trials(self, *, task: str | None = None, status: str | None = None, limit: int | None = None) -> list[Trial]:
        """Newest first."""
        where = " AND ".join(f"{name} = ?" for name, value in (("task", task), ("status", status)) if value is not None)
        values: list[Any] = [value for value in (task, status) if value is not None]
        sql = f"SELECT * FROM trials {'WHERE ' + where if where else ''} ORDER BY number DESC LIMIT ?"
        return [self._trial(row) for row in self._rows(sql, [*values, -1 if limit is None else limit])]

    def find(
        self,
        text: str = "",
        *,
        task: str | None = None,
        backbone: str | None = None,
        strategy: str | None = None,
        status: str | None = None,
        limit: int = 50,
        offset: int = 0,
    ) -> tuple[int, list[Trial]]:
        """How many trials match, and a page of them, newest first.

        Each word of `text` is somewhere in the name of the task, the backbone, the strategy, the status or the id. `task` is a
        name or a fingerprint.
        """
        told = "k.name || ' ' || t.backbone || ' ' || t.strategy || ' ' || t.status || ' ' || t.id"
        conditions, values = ["1"], []
        for word in text.split():
            conditions.append(f"instr(lower({told}), lower(?)) > 0")
            values.append(word)
        for column, value in (("t.backbone", backbone), ("t.strategy", strategy), ("t.status", status)):
            if value is not None:
                conditions.append(f"{column} = ?")
                values.append(value)
        if task is not None:
            conditions.append("(t.task = ? OR k.name = ?)")
            values += [task, task]
        matching = f"FROM trials t JOIN tasks k ON k.fingerprint = t.task WHERE {' AND '.join(conditions)}"
        total = self._rows(f"SELECT count(*) {matching}", values)[0][0]
        rows = self._rows(f"SELECT t.* {matching} ORDER BY t.number DESC LIMIT ? OFFSET ?", [*values, limit, offset])
        return total, [self._trial(row) for row in rows]

    def knows(self, task: str) -> bool:
        """Whether there is a task of this fingerprint."""
        return bool(self._rows("SELECT 1 FROM tasks WHERE fingerprint = ?", [task]))

    def known(self) -> dict[str, str]:
        """Trial → status, of all trials."""
        return dict(self._rows("SELECT id, status FROM trials", []))

    def table(self, *, objective: str = "accuracy") -> Table:
        """The finished trials of tasks with this objective as columns, in the order of their ids.

        Two histories of the same facts give the same table.
        """
        rows = self._rows(
            "SELECT t.task, k.source_dataset, t.backbone, t.strategy, t.hyperparameters, t.accuracy, t.seconds, t.memory_mb,"
            " k.train, t.speed FROM trials t JOIN tasks k ON k.fingerprint = t.task"
            " WHERE t.status = 'finished' AND k.objective = ? ORDER BY t.id",
            [objective],
        )
        columns: list[list[Any]] = [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in range(10)]
        parsed: dict[str, dict[str, Any]] = {text: json.loads(text) for text in set(columns[4])}
        numbers = [np.array([np.nan if v is None else v for v in column], dtype=np.float64) for column in columns[5:]]
        task, source_dataset, backbone, strategy = columns[:4]
        hyperparameters = [parsed[text] for text in columns[4]]
        score, seconds, memory_mb, images, speed = numbers
        return Table(task, source_dataset, backbone, strategy, hyperparameters, score, seconds, memory_mb, images, speed)

    def growths(self, share: float, *, objective: str = "accuracy", most: int = 5000) -> dict[str, list[tuple[float, float]]]:
        """Strategy → (best score within the first `share` of the epochs, best score), of the `most` newest finished trials."""
        rows = self._rows(
            "SELECT t.strategy, max(CASE WHEN p.epoch <= max(1, round(t.epochs * ? + 0.499)) THEN p.score END), max(p.score)"
            " FROM (SELECT t.id, t.strategy, json_extract(t.hyperparameters, '$.epochs') AS epochs FROM trials t"
            " JOIN tasks k ON k.fingerprint = t.task WHERE t.status = 'finished' AND k.objective = ?"
            " ORDER BY t.number DESC LIMIT ?) t JOIN points p ON p.trial = t.id WHERE t.epochs IS NOT NULL GROUP BY t.id",
            [share, objective, most],
        )
        found: dict[str, list[tuple[float, float]]] = {}
        for strategy, early, best in rows:
            if early is not None:
                found.setdefault(strategy, []).append((early, best))
        return found

    def profiles(self) -> dict[str, Profile]:
        """By fingerprint of the task."""
        return {task: profile_of(json.loads(text)) for task, text in self._rows("SELECT task, facts FROM profiles", [])}

    def backbones(self) -> dict[str, Backbone]:
        return {name: backbone_of(json.loads(text)) for name, text in self._rows("SELECT name, facts FROM backbones", [])}

    def tasks(self) -> dict[str, TaskFacts]:
        return {row[0]: TaskFacts(*row) for row in self._rows("SELECT * FROM tasks", [])}

    def digest(self, *, without: str = "", objective: str = "accuracy") -> str:
        """Name of all that a ranker learns from, but for the task `without`; the order of recording does not matter."""
        tasks = "task <> :task AND task IN (SELECT fingerprint FROM tasks WHERE objective = :objective)"
        trials = f"trials WHERE status = 'finished' AND {tasks}"
        learnt_from = (trials, f"profiles WHERE {tasks}", f"backbones WHERE name IN (SELECT backbone FROM {trials})")
        values = {"task": without, "objective": objective}
        sums = [
            self.db.execute(f"SELECT count(*), coalesce(sum(hash), 0) FROM {table}", values).fetchone() for table in learnt_from
        ]
        return hashlib.sha256(repr([tuple(row) for row in sums]).encode()).hexdigest()[:32]

    def summary(self) -> dict[str, Any]:
        """Counts, for a person."""
        counts = {table: self._rows(f"SELECT count(*) FROM {table}", [])[0][0] for table in ("tasks", "backbones", "trials")}
        statuses = dict(self._rows("SELECT status, count(*) FROM trials GROUP BY status", []))
        sources = self._rows("SELECT count(DISTINCT source_dataset) FROM tasks", [])[0][0]
        return {**counts, "source datasets": sources, **{f"{status} trials": count for status, count in sorted(statuses.items())}}

    def integrity(self) -> list[str]:
        """What is wrong with the database; nothing, if all is well."""
        found = [row[0] for row in self._rows("PRAGMA integrity_check", []) if row[0] != "ok"]
        found += [f"{row[0]} refers to a missing row of {row[2]}" for row in self._rows("PRAGMA foreign_key_check", [])]
        scoreless = self._rows("SELECT id FROM trials WHERE status = 'finished' AND accuracy IS NULL", [])
        return found + [f"finished trial {row[0]} has no score" for row in scoreless]

    # Text

    def export(self, folder: Path) -> dict[str, int]:
        """Write everything as text, sorted, so that the same facts give the same files. Numbers and names only."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise HistoryError(f"{folder}: cannot be made or used: {error.strerror}; give another folder") from None
        tasks = sorted(self.tasks().values(), key=lambda task: task.fingerprint)
        _write_csv(folder / TASKS, tasks)
        counts = {"tasks": len(tasks)}
        backbones = [backbone_facts(backbone) for _, backbone in sorted(self.backbones().items())]
        profiles = [asdict(replace(profile, warnings=())) for _, profile in sorted(self.profiles().items())]
        trials = [asdict(_shareable(trial)) for trial in sorted(self.trials(), key=lambda trial: (trial.task, trial.id))]
        for name, rows in ((BACKBONES, backbones), (PROFILES, profiles), (TRIALS, trials)):
            write_text(folder / name, "".join(f"{_json(row)}\n" for row in rows))
            counts[name.removesuffix(".jsonl")] = len(rows)
        return counts

    def import_facts(self, folder: Path) -> dict[str, int]:
        """Add what `export` wrote; known facts stay as they are. Every line is checked before the first is added.

        Raises:
            HistoryError: names file and line; nothing was added.
        """
        if not (folder / TASKS).is_file():
            raise HistoryError(f"{folder}: has no {TASKS}; give a folder that `history export` wrote")
        tasks = list(_read_csv(folder / TASKS))
        backbones = list(_read_lines(folder / BACKBONES, backbone_of))
        profiles = list(_read_lines(folder / PROFILES, profile_of))
        trials = list(_read_lines(folder / TRIALS, trial_of))
        fingerprints, names = {task.fingerprint for task in tasks} | self.tasks().keys(), {b.name for b in backbones}
        names |= self.backbones().keys()
        for number, trial in enumerate(trials, 1):
            if trial.task not in fingerprints or trial.candidate.backbone not in names:
                raise HistoryError(f"{folder / TRIALS} line {number}: its task or backbone is nowhere; add its line first")
        known, profiled = self.known(), self.profiles().keys()
        with self._writing():
            for task in tasks:
                self._put_task(task)
            for backbone in backbones:
                self._put_backbone(backbone, replace_known=False)
            for profile in profiles:
                if profile.fingerprint not in profiled:
                    self._put_profile(profile)
            for trial in trials:
                self._put_trial(trial)
        return {
            "tasks": len(tasks),
            "backbones": len(backbones),
            "profiles": len(profiles),
            "trials": sum(trial.id not in known for trial in trials),
        }

    # The rows

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One transaction, which waits for other writers."""
        try:
            self.db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self.db.execute("ROLLBACK")
                raise
            self.db.execute("COMMIT")
        except sqlite3.IntegrityError as error:
            raise HistoryError(f"the history refuses this: {error}; record its task and its backbone first") from None
        except sqlite3.OperationalError as error:
            raise HistoryError(f"cannot write to the history: {error}; nothing was changed") from None

    def _rows(self, sql: str, values: list[Any]) -> list[Any]:
        return list(self.db.execute(sql, values).fetchall())

    def _put_task(self, facts: TaskFacts) -> None:
        self.db.execute("INSERT OR IGNORE INTO tasks VALUES (?, ?, ?, ?, ?, ?, ?, ?)", list(asdict(facts).values()))

    def _put_backbone(self, backbone: Backbone, *, replace_known: bool = True) -> None:
        text = _json(backbone_facts(backbone))
        values = [backbone.name, backbone.source_dataset, backbone.params, backbone.macs, text, _hash(text)]
        changed = "facts = excluded.facts, hash = excluded.hash, source_dataset = excluded.source_dataset,"
        changed += " params = excluded.params, macs = excluded.macs WHERE facts <> excluded.facts"
        conflict = f"ON CONFLICT (name) DO UPDATE SET {changed}" if replace_known else "ON CONFLICT DO NOTHING"
        self.db.execute(f"INSERT INTO backbones VALUES (?, ?, ?, ?, ?, ?) {conflict}", values)

    def _put_profile(self, profile: Profile) -> None:
        text = _json(asdict(profile))
        learnt = _json([profile.meta, profile.distances, profile.transferability])
        self.db.execute("INSERT OR REPLACE INTO profiles VALUES (?, ?, ?)", [profile.fingerprint, text, _hash(learnt)])
        task = profile.fingerprint
        for name, value in profile.meta.items():
            self.db.execute("INSERT OR REPLACE INTO meta_features VALUES (?, ?, ?)", [task, name, value])
        for source, scores in profile.distances.items():
            self.db.execute("INSERT OR IGNORE INTO sources VALUES (?)", [source])
            for metric, value in scores.items():
                self.db.execute("INSERT OR REPLACE INTO distances VALUES (?, ?, ?, ?)", [task, source, metric, value])
        for backbone, scores in profile.transferability.items():
            for metric, value in scores.items():
                self.db.execute("INSERT OR REPLACE INTO scores VALUES (?, ?, ?, ?)", [task, backbone, metric, value])

    def _put_trial(self, trial: Trial) -> None:
        before = self._rows("SELECT status, test FROM trials WHERE id = ?", [trial.id])
        if before:
            status, test = before[0]
            better = _RANK[trial.status] > _RANK[status] or (trial.status == status == "stopped")
            if not better and not (trial.status == status == "finished" and trial.test and test == "{}"):
                return
            self.db.execute("DELETE FROM points WHERE trial = ?", [trial.id])
            self.db.execute("DELETE FROM trials WHERE id = ?", [trial.id])
        candidate = trial.candidate
        learnt = _json([trial.id, dict(trial.validation), trial.seconds])
        self.db.execute(
            f"INSERT INTO trials VALUES (NULL{', ?' * 17})",
            [
                trial.id,
                trial.task,
                candidate.backbone,
                candidate.strategy,
                _json(dict(candidate.hyperparameters)),
                trial.seed,
                trial.status,
                trial.score,
                _json(dict(trial.validation)),
                _json(dict(trial.test)),
                trial.seconds,
                trial.memory_mb,
                trial.artefact,
                trial.error,
                _json(dict(trial.provenance)),
                trial.provenance.get("speed"),
                _hash(learnt),
            ],
        )
        for position, p in enumerate(trial.curve):
            values = [trial.id, position, p.epoch, p.seconds, p.loss, p.score, p.memory_mb, p.note]
            self.db.execute("INSERT INTO points VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)

    def _trial(self, row: Any) -> Trial:
        _, id_, task, backbone, strategy, hyperparameters, seed, status, _, validation, test, seconds, memory, *rest = row
        artefact, error, provenance, _, _ = rest
        points = self._rows(
            "SELECT epoch, seconds, loss, score, memory_mb, note FROM points WHERE trial = ? ORDER BY position", [id_]
        )
        return Trial(
            id_,
            task,
            Candidate(backbone, strategy, json.loads(hyperparameters)),
            seed,
            status,
            tuple(Point(*point) for point in points),
            json.loads(validation),
            json.loads(test),
            seconds,
            memory,
            artefact,
            error,
            json.loads(provenance),
        )


def open_history(path: Path | None = None) -> History:
    """The user's history (or the one at `path`), brought to the present schema and filled with the shipped facts.

    Raises:
        HistoryError: the file is no history, is damaged, or cannot be written.
    """
    path = home() / "history.db" if path is None else path
    try:
        connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
        for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "foreign_keys = ON"):
            connection.execute(f"PRAGMA {pragma}")
        history = History(connection)
        if migrations.pending(history.db):
            _migrate(history, path)
        _add_shipped(history)
    except sqlite3.DatabaseError as error:
        raise HistoryError(
            f"{path}: cannot be used as a history: {error}; move it away, or set AUTOML_TL_HOME elsewhere"
        ) from None
    return history


def _migrate(history: History, path: Path) -> None:
    """Only one process migrates; the others wait for it."""
    from filelock import FileLock

    with FileLock(path.with_name(f"{path.name}.lock")):
        migrations.apply(history.db)


def _add_shipped(history: History) -> None:
    """Import the package's facts when they are new or have changed."""
    folder = Path(str(files("automl_tl.metadb")))
    if not (folder / TASKS).is_file():
        return
    digest = hashlib.sha256(b"".join((folder / name).read_bytes() for name in (TASKS, BACKBONES, PROFILES, TRIALS))).hexdigest()
    if history._rows("SELECT value FROM state WHERE name = 'shipped'", []) != [(digest,)]:
        history.import_facts(folder)
        with history._writing():
            history.db.execute("INSERT OR REPLACE INTO state VALUES ('shipped', ?)", [digest])


def _shareable(trial: Trial) -> Trial:
    """Without what tells of one machine's folders: of the command the verb is left, of a path in an error its end."""
    words = itertools.takewhile(re.compile(r"[a-z-]+").fullmatch, str(trial.provenance.get("command", "")).split())
    provenance = {**trial.provenance, "command": " ".join(words)}
    error = re.sub(r"(?:[A-Za-z]:)?(?:[/\\][^\s/\\:]+)+(?=[/\\])", "…", trial.error)
    return replace(trial, artefact="", provenance=provenance, error=error)


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _hash(text: str) -> int:
    """40 bits: eight million of them add up within SQLite's integers."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:5], "big")


def _write_csv(path: Path, tasks: Iterable[TaskFacts]) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(TaskFacts.__dataclass_fields__), lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(task) for task in tasks)
    partial.replace(path)


def _read_csv(path: Path) -> Iterator[TaskFacts]:
    with path.open(newline="", encoding="utf-8") as file:
        for number, row in enumerate(csv.DictReader(file), 2):
            facts: Mapping[str, Any] = row
            try:
                counts = {name: int(row[name] or "") for name in ("classes", "train", "validation", "test")}
                facts = {**row, **counts}
            except (KeyError, ValueError):
                raise HistoryError(f"{path} line {number}: expected whole numbers of classes and images") from None
            try:
                yield task_facts_of(facts)
            except HistoryError as error:
                raise HistoryError(f"{path} line {number}: {error}") from None


def _read_lines(path: Path, parse: Callable[[Mapping[str, Any]], Any]) -> Iterator[Any]:
    if not path.is_file():
        return
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                yield parse(json.loads(line))
            except (HistoryError, ValueError, RecursionError) as error:
                raise HistoryError(f"{path} line {number}: {error}") from None
