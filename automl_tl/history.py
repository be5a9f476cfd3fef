"""The task-history database: SQLite through sqlite-utils, beside the facts that the package ships as text.

One writer at a time, any number of readers (WAL). What is recorded once is never lost or weakened: a finished trial stays
finished, and another result of it is kept beside the first. `exchange` has the form in which histories travel.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from importlib.resources import files
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from sqlite_utils import Database

from .errors import HistoryError, HistoryUnusable
from .exchange import (
    BACKBONES,
    FILES,
    PROFILES,
    TASKS,
    TRIALS,
    Public,
    checked,
    profile_row,
    public_of,
    read_facts,
    task_row,
    to_json,
    trial_row,
    write_facts,
)
from .experience import Trials
from .facts import TaskFacts, backbone_facts, backbone_of, profile_of, trial_of
from .home import home
from .merging import DIGEST, MARKS, merge
from .records import TEST, TRAIN, VALIDATION, Backbone, Grown, Profile, Task, Trial
from .rows import other_results, put_backbone, put_profile, put_task, put_trial, trial_of_row
from .schema import migrations, newer

BUSY_SECONDS = 60.0
CACHE_KB = 65_536
"""Of pages that a connection may keep: an index of a million trials fits."""

ALL_RESULTS = "SELECT (SELECT count(*) FROM trials) + (SELECT count(*) FROM other_results)"

ONE_CYCLE = """instr(t.hyperparameters, '"cycles":') = 0"""
"""Of trials as they are begun (see `restarts`). With the colon it is the name: a value may be that text, too."""


MEASURED = (
    "hash, (((hash & 1048575) + 1) * (CAST(memory_mb * 1000 AS INTEGER) & 1099511627775) & 1099511627775)"
    " + (((hash >> 20) + 1) * (CAST(coalesce(speed, -1) AS INTEGER) & 1099511627775) & 1099511627775) AS cost"
)
"""Of a trial its hash, and a number of its memory and speed, which the hash does not tell: whole, of 40 bits each, so that the
order of a sum of them does not matter, and each times another part of the hash, so that it matters which trial has which."""


class History:
    """An open history. Use it in a `with` block, which ends with HistoryUnusable where the database proves to be damaged."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.db = Database(connection)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.ProgrammingError):
                path = self.db.conn.execute("PRAGMA database_list").fetchone()[2]
                raise HistoryUnusable(f"{path}: {_why_not(error)}") from None
        finally:
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
            put_task(self.db, facts)

    def record_backbone(self, backbone: Backbone) -> None:
        with self._writing():
            put_backbone(self.db, backbone)

    def record_profile(self, profile: Profile) -> None:
        """Later looks add to earlier ones: transferability of further backbones, distances to further sources."""
        with self._writing():
            put_profile(self.db, profile, newest_counts=True)

    def record_trial(self, trial: Trial) -> None:
        """Add a trial, or more of a trial: a finished one is only ever completed by its test scores (`rows.put_trial`).

        Raises:
            HistoryError: its task or its backbone was never recorded.
        """
        with self._writing():
            put_trial(self.db, trial)

    # Asking

    def trial(self, id: str) -> Trial:
        """Raises HistoryError if there is no such trial."""
        rows = self._rows("SELECT * FROM trials WHERE id = ?", [id])
        if not rows:
            raise HistoryError(f"no trial {id!r} in the history; `automl-tl history list` names them")
        return trial_of_row(self.db, rows[0])

    def other_results(self, id: str) -> list[Trial]:
        """What else came of a trial elsewhere; see `schema`."""
        return [trial_of(json.loads(text)) for text in other_results(self.db, id)]

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
        return total, [trial_of_row(self.db, row) for row in rows]

    def knows(self, task: str) -> bool:
        """Whether there is a task of this fingerprint."""
        return bool(self._rows("SELECT 1 FROM tasks WHERE fingerprint = ?", [task]))

    def known(self) -> dict[str, str]:
        """Trial → status, of all trials."""
        return dict(self._rows("SELECT id, status FROM trials", []))

    def table(self, *, objective: str = "accuracy") -> Trials:
        """The finished trials of tasks with this objective as columns, in the order of their ids.

        Two histories of the same facts give the same table. A trial with several results has a row for each; one of several
        cycles has none, as its first one has a trial of its own.
        """
        task_facts = "t.task, k.source_dataset, t.backbone, t.strategy, t.hyperparameters"
        measured = "accuracy, {0}.seconds, {0}.memory_mb, k.train, {0}.speed, t.id, {0}.hash"
        joined = f"JOIN tasks k ON k.fingerprint = t.task WHERE k.objective = :objective AND {ONE_CYCLE} AND"
        cursor = self.db.execute(
            f"SELECT {task_facts}, t.{measured.format('t')} FROM trials t {joined} t.status = 'finished' UNION ALL"
            f" SELECT {task_facts}, o.{measured.format('o')} FROM other_results o JOIN trials t ON t.id = o.trial"
            f" {joined} o.status = 'finished' ORDER BY 11, 12",
            {"objective": objective},
        )
        texts: list[list[str]] = [[] for _ in range(4)]
        parsed: dict[str, dict[str, Any]] = {}
        hyperparameters: list[dict[str, Any]] = []
        numbers: list[list[np.ndarray]] = [[] for _ in range(5)]
        same: dict[str, str] = {}
        while rows := cursor.fetchmany(20_000):
            columns = list(zip(*rows, strict=True))
            for own, column in zip(texts, columns[:4], strict=True):
                own += [same.setdefault(text, text) for text in column]
            parsed |= {text: json.loads(text) for text in set(columns[4]) - parsed.keys()}
            hyperparameters += [parsed[text] for text in columns[4]]
            for parts, column in zip(numbers, columns[5:10], strict=True):
                parts.append(np.array(column, dtype=np.float64))  # None becomes NaN
        task, source_dataset, backbone, strategy = (np.array(column, dtype=object) for column in texts)
        score, seconds, memory_mb, images, speed = (np.concatenate([np.empty(0), *parts]) for parts in numbers)
        return Trials(task, source_dataset, backbone, strategy, hyperparameters, score, seconds, memory_mb, images, speed)

    def growths(self, share: float, *, without: str = "", objective: str = "accuracy") -> dict[str, list[Grown]]:
        """Strategy → best score within the first `share` of the epochs and best score, of the 5,000 newest finished trials.

        Those of the task `without` are left out.
        """
        rows = self._rows(
            "SELECT t.strategy, t.hyperparameters,"
            " max(CASE WHEN p.epoch <= max(1, round(t.epochs * ? + 0.499)) THEN p.score END), max(p.score)"
            " FROM (SELECT t.id, t.strategy, t.hyperparameters, json_extract(t.hyperparameters, '$.epochs') AS epochs"
            " FROM trials t"
            " JOIN tasks k ON k.fingerprint = t.task WHERE t.status = 'finished' AND t.task <> ? AND k.objective = ?"
            f" AND {ONE_CYCLE}"
            " ORDER BY t.number DESC LIMIT 5000) t JOIN points p ON p.trial = t.id WHERE t.epochs IS NOT NULL GROUP BY t.id",
            [share, without, objective],
        )
        found: dict[str, list[Grown]] = {}
        for strategy, hyperparameters, early, best in rows:
            if early is not None:
                found.setdefault(strategy, []).append(Grown(json.loads(hyperparameters), early, best))
        return found

    def profiles(self) -> dict[str, Profile]:
        """By fingerprint of the task."""
        return {task: profile_of(json.loads(text)) for task, text in self._rows("SELECT task, facts FROM profiles", [])}

    def backbones(self) -> dict[str, Backbone]:
        return {name: backbone_of(json.loads(text)) for name, text in self._rows("SELECT name, facts FROM backbones", [])}

    def tasks(self) -> dict[str, TaskFacts]:
        return {row[0]: TaskFacts(*row) for row in self._rows("SELECT * FROM tasks", [])}

    def digest(self, *, without: str = "", objective: str = "accuracy") -> str:
        """Name of all that advice is learnt from, but for the task `without`; the order of recording does not matter.

        Of source datasets it tells which tasks have one in common: their names stay here when the facts go elsewhere.
        """
        tasks = "task <> :task AND task IN (SELECT fingerprint FROM tasks WHERE objective = :objective)"
        trials = f"trials WHERE status = 'finished' AND {tasks}"
        others = f"other_results WHERE status = 'finished' AND trial IN (SELECT id FROM trials WHERE {tasks})"
        hashes = (
            f"SELECT {MEASURED} FROM {trials} UNION ALL SELECT {MEASURED} FROM {others}",
            f"SELECT hash, 0 AS cost FROM profiles WHERE {tasks}",
            f"SELECT hash, 0 AS cost FROM backbones WHERE name IN (SELECT backbone FROM {trials})",
        )
        together = (
            "SELECT fingerprint, min(fingerprint) OVER (PARTITION BY source_dataset), train FROM tasks"
            " WHERE fingerprint <> :task AND objective = :objective"
            " AND EXISTS (SELECT 1 FROM trials WHERE task = fingerprint AND status = 'finished') ORDER BY fingerprint"
        )
        sums = [f"SELECT count(*), coalesce(sum(hash), 0), coalesce(sum(cost), 0) FROM ({each})" for each in hashes]
        values = {"task": without, "objective": objective}
        told = [tuple(row) for sql in (*sums, together) for row in self.db.execute(sql, values)]
        return hashlib.sha256(repr(told).encode()).hexdigest()[:32]

    def summary(self) -> dict[str, int]:
        """Counts, for a person."""
        counts = {table: self._rows(f"SELECT count(*) FROM {table}", [])[0][0] for table in ("tasks", "backbones", "trials")}
        statuses = dict(self._rows("SELECT status, count(*) FROM trials GROUP BY status", []))
        sources = self._rows("SELECT count(DISTINCT source_dataset) FROM tasks", [])[0][0]
        others = self._rows("SELECT count(*) FROM other_results", [])[0][0]
        counts |= {"other results": others} if others else {}
        return {**counts, "source datasets": sources, **{f"{status} trials": count for status, count in sorted(statuses.items())}}

    def integrity(self) -> list[str]:
        """What is wrong with the database; nothing, if all is well."""
        found = [row[0] for row in self._rows("PRAGMA integrity_check", []) if row[0] != "ok"]
        found += [f"{row[0]} refers to a missing row of {row[2]}" for row in self._rows("PRAGMA foreign_key_check", [])]
        scoreless = self._rows("SELECT id FROM trials WHERE status = 'finished' AND accuracy IS NULL", [])
        return found + [f"finished trial {row[0]} has no score" for row in scoreless]

    # Text

    def export(self, folder: Path, *, names: bool = False) -> dict[str, int]:
        """Write everything as text, sorted, so that the same facts give the same files; how many facts of each kind.

        Numbers, and names of what is public; networks that may be the user's own are left out, with their trials, and counted.
        With `names` also what tells of this machine's data: those networks, names of the tasks and of their source datasets,
        notes and the text of errors.
        """
        with self._writing():
            self.db.execute("INSERT OR IGNORE INTO state VALUES ('salt', ?)", [secrets.token_hex(16)])
        with self.snapshot():
            counts = write_facts(folder, self.rows(names=names))
            (backbones,), (trials,) = self._rows(f"SELECT count(*) FROM backbones UNION ALL {ALL_RESULTS}", [])
        left = {"backbones": backbones - counts["backbones"], "trials": trials - counts["trials"]}
        return counts | {f"{kind} left out": count for kind, count in left.items() if count}

    def import_facts(self, folder: Path) -> dict[str, int]:
        """Add what `export` wrote; how many facts of each kind were new. All of them are added or, if a line is wrong, none.

        Raises:
            HistoryError: names file and line; nothing was added.
        """
        return merge(self.db, read_facts(folder), self._writing)

    def merge(self, source: Path) -> dict[str, int]:
        """Add what another history knows: a folder that `export` wrote, or another database, of any schema up to ours.

        Raises:
            HistoryError: as `import_facts`; or the file is no history.
        """
        if source.is_dir():
            return self.import_facts(source)
        if not source.is_file():
            raise HistoryError(f"{source}: is neither a folder that `history export` wrote nor a history.db")
        with tempfile.TemporaryDirectory() as folder:
            other = _opened_copy(source, Path(folder))
            with closing(other.db.conn):
                return merge(self.db, checked(other.rows(names=True), source), self._writing)

    def rows(self, *, names: bool) -> dict[str, Iterator[Mapping[str, Any]]]:
        """All facts as they are written, by file, read as they are drawn; names of what is public may be told anyway."""
        public = None if names else public_of(self.tasks().values(), self.backbones(), read_facts(_shipped()))
        return {
            TASKS: self._task_rows(public),
            BACKBONES: self._backbone_rows(public),
            PROFILES: self._profile_rows(public),
            TRIALS: self._trial_rows(public),
        }

    def _task_rows(self, public: Public | None) -> Iterator[dict[str, Any]]:
        salt = "".join(value for (value,) in self._rows("SELECT value FROM state WHERE name = 'salt'", []))
        for fingerprint, facts in sorted(self.tasks().items()):
            yield task_row(facts, anonymous=public is not None and fingerprint not in public.tasks, salt=salt)

    def _backbone_rows(self, public: Public | None) -> Iterator[Mapping[str, Any]]:
        for _, backbone in sorted((self.backbones() if public is None else public.backbones).items()):
            yield backbone_facts(backbone)

    def _profile_rows(self, public: Public | None) -> Iterator[Mapping[str, Any]]:
        named = {row["fingerprint"]: row["name"] for row in self._task_rows(public)}
        for task, profile in sorted(self.profiles().items()):
            yield profile_row(profile, named[task], public)

    def _trial_rows(self, public: Public | None) -> Iterator[Mapping[str, Any]]:
        """By task and trial, one at a time; all results of a trial in the order of their text, whichever came first here."""
        anonymous = public is not None
        several = {id_ for (id_,) in self._rows("SELECT DISTINCT trial FROM other_results", [])}
        for row in self.db.execute("SELECT * FROM trials ORDER BY task, id"):
            trial = trial_of_row(self.db, row)
            if public is not None and trial.candidate.backbone not in public.backbones:
                continue
            first = trial_row(trial, anonymous=anonymous)
            others = self.other_results(first["id"]) if first["id"] in several else []
            yield from sorted([first, *(trial_row(other, anonymous=anonymous) for other in others)], key=to_json)

    # The rows

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One transaction, which waits for other writers."""
        try:
            self.db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                if self.db.conn.in_transaction:  # a full disk has rolled back already
                    self.db.execute("ROLLBACK")
                raise
            self.db.execute("COMMIT")
        except sqlite3.IntegrityError as error:
            raise HistoryError(f"the history refuses this: {error}; record its task and its backbone first") from None
        except sqlite3.OperationalError as error:
            raise HistoryUnusable(f"cannot write to the history: {error}; nothing was changed") from None

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """One state of the database for several questions, whatever others write meanwhile."""
        self.db.execute("BEGIN")
        try:
            yield
        finally:
            self.db.execute("COMMIT")

    def _rows(self, sql: str, values: list[Any]) -> list[Any]:
        return list(self.db.execute(sql, values).fetchall())


def open_history(path: Path | None = None) -> History:
    """The user's history (or the one at `path`), brought to the present schema and filled with the shipped facts.

    Raises:
        HistoryError: the file is no history, is damaged, or cannot be written.
    """
    path = home() / "history.db" if path is None else path
    history = open_database(path)
    _add_shipped(history)
    return history


def open_database(path: Path) -> History:
    """A history as it is there, or an empty one.

    Raises:
        HistoryError: the file is no history, is damaged, or cannot be written.
    """
    try:
        return _readable(_open(path), path)
    except (sqlite3.DatabaseError, OSError) as error:
        raise HistoryUnusable(f"{path}: {_why_not(error)}") from None


def _open(path: Path) -> History:
    """A commit is on the disk when it returns (synchronous = FULL): what was recorded survives a power cut."""
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
    history = History(connection)
    if connection.execute("PRAGMA journal_mode").fetchone() != ("wal",) or migrations.pending(history.db):
        _make_ready(history, path)
    for pragma in ("synchronous = FULL", "foreign_keys = ON", f"cache_size = -{CACHE_KB}"):
        connection.execute(f"PRAGMA {pragma}")
    return history


def _readable(history: History, place: Path) -> History:
    """Raises HistoryError: a later version has brought it to a schema of its own."""
    if changes := newer(history.db):
        history.db.conn.close()
        advice = "update automl_tl, or set AUTOML_TL_HOME elsewhere"
        raise HistoryUnusable(f"{place}: was written by a newer version of automl_tl ({changes[0]}); {advice}")
    return history


def _opened_copy(source: Path, folder: Path) -> History:
    """A copy of another history at one moment, brought to our schema; it is only read itself."""
    copy = folder / "history.db"
    with closing(sqlite3.connect(copy)) as target:
        try:
            with closing(sqlite3.connect(f"{source.resolve().as_uri()}?mode=ro", uri=True)) as other:
                other.backup(target)
        except sqlite3.DatabaseError as error:
            raise HistoryError(f"{source}: cannot be read as a history: {error}") from None
        if not target.execute("SELECT 1 FROM sqlite_master WHERE name = 'trials'").fetchone():
            raise HistoryError(f"{source}: is a database, but no history")
    try:
        return _readable(_open(copy), source)
    except sqlite3.DatabaseError as error:
        raise HistoryError(f"{source}: is no history of automl_tl, or damaged: {error}") from None


def _make_ready(history: History, path: Path) -> None:
    """Only one process at a time changes the journal, for which SQLite itself would not wait, and migrates."""
    from filelock import FileLock

    with FileLock(path.with_name(f"{path.name}.lock")):
        history.db.execute("PRAGMA journal_mode = WAL")
        migrations.apply(history.db)


def _why_not(error: sqlite3.Error | OSError) -> str:
    """A database cannot be opened, and what to do."""
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return f"another process is using it ({error}); try again"
    return f"cannot be used as a history: {error}; move it away, or set AUTOML_TL_HOME elsewhere"


def _shipped() -> Path:
    return Path(str(files("automl_tl.metadb")))


def _add_shipped(history: History) -> None:
    """Take in the package's facts when they are new or have changed; what they were before, and are no more, goes."""
    if not (_shipped() / TASKS).is_file():
        return
    # the form of the notes counts, too: homes of before there were any get them
    digest = hashlib.sha256(b"".join([MARKS.encode(), *((_shipped() / name).read_bytes() for name in FILES)])).hexdigest()
    if history._rows("SELECT value FROM state WHERE name = ?", [DIGEST]) != [(digest,)]:
        merge(history.db, read_facts(_shipped()), history._writing, shipped=digest)
