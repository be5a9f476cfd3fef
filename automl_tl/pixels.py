"""From images to pixels that are decoded once."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from .errors import InputError
from .home import cache
from .images import read_image, square
from .records import BLACK, CENTER, Backbone, Colour, Task
from .seen import Progress, check_unchanged
from .threads import spread

CACHE_BYTES = 20 * 2**30
SHORTCUT = 4
"""JPEGs may be decoded smaller down to so many times the wanted size; the resize from there on is the backbone's own."""

Prepare = Callable[[tuple[Any, str]], np.ndarray]
"""An image and where it is → its pixels."""


@dataclass(frozen=True, eq=False)
class Pixels:
    """Decoded images of a task: read-only, shared between processes by the operating system."""

    array: np.ndarray
    """uint8 N×size×size×3."""

    @property
    def size(self) -> int:
        return int(self.array.shape[1])

    def __len__(self) -> int:
        return len(self.array)


def decode(
    task: Task,
    size: int,
    *,
    interpolation: str = "bicubic",
    crop_pct: float = 1.0,
    crop_mode: str = CENTER,
    fill: Colour = BLACK,
    progress: Progress | None = None,
) -> Pixels:
    """The images of a task, each resized and cropped as timm does for evaluation, from a cache that is built once.

    The cache is keyed by the images' content, so that the same images are decoded once wherever they lie. Processes that
    ask at the same time wait for the first.

    Raises:
        InputError: an image cannot be read, or was changed since the task was loaded; or the disk is full.
    """
    how = f"{size}/{interpolation}/{crop_pct:g}"
    if crop_mode != CENTER:  # what was decoded before there were others stays good
        how += f"/{crop_mode}/{fill}"
    key = hashlib.sha256(task.hashes.astype("<u8").tobytes() + how.encode()).hexdigest()[:32]
    path = cache() / "pixels" / f"{key}.npy"
    path.parent.mkdir(exist_ok=True)
    while True:
        try:
            os.utime(path)
            return Pixels(np.load(path, mmap_mode="r", allow_pickle=False))
        except (ValueError, EOFError):  # damaged, as by a disk that was full or a copy that was cut off
            path.unlink(missing_ok=True)
        except FileNotFoundError:  # never built, or another process made room
            with FileLock(path.with_suffix(".lock")):
                if not path.exists():
                    _make_room(path.parent, len(task.labels) * size * size * 3)
                    prepare = _preparing(size, interpolation, crop_pct, crop_mode, fill)
                    _decode_into(path, task, size, prepare, progress)


def pixels_of(task: Task, backbone: Backbone, *, progress: Progress | None = None) -> Pixels:
    """The images of the task as `backbone` wants them, decoded once."""
    b = backbone
    return decode(
        task,
        b.input_size,
        interpolation=b.interpolation,
        crop_pct=b.crop_pct,
        crop_mode=b.crop_mode,
        fill=b.fill,
        progress=progress,
    )


def decode_images(
    images: Sequence[Any],
    where: Sequence[str],
    size: int,
    *,
    interpolation: str,
    crop_pct: float,
    crop_mode: str = CENTER,
    fill: Colour = BLACK,
) -> np.ndarray:
    """uint8 N×size×size×3 in memory, for images that are seen once.

    Raises:
        InputError: names the image that cannot be read.
    """
    work = list(zip(images, where, strict=True))
    array = np.empty((len(work), size, size, 3), dtype=np.uint8)  # a list of them, stacked, would be twice as large for a moment
    for i, pixels in enumerate(spread(_preparing(size, interpolation, crop_pct, crop_mode, fill), work)):
        array[i] = pixels
    return array


def _preparing(size: int, interpolation: str, crop_pct: float, crop_mode: str, fill: Colour) -> Prepare:
    """What reads an image and makes it square."""
    least = SHORTCUT * (int(size / crop_pct) + 1)

    def prepare(item: tuple[Any, str]) -> np.ndarray:
        source, where = item
        image = read_image(source, where=where, least=least)
        return square(image, size, interpolation=interpolation, crop_pct=crop_pct, crop_mode=crop_mode, fill=fill)

    return prepare


def _decode_into(path: Path, task: Task, size: int, prepare: Prepare, progress: Progress | None) -> None:
    partial = path.with_name(f"{path.name}.partial")  # of the lock's holder; what a killed process left is overwritten
    work = list(zip(task.images, task.where, strict=True))
    try:
        array = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=(len(work), size, size, 3))
        try:
            for i, pixels in enumerate(spread(prepare, work)):
                array[i] = pixels
                if progress is not None and (i % 64 == 63 or i + 1 == len(work)):
                    progress(i + 1, len(work))
            array.flush()
        finally:
            del array  # and with it the map: Windows neither moves nor deletes a file that is mapped
        check_unchanged(task)  # now, so that it holds for what was changed during the decoding, too
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _make_room(folder: Path, needed: int) -> None:
    """Delete what was not used for longest. A file that another process has mapped lives on until that process ends."""
    for left in folder.glob("*.partial"):
        with suppress(OSError), FileLock(left.with_suffix("").with_suffix(".lock"), timeout=0):  # or somebody is at work on it
            left.unlink()
    entries: list[tuple[float, int, Path]] = []
    for path in folder.glob("*.npy"):
        with suppress(OSError):  # another process has made room, too
            state = path.stat()
            entries.append((state.st_mtime, state.st_size, path))
    total = sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries):
        if total + needed <= CACHE_BYTES:
            break
        with suppress(OSError):  # Windows deletes no file that is mapped
            path.unlink(missing_ok=True)
            total -= size
    free = shutil.disk_usage(folder).free
    if needed > free:  # a full disk would kill the process, as the file is written through memory
        raise InputError(
            f"{folder}: decoded images need {needed / 2**20:.0f} MB, but {free / 2**20:.0f} are free; move AUTOML_TL_HOME"
        )
