"""Facts as rows of the database, and back. Whoever calls holds the transaction."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

from sqlite_utils import Database

from .exchange import kind_of_failure, to_json, trial_row
from .facts import TaskFacts, backbone_facts, profile_of, trial_of
from .records import Backbone, Candidate, Point, Profile, Trial

TRIAL_COLUMNS = 17
"""Of `trials`, without its number."""


def put_task(db: Database, task: TaskFacts) -> bool:
    """Add a task; a known one keeps its name, unless that was only its fingerprint. Whether anything changed."""
    named = "DO UPDATE SET name = excluded.name, source_dataset = excluded.source_dataset"
    named += " WHERE tasks.name = tasks.fingerprint AND excluded.name <> excluded.fingerprint"
    sql = f"INSERT INTO tasks VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (fingerprint) {named}"
    return bool(db.conn.execute(sql, list(vars(task).values())).rowcount)


def put_backbone(db: Database, backbone: Backbone, *, replace_known: bool = True) -> bool:
    """Whether anything changed."""
    text = to_json(backbone_facts(backbone))
    values = [backbone.name, backbone.source_dataset, backbone.params, backbone.macs, text, hash40(text)]
    changed = "facts = excluded.facts, hash = excluded.hash, source_dataset = excluded.source_dataset,"
    changed += " params = excluded.params, macs = excluded.macs WHERE facts <> excluded.facts"
    conflict = f"ON CONFLICT (name) DO UPDATE SET {changed}" if replace_known else "ON CONFLICT DO NOTHING"
    return bool(db.conn.execute(f"INSERT INTO backbones VALUES (?, ?, ?, ?, ?, ?) {conflict}", values).rowcount)


def put_profile(db: Database, profile: Profile, *, newest_counts: bool) -> bool:
    """Add to what is known of a task: transferability of further backbones, distances to further sources. Whether it was more.

    Where both know a number, `newest_counts` says whether the given one replaces it.
    """
    known = db.conn.execute("SELECT facts FROM profiles WHERE task = ?", [profile.fingerprint]).fetchone()
    if known:
        before = profile_of(json.loads(known[0]))
        first, last = (before, profile) if newest_counts else (profile, before)
        profile = replace(
            last,
            meta={**first.meta, **last.meta},
            distances=_both(first.distances, last.distances),
            transferability=_both(first.transferability, last.transferability),
        )
        if profile == before:
            return False
    text = to_json(vars(profile))
    learnt = to_json([profile.meta, profile.distances, profile.transferability])
    db.conn.execute("INSERT OR REPLACE INTO profiles VALUES (?, ?, ?)", [profile.fingerprint, text, hash40(learnt)])
    task = profile.fingerprint
    meta = [(task, name, value) for name, value in profile.meta.items()]
    distances = [(task, source, name, v) for source, found in profile.distances.items() for name, v in found.items()]
    scores = [(task, backbone, name, v) for backbone, found in profile.transferability.items() for name, v in found.items()]
    db.conn.executemany("INSERT OR REPLACE INTO meta_features VALUES (?, ?, ?)", meta)
    db.conn.executemany("INSERT OR IGNORE INTO sources VALUES (?)", [(source,) for source in profile.distances])
    db.conn.executemany("INSERT OR REPLACE INTO distances VALUES (?, ?, ?, ?)", distances)
    db.conn.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?, ?, ?)", scores)
    return True


def _both(first: Mapping[str, Mapping[str, float]], last: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """All numbers of both; where they differ, the last one's."""
    return {name: {**first.get(name, {}), **last.get(name, {})} for name in {**first, **last}}


def put_trial(db: Database, trial: Trial) -> str:
    """Add a trial, or what more is known of one: "new", "more", "other" (another result, kept beside the first) or "".

    - a stopped one gives way to one that went further, failed or finished; a failed one to one that finished, but is kept;
    - a finished one is only ever completed by its test scores, a stopped one also by the error that ended it for good;
    - another result of the same trial never replaces the first: both are kept and, if finished, learnt from;
    - of several failures of one kind one is kept, whichever came first (`_united`).
    """
    row = db.conn.execute("SELECT * FROM trials WHERE id = ?", [trial.id]).fetchone()
    if row is None:
        _insert_trial(db, trial)
        return "new"
    known = trial_of_row(db, row)
    if trial.status == "stopped":
        if known.status != "stopped" or _progress(trial) < _progress(known):
            return ""
        if _progress(trial) == _progress(known):
            trial = replace(known, test=known.test or trial.test, error=known.error or trial.error)
            if trial == known:
                return ""
    elif known.status != "stopped" and (known.status, trial.status) != ("failed", "finished"):
        if not _same_run(known, trial):
            return _put_other(db, trial)
        trial = _united(known, trial)
        if trial == known:
            return ""
    db.conn.execute("DELETE FROM points WHERE trial = ?", [trial.id])
    db.conn.execute("DELETE FROM trials WHERE id = ?", [trial.id])
    _insert_trial(db, trial)
    if (known.status, trial.status) == ("failed", "finished"):
        _put_other(db, known)
    return "more"


def _put_other(db: Database, trial: Trial) -> str:
    """A further result of a trial; the same one is kept once."""
    for text in other_results(db, trial.id):
        same = trial_of(json.loads(text))
        if _same_run(same, trial):
            trial = _united(same, trial)
            if trial == same:
                return ""
            db.conn.execute("DELETE FROM other_results WHERE trial = ? AND result = ?", [trial.id, _result(same)])
    columns = [trial.status, trial.score, trial.seconds, trial.memory_mb, trial.provenance.get("speed")]
    values = [trial.id, _result(trial), *columns, learnt_hash(trial), to_json(asdict(trial))]
    db.conn.execute(f"INSERT INTO other_results VALUES (?{', ?' * 8})", values)
    return "other"


def other_results(db: Database, trial: str) -> list[str]:
    """As JSON, sorted by result."""
    found = db.conn.execute("SELECT facts FROM other_results WHERE trial = ? ORDER BY result", [trial])
    return [text for (text,) in found]


def _same_run(a: Trial, b: Trial) -> bool:
    """Whether two reports are of one run: seconds are measured, so two runs never agree in them."""
    if a.status != b.status:
        return False
    if a.status == "failed":
        return kind_of_failure(a) == kind_of_failure(b)
    return (a.validation, a.seconds) == (b.validation, b.seconds) and (a.test == b.test or not a.test or not b.test)


def _united(known: Trial, trial: Trial) -> Trial:
    """What is kept of two reports of one run.

    Of two failures of one kind that whose text without names comes first, so that the order of merging does not decide what is
    exported; the words of the error do not count, as what was exported without them is still the same.
    """
    if known.status == "failed":
        return min(known, trial, key=lambda one: to_json(trial_row(one, anonymous=True)))
    return replace(known, test=known.test or trial.test)


def _result(trial: Trial) -> str:
    """Names a result among those of its trial."""
    told: list[object] = [kind_of_failure(trial)] if trial.status == "failed" else [trial.validation, trial.test, trial.seconds]
    return hashlib.sha256(to_json(told).encode()).hexdigest()[:16]


def _progress(trial: Trial) -> tuple[float, int]:
    return trial.curve[-1].epoch if trial.curve else 0.0, learnt_hash(trial)


def _insert_trial(db: Database, trial: Trial) -> None:
    db.conn.execute(f"INSERT INTO trials VALUES (NULL{', ?' * TRIAL_COLUMNS})", trial_values(trial))
    db.conn.executemany("INSERT INTO points VALUES (?, ?, ?, ?, ?, ?, ?, ?)", point_values(trial, trial.id))


def trial_values(trial: Trial) -> tuple[Any, ...]:
    """A row of `trials`, without its number."""
    candidate = trial.candidate
    return (
        trial.id,
        trial.task,
        candidate.backbone,
        candidate.strategy,
        to_json(candidate.hyperparameters),
        trial.seed,
        trial.status,
        trial.score,
        to_json(trial.validation),
        to_json(trial.test),
        trial.seconds,
        trial.memory_mb,
        trial.artefact,
        trial.error,
        to_json(trial.provenance),
        trial.provenance.get("speed"),
        learnt_hash(trial),
    )


def point_values(trial: Trial, key: str | int) -> Iterator[tuple[Any, ...]]:
    """Rows of `points`."""
    for position, p in enumerate(trial.curve):
        yield key, position, p.epoch, p.seconds, p.loss, p.score, p.memory_mb, p.note


def trial_of_row(db: Database, row: Any, *, points: str = "points", key: str | int | None = None) -> Trial:
    """Of a row of `trials` with its number; its curve is in `points` under its id, or under `key`."""
    _, id_, task, backbone, strategy, hyperparameters, seed, status, _, validation, test, seconds, memory, *rest = row
    artefact, error, provenance, _, _ = rest
    sql = f"SELECT epoch, seconds, loss, score, memory_mb, note FROM {points} WHERE trial = ? ORDER BY position"
    curve = tuple(Point(*point) for point in db.conn.execute(sql, [id_ if key is None else key]))
    return Trial(
        id_,
        task,
        Candidate(backbone, strategy, json.loads(hyperparameters)),
        seed,
        status,
        curve,
        json.loads(validation),
        json.loads(test),
        seconds,
        memory,
        artefact,
        error,
        json.loads(provenance),
    )


def learnt_hash(trial: Trial) -> int:
    return hash40(to_json([trial.id, trial.validation, trial.seconds]))


def hash40(text: str) -> int:
    """40 bits: eight million of them add up within SQLite's integers."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:5], "big")
