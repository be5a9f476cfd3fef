"""Who may ask the server for what, how much at once, and what is said of a request that is not done."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sqlite3
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import serving
from fastapi import FastAPI
from serving import TOKEN, Running, fault
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from automl_tl.service import gate
from automl_tl.service.app import build_app
from automl_tl.service.gate import Allowance, Gate
from automl_tl.service.server import Server
from automl_tl.service.settings import Settings
from automl_tl.service.shapes import TASK

home, root, server, dataset = serving.home, serving.root, serving.server, serving.dataset


def test_only_with_the_token(server: Running) -> None:
    with httpx.Client(base_url=server.url) as stranger:
        assert stranger.get("/api/health").json()["status"] == "ok"
        for path in ("/api/jobs", "/api/models", "/api/history/trials", "/api/datasets"):
            answer = stranger.get(path)
            assert "Authorization: Bearer" in fault(answer, 401)
            assert answer.headers["www-authenticate"] == "Bearer"
        assert fault(stranger.get("/api/jobs", headers={"Authorization": f"Bearer {TOKEN}x"}), 401)
        assert fault(stranger.get("/api/jobs", headers={"Authorization": f"Basic {TOKEN}"}), 401)


def test_it_listens_on_loopback_alone(server: Running) -> None:
    import psutil

    listening = [one.laddr for one in psutil.Process(server.process.pid).net_connections() if one.status == "LISTEN"]
    assert [(address.ip, address.port) for address in listening] == [("127.0.0.1", server.port)]


async def _length(request: Request) -> PlainTextResponse:
    return PlainTextResponse(str(len(await request.body())))


def behind_gate(settings: Settings, address: str = "10.0.0.1") -> httpx.AsyncClient:
    app = Starlette(routes=[Route("/api/{rest:path}", _length, methods=["GET", "POST"])])
    transport = httpx.ASGITransport(Gate(app, settings), client=(address, 1))
    return httpx.AsyncClient(transport=transport, base_url="http://gate", headers={"Authorization": f"Bearer {TOKEN}"})


def run(work: Any) -> Any:
    import asyncio

    return asyncio.run(work)


def test_too_many_requests_have_to_wait(tmp_path: Path) -> None:
    async def ask() -> list[httpx.Response]:
        async with behind_gate(Settings(tmp_path, TOKEN, requests_per_minute=3)) as client:
            return [await client.get("/api/jobs") for _ in range(4)]

    answers = run(ask())
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert "wait" in fault(answers[-1], 429)
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 20


def test_who_guesses_tokens_is_shut_out_and_who_has_it_is_not(tmp_path: Path) -> None:
    async def guess() -> list[httpx.Response]:
        async with behind_gate(Settings(tmp_path, TOKEN)) as client:
            wrong = [await client.get("/api/jobs", headers={"Authorization": f"Bearer {number}"}) for number in range(25)]
            return [*wrong, await client.get("/api/jobs")]

    *wrong, right = run(guess())
    statuses = [answer.status_code for answer in wrong]
    assert statuses[: gate.WRONG_TOKENS_PER_MINUTE] == [401] * gate.WRONG_TOKENS_PER_MINUTE
    assert set(statuses[gate.WRONG_TOKENS_PER_MINUTE :]) == {429}
    assert 1 <= int(wrong[-1].headers["retry-after"]) <= 3
    assert right.status_code == 200, "the guesses of others behind the same address are not its fault"


def test_no_header_says_whose_request_it_is(tmp_path: Path, home: Path) -> None:
    server = Running(tmp_path / "state", home)
    try:
        headers = [{"Authorization": "Bearer wrong", "X-Forwarded-For": f"10.0.0.{number}"} for number in range(25)]
        statuses = [server.client.get("/api/jobs", headers=header).status_code for header in headers]
        assert statuses == [401] * gate.WRONG_TOKENS_PER_MINUTE + [429] * 5
        assert server.client.get("/api/jobs").status_code == 200
    finally:
        server.end()


def test_allowance_comes_back_with_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    allowance = Allowance(60)
    assert [allowance.seconds_to_wait("a") for _ in range(60)] == [0] * 60
    assert allowance.seconds_to_wait("a") == pytest.approx(1)
    assert allowance.seconds_to_wait("b") == 0, "each address has its own"
    now[0] += 2.5
    assert [allowance.seconds_to_wait("a") for _ in range(2)] == [0, 0]
    assert allowance.seconds_to_wait("a") == pytest.approx(0.5)


def test_a_body_that_is_too_large_is_refused_whether_announced_or_not(server: Running) -> None:
    large = b" " * (33 * 2**20)
    json_header = {"Content-Type": "application/json"}
    assert "larger than" in fault(server.client.post("/api/recommendations", content=large, headers=json_header), 413)
    pieces = (large[: 2**20] for _ in range(33))
    assert "larger than" in fault(server.client.post("/api/recommendations", content=pieces, headers=json_header), 413)


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/api/nothing", None, 404),
        ("PUT", "/api/jobs", None, 405),
        ("GET", "/api/jobs/nothing", None, 404),
        ("GET", "/api/jobs/nothing/events", None, 404),
        ("GET", "/api/jobs/..%2f..%2fetc/report", None, 404),
        ("DELETE", "/api/jobs/nothing", None, 404),
        ("GET", "/api/models/nothing", None, 404),
        ("GET", "/api/models/..", None, 404),
        ("GET", "/api/datasets/0123456789abcdef", None, 404),
        ("GET", "/api/history/trials/nothing", None, 404),
        ("GET", "/api/history/trials?limit=1000000", None, 422),
        ("POST", "/api/jobs", b"{", 400),
        ("POST", "/api/jobs", b"[]", 422),
        ("POST", "/api/jobs", b'{"kind": "fit", "images": {"dataset": "0123456789abcdef"}}', 404),
        ("POST", "/api/jobs", b'{"kind": "fit", "images": {"path": "our-digits"}, "budget": "soon"}', 422),
        ("POST", "/api/jobs", b'{"kind": "fit", "images": {"path": "our-digits"}, "backbones": ["resnet"]}', 422),
        ("POST", "/api/jobs", b'{"kind": "fit", "images": {"path": "our-digits"}, "seed": -1}', 422),
        ("POST", "/api/jobs", b'{"kind": "fit", "images": {"path": "\\ud800"}}', 422),
        ("POST", "/api/jobs", b'{"kind": "dance", "images": {"path": "our-digits"}}', 422),
        ("POST", "/api/jobs", b'{"kind": "fit", "images": {"path": "..", "dataset": "x"}}', 422),
    ],
)
def test_faults_are_json_with_the_right_status(server: Running, method: str, path: str, body: bytes | None, status: int) -> None:
    headers = {"Content-Type": "application/json"} if body else {}
    assert fault(server.client.request(method, path, content=body, headers=headers), status)


def test_each_path_says_which_methods_it_has(server: Running) -> None:
    for path, operations in server.client.get("/api/openapi.json").json()["paths"].items():
        answer = server.client.patch(path.replace("{id}", "nothing"))
        assert fault(answer, 405)
        expected = {method.upper() for method in operations} | ({"HEAD"} if "get" in operations else set())
        assert set(answer.headers["allow"].split(", ")) == expected, path


def test_head_is_get_without_the_body(server: Running) -> None:
    for path in ("/", "/api/health", "/api/jobs"):
        answer = server.client.head(path)
        assert (answer.status_code, answer.content) == (200, b"")
        assert answer.headers["content-type"] == server.client.get(path).headers["content-type"]
    assert server.client.head("/api/jobs", headers={"Authorization": "Bearer no"}).status_code == 401


def test_head_does_not_wait_for_the_events_of_a_job(server: Running, dataset: str) -> None:
    ids = [server.submit(kind="profile", images={"dataset": dataset}) for _ in range(2)]
    headers, one = {"Authorization": f"Bearer {TOKEN}"}, httpx.Limits(max_connections=1)
    with httpx.Client(base_url=server.url, headers=headers, timeout=120, limits=one) as client:
        assert client.head(f"/api/jobs/{ids[1]}/events").headers["content-type"].startswith("text/event-stream")
        assert client.get(f"/api/jobs/{ids[1]}").json()["state"] == "queued", "the connection is free before the job has ended"
    for id in ids:
        server.client.post(f"/api/jobs/{id}/cancel")


def asked(app: FastAPI, method: str, path: str, **body: Any) -> httpx.Response:
    async def ask() -> httpx.Response:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here", headers=headers) as client:
            return await client.request(method, path, **body)

    return run(ask())  # type: ignore[no-any-return]


def test_a_history_that_cannot_be_used_is_the_servers_affair(
    tmp_path: Path, used_home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    app = build_app(Settings(tmp_path, TOKEN).checked())
    monkeypatch.setattr("automl_tl.history.BUSY_SECONDS", 0.1)
    with contextlib.closing(sqlite3.connect(used_home / "history.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert "is locked" in fault(asked(app, "POST", "/api/history", json={"tasks": [TASK]}), 503)
    (used_home / "history.db").write_bytes(b"no database" * 1000)
    message = fault(asked(app, "GET", "/api/history/trials"), 503)
    assert message.startswith(f"{used_home.name}/history.db: cannot be used as a history")
    assert f"{used_home}/history.db" in caplog.text, "the log says where"


def test_a_full_disk_is_the_servers_affair_and_nothing_is_left(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    settings = Settings(tmp_path, TOKEN, root).checked()
    app = build_app(settings)
    app.state.server = Server.of(settings)
    job = {"kind": "profile", "images": {"path": "our-digits"}}
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert "disk is full" in fault(asked(app, "POST", "/api/jobs", json=job), 503)
    with monkeypatch.context() as patch:
        patch.setattr(tempfile.SpooledTemporaryFile, "rollover", full)
        assert "disk is full" in fault(asked(app, "POST", "/api/datasets", files={"archive": bytes(2**21)}), 503)
    assert Server.of(settings).jobs.all() == []
    assert list((tmp_path / "jobs").iterdir()) == []


@pytest.mark.parametrize("path", ["..", "../..", "/etc", "escape", "our-digits/../..", "nowhere", "a\0b", "x" * 4000])
def test_no_path_leads_out_of_the_root(server: Running, path: str) -> None:
    body = json.dumps({"kind": "profile", "images": {"path": path}})
    answer = server.client.post("/api/jobs", content=body, headers={"Content-Type": "application/json"})
    assert "below the server's root" in fault(answer, 404)


def test_what_is_no_folder_of_images_is_refused(server: Running) -> None:
    answer = server.client.post("/api/jobs", json={"kind": "profile", "images": {"path": "notes.txt"}})
    assert "neither a folder nor a manifest" in fault(answer, 422)
