"""Histories go to a hub (a small server on this machine, asked by the real client) and come back; and what goes is numbers."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image
from small import QUICK, arrays
from test_history import BACKBONE, profile, task, trial
from typer.testing import CliRunner

from automl_tl import Candidate
from automl_tl.exchange import FILES
from automl_tl.history import History, open_history
from automl_tl.records import trial_id
from automl_tl.sharing import leaving

REPOSITORY = "ann/history"
TOKEN = "hf_of_a_test"


@dataclass
class Hub:
    """One dataset repository, its commits, and what was asked."""

    commits: list[dict[str, bytes]] = field(default_factory=list)
    """File → content; the repository exists once there is one."""
    private: bool | None = None
    asked: list[str] = field(default_factory=list)
    received: list[bytes] = field(default_factory=list)
    """The bodies of all requests."""
    pushed_in_between: dict[str, bytes] | None = None
    """Somebody else's commit, which arrives just before the next one."""
    made_in_between: dict[str, bytes] | None = None
    """Somebody else's first commit, in the repository that they make just before the next one is to be made."""

    def sha(self, number: int = -1) -> str:
        return hashlib.sha1(repr((len(self.commits[:number]), self.commits[number])).encode()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.hub.asked.append(f"{self.command} {self.path}")
        if not self.hub.commits:
            self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif self.path == f"/api/datasets/{REPOSITORY}":
            self._json({"id": REPOSITORY, "sha": self.hub.sha(), "private": self.hub.private})
        elif found := re.fullmatch(rf"/datasets/{REPOSITORY}/resolve/(\w+)/(.+)", self.path):
            files = {self.hub.sha(number): files for number, files in enumerate(self.hub.commits)}[found[1]]
            content = files.get(found[2])
            headers = {"X-Repo-Commit": found[1]}
            if content is None:
                self._answer(404, b"", {**headers, "X-Error-Code": "EntryNotFound"})
            else:
                self._answer(200, content, {**headers, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'})
        else:
            self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})

    def do_POST(self) -> None:
        self.hub.asked.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.hub.received.append(body)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer(401, b"")
        elif self.path == "/api/repos/create":
            asked = json.loads(body)
            assert asked["type"] == "dataset"
            assert f"{asked['organization']}/{asked['name']}" == REPOSITORY
            if self.hub.made_in_between is not None:
                self.hub.commits += [{".gitattributes": b""}, {".gitattributes": b"", **self.hub.made_in_between}]
                self._answer(409, json.dumps({"url": f"http://{self.headers['Host']}/datasets/{REPOSITORY}"}).encode())
                return
            self.hub.private = asked.get("visibility") == "private"
            self.hub.commits.append({".gitattributes": b""})
            self._json({"url": f"http://{self.headers['Host']}/datasets/{REPOSITORY}"})
        elif self.path == f"/api/datasets/{REPOSITORY}/preupload/main":
            paths = [file["path"] for file in json.loads(body)["files"]]
            self._json({"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]})
        elif self.path == f"/api/datasets/{REPOSITORY}/commit/main":
            self._commit([json.loads(line) for line in body.splitlines()])
        else:
            self._answer(404, b"")

    def _commit(self, lines: list[dict[str, dict[str, str]]]) -> None:
        if self.hub.pushed_in_between is not None:
            self.hub.commits.append(self.hub.pushed_in_between)
            self.hub.pushed_in_between = None
        header, *files = (line["value"] for line in lines)
        if header["parentCommit"] != self.hub.sha():
            self._answer(412, b"")
            return
        added = {file["path"]: base64.b64decode(file["content"]) for file in files}
        self.hub.commits.append({**self.hub.commits[-1], **added})
        self._json(
            {
                "commitUrl": f"http://{self.headers['Host']}/datasets/{REPOSITORY}/commit/{self.hub.sha()}",
                "commitOid": self.hub.sha(),
            }
        )

    def _json(self, facts: object) -> None:
        self._answer(200, json.dumps(facts).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@dataclass
class Person:
    """Somebody with a home of their own; commands are fresh processes, because the client reads its environment at import."""

    endpoint: str
    home: Path
    hub: Hub

    def history(self) -> History:
        return open_history(self.home / "history.db")

    def command(self, *words: str, code: int = 0, **more: str) -> str:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        ours = {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(self.home / "hf"), "AUTOML_TL_HOME": str(self.home)}
        quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_TOKEN": TOKEN, "OMP_NUM_THREADS": "1"}
        line = [sys.executable, "-m", "automl_tl.cli", "history", *words]
        done = subprocess.run(line, env=clean | ours | quiet | more, capture_output=True, text=True, timeout=120)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout if code == 0 else done.stderr


@pytest.fixture
def endpoint() -> Iterator[tuple[str, Hub]]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OurHandler", (Handler,), {"hub": hub}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", hub
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def ann(endpoint: tuple[str, Hub], shipped: Path, tmp_path: Path) -> Person:
    """She tried two things with her own photographs."""
    ann = Person(endpoint[0], tmp_path / "ann", endpoint[1])
    ann.home.mkdir()
    shutil.copy(shipped, ann.home / "history.db")
    with ann.history() as history:
        history.record_task(task("ann's wards"), "hospital")
        history.record_backbone(BACKBONE)
        history.record_profile(profile())
        for number in range(2):
            history.record_trial(trial(number))
    return ann


@pytest.fixture
def bob(ann: Person, shipped: Path) -> Person:
    bob = Person(ann.endpoint, ann.home.parent / "bob", ann.hub)
    bob.home.mkdir()
    shutil.copy(shipped, bob.home / "history.db")
    return bob


def test_what_one_pushes_another_pulls(ann: Person, bob: Person) -> None:
    printed = ann.command("push", REPOSITORY)
    assert ann.hub.private, "it is the owner's to make it public"
    assert set(FILES) <= ann.hub.commits[-1].keys()
    with ann.history() as history:
        assert printed.startswith(f"pushed {history.summary()['tasks']} tasks")
        known, digest = history.known(), history.digest()
    assert bob.command("pull", REPOSITORY).startswith("pulled 1 tasks, 1 backbones, 1 profiles, 2 trials")
    with bob.history() as history:
        assert history.known() == known
        assert history.digest() == digest, "he will be given the same advice"
        history.record_trial(trial(7))
    nothing = ("tasks", "backbones", "profiles", "trials", "more of trials", "other results")
    assert bob.command("pull", REPOSITORY).strip() == "pulled " + ", ".join(f"0 {name}" for name in nothing)
    assert "1 trials" in bob.command("push", REPOSITORY)
    assert len(ann.hub.commits) == 3
    assert "0 trials" in bob.command("push", REPOSITORY)
    assert len(ann.hub.commits) == 3, "nothing new is no commit"
    ann.command("pull", REPOSITORY)
    with ann.history() as history:
        assert trial(7).id in history.known()
        assert history.tasks()["f" * 16].name == "ann's wards", "her own name for it is back from nowhere"
        assert history.integrity() == []


@pytest.mark.slow
def test_a_push_that_somebody_else_came_before_loses_nothing(ann: Person, bob: Person) -> None:
    ann.command("push", REPOSITORY)
    bob.command("pull", REPOSITORY)
    with bob.history() as history:
        history.record_trial(trial(7))
    ann.hub.pushed_in_between = {**ann.hub.commits[-1], "note": b"somebody else"}
    assert "somebody else pushed in between; push again" in bob.command("push", REPOSITORY, code=2)
    bob.command("push", REPOSITORY)
    assert ann.hub.commits[-1]["note"] == b"somebody else"
    assert trial(7).id.encode() in ann.hub.commits[-1]["trials.jsonl"]


def test_a_first_push_that_somebody_elses_came_before_loses_nothing(ann: Person, bob: Person, tmp_path: Path) -> None:
    with bob.history() as history:
        history.record_task(task("bob's", "e" * 16), "elsewhere")
        history.record_backbone(BACKBONE)
        history.record_trial(trial(7, fingerprint="e" * 16))
        history.export(tmp_path / "bob's")
    ann.hub.made_in_between = {name: (tmp_path / "bob's" / name).read_bytes() for name in FILES}
    assert "1 tasks, 0 backbones, 1 profiles, 2 trials" in ann.command("push", REPOSITORY)
    for one in (trial(0), trial(7, fingerprint="e" * 16)):
        assert one.id.encode() in ann.hub.commits[-1]["trials.jsonl"]


def test_a_network_of_ones_own_is_not_pushed_unless_asked(ann: Person) -> None:
    candidate = Candidate("ward-net", "fine-tuning", {})
    mine = replace(trial(3), candidate=candidate, id=trial_id("f" * 16, candidate, 0))
    with ann.history() as history:
        history.record_backbone(replace(BACKBONE, name="ward-net", zoo="folder", source_dataset="wards"))
        history.record_trial(mine)
        assert leaving(history).left_out == {"backbones left out": 1, "trials left out": 1}
        assert leaving(history, names=True).left_out == {}
    assert "1 backbones left out, 1 trials left out: these networks" in ann.command("push", REPOSITORY, "--dry-run")
    assert "left out" not in ann.command("push", REPOSITORY, "--dry-run", "--names")
    assert "1 backbones left out, 1 trials left out" in ann.command("push", REPOSITORY)
    assert not any(b"ward" in ann.hub.commits[-1][name] for name in FILES)
    assert mine.id.encode() not in ann.hub.commits[-1]["trials.jsonl"]


def test_the_dry_run_says_exactly_what_leaves_and_asks_nobody(ann: Person) -> None:
    said = json.loads(ann.command("push", REPOSITORY, "--dry-run", "--json"))
    assert ann.hub.asked == []
    shown = ann.command("push", REPOSITORY, "--dry-run")
    ann.command("push", REPOSITORY)
    for name in FILES:
        content = ann.hub.commits[-1][name]
        assert said["sha256"][name] == hashlib.sha256(content).hexdigest()
        assert said["size"][name] == len(content)
        assert name in shown
        assert said["sha256"][name][:16] in shown
    texts = {text for values in said["texts"].values() for text in values}
    assert {"accuracy", "retention"} <= set(said["texts"]["tasks.objective"])
    for line in ann.hub.commits[-1]["trials.jsonl"].decode().splitlines():
        facts = json.loads(line)
        assert {facts["id"], facts["task"], facts["status"], facts["candidate"]["strategy"]} <= texts
        assert {value for value in facts["provenance"].values() if value and isinstance(value, str)} <= texts
    named = json.loads(ann.command("push", REPOSITORY, "--dry-run", "--json", "--names"))
    assert "ann's wards" in named["texts"]["tasks.name"]
    assert "ann's wards" not in texts


def test_what_is_missing_is_said_plainly(ann: Person, bob: Person) -> None:
    assert "there is no such dataset on the hub" in bob.command("pull", REPOSITORY, code=2)
    assert "the hub does not know you; log in with `hf auth login`" in ann.command("push", REPOSITORY, code=2, HF_TOKEN="hf_no")
    assert "is no name of a repository; give OWNER/NAME" in ann.command("push", "no/such/name", code=2)
    assert "HF_HUB_OFFLINE is set" in ann.command("push", REPOSITORY, code=2, HF_HUB_OFFLINE="1")
    assert "cannot be reached" in ann.command("pull", REPOSITORY, code=2, HF_ENDPOINT="http://127.0.0.1:9")


def test_a_damaged_repository_changes_nothing(ann: Person, bob: Person) -> None:
    ann.command("push", REPOSITORY)
    ann.hub.commits.append({**ann.hub.commits[-1], "trials.jsonl": ann.hub.commits[-1]["trials.jsonl"][:-40]})
    said = bob.command("pull", REPOSITORY, code=2)
    assert re.search(r"trials\.jsonl line \d+: ", said)
    with bob.history() as history:
        assert trial().id not in history.known()


def test_nothing_of_the_images_leaves(tmp_path: Path) -> None:
    """A real folder whose every name is a secret, profiled and tried, with a file that cannot be read and a trial that fails."""
    from automl_tl import load_task
    from automl_tl.backbones import catalogue
    from automl_tl.profiling import profile_task
    from automl_tl.trials import run_trial

    for number, (image, label) in enumerate(zip(*arrays(120), strict=True)):
        of_class = tmp_path / "secret ward" / f"secret class {label}"
        of_class.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(of_class / f"secret {number}.png")
    (tmp_path / "secret ward" / "secret class 0" / "secret broken.png").write_bytes(b"no image")
    photos, backbone = load_task(tmp_path / "secret ward"), catalogue()[QUICK]
    found = profile_task(photos, {QUICK: backbone}, look=(QUICK,))
    command = f"automl-tl fit {tmp_path}/secret"
    mine, _ = run_trial(
        photos, Candidate(QUICK, "linear-probe", {}), backbone, seed=0, folder=tmp_path / "secret run", command=command
    )
    assert mine.status == "finished"
    broken = f"linear-probe: ValueError: {tmp_path}/secret ward/secret 1.png of secret class 3"
    failed = trial(1, fingerprint=mine.task, status="failed", error=broken)
    with open_history(tmp_path / "history.db") as history:
        history.record_task(photos)
        history.record_backbone(backbone)
        history.record_backbone(BACKBONE)
        history.record_profile(replace(found, warnings=("secret broken.png: cannot be read",)))
        history.record_trial(mine)
        history.record_trial(failed)
        said = leaving(history)
        history.export(tmp_path / "text")
        asked = leaving(history, names=True)
    text = b"".join((tmp_path / "text" / name).read_bytes() for name in FILES)
    assert mine.id.encode() in text
    assert failed.id.encode() in text
    assert b"secret" not in text.lower()
    assert str(tmp_path).encode() not in text
    assert not any("secret" in value.lower() for values in said.texts.values() for value in values)
    assert "secret ward" in asked.texts["tasks.name"]


DOCUMENT = (Path(__file__).resolve().parents[1] / "docs" / "history.md").read_text(encoding="utf-8")


def test_every_command_of_the_document_runs(ann: Person, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In their order, in one folder; those that ask the hub as processes, because its client reads its environment at import."""
    from automl_tl.cli import app

    (tmp_path / "other").mkdir()
    with open_history(tmp_path / "other" / "history.db") as other:
        other.record_task(task(), "elsewhere")
        other.record_backbone(BACKBONE)
        other.record_trial(trial(3))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUTOML_TL_HOME", str(ann.home))
    blocks = re.findall(r"^```\n(.*?)^```", DOCUMENT, flags=re.DOTALL | re.MULTILINE)
    elsewhere = ("pip install", "history build", "--ray")  # test_campaign and test_workers fill histories
    commands = [line for block in blocks for line in block.splitlines() if not any(words in line for words in elsewhere)]
    assert len(commands) == 11
    for command in commands:
        words = shlex.split(command.replace(" ID", f" {trial().id}"))
        if words[0] == "sqlite3":  # the tool may not be here; what it would be asked is
            with closing(
                sqlite3.connect(words[1].replace("${AUTOML_TL_HOME:-$HOME/.local/share/automl_tl}", str(ann.home)))
            ) as database:
                assert database.execute(words[2]).fetchall()
        elif words[2] in ("push", "pull"):
            assert ann.command(*words[2:])
        else:
            done = CliRunner().invoke(app, words[1:])
            assert done.exit_code == 0, (command, done.output, done.exception)
    with ann.history() as history:
        assert trial(3).id in history.known()
    assert ann.hub.commits
    assert all((tmp_path / "facts" / name).is_file() for name in FILES)


def test_the_document_names_every_table_and_command(ann: Person) -> None:
    with ann.history() as history:
        tables = {name for (name,) in history.db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    for table in tables - {"_sqlite_migrations"}:
        assert f"`{table}`" in DOCUMENT
    for verb in ("list", "show", "export", "import", "merge", "push", "pull"):
        assert f"automl-tl history {verb}" in DOCUMENT
