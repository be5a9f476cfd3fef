"""A real server on loopback, in a process of its own, and a zip of real handwriting to send it."""

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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from PIL import Image
from small import QUICK, arrays

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
