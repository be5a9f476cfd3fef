"""What is kept of every image that was read once, so that files which did not change are not read again."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash
from PIL import Image

from .errors import InputError
from .home import cache, write_text
from .images import read_image
from .records import Listing, Task
from .threads import spread

THUMBNAIL = 16

Progress = Callable[[int, int], None]


class Seen(NamedTuple):
    """What is kept of an image that was read once."""

    hash: int
    """Of the RGB pixels."""
    width: int
    height: int
    thumbnail: bytes
    """16×16 grey, for near-duplicates."""
    error: str = ""


def read_all(listing: Listing, progress: Progress | None) -> list[Seen]:
    """`Seen` of each image; files that did not change since the last time are not read again."""
    index = _Index(listing)
    todo = [i for i in range(len(listing.images)) if i not in index.known]
    work = [(listing.images[i], listing.where[i]) for i in todo]
    for done, (i, seen) in enumerate(zip(todo, spread(look, work), strict=True), 1):
        index.known[i] = seen
        if progress is not None and (done % 64 == 0 or done == len(todo)):
            progress(done, len(todo))
    index.keep(todo)
    return [index.known[i] for i in range(len(listing.images))]


class _Index:
    """What was seen of files, in one file for the folder that all of them are in, so that one more image costs one look.

    Files out of one archive may all have one size and one time: which file it is, and when its place was last changed, tell of
    two that were exchanged.
    """

    def __init__(self, listing: Listing) -> None:
        self.files: dict[int, tuple[str, str]] = {}
        for i, image in enumerate(listing.images):
            if isinstance(image, (str, Path)):
                with suppress(OSError):
                    state = os.stat(image)
                    told = (state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino)
                    self.files[i] = os.path.abspath(image), "|".join(map(str, told))
        prefix = os.path.commonprefix([path for path, _ in self.files.values()])  # noqa: RUF071 (up to a folder, by `dirname`)
        folder = os.path.dirname(prefix).encode("utf-8", sys.getfilesystemencodeerrors())
        self.path = cache() / "seen" / f"{hashlib.sha256(folder).hexdigest()[:32]}.json"
        self.kept: dict[str, tuple[str, Seen]]
        try:
            kept = json.loads(self.path.read_text(encoding="utf-8"))
            self.kept = {path: (told, Seen(h, w, t, bytes.fromhex(b))) for path, told, h, w, t, b in kept}
        except (OSError, ValueError, TypeError):  # nothing was seen yet, or it is damaged: the images are read
            self.kept = {}
        now = {i: path for i, (path, told) in self.files.items() if self.kept.get(path, ("",))[0] == told}
        self.known = {i: self.kept[path][1] for i, path in now.items()}

    def keep(self, added: list[int]) -> None:
        """With what is kept of other files there, such as those of another table, as long as they are there."""
        if not self.files or not added:
            return
        seen = {path: (told, self.known[i]) for i, (path, told) in self.files.items() if not self.known[i].error}
        rows = [
            [path, told, one.hash, one.width, one.height, one.thumbnail.hex()]
            for path, (told, one) in (self.kept | seen).items()
            if path in seen or os.path.exists(path)
        ]
        self.path.parent.mkdir(exist_ok=True)
        write_text(self.path, json.dumps(rows))


def changed_at(images: Sequence[Any]) -> np.ndarray:
    """When the file of each image, or its place, was last changed, in ns; 0 for what is no file, or is gone."""
    times = np.zeros(len(images), dtype=np.int64)
    for i, image in enumerate(images):
        if isinstance(image, (str, Path)):
            with suppress(OSError):
                state = os.stat(image)
                times[i] = max(state.st_mtime_ns, state.st_ctime_ns)
    return times


def check_unchanged(task: Task) -> None:
    """Raises InputError: an image is another than the one that was read, whose content the caches know it by."""
    if task.modified is None:
        return
    touched = np.flatnonzero(changed_at(task.images) != task.modified).tolist()
    for i, seen in zip(touched, spread(look, [(task.images[i], task.where[i]) for i in touched]), strict=True):
        if seen.hash != task.hashes[i]:
            raise InputError(
                f"{task.where[i]}: was changed after it had been read; start again with images that stay as they are"
            )


def look(item: tuple[Any, str]) -> Seen:
    source, where = item
    try:
        image = read_image(source, where=where)
    except InputError as error:
        return Seen(0, 0, 0, b"", str(error))
    pixels = np.asarray(image)
    shape = f"{image.width}x{image.height}".encode()
    digest = xxhash.xxh64(shape + pixels.tobytes()).intdigest()
    thumbnail = image.convert("L").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    return Seen(digest, image.width, image.height, np.asarray(thumbnail).tobytes())
