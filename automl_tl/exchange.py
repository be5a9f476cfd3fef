"""The form in which histories travel: four text files, as in metadb/; and what of a fact leaves the machine.

`tasks.csv`, `backbones.jsonl`, `profiles.jsonl`, `trials.jsonl`: a fact a line, sorted. What comes from a file is checked
as it is drawn, so that a million lines are never in memory together.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from .errors import HistoryError
from .facts import TaskFacts, backbone_facts, backbone_of, profile_of, task_facts_of, trial_of
from .home import whole
from .records import Backbone, Profile, Trial

TASKS, BACKBONES, PROFILES, TRIALS = FILES = ("tasks.csv", "backbones.jsonl", "profiles.jsonl", "trials.jsonl")
KINDS = tuple(name.partition(".")[0] for name in FILES)
PUBLIC_ZOOS = ("embedded", "timm")
"""Whose networks everybody can have; what another zoo has may be somebody's own."""
_PROVENANCE = ("command", "date", "hardware", "speed", "versions")
RECORDING = ("automl-tl fit", "automl-tl history build")
"""The commands that add trials to a history."""
_Row = TypeVar("_Row")
_Fact = TypeVar("_Fact")


@dataclass(frozen=True)
class Facts:
    """Facts on their way into a history; an iterator raises HistoryError with the place of a wrong one."""

    tasks: Iterator[TaskFacts]
    backbones: Iterator[Backbone]
    profiles: Iterator[Profile]
    trials: Iterator[Trial]
    """A trial with several results comes several times."""
    places: Mapping[str, str]
    """Of a profile and of a trial, by file, before its number, for messages."""


@dataclass(frozen=True)
class Public:
    """What may be named to anybody: what the package ships, and networks that everybody can have."""

    tasks: Collection[str]
    """Fingerprints."""
    backbones: Mapping[str, Backbone]
    """By name, as they may be written."""
    sources: Collection[str]


def public_of(tasks: Iterable[TaskFacts], backbones: Mapping[str, Backbone], shipped: Facts) -> Public:
    """Of a history's tasks and backbones. A shipped task that the user had named before has the user's words."""
    named = {task.fingerprint: (task.name, task.source_dataset) for task in shipped.tasks}
    known = {backbone.name: backbone for backbone in shipped.backbones}
    public = {}
    for name, backbone in backbones.items():
        if name in known and _same_network(backbone, known[name]):
            public[name] = known[name]
        elif backbone.zoo in PUBLIC_ZOOS:
            public[name] = backbone
    sources = {backbone.source_dataset for backbone in public.values()}
    return Public(
        {task.fingerprint for task in tasks if named.get(task.fingerprint) == (task.name, task.source_dataset)},
        public,
        sources.union(*(profile.distances for profile in shipped.profiles)),
    )


def _same_network(backbone: Backbone, shipped: Backbone) -> bool:
    """The same weights, or nothing is said of it that is not shipped."""
    if shipped.digest and backbone.digest == shipped.digest:
        return True
    return to_json(backbone_facts(backbone)) == to_json(backbone_facts(shipped))


def read_facts(folder: Path) -> Facts:
    """What `write_facts` wrote.

    Raises:
        HistoryError: it is no such folder.
    """
    if not (folder / TASKS).is_file():
        raise HistoryError(f"{folder}: has no {TASKS}; give a folder that `history export` wrote")
    return Facts(
        _read_csv(folder / TASKS),
        _read_lines(folder / BACKBONES, backbone_of),
        _read_lines(folder / PROFILES, profile_of),
        _read_lines(folder / TRIALS, trial_of),
        {name: f"{folder / name} line" for name in (PROFILES, TRIALS)},
    )


def checked(rows: Mapping[str, Iterable[Mapping[str, Any]]], source: Path) -> Facts:
    """The same of the rows of another database, which may be damaged: what reading them raises is told with its place."""
    return Facts(
        _check(rows[TASKS], task_facts_of, f"{source} task"),
        _check(rows[BACKBONES], backbone_of, f"{source} backbone"),
        _check(rows[PROFILES], profile_of, f"{source} profile"),
        _check(rows[TRIALS], trial_of, f"{source} trial"),
        {PROFILES: f"{source} profile", TRIALS: f"{source} trial"},
    )


def write_facts(folder: Path, rows: Mapping[str, Iterable[Mapping[str, Any]]]) -> dict[str, int]:
    """Write the four files, each whole, none before all are; how many facts of each kind."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as until_all_are:
            partials = {name: until_all_are.enter_context(whole(folder / name)) for name in reversed(FILES)}  # tasks: first there
            counts = {kind: _write(partials[name], name, rows[name]) for kind, name in zip(KINDS, FILES, strict=True)}
    except OSError as error:
        raise HistoryError(f"{folder}: cannot be made or used: {error.strerror}; give another folder") from None
    return counts


def task_row(task: TaskFacts, *, anonymous: bool, salt: str) -> dict[str, Any]:
    """A task's name is that of somebody's folder: anonymous, it is its fingerprint, and its source dataset a salted hash.

    The salt is one history's own and stays there, so that nobody can try likely names; its tasks of one source still go together.
    """
    if anonymous and task.name != task.fingerprint:
        source = hashlib.sha256(f"{salt}/{task.source_dataset}".encode()).hexdigest()[:12]
        task = replace(task, name=task.fingerprint, source_dataset=f"set-{source}")
    return asdict(task)


def profile_row(profile: Profile, name: str, public: Public | None) -> dict[str, Any]:
    """Warnings quote names of files and classes: they stay here; of networks and sources those that are not `public` (None: all
    may be named)."""
    if public is not None:
        looks = {backbone: scores for backbone, scores in profile.transferability.items() if backbone in public.backbones}
        distances = {source: found for source, found in profile.distances.items() if source in public.sources}
        profile = replace(profile, transferability=looks, distances=distances)
    return {**vars(profile), "task": name, "warnings": ()}


def trial_row(trial: Trial, *, anonymous: bool) -> dict[str, Any]:
    """Without what tells of one machine's folders; anonymous, also without free text, which may name a file or a class."""
    provenance = {**trial.provenance, "command": _verb(str(trial.provenance.get("command", "")))}
    error = without_folders(trial.error)
    curve = [vars(point) for point in trial.curve]
    if anonymous:
        provenance = {name: value for name, value in provenance.items() if name in _PROVENANCE}
        error = kind_of_failure(trial)
        curve = [{**point, "note": ""} for point in curve]
    changed = {"artefact": "", "provenance": provenance, "error": error, "curve": curve, "candidate": vars(trial.candidate)}
    return {**vars(trial), **changed}


def without_folders(error: str) -> str:
    """Words of a failed trial, of every path only the last name: where things lie on a machine is nobody else's business."""
    return re.sub(r"(?:[A-Za-z]:)?(?:[/\\][^\s/\\:]+)+(?=[/\\])", "…", error)


def _verb(command: str) -> str:
    """Of a command of ours its first words, of another program's nothing: every other word may be a name that somebody chose."""
    return next((ours for ours in RECORDING if f"{command} ".startswith(f"{ours} ")), "")


def kind_of_failure(trial: Trial) -> str:
    """Strategy and kind of the error, without its words."""
    found = re.match(r"[^:]+: (\w*(?:Error|Exception|Warning|Interrupt|Exit))(?:: |$)", trial.error)
    kind = found.group(1) if found else "failed"
    return f"{trial.candidate.strategy}: {kind}" if trial.error else ""


def to_json(value: Any) -> str:
    """The one spelling of a fact."""
    return _ENCODER.encode(value)


_ENCODER = json.JSONEncoder(
    sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"), check_circular=False, default=dict
)


def _write(path: Path, name: str, rows: Iterable[Mapping[str, Any]]) -> int:
    count = 0
    with path.open("w", newline="", encoding="utf-8") as file:
        if name == TASKS:
            file.write(_csv_line(TaskFacts.__dataclass_fields__))
        for count, row in enumerate(rows, 1):  # noqa: B007
            if name == TASKS:
                file.write(_csv_line(row[column] for column in TaskFacts.__dataclass_fields__))
            else:
                file.write(to_json(row) + "\n")
        file.flush()
        os.fsync(file.fileno())
    return count


def _csv_line(values: Iterable[Any]) -> str:
    """Python quotes a text with a carriage return, which would end the line, only where lines end with one."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerow(values)
    return text.getvalue().removesuffix("\r\n") + "\n"


def _check(rows: Iterable[_Row], parse: Callable[[_Row], _Fact], place: str, *, first: int = 1) -> Iterator[_Fact]:
    number = first
    try:
        for row in rows:
            yield parse(row)
            number += 1
    except (HistoryError, ValueError, RecursionError, csv.Error) as error:
        raise HistoryError(f"{place} {number}: {error}") from None
    except (TypeError, AttributeError, KeyError, sqlite3.Error) as error:  # of rows that are not what this project writes
        raise HistoryError(f"{place} {number}: no history of automl_tl, or damaged: {type(error).__name__}: {error}") from None


def _read_csv(path: Path) -> Iterator[TaskFacts]:
    def parse(row: Mapping[str, Any]) -> TaskFacts:
        try:
            counts = {name: int(row[name] or "") for name in ("classes", "train", "validation", "test")}
        except (KeyError, ValueError):
            raise HistoryError("expected whole numbers of classes and images") from None
        return task_facts_of({**row, **counts})

    with path.open(newline="", encoding="utf-8") as file:
        yield from _check(csv.DictReader(file), parse, f"{path} line", first=2)


def _read_lines(path: Path, parse: Callable[[Mapping[str, Any]], _Fact]) -> Iterator[_Fact]:
    if not path.is_file():
        return
    with path.open(encoding="utf-8") as file:
        yield from _check(file, lambda line: parse(json.loads(line)), f"{path} line")
