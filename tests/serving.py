"""A real server on loopback, in a process of its own, a zip of real handwriting to send it, and what its tests share."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from small import QUICK, arrays

from automl_tl.service.jobs import Job

TOKEN = "a-token-for-tests-only"
FIT = {"kind": "fit", "budget": "2 trials", "strategies": ["linear-probe"], "backbones": [QUICK]}


def picture(number: int) -> bytes:
    """One digit as PNG."""
    file = io.BytesIO()
    Image.fromarray(arrays(number + 1)[0][number]).resize((24, 24)).save(file, "PNG")
    return file.getvalue()


@functools.cache  # a zip holds the time of its making: the same archive is the same dataset
def digits_zip(count: int = 160, classes: int = 4) -> bytes:
    """CLASS/FILE of the first digits below `classes`."""
    file = io.BytesIO()
    images, labels = arrays(count)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            if label < classes:
                data = io.BytesIO()
                Image.fromarray(image).resize((24, 24)).save(data, "PNG")
                archive.writestr(f"our-digits/digit {label}/{number:03d}.png", data.getvalue())
    return file.getvalue()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Running:
    """`automl-tl serve` and a client that has its token."""

    def __init__(self, state: Path, home: Path, *options: object, token: str = TOKEN) -> None:
        self.state, self.port = state, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        line = [sys.executable, "-m", "automl_tl.cli", "serve", "--port", self.port, "--state", state, *options]
        environment = {**os.environ, "AUTOML_TL_HOME": str(home), "AUTOML_TL_TOKEN": token, "HF_HUB_OFFLINE": "1"}
        self.log = state.parent / f"{state.name}-{self.port}.log"
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(list(map(str, line)), env=environment, stdout=out, stderr=out, start_new_session=True)
        self.client = httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {token}"}, timeout=120)
        try:
            self._wait()
        except BaseException:
            self.kill()
            raise

    def _wait(self) -> None:
        for _ in range(1800):
            if self.process.poll() is not None:
                raise AssertionError(self.log.read_text())
            with contextlib.suppress(httpx.TransportError):
                self.client.get("/api/health").raise_for_status()
                return
            time.sleep(0.1)
        raise AssertionError(f"no answer: {self.log.read_text()}")

    def kill(self) -> None:
        """As a crash does: no last words."""
        self.process.kill()
        self.process.wait()
        self.client.close()

    def end(self) -> None:
        """As Ctrl-C does."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(180)
        self.client.close()

    def submit(self, **request: Any) -> str:
        answer = self.client.post("/api/jobs", json=request)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def events(self, id: str, after: int = 0) -> Iterator[tuple[int, str, dict[str, Any]]]:
        """(id, event, facts) until the server ends the stream."""
        with self.client.stream("GET", f"/api/jobs/{id}/events", headers={"Last-Event-ID": str(after)}) as stream:
            assert stream.status_code == 200, stream.read()
            assert stream.headers["content-type"].startswith("text/event-stream")
            fields: dict[str, str] = {}
            for line in stream.iter_lines():
                if match := re.fullmatch(r"(\w+): (.*)", line):
                    fields[match[1]] = match[2]
                elif fields:
                    yield int(fields["id"]), fields["event"], json.loads(fields["data"])
                    fields = {}

    def ended(self, id: str) -> dict[str, Any]:
        """The job once it has ended."""
        for _ in self.events(id):
            pass
        return dict(self.client.get(f"/api/jobs/{id}").json())


@pytest.fixture(scope="module")
def home(make_home: Callable[[], Path]) -> Path:
    return make_home()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A server-side folder with images, and with a link that leads out of it."""
    root = tmp_path_factory.mktemp("root")
    with zipfile.ZipFile(io.BytesIO(digits_zip())) as archive:
        archive.extractall(root)
    outside = tmp_path_factory.mktemp("outside")
    (root / "escape").symlink_to(outside)
    (root / "notes.txt").write_text("no images")
    return root


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, home: Path, root: Path) -> Iterator[Running]:
    running = Running(tmp_path_factory.mktemp("service") / "state", home, "--root", root)
    yield running
    running.end()
    assert "Traceback" not in running.log.read_text()


@pytest.fixture(scope="module")
def dataset(server: Running) -> str:
    answer = server.client.post("/api/datasets", files={"archive": ("my digits.zip", digits_zip())})
    assert answer.status_code == 201, answer.text
    facts = answer.json()
    assert (facts["name"], facts["images"], facts["classes"]["digit 0"]) == ("my-digits", 64, 16)
    return str(facts["id"])


@pytest.fixture(scope="module")
def fitted(server: Running, dataset: str) -> tuple[str, list[tuple[int, str, dict[str, Any]]]]:
    """A finished fit of two trials, with all that was heard of it."""
    id = server.submit(images={"dataset": dataset}, **FIT)
    heard = list(server.events(id))
    assert heard[-1][1:] == ("state", heard[-1][2]), heard[-1]
    assert heard[-1][2]["state"] == "finished", heard[-1]
    return id, heard


def fault(answer: httpx.Response, status: int) -> str:
    """The message of a fault, which has the form that the description promises."""
    assert answer.status_code == status, answer.text
    facts = answer.json()
    assert facts["status"] == status
    assert set(facts) == {"status", "error", "message"}
    assert "Traceback" not in answer.text
    return str(facts["message"])


def zipped(*entries: tuple[str | zipfile.ZipInfo, bytes]) -> io.BytesIO:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return file


def left_by(state: str, folder: Path, number: int) -> Job:
    """A job as a killed server leaves it."""
    job = Job(f"{number:012x}", "profile", state, {"seed": 0, "zoo": None}, "nowhere", 1.0 * number, 1.0 * number)
    (folder / job.id).mkdir(parents=True)
    (folder / job.id / "job.json").write_text(json.dumps(asdict(job)))
    return job


def wait_until(true: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
