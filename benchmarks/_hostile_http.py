"""Bodies and paths to a running server: whatever is sent, it answers below 500, in JSON, and goes on."""

from __future__ import annotations

import base64
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
from _hostile_inputs import TEXTS, as_json, spoilt, spoilt_json
from _hostile_targets import make_archive, make_facts, make_picture

TOKEN = "a-token-of-the-benchmark"
LONGEST = 20
PATHS = ("/api/datasets", "/api/jobs", "/api/models", "/api/history/trials", "/api/history/facts", "/api/recommendations", "/")
JOB = {"kind": "fit", "images": {"dataset": "none"}, "budget": "2 trials", "strategies": ["linear-probe"], "seed": 0}
PROFILE = {"task": "t", "fingerprint": "f", "meta": {"images": 100.0, "classes": 3.0}, "distances": {}, "transferability": {}}


def attack_server(seconds: float, seed: int) -> dict[str, Any]:
    """What came of so many seconds of requests."""
    rng = random.Random(f"http/{seed}")
    found: dict[str, Any] = {"inputs": 0, "refused": 0, "crashes": {}, "hangs": {}, "escapes": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        process, client = _started(folder)
        try:
            paths = tuple(client.get("/api/openapi.json").json()["paths"]) or PATHS
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                request = _request(client, paths, rng)
                found["inputs"] += 1
                _judge(client, request, found)
            if process.poll() is not None:
                found["crashes"]["the server ended"] = (folder / "log").read_text()[-500:]
            if (folder / "secret.png").exists():
                found["escapes"]["a file was written beside the state"] = ""
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if "Traceback" in (log := (folder / "log").read_text()):
            found["crashes"]["a traceback in the log"] = log[-800:]
    return found


def _judge(client: httpx.Client, request: httpx.Request, found: dict[str, Any]) -> None:
    sent = f"{request.method} {request.url} {base64.b64encode(request.read()[:200]).decode()}"
    try:
        answer = client.send(request)
    except httpx.TimeoutException:
        found["hangs"].setdefault(f"{request.method} {request.url.path}", sent)
    except httpx.TransportError as error:
        found["crashes"].setdefault(f"{type(error).__name__} of {request.method} {request.url.path[:80]}", sent)
    else:
        found["refused"] += answer.status_code >= 400
        if answer.status_code >= 500:
            found["crashes"].setdefault(f"{answer.status_code} of {request.method} {request.url.path[:80]}", sent)
        elif answer.status_code >= 400 and not answer.headers["content-type"].startswith("application/json"):
            found["crashes"].setdefault(f"{answer.status_code} without JSON of {request.url.path[:80]}", sent)


def _request(client: httpx.Client, paths: tuple[str, ...], rng: random.Random) -> httpx.Request:
    path = rng.choice(paths)
    while "{" in path:
        start, end = path.index("{"), path.index("}")
        path = path[:start] + _quoted(rng.choice(("1", "none", *TEXTS))) + path[end + 1 :]
    method = rng.choice(("GET", "POST", "POST", "POST", "DELETE", "PUT", "OPTIONS"))
    match rng.randrange(5):
        case 0:
            return client.build_request(method, path, params={rng.choice(("limit", "after", "task")): _plain(rng.choice(TEXTS))})
        case 1:
            headers = {"content-type": rng.choice(("application/json", "multipart/form-data", "text/plain", "x" * 500))}
            return client.build_request(method, path, content=spoilt(json.dumps(JOB).encode(), [b"{}"], rng), headers=headers)
        case 2:
            content = rng.choice((make_archive, make_picture, make_facts))(rng)
            name = _plain(rng.choice(TEXTS))[:500] or "x.zip"
            return client.build_request(method, path, files={rng.choice(("archive", "images", "x")): (name, content)})
        case _:
            body = as_json(spoilt_json(rng.choice((JOB, PROFILE, {"profile": PROFILE}, {"trials": [JOB]})), rng), rng)
            return client.build_request(method, path, content=body, headers={"content-type": "application/json"})


def _plain(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _quoted(text: str) -> str:
    from urllib.parse import quote

    return quote(_plain(text)[:2000], safe="") or "-"


def _started(folder: Path) -> tuple[subprocess.Popen[bytes], httpx.Client]:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    line = [sys.executable, "-m", "automl_tl.cli", "serve", "--port", str(port), "--state", str(folder / "state")]
    environment = {**os.environ, "AUTOML_TL_HOME": str(folder / "home"), "AUTOML_TL_TOKEN": TOKEN, "HF_HUB_OFFLINE": "1"}
    line += ["--requests-per-minute", "1000000"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(line, env=environment, stdout=log, stderr=log, start_new_session=True)
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=LONGEST)
    for _ in range(1200):
        if process.poll() is not None:
            raise SystemExit((folder / "log").read_text())
        try:
            client.get("/api/health").raise_for_status()
            return process, client
        except httpx.TransportError:
            time.sleep(0.1)
    raise SystemExit("the server did not start")
