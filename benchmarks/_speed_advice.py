"""Profile and recommendation of a folder, by its number of images and by the networks at hand: the first time, and again.

`automl-tl recommend FOLDER` in a process of its own. Cold: a home without caches, history or ranker (the shipped facts are
read in, the images decoded, the backbones looked through, a ranker learnt). Warm: the same command again. Images of
cifar10, which has 10,000 to train with; the hundred thousand are these, mirrored, turned and inverted. The networks are three of
the embedded ones, all of them, and these with those of ../shared/weights, on 1,000 images.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from _report import SHARED, unpacked
from PIL import Image, ImageOps

from automl_tl.backbones import catalogue

SIZES = (100, 1000, 10_000, 100_000)
CLASSES = 10
FEW = 3
"""Networks."""


def evidence(folder: Path, *, quick: bool) -> tuple[list[tuple[str, ...]], dict[str, float]]:
    images = _images(folder)
    rows, figures = [], {}
    for size in SIZES[:2] if quick else SIZES:
        place = folder / f"advice_{size}"
        _fill(place, images, size)
        cold, warm = [], []
        for _ in range(3 if size == 1000 and not quick else 1):
            with tempfile.TemporaryDirectory(dir=folder) as home:
                cold.append(_seconds(home, "recommend", str(place), "--json"))
                warm += [_seconds(home, "recommend", str(place), "--json") for _ in range(3)]
        suffix = "" if size == 1000 else f"_{size}"
        figures[f"recommend_cold_seconds{suffix}"] = float(np.median(cold))
        figures[f"recommend_warm_seconds{suffix}"] = float(np.median(warm))
        rows.append((f"recommend on {size:,} images: warm, cold", f"{np.median(warm):.2f}", f"{np.median(cold):.2f}", ""))
    if not quick:
        rows += _by_networks(folder, figures)
    return rows, figures


def _by_networks(folder: Path, figures: dict[str, float]) -> list[tuple[str, ...]]:
    """Rows for other numbers of networks than the embedded zoo has, on 1,000 images."""
    rows = []
    embedded = [name for name, backbone in catalogue().items() if backbone.zoo == "embedded"]
    few = [word for name in embedded[:FEW] for word in ("--backbone", name)]
    for options, added in ((few, False), ([], True)):
        with tempfile.TemporaryDirectory(dir=folder) as home:
            if added:
                _seconds(home, "zoo", "add", str(SHARED / "weights"))
            count = _networks(home) if added else FEW
            cold, *warm = [_seconds(home, "recommend", str(folder / "advice_1000"), "--json", *options) for _ in range(4)]
        figures[f"recommend_cold_seconds_{count}_networks"] = cold
        figures[f"recommend_warm_seconds_{count}_networks"] = float(np.median(warm))
        rows.append((f"recommend among {count} networks: warm, cold", f"{np.median(warm):.2f}", f"{cold:.2f}", ""))
    return rows


def _images(folder: Path) -> dict[str, list[Path]]:
    """Of each class."""
    train = unpacked("cifar10", folder) / "train"
    return {place.name: sorted(place.iterdir()) for place in sorted(train.iterdir())[:CLASSES]}


def _fill(place: Path, images: dict[str, list[Path]], size: int) -> None:
    if place.exists():
        return
    each = size // len(images)
    for name, paths in images.items():
        (place / name).mkdir(parents=True)
        for path in paths[:each]:
            shutil.copy(path, place / name)
        for number in range(len(paths), each):
            version, which = divmod(number, len(paths))
            _altered(Image.open(paths[which]), version).save(place / name / f"{version}_{paths[which].name}")


def _altered(image: Image.Image, version: int) -> Image.Image:
    """One of fifteen others that no near-duplicate search takes for the same."""
    inverted, turned = divmod(version, len(Image.Transpose) + 1)
    image = image.transpose(Image.Transpose(turned - 1)) if turned else image
    return ImageOps.invert(image) if inverted else image


def _networks(home: str) -> int:
    line = [sys.executable, "-m", "automl_tl.cli", "zoo", "list", "--json"]
    done = subprocess.run(line, env={**os.environ, "AUTOML_TL_HOME": home}, capture_output=True, text=True, check=True)
    return len(json.loads(done.stdout))


def _seconds(home: str, *words: str) -> float:
    line = [sys.executable, "-m", "automl_tl.cli", *words]
    start = time.perf_counter()
    done = subprocess.run(line, env={**os.environ, "AUTOML_TL_HOME": home}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(line)}: {done.stderr}")
    return time.perf_counter() - start
