"""The HTTP API, asked as a stranger asks it: a real server on loopback, a real client, real images."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import socket
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import numpy as np
import pytest
import serving
from serving import TOKEN, Running, digits_zip, fault, free_port, picture
from small import QUICK, TINY

from automl_tl.errors import InputError
from automl_tl.service.app import _say_where, serve
from automl_tl.service.settings import Settings
from automl_tl.service.shapes import PROFILE, TASK, TRIAL

ROOT = Path(__file__).resolve().parents[1]
home, root, server, dataset, fitted = serving.home, serving.root, serving.server, serving.dataset, serving.fitted


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


# What takes longer


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
