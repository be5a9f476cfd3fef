"""Weights from a hub that is a small server on this machine, asked by the real client."""

from __future__ import annotations

import hashlib
import json
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
from typing import Any
from urllib.parse import parse_qs, urlsplit

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
    commit: str = COMMIT
    """That every revision is at."""
    revisions: set[str] = field(default_factory=lambda: {"main", COMMIT})
    models: list[dict[str, Any]] = field(default_factory=list)
    """What a search may find, as the hub's own API tells it."""
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
        if self.path.startswith("/api/models?"):
            self._found(parse_qs(urlsplit(self.path).query))
            return
        parts = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path)
        repository, revision, name = parts.groups() if parts else ("", "main", "")
        if repository in self.hub.gated:
            self._refuse(403, "GatedRepo")
        elif not any(file.startswith(f"{repository}/") for file in self.hub.files):
            self._refuse(404, "RepoNotFound")
        elif revision not in self.hub.revisions:
            self._refuse(404, "RevisionNotFound")
        elif f"{repository}/{name}" not in self.hub.files:
            self._refuse(404, "EntryNotFound")
        else:
            self._send(f"{repository}/{name}", body=body)

    def _found(self, query: dict[str, list[str]]) -> None:
        words, tags = query.get("search", [""])[0], set(query.get("filter", []))
        fitting = [model for model in self.hub.models if words in model["id"] and tags <= set(model["tags"])]
        body = json.dumps(fitting[: int(query["limit"][0])]).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", self.hub.commit)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, name: str, *, body: bool) -> None:
        content = self.hub.files[name]
        start = int(re.sub(r"\D", "", self.headers.get("Range", "0").partition("-")[0]))
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{self.hub.etags.get(name, hashlib.sha256(content).hexdigest())}"')
        self.send_header("X-Repo-Commit", self.hub.commit)
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

    def _environment(self, **more: str) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        ours = {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(self.folder), "AUTOML_TL_HOME": str(self.folder / "home")}
        quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "OMP_NUM_THREADS": "1"}
        return clean | ours | quiet | more

    def run(self, code: str, **more: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code], env=self._environment(**more), capture_output=True, text=True, timeout=120
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

    def words(self, *words: str) -> tuple[int, str]:
        """Exit code and what the command line says."""
        code = f"import sys; from automl_tl.cli import main; sys.argv[1:] = {list(words)!r}; main()"
        done = subprocess.run([sys.executable, "-c", code], env=self._environment(), capture_output=True, text=True, timeout=120)
        return done.returncode, done.stdout + done.stderr

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
    (client.folder / "hub" / f"models--timm--{TAG} (copy)").mkdir(parents=True)
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


# Single networks by name

SLIDES = "lab/small.pathology"
CONFIG: dict[str, Any] = {
    "architecture": "test_resnet",
    "num_classes": 0,
    "num_features": 128,
    "pretrained_cfg": {
        "tag": "dinov2_in1k",
        "input_size": [3, 96, 96],
        "interpolation": "bilinear",
        "crop_pct": 0.9,
        "crop_mode": "squash",
        "mean": [0.7, 0.6, 0.7],
        "std": [0.2, 0.2, 0.2],
        "num_classes": 0,
        "license": "mit",
        "custom_load": "somebody.code",
    },
}


@pytest.fixture(scope="module")
def headless_weights() -> bytes:
    import timm
    import torch
    from safetensors.torch import save

    torch.manual_seed(1)
    return save(timm.create_model("test_resnet", num_classes=0).state_dict())


def publish(hub: Hub, repository: str, config: Any, weights: bytes | None) -> None:
    hub.files[f"{repository}/config.json"] = json.dumps(config).encode()
    if weights is not None:
        hub.files[f"{repository}/model.safetensors"] = weights


@pytest.mark.slow
def test_a_network_of_the_hub_is_added_by_name_and_revision(client: Client, headless_weights: bytes) -> None:
    """Its facts are read from its config, its weights come when it is built; then neither needs the hub."""
    import timm
    import torch
    from safetensors.torch import load

    publish(client.hub, SLIDES, CONFIG, headless_weights)
    client.hub.revisions.add("v1")
    name = f"hf-hub:{SLIDES}@v1"
    said = client.run(f"""
from automl_tl.backbones import add, build, catalogue
import torch
added = add({name!r})
assert catalogue()[{name!r}] == added and added.digest == {hashlib.sha256(headless_weights).hexdigest()!r}
assert (added.architecture, added.input_size, added.interpolation, added.crop_pct) == ("test_resnet", 96, "bilinear", 0.9)
assert added.crop_mode == "squash"
assert (added.mean, added.licence, added.source_domain, added.num_classes) == ((0.7, 0.6, 0.7), "mit", "medical", 0)
assert added.download_bytes == {len(headless_weights)}
with torch.inference_mode():
    output = build(added)(torch.linspace(-1, 1, 3 * 96 * 96).reshape(1, 3, 96, 96))
assert output.shape == (1, added.num_features) and sum(p.numel() for p in build(added).parameters()) == added.params
print(output.sum().item())
""")
    net = timm.create_model("test_resnet", num_classes=0).eval()
    net.load_state_dict(load(headless_weights))
    with torch.inference_mode():
        expected = net(torch.linspace(-1, 1, 3 * 96 * 96).reshape(1, 3, 96, 96)).sum().item()
    assert float(said) == pytest.approx(expected, rel=1e-5)
    assert {line.split()[1] for line in client.hub.downloads()} == {
        f"/{SLIDES}/resolve/v1/{file}" for file in ("config.json", "model.safetensors")
    }
    client.stop()
    code, listed = client.words("zoo", "list", "--domain", "medical", "--max-params", "1M", "--json")
    assert (code, [facts["name"] for facts in json.loads(listed)]) == (0, [name])
    client.run(f"from automl_tl.backbones import build, catalogue; build(catalogue()[{name!r}])")


@pytest.mark.parametrize("told", [{}, dict.fromkeys(("input_size", "mean", "std", "crop_pct", "crop_mode", "interpolation"))])
def test_where_a_config_says_nothing_images_are_prepared_as_timm_does_then(told: dict[str, Any], tmp_path: Path) -> None:
    from automl_tl_plugins.zoos.hf_hub import _read_config
    from timm.data import resolve_data_config

    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "pretrained_cfg": told}))
    found = _read_config(tmp_path / "config.json", "hf-hub:lab/bare")
    wanted = resolve_data_config(pretrained_cfg=told or {"crop_mode": None})
    assert (3, found.input_size, found.input_size) == wanted.pop("input_size")
    assert {name: getattr(found, name) for name in wanted} == wanted


def test_a_network_as_timm_itself_saves_it_and_one_of_another_size(client: Client, tmp_path: Path) -> None:
    """timm repeats the classes and the channels among the arguments of a network; an older one says of a fixed size only that."""
    import timm
    import torch
    from safetensors.torch import save

    saved, older = timm.create_model("test_vit", num_classes=3).eval(), timm.create_model("test_vit", num_classes=0, img_size=96)
    timm.models.save_for_hf(saved, tmp_path, safe_serialization=True)
    config = json.loads((tmp_path / "config.json").read_text())
    publish(client.hub, "lab/saved", config, (tmp_path / "model.safetensors").read_bytes())
    fixed = {"input_size": [3, 96, 96], "fixed_input_size": True}
    publish(client.hub, "lab/older", CONFIG | {"architecture": "test_vit", "pretrained_cfg": fixed}, save(older.state_dict()))
    said = client.run("""
import torch
from automl_tl.backbones import add, build
for name in ("saved", "older"):
    backbone = add("hf-hub:lab/" + name)
    side, head = backbone.input_size, backbone.num_classes > 0
    with torch.inference_mode():
        print(side, build(backbone, head=head)(torch.linspace(-1, 1, 3 * side**2).reshape(1, 3, side, side)).sum().item())
""").splitlines()
    for net, line, side in ((saved, said[0], 160), (older.eval(), said[1], 96)):
        with torch.inference_mode():
            expected = net(torch.linspace(-1, 1, 3 * side**2).reshape(1, 3, side, side)).sum().item()
        assert line.split()[0] == str(side)
        assert float(line.split()[1]) == pytest.approx(expected, rel=1e-4)


def test_networks_of_the_hub_that_cannot_be_added(client: Client, headless_weights: bytes) -> None:
    """Every reason is a sentence with the name in it, and nothing is remembered."""
    publish(client.hub, "lab/pickled", CONFIG, None)
    client.hub.files["lab/pickled/pytorch_model.bin"] = b"\x80\x04."
    publish(client.hub, "lab/unknown", CONFIG | {"architecture": "resnet_of_nobody"}, headless_weights)
    publish(client.hub, "lab/language", {"model_type": "bert"}, headless_weights)
    publish(client.hub, "lab/reaching", CONFIG | {"model_args": {"checkpoint_path": "x.pth"}}, headless_weights)
    publish(client.hub, "lab/wide", CONFIG | {"pretrained_cfg": {"input_size": [3, 96, 64]}}, headless_weights)
    publish(client.hub, "lab/broken", [], headless_weights)
    client.hub.files["lab/bare/model.safetensors"] = headless_weights
    publish(client.hub, "lab/listed", CONFIG | {"model_args": [1]}, headless_weights)
    publish(client.hub, "lab/worded", CONFIG | {"model_args": "xy"}, headless_weights)
    publish(client.hub, "lab/counted", CONFIG | {"model_args": 3}, headless_weights)
    publish(client.hub, "lab/grey", CONFIG | {"model_args": {"in_chans": 1}}, headless_weights)
    names = [
        "grey",
        "listed",
        "worded",
        "counted",
        "pickled",
        "unknown",
        "language",
        "reaching",
        "wide",
        "broken",
        "bare",
        "small@v9",
        "nothing",
        "a/b/c",
    ]
    publish(client.hub, "lab/small", CONFIG, headless_weights)
    said = client.run(f"""
from automl_tl.backbones import add, catalogue
from automl_tl.errors import ZooError
for name in {names!r}:
    try: add("hf-hub:lab/" + name)
    except ZooError as error: print(error)
    else: print("added", name)
assert not [name for name in catalogue() if name.startswith("hf-hub:")]
""").splitlines()
    expected = [
        "hf-hub:lab/grey: takes images of 1 channels; only networks for 3 can be used",
        "hf-hub:lab/listed: its config.json cannot be read",
        "hf-hub:lab/worded: its config.json cannot be read",
        "hf-hub:lab/counted: its config.json cannot be read",
        "lab/pickled: has no model.safetensors, and other forms of weights (pickle) are refused",
        "hf-hub:lab/unknown: timm",
        "hf-hub:lab/language: its config.json names no architecture",
        "hf-hub:lab/reaching: build: kwargs: 'checkpoint_path' is not for a card to say",
        "hf-hub:lab/wide: input_size: expected [3, SIDE, SIDE]",
        "hf-hub:lab/broken: its config.json cannot be read",
        "lab/bare: has no config.json, and so it is no network of timm's form",
        f"lab/small: the hub at {client.endpoint} has no such revision",
        f"lab/nothing: the hub at {client.endpoint} has no such repository",
        "lab/a/b/c: is no name of a repository",
    ]
    assert len(said) == len(expected), said
    for line, start in zip(said, expected, strict=True):
        assert line.startswith(start)
    assert not any("pytorch_model.bin" in line for line in client.hub.asked)


def test_weights_that_are_another_networks(client: Client, headless_weights: bytes, weights: bytes) -> None:
    """A config that does not fit its weights, and weights that are cut off although the hub says they are whole."""
    publish(client.hub, "lab/mixed", CONFIG | {"architecture": "test_vit"}, headless_weights)
    publish(client.hub, "lab/cut", CONFIG, headless_weights[:-100])
    said = client.run("""
from automl_tl.backbones import add, build
from automl_tl.errors import ZooError
for name in ("hf-hub:lab/mixed", "hf-hub:lab/cut"):
    try: build(add(name))
    except ZooError as error: print(error)
    else: print("built", name)
""").splitlines()
    assert [line.startswith(f"hf-hub:lab/{name}: ") for line, name in zip(said, ("mixed", "cut"), strict=True)] == [True] * 2, (
        said
    )
    assert "does not hold test_vit" in said[0]
    assert "does not hold test_resnet" in said[1]


@pytest.mark.slow
def test_weights_that_change_on_the_hub_are_not_mixed_with_what_is_known_of_the_old(
    client: Client, headless_weights: bytes
) -> None:
    """One network is built before main moves on, one is only added."""
    import torch
    from safetensors.torch import load, save

    changed = save(
        {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in load(headless_weights).items()}
    )
    start = """
from automl_tl.errors import ZooError
from automl_tl_plugins.zoos.hf_hub import HuggingFaceHub
zoo = HuggingFaceHub()
def bias(name):
    backbone, = (one for one in zoo.list() if one.name == "hf-hub:lab/" + name)
    return zoo.build(backbone).state_dict()["bn1.bias"].sum().item()
"""
    for name in ("built", "added"):
        publish(client.hub, f"lab/{name}", CONFIG, headless_weights)
    old = client.run(start + "zoo.add('hf-hub:lab/built'), zoo.add('hf-hub:lab/added'); print(bias('built'))")
    for name in ("built", "added"):
        publish(client.hub, f"lab/{name}", {**CONFIG, "pretrained_cfg": {"mean": [0.1, 0.2, 0.3]}}, changed)
    client.hub.commit = COMMIT[::-1]
    said = client.run(f"""{start}
assert bias("built") == {old}
try: bias("added")
except ZooError as error: print(error)
for name in ("built", "added"):
    zoo.remove("hf-hub:lab/" + name)
    assert zoo.add("hf-hub:lab/" + name).mean == (0.1, 0.2, 0.3)
    print(bias(name))
""").splitlines()
    assert said[0] == "lab/added: model.safetensors changed since it was added; remove the network and add it again"
    new = load(changed)["bn1.bias"].sum(dtype=torch.float32).item()
    assert new != float(old)
    assert list(map(float, said[1:])) == pytest.approx([new] * 2)


@pytest.mark.slow
def test_search_on_the_hub_is_narrowed(client: Client) -> None:
    client.hub.models = [
        {
            "id": "lab/vit_small.pathology",
            "tags": ["timm", "safetensors", "medical", "license:mit", "dataset:lab/slides"],
            "downloads": 70,
            "safetensors": {"parameters": {"F32": 22_000_000}, "total": 22_000_000},
        },
        {"id": "lab/vit_giant.pathology", "tags": ["timm", "safetensors", "medical", "license:cc-by-nc-4.0"], "downloads": 9},
        {"id": "timm/resnet10t.c3_in1k", "tags": ["timm", "safetensors", "license:apache-2.0"], "downloads": 5},
        {
            "id": "timm/vit_tiny.augreg_in21k_ft_in1k",
            "tags": ["timm", "safetensors", "dataset:imagenet-1k", "dataset:imagenet-21k"],
            "downloads": 4,
        },
        {"id": "lab/resnet.plates", "tags": ["timm", "safetensors", "dataset:food101"], "downloads": 3},
        {"id": "lab/vit_pickled", "tags": ["timm", "medical", "license:mit"], "downloads": 1},
    ]
    code, found = client.words("zoo", "search", "vit", "--domain", "medical", "--json")
    assert code == 0, found
    assert [offer["name"] for offer in json.loads(found)] == ["hf-hub:lab/vit_small.pathology", "hf-hub:lab/vit_giant.pathology"]
    first = json.loads(found)[0]
    assert (first["params"], first["licence"], first["source_dataset"]) == (22_000_000, "mit", "lab/slides")
    assert (first["source_domain"], first["downloads"]) == ("medical", 70)
    narrow = ("--max-params", "30M", "--licence", "MIT", "--source", "slides", "--json")
    code, found = client.words("zoo", "search", "", *narrow)
    assert [offer["name"] for offer in json.loads(found)] == ["hf-hub:lab/vit_small.pathology"]
    code, found = client.words("zoo", "search", "", "--domain", "natural", "--json")
    names = ["timm/resnet10t.c3_in1k", "timm/vit_tiny.augreg_in21k_ft_in1k"]
    assert [offer["name"] for offer in json.loads(found)] == [f"hf-hub:{name}" for name in names], (
        "by their datasets, not by tags"
    )
    client.stop()
    start = time.monotonic()
    code, said = client.words("zoo", "search", "vit")
    assert time.monotonic() - start < 10
    assert code == 2
    assert said.startswith(f"error: hub search: the hub at {client.endpoint} cannot be reached")
    assert "Traceback" not in said
