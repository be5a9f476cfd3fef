"""Hundreds of clients ask for advice at once while jobs run: is every request answered, how soon, and is every job done?

A real server is started on loopback. Each client sends its questions (profiles, all different) one after the other and waits for
each answer. Meanwhile profile jobs are queued. A request counts as lost if it is not answered with 200 and a ranking; a job if it
does not end as finished.
"""

from __future__ import annotations

import asyncio
import io
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from _report import arguments, table, write
from PIL import Image
from sklearn.datasets import load_digits

PERCENTILES = (50, 90, 95, 99, 100)


def question(number: int) -> dict[str, Any]:
    """A profile that nobody asked about before."""
    rng = np.random.default_rng(number)
    meta = {
        "images": int(rng.integers(50, 50_000)),
        "classes": int(rng.integers(2, 200)),
        "side": float(rng.integers(8, 512)),
        "colourfulness": float(rng.uniform(0, 0.4)),
        "contrast": float(rng.uniform(0.05, 0.4)),
        "imbalance": float(rng.uniform(1, 20)),
    }
    distances = {name: {"frechet": float(rng.uniform(20, 400))} for name in ("tiny_imagenet", "omniglot_a", "cifar10")}
    return {"profile": {"task": f"task {number}", "meta": meta, "distances": distances}, "top": 10}


def photos() -> bytes:
    """A zip of two hundred digits."""
    digits, file = load_digits(), io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for number in range(200):
            data = io.BytesIO()
            Image.fromarray(np.uint8(digits.images[number] * 15)).save(data, "PNG")
            archive.writestr(f"digit {digits.target[number]}/{number}.png", data.getvalue())
    return file.getvalue()


async def ask(client: httpx.AsyncClient, numbers: list[int], seconds: list[float], lost: list[str]) -> None:
    for number in numbers:
        start = time.perf_counter()
        try:
            answer = await client.post("/api/recommendations", json=question(number))
            if answer.status_code != 200 or len(answer.json()["ranking"]) != 10:
                lost.append(f"{answer.status_code} {answer.text[:200]}")
        except httpx.HTTPError as error:
            lost.append(repr(error))
        seconds.append(time.perf_counter() - start)


async def load(url: str, token: str, clients: int, each: int, jobs: int) -> tuple[list[float], list[str], float, int]:
    """Seconds of every request, what was lost, the seconds of all, and the jobs that finished."""
    headers = {"Authorization": f"Bearer {token}"}
    limits = httpx.Limits(max_connections=clients + 10)
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=600, limits=limits) as client:
        dataset = (await client.post("/api/datasets", files={"archive": ("digits.zip", photos())})).json()["id"]
        (await client.post("/api/recommendations", json=question(0))).raise_for_status()  # the ranker is learnt
        request = {"kind": "profile", "images": {"dataset": dataset}}
        queued = [(await client.post("/api/jobs", json=request)).json()["id"] for _ in range(jobs)]
        seconds: list[float] = []
        lost: list[str] = []
        start = time.perf_counter()
        numbers = [list(range(first * each + 1, (first + 1) * each + 1)) for first in range(clients)]
        await asyncio.gather(*(ask(client, mine, seconds, lost) for mine in numbers))
        whole = time.perf_counter() - start
        finished = 0
        for id in queued:
            while (state := (await client.get(f"/api/jobs/{id}")).json()["state"]) not in ("finished", "failed", "cancelled"):
                await asyncio.sleep(0.5)
            finished += state == "finished"
    return seconds, lost, whole, finished


def start(folder: Path, token: str) -> tuple[subprocess.Popen[bytes], str]:
    """The server, and where it is."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    line = [sys.executable, "-m", "automl_tl.cli", "serve", "--port", str(port), "--state", str(folder / "state")]
    line += ["--requests-per-minute", "1000000"]
    environment = {**os.environ, "AUTOML_TL_HOME": str(folder / "home"), "AUTOML_TL_TOKEN": token}
    server = subprocess.Popen(line, env=environment, stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    for _ in range(1200):
        try:
            httpx.get(f"{url}/api/health").raise_for_status()
            return server, url
        except httpx.TransportError:
            time.sleep(0.1)
    raise SystemExit("the server did not start")


def main() -> None:
    options = arguments(__doc__, "a tenth of the requests").parse_args()
    clients, each, jobs = (30, 2, 2) if options.quick else (300, 2, 5)
    token = secrets.token_urlsafe(24)
    with tempfile.TemporaryDirectory() as name:
        server, url = start(Path(name), token)
        try:
            seconds, lost, whole, finished = asyncio.run(load(url, token, clients, each, jobs))
        finally:
            server.terminate()
            server.wait()
    cuts = np.percentile(np.array(seconds) * 1000, PERCENTILES)
    title = f"{clients} clients at once, {len(seconds)} questions in {whole:.1f} s, beside {jobs} jobs"
    table(title, ("latency", "ms"), [(f"{percentile} %", float(cut)) for percentile, cut in zip(PERCENTILES, cuts, strict=True)])
    print(f"requests lost: {len(lost)}; jobs lost: {jobs - finished}")
    for line in lost[:5]:
        print(line)
    figures = {
        "clients": clients,
        "requests": len(seconds),
        "lost_requests": len(lost),
        "jobs": jobs,
        "lost_jobs": jobs - finished,
        "requests_per_second": len(seconds) / whole,
        **{f"latency_ms_p{percentile}": cut for percentile, cut in zip(PERCENTILES, cuts, strict=True)},
    }
    write(options.json, figures)
    if lost or finished < jobs:
        raise SystemExit("something was lost")


if __name__ == "__main__":
    main()
