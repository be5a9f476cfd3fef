"""Profile and recommendation of a folder, by its number of images: the first time, and again.

`automl-tl recommend FOLDER` in a process of its own. Cold: a home without caches, history or ranker (the shipped facts are
read in, the images decoded, the backbones looked through, a ranker learnt). Warm: the same command again. Images of
cifar10.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from _report import unpacked

SIZES = (100, 1000, 10_000)
CLASSES = 10


def evidence(folder: Path, *, quick: bool) -> tuple[list[tuple[str, ...]], dict[str, float]]:
    images = _images(folder)
    rows, figures = [], {}
    for size in SIZES[:2] if quick else SIZES:
        place = folder / f"advice_{size}"
        _fill(place, images, size)
        cold, warm = [], []
        for _ in range(3 if size == 1000 and not quick else 1):
            with tempfile.TemporaryDirectory(dir=folder) as home:
                cold.append(_seconds(place, home))
                warm += [_seconds(place, home) for _ in range(3)]
        suffix = "" if size == 1000 else f"_{size}"
        figures[f"recommend_cold_seconds{suffix}"] = float(np.median(cold))
        figures[f"recommend_warm_seconds{suffix}"] = float(np.median(warm))
        rows.append((f"recommend on {size:,} images: warm, cold", f"{np.median(warm):.2f}", f"{np.median(cold):.2f}", ""))
    return rows, figures


def _images(folder: Path) -> dict[str, list[Path]]:
    """Of each class."""
    train = unpacked("cifar10", folder) / "train"
    return {place.name: sorted(place.iterdir()) for place in sorted(train.iterdir())[:CLASSES]}


def _fill(place: Path, images: dict[str, list[Path]], size: int) -> None:
    if place.exists():
        return
    for name, paths in images.items():
        (place / name).mkdir(parents=True)
        for path in paths[: size // len(images)]:
            shutil.copy(path, place / name)


def _seconds(place: Path, home: str) -> float:
    line = [sys.executable, "-m", "automl_tl.cli", "recommend", str(place), "--json"]
    start = time.perf_counter()
    done = subprocess.run(line, env={**os.environ, "AUTOML_TL_HOME": home}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(line)}: {done.stderr}")
    return time.perf_counter() - start
