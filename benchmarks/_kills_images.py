"""A few of scikit-learn's digits, for commands that are killed."""

from __future__ import annotations

import io
import zipfile
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits


@cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    found = load_digits()
    return (found.images * 15).astype(np.uint8), found.target


def pictures(count: int) -> list[np.ndarray]:
    """The last ones, which no command trains on."""
    return list(_digits()[0][-count:])


def drawn(folder: Path, count: int) -> Path:
    """A folder of the first: train|test/CLASS/FILE, a fourth of them for the test."""
    for number, (image, label) in enumerate(zip(*(part[:count] for part in _digits()), strict=True)):
        place = folder / ("train" if number % 4 else "test") / str(label)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{number}.png")
    return folder


def zipped(folder: Path) -> bytes:
    """The files below `folder` as an archive."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted(folder.rglob("*.png")):
            archive.write(path, path.relative_to(folder))
    return file.getvalue()
