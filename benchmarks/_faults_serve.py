"""`automl-tl serve`, with a client that sends images, asks for two jobs and watches them; what it was told stays true."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from _kills import NETWORK, Run, used_home
from _kills_database import learnt
from _kills_images import drawn, zipped

TOKEN = "a-token-of-this-benchmark"
IMAGES = 160
JOBS: tuple[dict[str, Any], ...] = (
    {"kind": "profile"},
    {"kind": "fit", "budget": "2 trials + 4 epochs", "strategies": ["fine-tuning"], "backbones": [NETWORK]},
)
ENDED = ("finished", "cancelled", "failed")
LOOKED_EVERY = 0.1


class Client:
    """What a client of a server that is killed remembers from one start to the next."""

    def __init__(self, archive: bytes) -> None:
        self.archive = archive
        self.dataset = ""
        self.asked: list[str] = []
        """Jobs that the server said it has."""
        self.results: dict[str, Any] = {}
        """Of the jobs that it said are finished."""
        self.served = 0
        """Starts of the server that answered."""
        self.lost: list[str] = []

    def attend(self, process: subprocess.Popen[bytes], port: int) -> None:
        """Until every job has ended and the server is told to end, or until it was killed."""
        headers = {"Authorization": f"Bearer {TOKEN}"}
        answered = False
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=300) as http:
            while not answered and process.poll() is None:
                with contextlib.suppress(httpx.TransportError):
                    answered = http.get("/api/health").is_success
                time.sleep(LOOKED_EVERY)
            self.served += answered
            try:
                if process.poll() is None:
                    self._remind(http)
                    while not self._step(http):
                        time.sleep(LOOKED_EVERY)
                    process.terminate()
            except httpx.TransportError:  # the kill; if it was not, this says so
                process.wait(60)

    def _remind(self, http: httpx.Client) -> None:
        """What was acknowledged is there, what was finished is finished, with the same result."""
        there = {job["id"]: job["state"] for job in _ask(http.get("/api/jobs"))["items"]}
        self.lost += [f"job {id_} is gone" for id_ in self.asked if id_ not in there]
        for id_, result in self.results.items():
            if id_ in there and _ask(http.get(f"/api/jobs/{id_}"))["result"] != result:
                self.lost.append(f"job {id_} was finished, and its result has changed")
        counts = {dataset["id"]: dataset["images"] for dataset in _ask(http.get("/api/datasets"))}
        if self.dataset and self.dataset not in counts:
            self.lost.append("the images are gone")
        self.lost += [f"images {id_}: {count} of {IMAGES}" for id_, count in counts.items() if count != IMAGES]

    def _step(self, http: httpx.Client) -> bool:
        """Ask for one thing more, note what has ended; whether all has."""
        if not self.dataset:
            files = {"archive": ("digits.zip", self.archive)}
            self.dataset = _ask(http.post("/api/datasets", files=files))["id"]
        states = {job["id"]: job["state"] for job in _ask(http.get("/api/jobs"))["items"]}
        for id_, state in states.items():
            if state in ENDED and id_ not in self.results:
                if state != "finished":
                    self.lost.append(f"job {id_} is {state}: {_ask(http.get(f'/api/jobs/{id_}'))['error']}")
                self.results[id_] = _ask(http.get(f"/api/jobs/{id_}"))["result"]
        if len(self.asked) < len(JOBS) and sum(state not in ENDED for state in states.values()) < 2:
            job = {**JOBS[len(self.asked)], "images": {"dataset": self.dataset}}
            self.asked.append(_ask(http.post("/api/jobs", json=job))["id"])
            return False
        return len(self.asked) == len(JOBS) and states.keys() | set(self.asked) <= self.results.keys()


def prepare(scratch: Path) -> Callable[[Path], Run]:
    home, archive = used_home(scratch), zipped(drawn(scratch / "uploaded", IMAGES))

    def begin(place: Path) -> Run:
        shutil.copytree(home, place / "home")
        client, port = Client(archive), _free_port()
        line = [sys.executable, "-m", "automl_tl.cli", "serve", "--port", str(port), "--state", str(place / "state")]

        def wrong(database: Path, expected: object) -> Iterator[tuple[str, str]]:
            while client.lost:
                yield "lost_jobs", client.lost.pop()

        def outcome(database: Path) -> object:
            return learnt(database), [_told(client.results[id_]) for id_ in client.asked]

        attend = partial(client.attend, port=port)
        return Run(
            place / "home",
            line,
            outcome,
            lambda: client.served,
            wrong,
            attend=attend,
            ends=(0, -15),
            environment={"AUTOML_TL_TOKEN": TOKEN},
        )

    return begin


def _told(result: dict[str, Any]) -> dict[str, Any]:
    """What is the same in every run."""
    if "winner" in result:
        return {trial["id"]: [trial["status"], trial["validation"], trial["test"]] for trial in result["trials"]}
    return {name: result["profile"][name] for name in ("fingerprint", "meta", "distances", "transferability")}


def _ask(answer: httpx.Response) -> Any:
    if not answer.is_success:
        raise SystemExit(f"{answer.request.method} {answer.request.url.path}: {answer.status_code} {answer.text[:500]}")
    return answer.json()


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
