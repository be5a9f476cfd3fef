"""Facts as another machine may have found them, made of the shipped ones; and runs that take them in, whole or not at all."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from _kills import Run
from _kills_database import facts

from automl_tl.exchange import BACKBONES, PROFILES, TASKS, TRIALS
from automl_tl.history import open_history
from automl_tl.records import Candidate, trial_id

SHIPPED = Path(str(files("automl_tl.metadb")))
SEEDS = 3
"""Each shipped trial was repeated there on a task of another name, with so many other seeds."""
SAYS = {"import": "imported ", "merge": "merged "}
"""The last that either says."""


def written(scratch: Path) -> Path:
    """The form of `history export`: new tasks with profiles and trials, and for every fourth known trial another result."""
    return _written(scratch / "elsewhere", lambda trial: trial)


def shipped(scratch: Path) -> Path:
    """A home whose history has the shipped facts and no others."""
    home = scratch / "shipped"
    if not home.exists():
        home.mkdir()
        open_history(home / "history.db").db.conn.close()
    return home


def known_in_part(scratch: Path) -> Path:
    """The same and, of every eighth trial from elsewhere, what was known when it had been stopped after an epoch."""
    home = scratch / "part"
    if not home.exists():
        shutil.copytree(shipped(scratch), home)
        with open_history(home / "history.db") as history:
            history.import_facts(_written(scratch / "early", _stopped))
    return home


def taking(home: Path, words: list[str], *, may_be: tuple[Path, ...] = ()) -> Callable[[Path], Run]:
    """Runs of `automl-tl history WORDS` in copies of `home`; on its way the history may become as in the homes `may_be`."""
    before = [facts(one / "history.db") for one in (home, *may_be)]

    def begin(place: Path) -> Run:
        shutil.copytree(home, place / "home")

        def outcome(database: Path) -> object:
            found = facts(database)
            if found in before:
                raise SystemExit(f"{words[0]} ended, and nothing was taken")
            return found

        def wrong(database: Path, expected: object) -> Iterator[tuple[str, str]]:
            """All of it is there or nothing, and all of it if it was said to be."""
            now = facts(database)
            if now not in (*before, expected):
                changed = [table for table, rows in now.items() if rows != before[-1][table]]
                yield "half_taken", f"tables that differ from those before: {', '.join(changed)}"
            if now != expected and SAYS[words[0]] in (place / "said.txt").read_text(encoding="utf-8"):
                yield "half_taken", "it said that all was taken, and it is not there"

        def complete(database: Path, expected: object) -> bool:
            return facts(database) == expected

        line = [sys.executable, "-m", "automl_tl.cli", "history", *words]
        return Run(place / "home", line, outcome, wrong=wrong, complete=complete)

    return begin


def _stopped(trial: dict[str, Any]) -> dict[str, Any] | None:
    """A trial after its first epoch; None of most."""
    if len(trial["curve"]) < 2 or int(trial["id"], 16) % 8 or trial["status"] != "finished":
        return None
    first = trial["curve"][0]
    return {**trial, "status": "stopped", "curve": [first], "validation": {"accuracy": first["score"]}, "test": {}}


def _written(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> Path:
    if folder.exists():
        return folder
    folder.mkdir(parents=True)
    shutil.copy(SHIPPED / BACKBONES, folder / BACKBONES)
    with (SHIPPED / TASKS).open(newline="", encoding="utf-8") as file:
        tasks = list(csv.DictReader(file))
    with (folder / TASKS).open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(tasks[0]))
        table.writeheader()
        table.writerows({**task, "fingerprint": _other(task["fingerprint"]), "name": f"{task['name']} there"} for task in tasks)
    profiles = [json.loads(line) for line in (SHIPPED / PROFILES).read_text(encoding="utf-8").splitlines()]
    there = [
        {**profile, "fingerprint": _other(profile["fingerprint"]), "task": f"{profile['task']} there"} for profile in profiles
    ]
    (folder / PROFILES).write_text("".join(json.dumps(profile) + "\n" for profile in there), encoding="utf-8")
    with (SHIPPED / TRIALS).open(encoding="utf-8") as shipped, (folder / TRIALS).open("w", encoding="utf-8") as file:
        for number, line in enumerate(shipped):
            for trial in _repeated(json.loads(line), number):
                if (said := change(trial)) is not None:
                    file.write(json.dumps(said) + "\n")
    return folder


def _repeated(trial: dict[str, Any], number: int) -> Iterator[dict[str, Any]]:
    candidate, task = Candidate(**trial["candidate"]), _other(trial["task"])
    for seed in range(trial["seed"] + 1, trial["seed"] + 1 + SEEDS):
        yield {**trial, "id": trial_id(task, candidate, seed), "task": task, "seed": seed}
    if number % 4 == 0:
        yield {**trial, "seconds": 1.25 * trial["seconds"]}


def _other(fingerprint: str) -> str:
    return hashlib.sha256(f"elsewhere/{fingerprint}".encode()).hexdigest()[: len(fingerprint)]
