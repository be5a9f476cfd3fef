"""The process of one job: `python -m automl_tl.service.worker FOLDER`, with the end of standard input as the order to stop.

The server reads `events.jsonl` and `result.json`, or `error.json` after exit code 2 (the person's fault) or 1 (ours). The result
of an earlier run stays until there is a new one; for so long there is an `error.json` beside it. SIGINT interrupts: a fit then
ends with its best model so far.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from automl_tl import guard
from automl_tl.errors import AutomlError, no_room
from automl_tl.exchange import without_folders
from automl_tl.facts import outcome_facts
from automl_tl.home import write_text

from .events import append, plain

if TYPE_CHECKING:
    from automl_tl.advice import Advice
    from automl_tl.records import Point, Profile, Ranking, Task, Trial

SECONDS_APART = 0.2
"""Between two events of progress or epochs of one kind: more would only be noise."""
RANKED = 50
"""Candidates of a ranking that are told."""
LOCK_SECONDS = 60.0


class Events:
    """A tracker and a progress that write down what happens."""

    name = "events"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.last: dict[str, float] = {}

    def progress(self, step: str, done: int, total: int) -> None:
        if self._due(step) or done >= total:
            append(self.folder, "progress", {"step": step, "done": done, "total": total})

    def told(self, task: Task, advice: Advice) -> None:
        append(self.folder, "advice", {"task": task_facts(task), **advice_facts(advice.profile, advice.ranking, RANKED)})

    def opened(self, task: Task, seconds: float, folder: Path) -> None:
        append(self.folder, "progress", {"step": "training", "done": 0, "total": 0})

    def started(self, trial: Trial) -> None:
        append(self.folder, "trial", _trial_facts(trial))

    def epoch(self, trial: Trial, point: Point) -> None:
        if self._due(trial.id):
            append(self.folder, "epoch", {"id": trial.id, **asdict(point)})

    def finished(self, trial: Trial) -> None:
        append(self.folder, "trial", _trial_facts(trial))

    def _due(self, about: str) -> bool:
        now = time.monotonic()
        due = now - self.last.get(about, -SECONDS_APART) >= SECONDS_APART
        if due:
            self.last[about] = now
        return due


def main() -> None:
    """Do the job; the exit code says how it went."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a server in the background of a shell has it ignored
    folder = Path(sys.argv[1])
    threading.Thread(target=_end_with_the_server, daemon=True).start()
    (folder / "error.json").unlink(missing_ok=True)  # what went wrong before must not be told again, even if the disk is full
    write_text(folder / "error.json", "{}")
    try:
        from filelock import FileLock

        with FileLock(folder / "worker.lock", timeout=LOCK_SECONDS):  # the worker of a server that was killed ends just now
            result = _do(json.loads((folder / "job.json").read_text(encoding="utf-8")), folder)
        write_text(folder / "result.json", json.dumps(plain(result), indent=1))
        (folder / "error.json").unlink()
    except AutomlError as error:
        _fail(folder, str(error), 2)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if no_room(error):
            _fail(folder, "the server's disk is full; make room, and resume the job", 2)
        # our fault: the log has the traceback, the person one line
        traceback.print_exc()
        _fail(folder, f"internal error: {type(error).__name__}: {error}; please report it", 1)


def _fail(folder: Path, message: str, code: int) -> None:
    write_text(folder / "error.json", json.dumps({"message": message}))
    sys.exit(code)


def _end_with_the_server() -> None:
    """All that matters is on disk, so a server that dies may take its worker along: nobody else would watch it."""
    while os.read(0, 4096):
        pass
    guard.pardon()
    os._exit(3)


def _do(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    from automl_tl import api

    request, location, told = job["request"], Path(job["location"]), Events(folder)
    seed, zoo = request["seed"], request["zoo"]
    chosen = {"zoo": zoo, "seed": seed, "progress": told.progress}
    if job["kind"] == "fit":
        return _fit(request, location, folder / "run", told)
    task = api.read_task(location, seed=seed, progress=told.progress)
    if job["kind"] == "profile":
        return {"task": task_facts(task), "profile": asdict(api.profile_task(task, **chosen))}
    advice = api.recommend(task, strategies=request["strategies"], backbones=request["backbones"], **chosen)
    return {"task": task_facts(task), **advice_facts(advice.profile, advice.ranking, request["top"])}


def _fit(request: dict[str, Any], location: Path, run: Path, told: Events) -> dict[str, Any]:
    from automl_tl import api

    sys.argv = _command(request, location)  # what the report says is how to do it again
    outcome = api.fit(
        location,
        budget=request["budget"],
        out=run,
        seed=request["seed"],
        zoo=request["zoo"],
        strategies=request["strategies"],
        backbones=request["backbones"],
        trackers=[told],
        progress=told.progress,
        told=told.told,
    )
    nameless = [replace(trial, error=without_folders(trial.error)) for trial in outcome.trials]
    return outcome_facts(replace(outcome, trials=tuple(nameless)))


def _command(request: dict[str, Any], location: Path) -> list[str]:
    """With the name of the images, for clients: where they lie on the server is not for them."""
    words = ["automl-tl", "fit", location.name, "--budget", request["budget"], "--seed", str(request["seed"])]
    words += ["--zoo", request["zoo"]] if request["zoo"] else []
    for option, names in (("--strategy", request["strategies"]), ("--backbone", request["backbones"])):
        words += [word for name in names or () for word in (option, name)]
    return words


def task_facts(task: Task) -> dict[str, Any]:
    """What a client is told of a task."""
    return {
        "name": task.name,
        "fingerprint": task.fingerprint,
        "images": len(task.labels),
        "classes": list(task.classes),
        "splits": {split: len(part) for split, part in task.splits.items()},
    }


def advice_facts(profile: Profile, ranking: Ranking, top: int) -> dict[str, Any]:
    """What a client is told of an advice."""
    return {
        "profile": asdict(profile),
        "basis": ranking.basis,
        "stage": ranking.stage,
        "candidates": len(ranking.items),
        "ranking": [asdict(item) for item in ranking.items[:top]],
    }


def _trial_facts(trial: Trial) -> dict[str, Any]:
    """One trial without what a client does not watch."""
    facts = asdict(replace(trial, error=without_folders(trial.error)))
    return {name: facts[name] for name in ("id", "candidate", "status", "validation", "seconds", "memory_mb", "error", "curve")}


if __name__ == "__main__":
    main()
