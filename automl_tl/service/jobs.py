"""Jobs: work on images, one at a time, each in a process of its own and on disk before it starts.

A job is a folder: `job.json` (what was asked and how far it is), `events.jsonl` (everything that happened, which is what a
client watches), `result.json`, and `run/`, the folder of a fit. A server that is killed takes its worker with it: the worker
waits for the end of its standard input. At the next start queued jobs are still queued, and the one that was running goes
back to the head of the queue, where it goes on from its last checkpoint.
"""

from __future__ import annotations

import json
import logging
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from automl_tl.errors import InputError
from automl_tl.home import home, read_json, write_text

from .events import append
from .faults import Refused

log = logging.getLogger("automl_tl.service")
ACTIVE = ("queued", "running", "cancelling")
ENDED = ("finished", "cancelled", "failed")
MOST_WAITING = 1000
GRACE_SECONDS = 120.0
"""For a cancelled job to end by itself: a fit still judges its best model and writes the report."""
LAST_WORDS = 5.0
"""Seconds for a worker to end once its standard input has: it writes down that the trial it was in is not to blame."""
PAUSE_SECONDS = 10.0
"""After a job that could not be run: on a full disk all that wait would fail before anybody can make room."""


@dataclass(frozen=True)
class Job:
    """One piece of work on images."""

    id: str
    kind: str
    """profile, recommend or fit."""
    state: str
    """queued, running, cancelling, finished, cancelled or failed."""
    request: dict[str, Any]
    """As it was asked for."""
    location: str
    """Where the worker reads the images."""
    created: float
    """Seconds since 1970, as are the others."""
    queued: float
    """Jobs run in the order of it."""
    started: float | None = None
    ended: float | None = None
    error: str = ""
    earlier: dict[str, Any] | None = None
    """The request that it was last run with, while it is queued with another one."""


class Jobs:
    """All jobs of a server, and the thread that runs them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._home = folder, home()
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob("[0-9a-f]" * 12):  # of a job that was being deleted, or could not be written down
            if not (left / "job.json").exists():
                shutil.rmtree(left, ignore_errors=True)
        self._changed = threading.Condition(threading.RLock())
        found = [_read(path) for path in sorted(folder.glob("*/job.json"))]
        self._jobs = {job.id: job for job in found if job is not None}
        self._worker: subprocess.Popen[bytes] | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="jobs", daemon=True)
        for job in list(self._jobs.values()):
            if job.state == "running":
                self._put(replace(job, state="queued", started=None), "the server was started anew; the job goes on")
            elif job.state == "cancelling":
                self._put(replace(job, state="cancelled", ended=time.time()), "the server ended before the job had")

    def start(self) -> None:
        """Begin to run what is queued."""
        self._thread.start()

    def stop(self) -> None:
        """End the worker, too; its job goes on at the next start."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
            worker = self._worker
        if worker is not None:
            _end(worker)
        self._thread.join()

    # Asking

    def get(self, id: str) -> Job:
        """Raises Refused (404) where there is none."""
        with self._changed:
            if id not in self._jobs:
                raise Refused(404, f"there is no job {id!r}; GET /api/jobs names them")
            return self._jobs[id]

    def ended(self, id: str) -> bool:
        """Whether nothing more will happen to it, unless it is resumed."""
        with self._changed:
            return id not in self._jobs or self._jobs[id].state in ENDED

    def all(self) -> list[Job]:
        """Newest first."""
        with self._changed:
            return sorted(self._jobs.values(), key=lambda job: (-job.created, job.id))

    def place(self, job: Job) -> int | None:
        """How many jobs come before a queued one; None for the others."""
        if job.state != "queued":
            return None
        with self._changed:
            before = [other for other in self._jobs.values() if other.state == "queued" and _order(other) < _order(job)]
            return len(before) + (self._worker is not None)

    def path(self, id: str) -> Path:
        """The folder of a job."""
        return self.folder / self.get(id).id

    def result(self, id: str) -> dict[str, Any] | None:
        """What came of it; None where nothing did yet, or what did is damaged."""
        return _facts(self.path(id) / "result.json")

    # Deciding

    def submit(self, kind: str, request: Mapping[str, Any], location: Path) -> Job:
        """Queue a job; it is on disk when this returns.

        Raises:
            Refused: 429 where too many wait.
        """
        with self._changed:
            job = Job(secrets.token_hex(6), kind, "queued", dict(request), str(location), time.time(), self._turn())
            if sum(other.state == "queued" for other in self._jobs.values()) >= MOST_WAITING:
                raise Refused(429, f"{MOST_WAITING} jobs are waiting; try again when some are done", {"Retry-After": "60"})
            (self.folder / job.id).mkdir()
            self._put(job)
            self._changed.notify_all()
        return job

    def cancel(self, id: str) -> Job:
        """Take a job out of the queue, where one that was resumed is again what it was, or interrupt it: a fit ends with its
        best model so far.

        Raises:
            Refused: 409 where it has ended.
        """
        with self._changed:
            job = self.get(id)
            if job.state in ENDED:
                raise Refused(409, f"the job is {job.state} already")
            if job.state == "queued":
                state, error = _verdict(self.folder / id, 0, cancelled=True)
                request = job.request if job.earlier is None else job.earlier
                return self._put(replace(job, state=state, request=request, ended=time.time(), error=error, earlier=None))
            if job.state == "running":
                job = self._keep(replace(job, state="cancelling"))
                if self._worker is not None:
                    self._worker.send_signal(signal.SIGINT)
                    threading.Thread(target=self._end_after_grace, args=[self._worker], daemon=True).start()
            return job

    def resume(self, id: str, changes: Mapping[str, Any]) -> Job:
        """Queue a job that was cancelled or failed, or a fit that is to go on with another budget.

        Raises:
            Refused: 409 where it is under way, or finished and nothing changes.
        """
        with self._changed:
            job = self.get(id)
            if job.state in ACTIVE:
                raise Refused(409, f"the job is {job.state}; it goes on anyway")
            if job.state == "finished" and not changes:
                more = "give a larger budget for it to go on" if job.kind == "fit" else "send a new one"
                raise Refused(409, f"the job is finished; {more}")
            anew: dict[str, Any] = {"request": {**job.request, **changes}, "earlier": job.request, "queued": self._turn()}
            job = self._put(replace(job, state="queued", started=None, ended=None, error="", **anew))
            self._changed.notify_all()
            return job

    def remove(self, id: str) -> None:
        """Delete a job with its model and report.

        Raises:
            Refused: 409 where it is under way.
        """
        with self._changed:
            job = self.get(id)
            if job.state in ACTIVE:
                raise Refused(409, f"the job is {job.state}; cancel it first")
            (self.folder / id / "job.json").unlink()  # without it the rest is no job, whenever this is interrupted
            del self._jobs[id]
        shutil.rmtree(self.folder / id, ignore_errors=True)

    def _turn(self) -> float:
        """After all that are not done, even if the clock has been put back since."""
        return max([time.time(), *(job.queued + 1e-3 for job in self._jobs.values() if job.state in ACTIVE)])

    # Running

    def _run(self) -> None:
        while (job := self._next()) is not None:
            try:
                self._finish(job, self._wait(job))
            except Exception as error:  # a full disk, no process to be had, our fault: this job fails, the next is tried
                log.error("job %s could not be run", job.id, exc_info=error)
                with self._changed:
                    self._worker = None
                    text = _without_places(f"could not be run: {error}", self.folder / job.id, Path(job.location), self._home)
                    self._keep(replace(self.get(job.id), state="failed", ended=time.time(), error=text))
                    self._changed.wait_for(lambda: self._stopping, PAUSE_SECONDS)

    def _next(self) -> Job | None:
        """The next job, marked as running; None when the server stops."""
        with self._changed:
            while not self._stopping:
                waiting = sorted((job for job in self._jobs.values() if job.state == "queued"), key=_order)
                if waiting:
                    return self._keep(replace(waiting[0], state="running", started=time.time(), earlier=None))
                self._changed.wait()
            return None

    def _wait(self, job: Job) -> int:
        """Run the worker to its end; its exit code."""
        folder = self.folder / job.id
        with (folder / "worker.log").open("ab") as out:
            line = [sys.executable, "-m", "automl_tl.service.worker", str(folder)]
            with self._changed:
                worker = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=out, stderr=out, start_new_session=True)
                self._worker = worker
                if self._stopping:  # since the job was taken: stop() found no worker to end, and waits for this thread
                    worker.kill()
                elif self.get(job.id).state == "cancelling":  # between its start and now
                    worker.send_signal(signal.SIGINT)
        code = worker.wait()
        assert worker.stdin is not None
        worker.stdin.close()
        return code

    def _finish(self, job: Job, code: int) -> None:
        with self._changed:
            self._worker = None
            if self._stopping:
                return  # it stays "running" on disk, and goes on at the next start
            state, error = _verdict(self.folder / job.id, code, self.get(job.id).state == "cancelling")
            error = _without_places(error, self.folder / job.id, Path(job.location), self._home)
            self._keep(replace(self.get(job.id), state=state, ended=time.time(), error=error))

    def _end_after_grace(self, worker: subprocess.Popen[bytes]) -> None:
        try:
            worker.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            _end(worker)

    def _put(self, job: Job, note: str = "") -> Job:
        """On disk first, then to those who watch, then in memory: who sees that a job has ended can read how."""
        with self._changed:
            write_text(self.folder / job.id / "job.json", json.dumps(asdict(job), indent=1))
            append(self.folder / job.id, "state", {"state": job.state, "error": job.error, "note": note})
            self._jobs[job.id] = job
        return job

    def _keep(self, job: Job) -> Job:
        """`_put`, or in memory alone where nothing can be written: the thread that runs the jobs must not end of it.

        What is on disk is then older, and what the next start goes on from.
        """
        try:
            return self._put(job)
        except OSError as error:
            log.error("job %s is %s, but that could not be written", job.id, job.state, exc_info=error)
            with self._changed:
                self._jobs[job.id] = job
            return job


def _end(worker: subprocess.Popen[bytes]) -> None:
    """By the end of its standard input; a worker that does not hear that is killed, as if its trial had done it."""
    assert worker.stdin is not None
    worker.stdin.close()
    try:
        worker.wait(LAST_WORDS)
    except subprocess.TimeoutExpired:
        worker.kill()


def _without_places(text: str, folder: Path, location: Path, kept: Path) -> str:
    """What is said of a job in this folder, with names in place of the server's own paths (`kept`: home): they are nobody's
    business."""
    places = (location, location.parent, folder, folder.parents[1], kept)  # a manifest's images lie beside it
    for place in sorted(places, key=lambda place: -len(place.parts)):
        text = text.replace(str(place), place.name) if place.name else text
    return text


def _order(job: Job) -> tuple[float, str]:
    return job.queued, job.id


def _read(path: Path) -> Job | None:
    """A job as it was left; None where that cannot be read: the others go on without it."""
    try:
        return Job(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        log.error("%s: passed over, as it cannot be read as a job: %s", path, error)
        return None


def _verdict(folder: Path, code: int, cancelled: bool) -> tuple[str, str]:
    """State and error of a job whose worker has ended."""
    result = _facts(folder / "result.json")
    if code == 0 and result is not None and not (folder / "error.json").exists():  # or it came of an earlier run
        interrupted = result.get("interrupted", False)
        return ("cancelled" if interrupted and cancelled else "finished"), ""
    if cancelled:
        return "cancelled", ""
    if code < 0:
        return "failed", f"the worker was ended by {_signal(-code)}, perhaps for want of memory; resume the job to try again"
    return "failed", _last_error(folder)


def _signal(number: int) -> str:
    """Its name; most of those for real time have none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _last_error(folder: Path) -> str:
    facts = _facts(folder / "error.json") or {}
    return str(facts.get("message", "the worker ended without a word; the server's folder of the job has its log"))


def _facts(path: Path) -> dict[str, Any] | None:
    """None where there are none, or they are damaged, which the log says: no job may take the server down with it."""
    try:
        return read_json(path, dict, remedy="")
    except FileNotFoundError:
        return None
    except (InputError, OSError) as error:
        log.error("%s", error)
        return None
