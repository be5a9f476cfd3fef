"""The HTTP API, asked as a stranger asks it: a real server on loopback, a real client, real images."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
import socket
import sqlite3
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import numpy as np
import pytest
import test_page
from fastapi import FastAPI
from filelock import FileLock
from serving import FIT, TOKEN, Running, digits_zip, free_port, picture
from small import QUICK, TINY
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from automl_tl.errors import InputError
from automl_tl.service import archives, events, gate, job_routes, model_routes
from automl_tl.service.app import _say_where, build_app, serve
from automl_tl.service.archives import unpack
from automl_tl.service.datasets import Datasets
from automl_tl.service.faults import Refused
from automl_tl.service.gate import Allowance, Gate
from automl_tl.service.jobs import Job, Jobs, _without_places
from automl_tl.service.server import Server
from automl_tl.service.settings import Settings
from automl_tl.service.shapes import PROFILE, TASK, TRIAL, Resumed

ROOT = Path(__file__).resolve().parents[1]
browser, watched = test_page.browser, test_page.watched


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


@pytest.fixture(scope="module")
def other(server: Running, dataset: str, fitted: tuple[str, Any]) -> str:
    """A finished profile, later than the fit."""
    return str(server.ended(server.submit(kind="profile", images={"dataset": dataset}))["id"])


def fault(answer: httpx.Response, status: int) -> str:
    """The message of a fault, which has the form that the description promises."""
    assert answer.status_code == status, answer.text
    facts = answer.json()
    assert facts["status"] == status
    assert set(facts) == {"status", "error", "message"}
    assert "Traceback" not in answer.text
    return str(facts["message"])


# A fit, from an archive to predictions


def test_what_is_heard_of_a_fit(fitted: tuple[str, list[tuple[int, str, dict[str, Any]]]]) -> None:
    _, heard = fitted
    kinds = [kind for _, kind, _ in heard]
    assert [facts["state"] for _, kind, facts in heard if kind == "state"] == ["queued", "running", "finished"]
    assert kinds.index("progress") < kinds.index("advice") < kinds.index("trial")
    advice = next(facts for _, kind, facts in heard if kind == "advice")
    assert advice["task"]["classes"] == ["digit 0", "digit 1", "digit 2", "digit 3"]
    assert advice["profile"]["meta"]["classes"] == 4
    assert {item["candidate"]["backbone"] for item in advice["ranking"]} == {QUICK}
    finished = [facts for _, kind, facts in heard if kind == "trial" and facts["status"] == "finished"]
    assert len(finished) == 2
    assert all(0 <= facts["validation"]["accuracy"] <= 1 for facts in finished)
    places = [place for place, _, _ in heard]
    assert places == sorted(set(places))


def test_who_was_cut_off_goes_on_listening(server: Running, fitted: tuple[str, list[tuple[int, str, dict[str, Any]]]]) -> None:
    id, heard = fitted
    assert list(server.events(id, after=heard[3][0])) == heard[4:]


def test_the_job_says_what_came_of_it(server: Running, fitted: tuple[str, Any]) -> None:
    id, _ = fitted
    job = server.client.get(f"/api/jobs/{id}").json()
    assert (job["state"], job["name"], job["model"], job["report"], job["error"]) == ("finished", "our-digits", True, True, "")
    assert job["result"]["winner"]["candidate"]["strategy"] == "linear-probe"
    assert len(job["result"]["trials"]) == 2
    page = server.client.get("/api/jobs", params={"kind": "fit", "state": "finished", "limit": 1}).json()
    assert page["items"][0]["id"] == id
    assert "result" not in page["items"][0]
    report = server.client.get(f"/api/jobs/{id}/report")
    assert report.headers["content-type"].startswith("text/html")
    assert "sandbox" in report.headers["content-security-policy"]
    assert "<pre>automl-tl fit our-digits --budget" in report.text, "how to do it again, as a person would"
    assert f"automl-tl compare {id}/run" in report.text
    told = (report.text, json.dumps(job), server.client.get("/api/history/trials").text)
    assert not [text for text in told if str(server.state) in text], "the server's folders are nobody's business"
    assert "job is finished" in fault(server.client.post(f"/api/jobs/{id}/cancel"), 409)
    assert "larger budget" in fault(server.client.post(f"/api/jobs/{id}/resume"), 409)


def test_the_model_predicts_the_same_here_and_where_it_was_downloaded(
    server: Running, fitted: tuple[str, Any], tmp_path: Path
) -> None:
    import automl_tl

    id, _ = fitted
    assert [card["id"] for card in server.client.get("/api/models").json()] == [id]
    card = server.client.get(f"/api/models/{id}").json()
    assert card["classes"] == ["digit 0", "digit 1", "digit 2", "digit 3"]
    assert card["candidate"]["backbone"] == QUICK
    blobs = [picture(number) for number in range(4)]
    told = server.client.post(
        f"/api/models/{id}/predictions", files=[("images", (f"{i}.png", blob)) for i, blob in enumerate(blobs)]
    ).json()
    assert [one["name"] for one in told["predictions"]] == ["0.png", "1.png", "2.png", "3.png"]
    assert [one["label"] for one in told["predictions"]] == ["digit 0", "digit 1", "digit 2", "digit 3"]
    packed = server.client.get(f"/api/models/{id}/archive")
    assert packed.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(packed.content)) as archive:
        assert archive.namelist() == ["model/model.json", "model/model.safetensors"]
        archive.extractall(tmp_path)
    here = automl_tl.predict(tmp_path, blobs).probabilities
    there = np.array([one["probabilities"] for one in told["predictions"]])
    assert np.abs(here - there).max() < 1e-6
    assert not list(server.state.glob("*.zip")), "the server keeps no copy"


def test_a_picture_that_is_none_is_named(server: Running, fitted: tuple[str, Any]) -> None:
    id, _ = fitted
    files = [("images", ("good.png", picture(0))), ("images", ("bad.png", b"no image"))]
    assert "bad.png" in fault(server.client.post(f"/api/models/{id}/predictions", files=files), 422)
    many = [("images", (f"{number}.png", b"x")) for number in range(257)]
    assert "257 images are too many" in fault(server.client.post(f"/api/models/{id}/predictions", files=many), 422)


def test_the_trials_are_in_the_history(server: Running, fitted: tuple[str, Any]) -> None:
    page = server.client.get("/api/history/trials", params={"search": "OUR-DIGITS probe", "limit": 1}).json()
    assert page["total"] == 2
    trial = page["items"][0]
    assert server.client.get(f"/api/history/trials/{trial['id']}").json() == trial


# Advice on a profile


def test_advice_on_a_profile_is_given_at_once_and_always_the_same(server: Running) -> None:
    question = {"profile": PROFILE, "top": 7}
    answer = server.client.post("/api/recommendations", json=question)
    assert answer.status_code == 200, answer.text
    advice = answer.json()
    assert "trials over" in advice["basis"]
    assert (advice["stage"], len(advice["ranking"])) == (1, 7)
    scores = [item["score"] for item in advice["ranking"]]
    assert scores == sorted(scores, reverse=True)
    assert all(item["low"] <= item["score"] <= item["high"] for item in advice["ranking"])
    assert advice["ranking"][0]["reasons"]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: server.client.post("/api/recommendations", json=question), range(32)))
    assert {answer.status_code for answer in answers} == {200}
    rankings = {json.dumps(answer.json()["ranking"]) for answer in answers}
    assert len(rankings) <= 2, "one of the history as it was, perhaps one of the history with the trials of another test"


def test_advice_is_narrowed_and_looks_closer_where_the_profile_does(server: Running) -> None:
    looked = {**PROFILE, "transferability": {TINY: {"logme": 0.1, "leep": -1.2}}}
    question = {"profile": looked, "backbones": [TINY], "strategies": ["linear-probe"]}
    advice = server.client.post("/api/recommendations", json=question).json()
    assert advice["stage"] == 2
    assert {item["candidate"]["backbone"] for item in advice["ranking"]} == {TINY}
    assert {item["candidate"]["strategy"] for item in advice["ranking"]} == {"linear-probe"}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"strategies": ["linear-prob"]}, "did you mean 'linear-probe'"),
        ({"zoo": "nowhere"}, "unknown zoo"),
        ({"top": 0}, "top"),
        ({"profile": {"meta": {"classes": 3}}}, "profile.meta.images"),
        ({"profile": {"meta": {"images": 0, "classes": 3}}}, "profile.meta.images"),
        ({"profile": {"meta": {"images": 10, "classes": 3, "side": 1e300}}}, "profile.meta.side"),
        ({"profil": {}}, "profil"),
    ],
)
def test_a_wrong_question_is_answered_with_what_is_wrong(server: Running, change: dict[str, Any], named: str) -> None:
    assert named in fault(server.client.post("/api/recommendations", json={"profile": PROFILE, **change}), 422)


# Who may, and how much


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


# Archives


def zipped(*entries: tuple[str | zipfile.ZipInfo, bytes]) -> io.BytesIO:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return file


def link(name: str, target: str) -> tuple[zipfile.ZipInfo, bytes]:
    entry = zipfile.ZipInfo(name)
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    return entry, target.encode()


def encrypted() -> io.BytesIO:
    file = zipped(("a/1.png", b"secret"))
    data = bytearray(file.getvalue())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + offset] |= 1
    return io.BytesIO(bytes(data))


def of_the_future() -> io.BytesIO:
    """An entry that asks for a reader of version 23.5."""
    data = bytearray(zipped(("a/1.png", b"x")).getvalue())
    at = data.index(b"PK\x01\x02") + 6
    data[at : at + 2] = (235).to_bytes(2, "little")
    return io.BytesIO(bytes(data))


def nameless() -> io.BytesIO:
    """The only entry has a name of no letters."""
    data = bytearray(zipped(("a", b"x")).getvalue())
    at = data.index(b"PK\x01\x02")
    data[at + 28 : at + 30] = b"\0\0"
    del data[at + 46]
    end = data.index(b"PK\x05\x06")
    data[end + 12 : end + 16] = (end - at).to_bytes(4, "little")
    return io.BytesIO(bytes(data))


@pytest.mark.parametrize(
    ("archive", "named"),
    [
        (of_the_future, "cannot be unpacked: zip file version 23.5"),
        (nameless, "'', which is no name for a file"),
        (lambda: zipped(("../evil.png", b"x")), "leads out"),
        (lambda: zipped(("a/../../evil.png", b"x")), "leads out"),
        (lambda: zipped(("/etc/evil.png", b"x")), "leads out"),
        (lambda: zipped(("C:/evil.png", b"x")), "leads out"),
        (lambda: zipped(("a\\..\\evil.png", b"x")), "leads out"),
        (lambda: zipped(link("a/1.png", "/etc/passwd")), "a link"),
        (lambda: zipped(link("a", "/etc"), ("a/1.png", b"x")), "a link"),
        (lambda: zipped(("a/1.png", b"\0" * 80 * 2**20)), "bomb"),
        (lambda: zipped(("a.png", b"x"), ("a.png/1.png", b"x")), "both as a file and as a folder"),
        (lambda: zipped(("a/" + "n" * 300 + ".png", b"x")), "no name for a file"),
        (lambda: zipped(("a/" * 1500 + "1.png", b"x")), "^the archive has 'a/a/.*a name of 1501 parts"),
        (encrypted, "encrypted"),
        (lambda: io.BytesIO(b"no zip at all"), "cannot be unpacked"),
        (lambda: io.BytesIO(digits_zip()[:-200]), "cannot be unpacked"),
        (lambda: io.BytesIO(b""), "cannot be unpacked"),
    ],
)
def test_a_wicked_archive_writes_nothing(archive: Any, named: str, tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    with pytest.raises(InputError, match=named):
        unpack(archive(), inside)
    assert list(tmp_path.rglob("*")) == [inside]


def test_limits_of_archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many = zipped(*((f"a/{number}.png", b"x") for number in range(20)))
    with monkeypatch.context() as patch:
        patch.setattr(archives, "MOST_ENTRIES", 10)
        with pytest.raises(InputError, match="20 entries"):
            unpack(many, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(archives, "MOST_DIRECTORY", 500)
        with pytest.raises(InputError, match="list of entries has 1,"):
            unpack(many, tmp_path)
    monkeypatch.setattr(archives, "MOST_BYTES", 10)
    with pytest.raises(InputError, match="unpacks to 20 bytes"):
        unpack(many, tmp_path)


@pytest.mark.parametrize("zip64", [False, True])
def test_entries_are_counted_before_they_take_memory_whatever_number_is_told(tmp_path: Path, zip64: bool) -> None:
    """Nothing but a list of empty entries, 47 bytes each."""
    entry = struct.pack("<4s4B4HL2L5H2L", b"PK\x01\x02", 20, 3, 20, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    listed = entry * (archives.MOST_ENTRIES + 1)
    end = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, len(listed), 0) if zip64 else b""
    end += struct.pack("<4sLQL", b"PK\x06\x07", 0, len(listed), 1) if zip64 else b""
    size = 2**32 - 1 if zip64 else len(listed)
    end += struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, size, 0, 0)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=r"^the archive has 500,001 entries"):
            unpack(io.BytesIO(listed + end), tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 3 * len(listed)
    finally:
        tracemalloc.stop()


def test_a_file_that_is_larger_than_it_says_is_cut_off(tmp_path: Path) -> None:
    data = bytearray(zipped(("a/1.png", b"x" * 5000)).getvalue())
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = data.index(signature) + offset
        data[at : at + 4] = (100).to_bytes(4, "little")
    with pytest.raises(InputError, match="cannot be unpacked"):
        unpack(io.BytesIO(bytes(data)), tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) <= 100


def test_what_is_no_image_stays_packed(tmp_path: Path) -> None:
    archive = zipped(("cat/1.png", b"x"), ("cat/run.sh", b"x"), ("__MACOSX/cat/1.png", b"x"), ("cat/.hidden.png", b"x"))
    assert unpack(archive, tmp_path).passed_over == 3
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["1.png"]


def test_archives_over_http(server: Running, dataset: str) -> None:
    def send(file: io.BytesIO | bytes) -> httpx.Response:
        return server.client.post("/api/datasets", files={"archive": ("some.zip", file)})

    assert "leads out" in fault(send(zipped(("../evil.png", b"x")).getvalue()), 422)
    assert "one class" in fault(send(zipped(("photos/1.png", b"x")).getvalue()), 422)
    message = fault(send(zipped(("1.png", b"x")).getvalue()), 422)
    assert message.startswith("some: ")
    assert str(server.state) not in message, "the server's folders are nobody's business"
    assert "archive" in fault(server.client.post("/api/datasets"), 422)
    again = server.client.post("/api/datasets", files={"archive": ("other name.zip", digits_zip())})
    assert again.json()["id"] == dataset, "the same archive is the same dataset"
    assert [one["id"] for one in server.client.get("/api/datasets").json()] == [dataset]
    assert not [path for path in (server.state / "datasets").iterdir() if path.name != dataset]


def test_a_manifest_in_an_archive_is_read(server: Running) -> None:
    rows = "path,label\n" + "".join(f"pictures/{number}.png,digit {number % 2}\n" for number in range(6))
    entries = [(f"set/pictures/{number}.png", picture(number)) for number in range(6)]
    archive = zipped(("set/list.csv", rows.encode()), *entries).getvalue()
    facts = server.client.post("/api/datasets", files={"archive": ("listed.zip", archive)}).json()
    assert facts["classes"] == {"digit 0": 3, "digit 1": 3}
    assert server.client.delete(f"/api/datasets/{facts['id']}").status_code == 204
    assert fault(server.client.get(f"/api/datasets/{facts['id']}"), 404)


# Jobs in a queue


def test_one_job_at_a_time_and_the_others_wait(server: Running, dataset: str) -> None:
    first = server.submit(kind="profile", images={"path": "our-digits"})
    second = server.submit(kind="profile", images={"dataset": dataset})
    waiting = server.client.get(f"/api/jobs/{second}").json()
    assert (waiting["state"], waiting["before"]) == ("queued", 1)
    assert "cancel it first" in fault(server.client.delete(f"/api/jobs/{second}"), 409)
    assert "cancel that first" in fault(server.client.delete(f"/api/datasets/{dataset}"), 409)
    assert server.client.post(f"/api/jobs/{second}/cancel").json()["state"] == "cancelled"
    assert server.client.post(f"/api/jobs/{first}/cancel").json()["state"] in ("cancelling", "cancelled")
    assert server.ended(first)["state"] == "cancelled"
    states = [facts["state"] for _, _, facts in server.events(second)]
    assert states == ["queued", "cancelled"], "it never ran"
    assert server.client.delete(f"/api/jobs/{second}").status_code == 204
    assert fault(server.client.get(f"/api/jobs/{second}"), 404)
    assert not (server.state / "jobs" / second).exists()


def test_a_job_that_fails_says_why(server: Running, root: Path) -> None:
    (root / "broken" / "cat").mkdir(parents=True)
    (root / "broken" / "cat" / "1.png").write_bytes(b"no image")
    job = server.ended(server.submit(kind="profile", images={"path": "broken"}))
    assert job["state"] == "failed"
    assert "a classifier needs at least two" in job["error"]
    assert "only a fit" in fault(server.client.post(f"/api/jobs/{job['id']}/resume", json={"budget": "1m"}), 422)


def left_by(state: str, folder: Path, number: int) -> Job:
    """A job as a killed server leaves it."""
    job = Job(f"{number:012x}", "profile", state, {"seed": 0, "zoo": None}, "nowhere", 1.0 * number, 1.0 * number)
    (folder / job.id).mkdir(parents=True)
    (folder / job.id / "job.json").write_text(json.dumps(asdict(job)))
    return job


def test_what_a_killed_server_left_goes_on(tmp_path: Path) -> None:
    states = ("queued", "running", "finished", "cancelling", "failed")
    left = {state: left_by(state, tmp_path, number) for number, state in enumerate(states, 1)}
    (tmp_path / left["running"].id / "events.jsonl").write_bytes(b'{"event": "progress", "do')  # cut off in the middle of a line
    jobs = Jobs(tmp_path)
    assert {state: jobs.get(job.id).state for state, job in left.items()} == {
        "queued": "queued",
        "running": "queued",
        "finished": "finished",
        "cancelling": "cancelled",
        "failed": "failed",
    }
    assert [jobs.place(jobs.get(left[state].id)) for state in ("queued", "running", "failed")] == [0, 1, None]
    (event,) = events.read(tmp_path / left["running"].id)
    assert (event.kind, event.facts["state"]) == ("state", "queued")
    assert "started anew" in event.facts["note"]


def test_a_clock_that_is_put_back_changes_no_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = Jobs(tmp_path)
    ids = [jobs.submit("profile", {}, tmp_path).id]
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 3600)
    ids += [jobs.submit("profile", {}, tmp_path).id for _ in range(3)]
    assert [jobs.place(jobs.get(id)) for id in ids] == [0, 1, 2, 3]


def test_a_job_that_cannot_be_written_does_not_end_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("automl_tl.service.jobs.PAUSE_SECONDS", 0.1)
    jobs = Jobs(tmp_path)
    stuck, after = (jobs.submit("profile", {"seed": 0, "zoo": None}, tmp_path / "nowhere") for _ in range(2))
    (tmp_path / stuck.id / "worker.log").mkdir()  # as on a full disk: neither it nor job.json can be written
    flush = os.fsync

    def full(descriptor: int) -> None:
        if stuck.id in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    jobs.start()
    try:
        wait_until(lambda: jobs.ended(after.id))
        assert "nowhere does not exist" in jobs.get(after.id).error, "its worker has run"
        assert jobs.get(stuck.id).state == "failed"
        assert jobs.get(stuck.id).error == f"could not be run: [Errno 21] Is a directory: '{stuck.id}/worker.log'"
    finally:
        jobs.stop()
    assert Jobs(tmp_path).get(stuck.id).state == "queued", "the next start tries again"


@pytest.mark.parametrize("end", [-35, RuntimeError("our fault")], ids=["a signal without a name", "our fault"])
def test_a_job_that_ends_as_nobody_expects_does_not_end_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: int | Exception
) -> None:
    monkeypatch.setattr("automl_tl.service.jobs.PAUSE_SECONDS", 0.1)
    jobs = Jobs(tmp_path)
    first, after = (jobs.submit("profile", {"seed": 0, "zoo": None}, tmp_path / "nowhere") for _ in range(2))

    def wait(job: Job) -> int:
        if job.id == after.id:
            return -9
        if isinstance(end, Exception):
            raise end
        return end

    monkeypatch.setattr(jobs, "_wait", wait)
    jobs.start()
    try:
        wait_until(lambda: jobs.ended(after.id), 30)
    finally:
        jobs.stop()
    assert (jobs.get(first.id).state, jobs.get(after.id).state) == ("failed", "failed")
    expected = "could not be run: our fault" if isinstance(end, Exception) else "the worker was ended by signal 35, perhaps"
    assert jobs.get(first.id).error.startswith(expected)
    assert jobs.get(after.id).error.startswith("the worker was ended by SIGKILL, perhaps")


@pytest.mark.parametrize("damaged", ["", "{", "[]", '{"id": "000000000001"}', "\0" * 100])
def test_a_job_that_cannot_be_read_does_not_keep_the_server_from_starting(
    tmp_path: Path, damaged: str, caplog: pytest.LogCaptureFixture
) -> None:
    broken, whole = (left_by("finished", tmp_path, number) for number in (1, 2))
    (tmp_path / broken.id / "job.json").write_text(damaged)
    assert Jobs(tmp_path).all() == [whole]
    (line,) = caplog.messages
    assert f"{broken.id}/job.json: passed over, as it cannot be read" in line


@pytest.mark.parametrize(("interrupted", "state"), [(False, "finished"), (True, "cancelled")])
def test_a_job_that_is_resumed_and_leaves_the_queue_is_what_it_was(tmp_path: Path, interrupted: bool, state: str) -> None:
    job = left_by(state, tmp_path, 1)
    (tmp_path / job.id / "result.json").write_text(json.dumps({"interrupted": interrupted}))
    jobs = Jobs(tmp_path)
    assert jobs.resume(job.id, {"budget": "2 trials"}).request == {**job.request, "budget": "2 trials"}
    jobs = Jobs(tmp_path)  # as after a restart of the server
    assert (jobs.get(job.id).state, jobs.get(job.id).request["budget"]) == ("queued", "2 trials")
    assert jobs.cancel(job.id).state == state
    assert jobs.result(job.id) == {"interrupted": interrupted}
    again = Jobs(tmp_path).get(job.id)
    assert (again.state, again.request) == (state, job.request), "what came of it came of this request"


def test_a_job_that_ran_with_another_budget_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = Jobs(tmp_path)
    job = jobs.submit("profile", {"seed": 0, "zoo": None}, tmp_path / "nowhere")
    jobs.cancel(job.id)
    jobs.resume(job.id, {"budget": "2 trials"})
    monkeypatch.setattr(jobs, "_wait", lambda job: -9)
    jobs.start()
    wait_until(lambda: jobs.ended(job.id), 30)
    jobs.stop()
    jobs.resume(job.id, {"budget": "3 trials"})
    assert jobs.cancel(job.id).request["budget"] == "2 trials"


EXITS = """#!{python}
import os, sys
from automl_tl.service import worker

worker._do, sys.argv = lambda job, folder: os._exit(0), ["worker", sys.argv[-1]]
worker.main()
"""
"""In place of Python: a worker that a plugin ends, as if all was well."""


@pytest.mark.parametrize("how", ["fails", "exits"])
def test_a_job_that_goes_on_in_vain_keeps_what_came_of_it(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "exits":
        (tmp_path / "python").write_text(EXITS.format(python=sys.executable))
        (tmp_path / "python").chmod(0o700)
        monkeypatch.setattr("automl_tl.service.jobs.sys.executable", str(tmp_path / "python"))
    job = left_by("finished", tmp_path / "jobs", 1)
    (tmp_path / "jobs" / job.id / "result.json").write_text('{"winner": 1}')
    jobs = Jobs(tmp_path / "jobs")
    jobs.resume(job.id, {"budget": "2 trials"})
    jobs.start()
    try:
        wait_until(lambda: jobs.ended(job.id))
    finally:
        jobs.stop()
    expected = "nowhere does not exist" if how == "fails" else "the worker ended without a word"
    assert (jobs.get(job.id).state, jobs.get(job.id).error[: len(expected)]) == ("failed", expected)
    assert jobs.result(job.id) == {"winner": 1}
    jobs.resume(job.id, {})
    assert jobs.cancel(job.id).state == "cancelled", "what there is did not come of the request that failed"


@pytest.mark.parametrize("images", [{"dataset": "0123456789abcdef"}, {"path": "photos"}])
def test_a_job_whose_images_are_gone_is_not_resumed(images: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    server = Server.of(Settings(tmp_path / "state", TOKEN, root=tmp_path / "root").checked())
    job = server.jobs.submit("fit", {"seed": 0, "images": images}, tmp_path / "root" / "photos")
    server.jobs.cancel(job.id)
    with pytest.raises(Refused, match="there is no ") as refused:
        job_routes.resume_job(job.id, server, Resumed(budget="2 trials"))
    assert refused.value.status_code == 404
    assert server.jobs.get(job.id).state == "cancelled"
    (tmp_path / "root" / "photos").mkdir()
    if "path" in images:
        assert job_routes.resume_job(job.id, server)["state"] == "queued"


def test_the_error_of_a_job_names_no_place_of_the_server(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path / "state" / "jobs")
    (tmp_path / "root" / "empty").mkdir(parents=True)
    (tmp_path / "root" / "list.csv").write_text("path,label\ncat/1.png,cat\n")
    texts = {"gone": "gone does not exist;", "empty": "empty: is empty of folders;", "list.csv": "list.csv row 2: cat/1.png: "}
    left = {name: jobs.submit("profile", {"seed": 0, "zoo": None}, tmp_path / "root" / name) for name in texts}
    jobs.start()
    try:
        wait_until(lambda: all(jobs.ended(job.id) for job in left.values()))
    finally:
        jobs.stop()
    for name, text in texts.items():
        assert jobs.get(left[name].id).error.startswith(text)
    job, photos = tmp_path / "state" / "jobs" / "0a1b", tmp_path / "photos"
    said = f"{job}/run, {tmp_path}/state/x, {photos}/cat/1.png, {tmp_path}/list.csv, /srv/ann/history.db"
    shown = f"0a1b/run, state/x, photos/cat/1.png, {tmp_path.name}/list.csv, ann/history.db"
    assert _without_places(said, job, photos, Path("/srv/ann")) == shown
    assert _without_places("a/b", job, Path("/"), Path("/")) == "a/b"


@pytest.mark.parametrize("damaged", ["", "{", "[1]", "\0" * 100])
def test_a_result_that_is_damaged_ends_no_server(tmp_path: Path, damaged: str, caplog: pytest.LogCaptureFixture) -> None:
    job = left_by("finished", tmp_path, 1)
    (tmp_path / job.id / "result.json").write_text(damaged)
    jobs = Jobs(tmp_path)
    assert jobs.result(job.id) is None
    assert jobs.resume(job.id, {"budget": "2 trials"}).state == "queued"
    assert jobs.cancel(job.id).state == "cancelled"
    assert f"{job.id}/result.json: is damaged" in caplog.text


# Datasets


def test_a_dataset_that_is_damaged_can_be_sent_again(tmp_path: Path) -> None:
    kept = Datasets(tmp_path)
    one, two = (zipped(("a/1.png", picture(shade)), ("b/1.png", picture(shade))) for shade in (0, 1))
    whole, broken = kept.add(one, "one"), kept.add(two, "two")
    (tmp_path / broken.id / "dataset.json").write_text("{")
    assert kept.all() == [whole]
    with pytest.raises(Refused, match=r"is damaged on the server; delete it and send it again") as refused:
        kept.add(two, "two")
    assert refused.value.status_code == 409
    kept.remove(broken.id)
    assert kept.add(two, "two") == broken


# Models


def with_model(jobs: Path, number: int, card: str = "{}") -> Path:
    """The model of a job, as far as a list looks at it."""
    folder = jobs / left_by("finished", jobs, number).id / "run" / "model"
    folder.mkdir(parents=True)
    (folder / "model.json").write_text(card)
    (folder / "model.safetensors").write_bytes(bytes(2**20))
    return folder


def test_a_model_that_is_not_whole_is_not_told_of(tmp_path: Path) -> None:
    settings = Settings(tmp_path, TOKEN).checked()
    whole, half, damaged = (with_model(tmp_path / "jobs", number, card) for number, card in ((1, "{}"), (2, "{}"), (3, "{")))
    (half / "model.safetensors").unlink()
    server = Server.of(settings)
    assert [card["id"] for card in server.models.all()] == [whole.parents[1].name]
    told = {job.id: job_routes.shown(server, job)["model"] for job in server.jobs.all()}
    assert told == {whole.parents[1].name: True, half.parents[1].name: False, damaged.parents[1].name: True}
    with pytest.raises(Refused, match="has no model"):
        server.models.card(half.parents[1].name)
    for ask in (server.models.card, lambda id: server.models.predict(id, [b""], ["1.png"])):
        with pytest.raises(Refused, match="is damaged on the server; resume the job") as refused:
            ask(damaged.parents[1].name)
        assert str(tmp_path) not in refused.value.detail


def test_a_model_that_is_deleted_while_a_prediction_waits_is_not_there(tmp_path: Path) -> None:
    id = with_model(tmp_path / "jobs", 1).parents[1].name
    server = Server.of(Settings(tmp_path, TOKEN).checked())
    with ThreadPoolExecutor(1) as pool:
        with server.models._lock:
            waiting = pool.submit(server.models.predict, id, [b""], ["1.png"])
            time.sleep(0.5)
            server.jobs.remove(id)
        with pytest.raises(Refused, match="there is no job"):
            waiting.result(30)


def test_a_model_that_cannot_be_packed_leaves_nothing(tmp_path: Path) -> None:
    import resource

    id = with_model(tmp_path / "jobs", 1).parents[1].name
    server = Server.of(Settings(tmp_path, TOKEN).checked())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, before[1]))  # as on a full disk
    try:
        with pytest.raises(OSError, match="too large"):
            model_routes.download_model(id, server)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.glob("*.zip"))


def test_what_a_server_left_of_a_download_is_swept(tmp_path: Path) -> None:
    (tmp_path / "tmpabc123.zip").write_bytes(b"half")
    Server.of(Settings(tmp_path, TOKEN).checked())
    assert not list(tmp_path.glob("*.zip"))


def test_a_job_is_named_as_its_folder_is(tmp_path: Path) -> None:
    server = Server.of(Settings(tmp_path / "state", TOKEN).checked())
    (tmp_path / "flowers.v2").mkdir()
    (tmp_path / "list.v2.csv").touch()
    names = {"flowers.v2": "flowers.v2", "list.v2.csv": "list.v2", "gone.v2": "gone.v2"}
    for place, name in names.items():
        assert job_routes.shown(server, server.jobs.submit("profile", {}, tmp_path / place))["name"] == name


def test_a_worker_that_starts_while_the_server_stops_is_ended(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path)
    job = jobs.submit("profile", {"seed": 0, "zoo": None}, tmp_path / "nowhere")
    os.mkfifo(tmp_path / job.id / "worker.log")  # until somebody reads it, the thread waits between taking the job and its start
    stopping = threading.Thread(target=jobs.stop, daemon=True)
    with FileLock(tmp_path / job.id / "worker.lock"):  # what the worker would wait for, for a minute
        jobs.start()
        wait_until(lambda: jobs.get(job.id).state == "running")
        stopping.start()
        wait_until(lambda: jobs._stopping)
        reader = os.open(tmp_path / job.id / "worker.log", os.O_RDONLY | os.O_NONBLOCK)
        stopping.join(30)
        os.close(reader)
        assert not stopping.is_alive()
    assert Jobs(tmp_path).get(job.id).state == "queued", "it goes on at the next start"


def wait_until(true: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_a_worker_ends_with_its_server(tmp_path: Path) -> None:
    job = left_by("running", tmp_path, 1)
    line = [sys.executable, "-m", "automl_tl.service.worker", str(tmp_path / job.id)]
    worker = subprocess.Popen(line, stdin=subprocess.PIPE)
    assert worker.stdin is not None
    worker.stdin.close()  # as the end of the server does, however it ends
    assert worker.wait(300) == 3


WORKER = """#!{python}
import sys, time
from pathlib import Path
from automl_tl import guard
from automl_tl.service import worker

def training(job, folder):
    trial = folder / "run" / "trials" / "abc" / "checkpoints"
    trial.mkdir(parents=True, exist_ok=True)
    with guard.outlived(trial):
        (folder / "there").touch()
        while True:
            try:
                time.sleep(60)
            except KeyboardInterrupt:
                pass  # it hangs

worker._do, sys.argv = training, ["worker", sys.argv[-1]]
worker.main()
"""
"""In place of Python: a worker that is always in the middle of a trial."""


@pytest.mark.parametrize("how", ["stop", "cancel"])
def test_a_trial_is_not_to_blame_that_its_worker_was_ended(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "python").write_text(WORKER.format(python=sys.executable))
    (tmp_path / "python").chmod(0o700)
    monkeypatch.setattr("automl_tl.service.jobs.sys.executable", str(tmp_path / "python"))
    monkeypatch.setattr("automl_tl.service.jobs.GRACE_SECONDS", 0.1)
    jobs = Jobs(tmp_path / "jobs")
    folder = jobs.path(jobs.submit("fit", {}, tmp_path).id)
    jobs.start()
    marks = folder / "run" / "trials" / "abc" / "checkpoints" / "deaths.txt"
    try:
        wait_until((folder / "there").exists)
        assert marks.read_text() == "x"
        if how == "cancel":
            jobs.cancel(folder.name)
            wait_until(lambda: jobs.ended(folder.name))
            assert jobs.get(folder.name).state == "cancelled"
    finally:
        jobs.stop()
    assert not marks.exists()


def test_a_worker_that_hears_nothing_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "python").write_text(f"#!/bin/sh\ntouch {tmp_path}/there\nexec sleep 60\n")
    (tmp_path / "python").chmod(0o700)
    monkeypatch.setattr("automl_tl.service.jobs.sys.executable", str(tmp_path / "python"))
    monkeypatch.setattr("automl_tl.service.jobs.LAST_WORDS", 0.1)
    jobs = Jobs(tmp_path / "jobs")
    jobs.submit("fit", {}, tmp_path)
    jobs.start()
    wait_until((tmp_path / "there").exists)
    start = time.monotonic()
    jobs.stop()
    assert time.monotonic() - start < 10


def test_lines_are_added_where_no_place_can_be_read_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """os.pread is Unix's alone."""
    monkeypatch.delattr(os, "pread", raising=False)
    events.append(tmp_path, "state", {"number": 1})
    with (tmp_path / events.EVENTS).open("ab") as file:
        file.write(b'{"event": "cut o')
    events.append(tmp_path, "state", {"number": 2})
    events.append(tmp_path, "state", {"number": 3})
    assert [event.facts["number"] for event in events.read(tmp_path)] == [1, 2, 3]
    assert (tmp_path / events.EVENTS).read_bytes().count(b"\n") == 4


def test_lines_of_two_writers_never_mix(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: events.append(tmp_path, "epoch", {"number": number, "score": float("nan")}), range(400)))
    found = list(events.read(tmp_path))
    assert sorted(event.facts["number"] for event in found) == list(range(400))
    assert {event.facts["score"] for event in found} == {None}, "JSON has no NaN"
    assert found[-1].end == (tmp_path / events.EVENTS).stat().st_size
    assert list(events.read(tmp_path, found[200].end)) == found[201:]


# The history


def test_the_history_is_found_a_page_at_a_time(server: Running) -> None:
    everything = server.client.get("/api/history/trials", params={"limit": 500}).json()
    assert everything["total"] == server.client.get("/api/history").json()["trials"]
    pages = [
        server.client.get("/api/history/trials", params={"limit": 7, "offset": offset, "strategy": "linear-probe"}).json()
        for offset in (0, 7)
    ]
    found = [trial["id"] for page in pages for trial in page["items"]]
    wanted = [trial["id"] for trial in everything["items"] if trial["candidate"]["strategy"] == "linear-probe"]
    assert found == wanted[:14]
    tasks = server.client.get("/api/history/tasks").json()["items"]
    task = next(task for task in tasks if task["fingerprint"] == everything["items"][-1]["task"])
    by_name = server.client.get("/api/history/trials", params={"task": task["name"], "status": "finished"}).json()
    by_fingerprint = server.client.get("/api/history/trials", params={"task": task["fingerprint"]}).json()
    assert by_name["total"] >= by_fingerprint["total"] > 0
    assert server.client.get("/api/history/trials", params={"search": "'; DROP TABLE trials; --"}).json()["total"] == 0
    assert server.client.get("/api/history").json()["integrity"] == []


def test_facts_are_added_all_or_none(server: Running) -> None:
    before = server.client.get("/api/history").json()
    wrong = {**TRIAL, "id": "00000000000000bb", "status": "failed"}
    message = fault(server.client.post("/api/history", json={"tasks": [TASK], "trials": [TRIAL, wrong]}), 422)
    assert "trials[1]" in message
    assert "failed trial has no score" in message
    stranger = {**TRIAL, "task": "nowhere"}
    message = fault(server.client.post("/api/history", json={"tasks": [TASK], "trials": [stranger]}), 422)
    assert "trials.jsonl line 1" in message
    assert os.sep not in message.split(":")[0]
    assert server.client.get("/api/history").json() == before
    answer = server.client.post("/api/history", json={"tasks": [TASK], "trials": [TRIAL]})
    assert answer.status_code == 201, answer.text
    assert answer.json() == {"tasks": 1, "backbones": 0, "profiles": 0, "trials": 1}
    assert server.client.post("/api/history", json={"tasks": [TASK], "trials": [TRIAL]}).json()["trials"] == 0
    assert server.client.get("/api/history/trials", params={"task": "our letters"}).json()["total"] == 1


@pytest.mark.parametrize(
    "change",
    [
        {"seconds": "long"},
        {"seconds": -1},
        {"seed": 2**70},
        {"curve": [{"epoch": 1, "seconds": 1, "loss": None, "score": "high"}]},
        {"curve": 3},
        {"provenance": {"speed": "fast"}},
        {"error": "\ud800"},
        {"validation": {"accuracy": 10**400}},
        {"validation": {"accuracy": 93.0}},
        {"test": {"accuracy": -0.1}},
        {"artefact": None},
    ],
)
def test_facts_of_wrong_kinds_are_refused(server: Running, change: dict[str, Any]) -> None:
    body = json.dumps({"tasks": [TASK], "trials": [{**TRIAL, "id": "00000000000000cc", **change}]})
    answer = server.client.post("/api/history", content=body, headers={"Content-Type": "application/json"})
    assert "trials[0]" in fault(answer, 422)


# The description, and the settings


def test_every_operation_is_described_with_its_faults_and_an_example(server: Running) -> None:
    schema = httpx.get(f"{server.url}/api/openapi.json").json()
    assert schema["components"]["securitySchemes"] == {"token": {"type": "http", "scheme": "bearer"}}
    operations = [(path, method, operation) for path, methods in schema["paths"].items() for method, operation in methods.items()]
    assert len(operations) >= 20
    assert len({operation["operationId"] for _, _, operation in operations}) == len(operations)
    for path, method, operation in operations:
        assert operation["summary"], path
        assert operation["description"], path
        if path != "/api/health":
            assert operation["security"] == [{"token": []}]
            assert {"401", "422", "429", "503"} <= operation["responses"].keys(), (method, path)
        for status, told in operation["responses"].items():
            assert status < "400" or list(told["content"]) == ["application/json"], (method, path, status)
        content = operation.get("requestBody", {}).get("content", {}).get("application/json")
        if content:
            assert re.search('"examples?"', json.dumps(content)), f"{method} {path} has no example"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"token": "short"}, "too weak"),
        ({"token": "with a space in it, long"}, "too weak"),
        ({"root": Path("/nowhere")}, "is no folder"),
        ({"state": Path("/proc/nowhere")}, "cannot be written"),
        ({"upload_bytes": 0}, "limits"),
    ],
)
def test_settings_that_cannot_work_are_refused(change: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=named):
        Settings(**{"state": tmp_path / "state", "token": TOKEN, **change}).checked()


def test_no_link_is_said_where_another_program_listens(tmp_path: Path) -> None:
    """It would give that program the token."""
    said: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=rf"^port {port} of 127\.0\.0\.1: cannot be listened on: Address already in use;"):
            serve(Settings(tmp_path, TOKEN), host="127.0.0.1", port=port, say=said.append)
    with pytest.raises(InputError, match=f"port {port} of no such host: cannot"):
        serve(Settings(tmp_path, TOKEN), host="no such host", port=port, say=said.append)
    assert not said


@pytest.mark.parametrize("token", [TOKEN, "a+b&c=d%41#e?f/g;hh"])
def test_the_link_carries_any_token(token: str, tmp_path: Path) -> None:
    said: list[str] = []
    _say_where(Settings(tmp_path, token).checked(), "127.0.0.1", 8765, said.append)
    fragment = urlsplit(said[0].split()[-1]).fragment
    assert parse_qs(fragment, strict_parsing=True) == {"token": [token]}, "as URLSearchParams, too, reads it"
    assert f"token: {token} " in said[1], "to copy, as it is"


def test_a_server_that_cannot_start_says_so_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "jobs").write_text("no folder")
    options = ["--port", str(free_port()), "--state", str(tmp_path), "--token", TOKEN]
    line = [sys.executable, "-m", "automl_tl.cli", "serve", *options]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    (message,) = done.stderr.splitlines()
    assert message.startswith("error: internal error: FileExistsError")


def test_two_servers_do_not_share_a_state(server: Running, home: Path) -> None:
    with pytest.raises(AssertionError, match="another server works there"):
        Running(server.state, home)


# The page, where it needs a fit or an answer that comes late


def open_job(watched: test_page.Watched, id: str) -> Any:
    """The page once it shows all of a job."""
    watched.page.goto(f"{watched.url}/#token={TOKEN}&job={id}")
    watched.page.get_by_text("is recommended: it classifies").wait_for()
    return watched.page


def held(page: Any, ending: str, action: Callable[[], Any]) -> Any:
    """What the action asks of the server, kept from it until it is let go."""
    routes: list[Any] = []
    page.route(lambda url: url.endswith(ending), lambda route: route.fallback() if routes else routes.append(route))
    action()
    wait_until(lambda: bool(page.wait_for_timeout(20) or routes))
    return routes[0]


def let_go(page: Any, *routes: Any) -> None:
    for route in routes:
        with page.expect_event("requestfinished", lambda request, route=route: request == route.request):
            route.continue_()
    page.wait_for_timeout(500)  # for what the page makes of the answers


def show(page: Any, kind: str, id: str) -> None:
    page.get_by_role("button", name=f"Show {kind} {id}").click()
    page.wait_for_url(f"**/#job={id}")


def test_the_links_of_a_report_lead_to_its_parts(watched: test_page.Watched, fitted: tuple[str, Any]) -> None:
    from playwright.sync_api import expect

    page = open_job(watched, fitted[0])
    page.get_by_role("button", name="Read the report").click()
    report = page.frame_locator("#report")
    part = report.locator("#reproduce").get_by_role("heading").first
    expect(part).not_to_be_in_viewport(timeout=60_000)
    report.get_by_role("navigation").get_by_role("link", name="again", exact=True).click(timeout=60_000)
    expect(part).to_be_in_viewport(timeout=60_000)
    assert report.get_by_role("heading", level=1).count() == 1, "the report is still there"
    assert page.url.endswith(f"#job={fitted[0]}"), "only the frame moved"


@pytest.mark.slow
def test_a_late_answer_is_not_shown_below_another_job(
    watched: test_page.Watched, fitted: tuple[str, Any], other: str, tmp_path: Path
) -> None:
    (tmp_path / "two.png").write_bytes(picture(2))
    page = open_job(watched, fitted[0])
    report = held(page, f"{fitted[0]}/report", page.get_by_role("button", name="Read the report").click)
    predictions = held(page, f"{fitted[0]}/predictions", lambda: page.set_input_files("#pictures", tmp_path / "two.png"))
    model = held(page, f"{fitted[0]}/archive", page.get_by_role("button", name="Download the model").click)
    show(page, "profile", other)
    with page.expect_download() as download:
        let_go(page, report, predictions, model)
    assert download.value.suggested_filename == f"model-{fitted[0]}.zip"
    assert page.locator("#predictions li").count() == 0
    assert page.locator("#report").get_attribute("hidden") is not None
    assert page.locator("#read").get_attribute("aria-expanded") == "false"
    show(page, "fit", fitted[0])
    page.set_input_files("#pictures", tmp_path / "two.png")
    page.locator("#predictions li strong").wait_for()


def test_what_was_asked_for_last_is_shown(watched: test_page.Watched, fitted: tuple[str, Any], other: str) -> None:
    page = open_job(watched, fitted[0])
    late = held(page, f"/api/jobs/{other}", page.get_by_role("button", name=f"Show profile {other}").click)
    page.get_by_role("button", name=f"Show fit {fitted[0]}").click()
    page.locator("#outcome").wait_for()
    let_go(page, late)
    assert page.url.endswith(f"#job={fitted[0]}")
    assert page.locator("#job-title").inner_text().startswith("Training")
    late = held(page, "search=omniglot&limit=15&offset=0", lambda: page.get_by_role("searchbox").fill("omniglot"))
    page.get_by_role("searchbox").fill("nothing-like-this")
    page.get_by_text("No trial matches.").wait_for()
    let_go(page, late)
    assert page.locator("#history-table tbody tr").count() == 0


def test_the_focus_outlives_what_is_drawn_anew(watched: test_page.Watched, fitted: tuple[str, Any], other: str) -> None:
    """A new state draws the table of jobs anew, under the hands of who goes through it by keyboard."""
    page = open_job(watched, fitted[0])
    focused = "document.activeElement.getAttribute('aria-label') || document.activeElement.id"

    def by_keyboard() -> None:
        page.get_by_role("button", name=f"Show profile {other}").focus()
        page.keyboard.press("Enter")

    states = held(page, f"{other}/events", by_keyboard)
    assert page.evaluate(focused) == "job-title"
    page.get_by_role("button", name=f"Show fit {fitted[0]}").focus()
    page.evaluate("window.before = document.activeElement")
    let_go(page, states)
    page.wait_for_function("!before.isConnected")
    assert page.evaluate(focused) == f"Show fit {fitted[0]}"
    states = held(page, f"{other}/events", by_keyboard)
    page.get_by_role("button", name=f"Show fit {fitted[0]}").focus()
    page.route(lambda url: url.endswith("/api/jobs?limit=10"), lambda route: route.fulfill(json={"items": [], "total": 0}))
    let_go(page, states)
    page.get_by_text("None yet.").wait_for()
    assert page.evaluate("document.activeElement.id") == "job-table", "no longer among the newest: near to where it was"


# What takes longer


@pytest.mark.slow
def test_a_fit_is_cancelled_with_its_best_model_and_goes_on(server: Running, dataset: str) -> None:
    request = {"kind": "fit", "strategies": ["fine-tuning", "linear-probe"], "backbones": [QUICK], "budget": "10m"}
    id = server.submit(images={"dataset": dataset}, **request)
    for _, kind, facts in server.events(id):
        if kind == "trial" and facts["status"] in ("finished", "stopped"):
            server.client.post(f"/api/jobs/{id}/cancel")
            break
    job = server.ended(id)
    assert (job["state"], job["model"], job["result"]["interrupted"]) == ("cancelled", True, True)
    before = len(job["result"]["trials"])
    assert server.client.post(f"/api/jobs/{id}/resume", json={"budget": f"{before + 1} trials"}).status_code == 202
    job = server.ended(id)
    assert (job["state"], job["request"]["budget"]) == ("finished", f"{before + 1} trials")
    assert len(job["result"]["trials"]) > before


@pytest.mark.slow
def test_kill_9_of_the_server_loses_nothing(tmp_path: Path, home: Path, root: Path) -> None:
    server = Running(tmp_path / "state", home, "--root", root)
    request = {"strategies": ["fine-tuning"], "backbones": [QUICK], "budget": "2 trials + 30 epochs"}
    fit = server.submit(kind="fit", images={"path": "our-digits"}, **request)
    later = [server.submit(kind="profile", images={"path": "our-digits"}) for _ in range(2)]
    for _, kind, facts in server.events(fit):
        if kind == "epoch" and facts["epoch"] >= 2:
            break
    server.kill()
    seen = {path.parent.name for path in (tmp_path / "state" / "jobs").glob("*/job.json")}
    assert seen == {fit, *later}
    again = Running(tmp_path / "state", home, "--root", root)
    job = again.ended(fit)
    assert job["state"] == "finished", job["error"]
    assert job["result"]["winner"]["validation"]["accuracy"] > 0.5
    states = [(facts["state"], facts["note"]) for _, kind, facts in again.events(fit) if kind == "state"]
    assert [state for state, _ in states] == ["queued", "running", "queued", "running", "finished"]
    assert "started anew" in states[2][1]
    assert [again.ended(id)["state"] for id in later] == ["finished", "finished"]
    assert again.client.get("/api/history").json()["integrity"] == []
    again.end()


@pytest.mark.slow
def test_the_client_of_the_docs_works(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "http.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    (line,) = re.findall(r"```sh\nautoml-tl serve (.*?)\n```", text)
    assert len([line for line in code.splitlines() if line]) <= 10
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    server = Running(tmp_path / "state", home, *line.split())
    (tmp_path / "photos.zip").write_bytes(digits_zip())
    (tmp_path / "new.png").write_bytes(picture(2))
    monkeypatch.setenv("AUTOML_TL_TOKEN", TOKEN)
    names: dict[str, Any] = {}
    exec(compile(code.replace("http://127.0.0.1:8765", server.url), "http.md", "exec"), names)
    assert names["told"]["predictions"][0]["label"].startswith("digit")
    names["client"].close()  # a program of ten lines leaves that to its end
    server.end()


@pytest.mark.slow
def test_no_request_makes_the_server_fail(tmp_path: Path, home: Path, root: Path) -> None:
    """schemathesis: every operation of the description, with what fits it and what does not."""
    import hypothesis
    import schemathesis
    from schemathesis.checks import CHECKS, not_a_server_error

    server = Running(tmp_path / "state", home, "--root", root, "--requests-per-minute", 1_000_000)
    schema = schemathesis.openapi.from_url(f"{server.url}/api/openapi.json")
    assert CHECKS
    asked: dict[str, set[int]] = {}
    for result in schema.get_all_operations():
        operation = result.ok()

        def ask(case: Any) -> None:
            answer = case.call(headers={"Authorization": f"Bearer {TOKEN}"}, timeout=120)
            asked.setdefault(f"{case.method} {case.path}", set()).add(answer.status_code)
            case.validate_response(answer, checks=[not_a_server_error])
            if answer.status_code >= 400:
                assert set(answer.json()) == {"status", "error", "message"}

        settings = hypothesis.settings(
            max_examples=25, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
        )
        for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):
            strategy = operation.as_strategy(generation_mode=mode)
            with contextlib.suppress(hypothesis.errors.Unsatisfiable):  # what takes nothing cannot be asked wrongly
                settings(hypothesis.seed(0)(hypothesis.given(case=strategy)(ask)))()
        for job in server.client.get("/api/jobs", params={"state": "running"}).json()["items"]:
            server.client.post(f"/api/jobs/{job['id']}/cancel")
    assert len(asked) >= 20, asked
    assert "Traceback" not in server.log.read_text()
    server.end()


@pytest.mark.slow
def test_hundreds_of_clients_beside_jobs_lose_nothing(tmp_path: Path) -> None:
    """The load run of benchmarks/service.py, whole."""
    found = tmp_path / "service.json"
    line = [sys.executable, ROOT / "benchmarks" / "service.py", "--json", found]
    done = subprocess.run(line, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(found.read_text(encoding="utf-8"))
    assert (figures["requests"], figures["lost_requests"], figures["jobs"], figures["lost_jobs"]) == (600, 0, 5, 0)
    assert 0 < figures["latency_ms_p50"] <= figures["latency_ms_p99"]
