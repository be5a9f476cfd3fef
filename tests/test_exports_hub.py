"""A push to a hub that is a small server on this machine, by the real client; and timm itself loads it from there."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from small import QUICK
from test_hub import COMMIT, Client, Handler, Hub

import automl_tl
from automl_tl import Candidate, Classifier, model
from automl_tl.backbones import build, catalogue

REPOSITORY = "ann/digits"
TOKEN = "hf_test"


class WritableHub(Hub):
    """Keeps what is pushed; large files come by Git LFS, as the hub takes them from clients without Xet."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[dict[str, object]] = []
        self.large: dict[str, bytes] = {}
        """sha256 → content."""


class WritableHandler(Handler):
    hub: WritableHub

    def do_GET(self) -> None:
        if "/resolve/" in self.path or not self.path.startswith("/api/"):
            super().do_GET()
        else:
            self.hub.asked.append(f"GET {self.path}")
            self._json({"id": REPOSITORY, "sha": COMMIT, "siblings": [], "private": True})

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.hub.large[hashlib.sha256(content).hexdigest()] = content
        self._json({})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.hub.asked.append(f"POST {self.path}")
        if self.path.startswith("/api/validate-yaml"):
            self._json({"errors": [], "warnings": []})
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._refuse(401, "Unauthorized")
        elif self.path == "/api/repos/create":
            self.hub.made.append(json.loads(body))
            self._json({"url": f"http://{self.headers['Host']}/{REPOSITORY}", "id": REPOSITORY})
        elif "/preupload/" in self.path:
            files = [
                {
                    "path": one["path"],
                    "uploadMode": "lfs" if one["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for one in json.loads(body)["files"]
            ]
            self._json({"files": files})
        elif self.path.endswith("/info/lfs/objects/batch"):
            upload = f"http://{self.headers['Host']}/lfs"
            objects = [{**one, "actions": {"upload": {"href": upload}}} for one in json.loads(body)["objects"]]
            self._json({"transfer": "basic", "objects": objects})
        elif "/commit/" in self.path:
            self._commit(body)
        else:
            self._refuse(404, "EntryNotFound")

    def _commit(self, body: bytes) -> None:
        for line in map(json.loads, body.splitlines()):
            name = f"{REPOSITORY}/{line['value'].get('path')}"
            if line["key"] == "file":
                self.hub.files[name] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "lfsFile":
                self.hub.files[name] = self.hub.large[line["value"]["oid"]]
        self._json(
            {"success": True, "commitOid": COMMIT, "commitUrl": f"http://{self.headers['Host']}/{REPOSITORY}/commit/{COMMIT}"}
        )

    def _json(self, facts: object) -> None:
        content = json.dumps(facts).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Client]:
    held = WritableHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OurHandler", (WritableHandler,), {"hub": held}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    client = Client(f"http://127.0.0.1:{server.server_port}", tmp_path / "hub", held, server)
    yield client
    client.stop()
    thread.join()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's folder: a real network with a random head."""
    out = tmp_path_factory.mktemp("run")
    backbone = catalogue()[QUICK]
    torch.manual_seed(0)
    head = torch.nn.Linear(backbone.num_features, 3)
    model.save(out, Classifier(build(backbone), head), backbone, Candidate(QUICK, "none"), ("a", "b", "c"), {})
    return out


def export(hub: Client, run: Path, *words: str, token: str = TOKEN) -> str:
    """What the command line prints, errors too."""
    given = ["automl-tl", "export", str(run), "--to", "hub", "--out", REPOSITORY, *words]
    code = f"""
import contextlib, sys
sys.argv = {given!r}
from automl_tl import cli
with contextlib.redirect_stderr(sys.stdout), contextlib.suppress(SystemExit):
    cli.main()
"""
    return hub.run(code, HF_TOKEN=token, HF_HUB_DISABLE_XET="1")


def test_what_is_pushed_is_what_timm_loads(hub: Client, run: Path) -> None:
    said = export(hub, run)
    assert f"sent to http://127.0.0.1:{hub.server.server_port}/{REPOSITORY}" in said
    assert isinstance(hub.hub, WritableHub)
    (made,) = hub.hub.made
    assert made["visibility"] == "private"
    assert set(hub.hub.files) == {f"{REPOSITORY}/{name}" for name in ("README.md", "config.json", "model.safetensors")}
    assert f'create_model("hf-hub:{REPOSITORY}"' in hub.hub.files[f"{REPOSITORY}/README.md"].decode()
    images = np.random.default_rng(0).integers(0, 256, (3, 30, 30, 3), dtype=np.uint8)
    found = hub.run(
        f"""
import json, numpy as np, timm, torch
from PIL import Image
net = timm.create_model("hf-hub:{REPOSITORY}", pretrained=True).eval()
prepare = timm.data.create_transform(**timm.data.resolve_model_data_config(net), is_training=False)
images = np.random.default_rng(0).integers(0, 256, (3, 30, 30, 3), dtype=np.uint8)
with torch.inference_mode():
    chances = net(torch.stack([prepare(Image.fromarray(image)) for image in images])).softmax(1)
print(json.dumps(chances.tolist()))
""",
        HF_TOKEN=TOKEN,
        HF_HUB_DISABLE_XET="1",
    )
    expected = automl_tl.predict(run, list(images)).probabilities
    assert np.abs(np.array(json.loads(found.splitlines()[-1])) - expected).max() < 1e-5


def test_dry_run_tells_what_would_leave_and_asks_nobody(hub: Client, run: Path) -> None:
    said = export(hub, run, "--dry-run")
    assert f"nothing kept or sent; would go to {REPOSITORY}" in said
    assert re.search(r"model\.safetensors +[\d,]{9,}", said)
    assert "README.md" in said
    assert "config.json" in said
    assert hub.hub.asked == []


@pytest.mark.parametrize("trouble", [pytest.param("stranger", marks=pytest.mark.slow), "gone"])
def test_trouble_is_said_in_a_line(trouble: str, hub: Client, run: Path) -> None:
    if trouble == "gone":
        hub.stop()
    said = export(hub, run, token="hf_other").splitlines()[-1]
    assert said.startswith(f"error: {REPOSITORY}: the hub at {hub.endpoint} ")
    assert {"stranger": "log in with `hf auth login`", "gone": "cannot be reached"}[trouble] in said
