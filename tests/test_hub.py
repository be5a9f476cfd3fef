"""Weights from a hub that is a small server on this machine, asked by the real client."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

TAG = "test_resnet.r160_in1k"
REPOSITORY = f"timm/{TAG}"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What the server holds, and what it was asked."""

    files: dict[str, bytes] = field(default_factory=dict)
    """owner/name/file → content."""
    etags: dict[str, str] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    break_off: int = 0
    """So many downloads end in the middle."""
    asked: list[str] = field(default_factory=list)

    def downloads(self) -> list[str]:
        return [line for line in self.asked if line.startswith("GET") and "/resolve/" in line]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        self.hub.asked.append(f"{self.command} {self.path} {self.headers.get('Range', '')}".strip())
        parts = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", self.path)
        repository, name = parts.groups() if parts else ("", "")
        if repository in self.hub.gated:
            self._refuse(403, "GatedRepo")
        elif not any(file.startswith(f"{repository}/") for file in self.hub.files):
            self._refuse(404, "RepoNotFound")
        elif f"{repository}/{name}" not in self.hub.files:
            self._refuse(404, "EntryNotFound")
        else:
            self._send(f"{repository}/{name}", body=body)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, name: str, *, body: bool) -> None:
        content = self.hub.files[name]
        start = int(re.sub(r"\D", "", self.headers.get("Range", "0").partition("-")[0]))
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{self.hub.etags.get(name, hashlib.sha256(content).hexdigest())}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if not body:
            return
        if self.hub.break_off:
            self.hub.break_off -= 1
            self.wfile.write(content[start : start + (len(content) - start) // 2])
            self.close_connection = True
        else:
            self.wfile.write(content[start:])

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@dataclass
class Client:
    """Fresh Python processes, because the client reads its environment at import."""

    endpoint: str
    folder: Path
    hub: Hub
    server: ThreadingHTTPServer

    def run(self, code: str, **more: str) -> str:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        ours = {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(self.folder), "AUTOML_TL_HOME": str(self.folder / "home")}
        quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-c", code], env=clean | ours | quiet | more, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def fetch(self, repository: str = REPOSITORY, **more: str) -> str:
        """Where the weights lie, or the error."""
        return self.run(
            "from automl_tl.errors import ZooError\n"
            "from automl_tl_plugins.zoos._hub import fetch\n"
            f"try: print(fetch({repository!r}))\n"
            "except ZooError as error: print('ZooError', error)",
            **more,
        )

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OurHandler", (Handler,), {"hub": hub}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    client = Client(f"http://127.0.0.1:{server.server_port}", tmp_path / "hub", hub, server)
    yield client
    client.stop()
    thread.join()


@pytest.fixture(scope="module")
def weights() -> bytes:
    """A real network of timm with random weights, as its repository would hold it."""
    import timm
    import torch
    from safetensors.torch import save

    torch.manual_seed(0)
    return save(timm.create_model(TAG).state_dict())


def test_network_is_built_from_the_hub_and_then_from_the_cache(client: Client, weights: bytes) -> None:
    import timm
    import torch
    from safetensors.torch import load

    client.hub.files[f"{REPOSITORY}/model.safetensors"] = weights
    code = f"""
import torch
from automl_tl.backbones import build, catalogue
assert {TAG!r} not in catalogue()
backbone = catalogue(zoo="timm")[{TAG!r}]
image = torch.linspace(-1, 1, 3 * 160 * 160).reshape(1, 3, 160, 160)
with torch.inference_mode():
    features, logits = build(backbone)(image), build(backbone, head=True)(image)
assert features.shape == (1, backbone.num_features) and logits.shape == (1, backbone.num_classes) == (1, 1000)
assert sum(p.numel() for p in build(backbone).parameters()) == backbone.params
assert {TAG!r} in catalogue()
print(logits.sum().item())
"""
    printed = float(client.run(code))
    net = timm.create_model(TAG).eval()
    net.load_state_dict(load(weights))
    with torch.inference_mode():
        expected = net(torch.linspace(-1, 1, 3 * 160 * 160).reshape(1, 3, 160, 160)).sum().item()
    assert printed == pytest.approx(expected, rel=1e-5)
    assert len(client.hub.downloads()) == 1
    client.stop()
    path = Path(client.fetch())
    assert path.read_bytes() == weights


def test_hub_that_is_gone_is_noticed_soon(client: Client) -> None:
    client.stop()
    start = time.monotonic()
    said = client.fetch()
    assert time.monotonic() - start < 10
    assert said.startswith(
        f"ZooError {REPOSITORY}: not in the local hub cache, and the hub at {client.endpoint} cannot be reached"
    )


def test_offline_is_not_even_tried(client: Client, weights: bytes) -> None:
    client.hub.files[f"{REPOSITORY}/model.safetensors"] = weights
    assert "HF_HUB_OFFLINE is set" in client.fetch(HF_HUB_OFFLINE="1")
    assert client.hub.asked == []


def test_broken_download_goes_on_where_it_stopped(client: Client) -> None:
    large = bytes(range(256)) * (24 << 12)  # 24 MiB: the client keeps whole pieces of 10 MiB
    client.hub.files[f"{REPOSITORY}/model.safetensors"] = large
    client.hub.break_off = 1
    assert Path(client.fetch()).read_bytes() == large
    first, second = client.hub.downloads()
    assert "bytes=" not in first
    assert second.endswith(f"bytes={10 << 20}-")


def test_damaged_download_is_not_kept(client: Client, weights: bytes) -> None:
    name = f"{REPOSITORY}/model.safetensors"
    client.hub.files[name] = weights[:-1] + bytes([weights[-1] ^ 1])
    client.hub.etags[name] = hashlib.sha256(weights).hexdigest()
    assert "arrived damaged" in client.fetch()
    client.hub.files[name] = weights
    assert Path(client.fetch()).read_bytes() == weights


def test_pickle_is_refused_and_never_asked_for(client: Client) -> None:
    client.hub.files[f"{REPOSITORY}/pytorch_model.bin"] = b"\x80\x04."
    assert "has no model.safetensors, and other forms of weights (pickle) are refused" in client.fetch()
    assert not any("pytorch_model.bin" in line for line in client.hub.asked)


def test_unknown_and_gated_repositories(client: Client) -> None:
    assert "has no such repository" in client.fetch("timm/nothing")
    client.hub.gated.add("timm/secret")
    assert "is gated" in client.fetch("timm/secret")
