"""Where input from strangers comes in: for each place, what makes such input and what takes it."""

from __future__ import annotations

import csv
import functools
import io
import json
import os
import random
import shutil
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from _hostile_inputs import TEXTS, archive, as_json, spoilt, spoilt_json
from PIL import Image


@dataclass(frozen=True)
class Target:
    """One place."""

    make: Callable[[random.Random], bytes]
    take: Callable[[bytes, Path], None]
    """Bytes, and a folder of its own to put them in. Raises AutomlError where it refuses them."""


WHOLE, PART = "\x1e", "\x1f"
"""Between the files or classes of an input, and between the parts of one, so that any bytes are an input."""
MOST = 20
"""Classes of an input, and files of a class."""
FACTS = ("tasks.csv", "backbones.jsonl", "profiles.jsonl", "trials.jsonl")
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(secret.png) (r) file pop showpage\n%%EOF\n"
OTHERS = (
    EPS,
    b"%PDF-1.4\n1 0 obj<</OpenAction<</S/JavaScript/JS(app.alert(1))>>>>endobj\ntrailer<</Root 1 0 R>>",
    b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/><script>alert(1)</script></svg>',
    b"\x80\x04\x95\x1e\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x02id\x94\x85\x94R\x94.",
    b"GIF89a/*<?php system($_GET[0]); ?>*/=1;",
)


@functools.cache
def pictures() -> tuple[bytes, ...]:
    """A small image in every form that is read, with words in its metadata; and what only pretends to be one."""
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (24, 20, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x9286] = 6, "<script>alert(1)</script>", "'; DROP TABLE trials; --"
    frames = [Image.fromarray(rng.integers(0, 256, (12, 12), dtype=np.uint8)) for _ in range(3)]
    forms: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (noise, "PNG", {"exif": exif}),
        (noise, "JPEG", {"exif": exif, "comment": b"<script>"}),
        (noise, "JPEG", {"progressive": True}),
        (noise.convert("CMYK"), "JPEG", {}),
        (noise, "BMP", {}),
        (noise, "WEBP", {"exif": exif}),
        (noise, "WEBP", {"lossless": True}),
        (noise, "TIFF", {"compression": "tiff_lzw"}),
        (noise, "TIFF", {"compression": "jpeg"}),
        (noise, "TIFF", {"compression": "tiff_adobe_deflate"}),
        (noise, "PPM", {}),
        (noise.convert("L"), "PPM", {}),
        (noise.convert("1"), "PPM", {}),
        (noise.convert("P"), "PNG", {"transparency": b"\0\x80"}),
        (noise.convert("RGBA"), "PNG", {}),
        (Image.fromarray(rng.integers(0, 65536, (9, 9), dtype=np.uint16)), "PNG", {}),
        (frames[0], "GIF", {"save_all": True, "append_images": frames[1:]}),
        (Image.new("RGB", (1, 1)), "PNG", {}),
        (Image.new("L", (30_000, 1)), "PNG", {}),
        (Image.new("L", (1, 30_000)), "TIFF", {}),
    ]
    made = []
    for image, form, options in forms:
        file = io.BytesIO()
        image.save(file, form, **options)
        made.append(file.getvalue())
    return (*made, bomb(50_000, 50_000), bomb(13_000, 13_000), *OTHERS)


def bomb(width: int, height: int) -> bytes:
    """A PNG of little more than a header."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


def make_picture(rng: random.Random) -> bytes:
    chosen = rng.choice(pictures()[: len(pictures()) if rng.random() < 0.1 else 20])
    return chosen if rng.random() < 0.1 else spoilt(chosen, pictures(), rng)


def take_picture(data: bytes, folder: Path) -> None:
    from automl_tl.images import read_image, square

    path = folder / "picture.png"
    path.write_bytes(data)
    image = read_image(path, least=64)
    square(image, 32, interpolation="bicubic", crop_pct=0.875)


def make_manifest(rng: random.Random) -> bytes:
    rows = [["path", "label", "split"]]
    rows += [[f"{label}{number}.png", label, split] for number, split in enumerate(("train", "train", "test")) for label in "ab"]
    for _ in range(rng.randrange(4)):
        row = rng.randrange(len(rows)) if rng.random() < 0.1 else rng.randrange(1, len(rows))
        rows[row][rng.randrange(3) if row else 0] = rng.choice((*TEXTS, "link.png", "loop.png", "out/secret.png", "pipe.png"))
    if rng.random() < 0.5:  # a label for every image of a class: it is one of two names, and all is in order
        name = rng.choice(TEXTS)
        rows = [[name if cell == "a" else cell for cell in row] for row in rows]
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=rng.choice(",;\t")).writerows(rows)
    text = file.getvalue().encode("utf-8", "surrogatepass")
    return spoilt(text, [text], rng) if rng.random() < 0.3 else text


def take_manifest(data: bytes, folder: Path) -> None:
    from automl_tl import load_task

    _lay_images(folder)
    (folder / "table.csv").write_bytes(data)
    load_task(folder / "table.csv")


def _lay_images(folder: Path) -> None:
    """Six images; links to a file outside, to themselves and to a folder outside; a pipe that never says anything."""
    for number, data in enumerate(pictures()[:6]):
        (folder / f"{'ab'[number % 2]}{number // 2}.png").write_bytes(data)
    (folder / "link.png").symlink_to(folder.parent / "outside" / "secret.png")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "out").symlink_to(folder.parent / "outside")
    os.mkfifo(folder / "pipe.png")


def make_folder(rng: random.Random) -> bytes:
    """Classes, each its name and the kinds of its files: what `take_folder` lays out, and whatever becomes of the bytes."""
    classes = [rng.choice(TEXTS) if rng.random() < 0.5 else letter for letter in "abc"[: rng.randrange(1, 4)]]
    kinds = ["file"] * 20 + ["link", "loop", "out", "pipe", "folder"]
    told = [PART.join([name, *(rng.choice(kinds) for _ in range(rng.randrange(2, 6)))]) for name in classes]
    return WHOLE.join(told).encode("utf-8", "surrogatepass")


def take_folder(data: bytes, folder: Path) -> None:
    from automl_tl import load_task

    root = folder / "images"
    root.mkdir()
    for name, *kinds in (told.split(PART) for told in data.decode("utf-8", "replace").split(WHOLE)[:MOST]):
        if name in (".", ".."):
            continue
        place = root / (name.replace("/", "∕").replace("\0", "")[:80] or "empty")
        place.mkdir(exist_ok=True)
        for number, kind in enumerate(kinds[:MOST]):
            _lay(place / f"{number}.png", kind, pictures()[number], folder.parent / "outside")
    load_task(root)


def _lay(path: Path, kind: str, data: bytes, outside: Path) -> None:
    if path.exists() or path.is_symlink():
        return
    match kind:
        case "file":
            path.write_bytes(data)
        case "link":
            path.symlink_to(outside / "secret.png")
        case "loop":
            path.symlink_to(path)
        case "out":
            path.symlink_to(outside)
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()


def make_archive(rng: random.Random) -> bytes:
    return archive(rng, pictures()[:8])


def take_archive(data: bytes, folder: Path) -> None:
    from automl_tl.service.archives import unpack

    inside = folder / "inside"
    inside.mkdir()
    unpack(io.BytesIO(data), inside)


@functools.cache
def _facts() -> dict[str, list[dict[str, Any]]]:
    """Some good facts of each kind."""
    from automl_tl.backbones import catalogue
    from automl_tl.facts import backbone_facts
    from automl_tl.records import Candidate, trial_id

    backbone = backbone_facts(next(iter(catalogue().values())))
    profile = {"task": "t", "fingerprint": "f1", "meta": {"images": 10.0}, "distances": {"s": {"frechet": 1.0}}}
    profile |= {"transferability": {backbone["name"]: {"logme": 1.0}}, "seconds": 1.0, "warnings": []}
    candidate = {"backbone": backbone["name"], "strategy": "s", "hyperparameters": {"rate": 0.1, "flip": True}}
    point = {"epoch": 1, "seconds": 1.0, "loss": 0.5, "score": 0.5, "memory_mb": 10.0, "note": ""}
    trial = {"task": "f1", "candidate": candidate, "status": "finished", "curve": [point]}
    trial |= {"validation": {"accuracy": 0.5}, "test": {}, "seconds": 1.0, "memory_mb": 1.0, "provenance": {"speed": 1.0}}
    trials = [{**trial, "seed": seed, "id": trial_id("f1", Candidate(**candidate), seed)} for seed in range(2)]
    return {"backbones": [backbone], "profiles": [profile], "trials": trials}


def make_facts(rng: random.Random) -> bytes:
    """A folder of facts: its files one after another, one of them spoilt."""
    table = "fingerprint,name,source_dataset,classes,train,validation,test\nf1,t,s,2,10,2,2\n"
    files = [table.encode()]
    wicked = rng.choice(("tasks", "backbones", "profiles", "trials"))
    for name, facts in _facts().items():
        lines = [as_json(spoilt_json(one, rng), rng) if name == wicked else json.dumps(one).encode() for one in facts]
        files.append(b"\n".join(lines))
    if wicked == "tasks":
        cells = table.split(",")
        cells[rng.randrange(len(cells))] = rng.choice(TEXTS)
        text = ",".join(cells).encode("utf-8", "surrogatepass")
        files[0] = spoilt(text, [text], rng) if rng.random() < 0.5 else text
    return WHOLE.encode().join(files)


def take_facts(data: bytes, folder: Path) -> None:
    from automl_tl.history import open_history

    (folder / "facts").mkdir()
    for name, text in zip(FACTS, data.split(WHOLE.encode()), strict=False):
        (folder / "facts" / name).write_bytes(text)
    home = Path(os.environ["AUTOML_TL_HOME"])
    with open_history(home / "facts.db") as history:
        history.import_facts(folder / "facts")


@functools.cache
def _network() -> tuple[dict[str, Any], bytes]:
    """The card and the weights of the smallest embedded network."""
    from automl_tl.backbones import catalogue

    smallest = min((b for b in catalogue().values() if b.zoo == "embedded"), key=lambda b: b.params)
    weights = Path(smallest.weights)
    return json.loads(weights.with_suffix(".json").read_text()), weights.read_bytes()


def make_card(rng: random.Random) -> bytes:
    card, _ = _network()
    if rng.random() < 0.5:  # what is not said is measured
        card = {name: value for name, value in card.items() if name not in ("backbone_params", "macs", "num_features", "sha256")}
    if rng.random() < 0.3:
        kwargs = rng.choice(({"pretrained": True}, {"checkpoint_path": "evil.pth"}, {"img_size": 10**9}, {"depths": [9] * 9}))
        return as_json({**card, "build": {**card["build"], "kwargs": kwargs}}, rng)
    return as_json(spoilt_json(card, rng), rng)


def take_card(data: bytes, folder: Path) -> None:
    """A folder with one network, as `zoo add` and then a training take it."""
    from automl_tl.cards import build, read_folder
    from automl_tl.errors import ZooError

    name = _network()[0]["name"]
    (folder / f"{name}.json").write_bytes(data)
    (folder / f"{name}.safetensors").write_bytes(_network()[1])
    (folder / "evil.pth").write_bytes(OTHERS[3])
    found = read_folder(folder, zoo="folder")
    for backbone in found.backbones:
        build(backbone)
    if found.skipped:
        raise ZooError(str(found.skipped))


@functools.cache
def _model() -> tuple[dict[str, Any], bytes]:
    """The card and the weights of a model as `fit` leaves it."""
    from tempfile import TemporaryDirectory

    from torch import nn

    from automl_tl import Candidate, Classifier, model
    from automl_tl.backbones import build, catalogue

    backbone = min((b for b in catalogue().values() if b.zoo == "embedded"), key=lambda b: b.params)
    with TemporaryDirectory() as place:
        net = Classifier(build(backbone), nn.Linear(backbone.num_features, 2))
        candidate = Candidate(backbone.name, "linear-probe")
        model.save(Path(place), net, backbone, candidate, ("a", "b"), {})
        return json.loads((Path(place) / model.CARD).read_text()), (Path(place) / model.WEIGHTS).read_bytes()


def make_model(rng: random.Random) -> bytes:
    """A model's card; in a tenth of all cases, with spoilt weights behind it."""
    card, weights = _model()
    if rng.random() < 0.1:
        return json.dumps(card).encode() + b"\n\n" + spoilt(weights[:20_000], [weights[:1000]], rng) + weights[20_000:]
    if rng.random() < 0.3:
        kwargs = rng.choice(({"pretrained": True}, {"checkpoint_path": "evil.pth"}, {"pretrained_cfg": {"file": "evil.pth"}}))
        names = (card["backbone"]["architecture"], "hf-hub:nobody/nothing", "local-dir:.")
        return json.dumps(
            {**card, "backbone": {**card["backbone"], "architecture": rng.choice(names), "kwargs": kwargs}}
        ).encode()
    return as_json(spoilt_json(card, rng), rng)


def take_model(data: bytes, folder: Path) -> None:
    from automl_tl import predict

    card, _, weights = data.partition(b"\n\n")
    (folder / "model").mkdir()
    (folder / "model" / "model.json").write_bytes(card)
    (folder / "model" / "model.safetensors").write_bytes(weights or _model()[1])
    (folder / "evil.pth").write_bytes(OTHERS[3])
    predict(folder, [np.zeros((8, 8), dtype=np.uint8)])


TARGETS = {
    "images": Target(make_picture, take_picture),
    "manifests": Target(make_manifest, take_manifest),
    "folders": Target(make_folder, take_folder),
    "archives": Target(make_archive, take_archive),
    "facts": Target(make_facts, take_facts),
    "cards": Target(make_card, take_card),
    "models": Target(make_model, take_model),
}


def lay_outside(folder: Path) -> Path:
    """A picture that nobody may read, and the folder it is in."""
    outside = folder / "outside"
    outside.mkdir()
    (outside / "secret.png").write_bytes(pictures()[0])
    return outside


def emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder
