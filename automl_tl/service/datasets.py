"""Where images come from: an uploaded archive, or a folder below the server's root."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import secrets
import shutil
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from automl_tl import data
from automl_tl.errors import InputError
from automl_tl.home import read_json, write_text

from .archives import MANIFESTS, unpack
from .faults import Refused

log = logging.getLogger("automl_tl.service")
FACTS, IMAGES = "dataset.json", "images"
_CHUNK = 2**20


@dataclass(frozen=True)
class Dataset:
    """An uploaded archive, unpacked."""

    id: str
    """Hash of the archive: the same archive is the same dataset."""
    name: str
    images: int
    classes: dict[str, int]
    """Images of each class, as they were found; none of them is decoded yet."""
    bytes: int
    """Unpacked."""
    passed_over: int
    """Files of the archive that are neither images nor manifests."""
    location: str
    """Below the dataset's folder: what is read."""


class Datasets:
    """The uploads of a server, each in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".partial-*"):  # of a server that was killed
            shutil.rmtree(left, ignore_errors=True)

    def add(self, archive: IO[bytes], filename: str) -> Dataset:
        """Unpack and look at an archive.

        Raises:
            InputError: it cannot be unpacked, or holds no labelled images.
        """
        id = _hash(archive)
        if (self.folder / id).exists():
            return self.get(id)
        partial = self.folder / f".partial-{secrets.token_hex(6)}"
        name = re.sub(r"[^\w.-]+", "-", Path(filename.replace("\\", "/")).stem).strip(".-")[:60] or "archive"
        images = partial / IMAGES / name  # whatever its name is, it is not that of the facts
        images.mkdir(parents=True)
        try:
            unpacked = unpack(archive, images)
            location = _location(images)
            try:
                listing = data.read_listing(location)
            except InputError as error:
                raise InputError(str(error).replace(str(images), name)) from None
            classes = dict(Counter(str(label) for label in listing.labels))
            if len(classes) < 2:
                raise InputError(f"{name}: all images are of one class, {next(iter(classes))!r}; a classifier needs at least two")
            place = str(location.relative_to(partial))
            found = Dataset(id, name, len(listing.images), classes, unpacked.bytes, unpacked.passed_over, place)
            write_text(partial / FACTS, json.dumps(asdict(found), indent=1))
            try:
                partial.rename(self.folder / id)
            except OSError:  # somebody sent the same at the same time
                return self.get(id)
            return found
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def get(self, id: str) -> Dataset:
        """Raises Refused: 404 where there is none, 409 where it is damaged."""
        path = self._there(id) / FACTS
        try:
            return read_json(path, lambda facts: Dataset(**facts), remedy="")
        except (InputError, OSError) as error:
            log.error("dataset %s cannot be read: %s", id, error)
            raise Refused(409, f"dataset {id!r} is damaged on the server; delete it and send it again") from None

    def _there(self, id: str) -> Path:
        if not re.fullmatch("[0-9a-f]{16}", id) or not (self.folder / id / FACTS).exists():
            raise Refused(404, f"there is no dataset {id!r}; GET /api/datasets names them")
        return self.folder / id

    def all(self) -> list[Dataset]:
        """By name; without what is damaged or was deleted meanwhile."""
        found = []
        for path in self.folder.glob(f"*/{FACTS}"):
            with suppress(Refused):
                found.append(self.get(path.parent.name))
        return sorted(found, key=lambda dataset: (dataset.name, dataset.id))

    def location(self, id: str) -> Path:
        """What `data.read_listing` reads."""
        return self.folder / id / self.get(id).location

    def remove(self, id: str) -> None:
        """Raises Refused (404) where there is none."""
        folder = self._there(id)
        grave = self.folder / f".partial-{secrets.token_hex(6)}"
        folder.rename(grave)  # gone at once, whatever happens while its files are deleted
        shutil.rmtree(grave, ignore_errors=True)


def below(root: Path | None, path: str) -> Path:
    """A server-side place, with every link followed, that is below the root.

    Raises:
        Refused: 422 where there is no root, 404 for a place that is not there or outside: a stranger learns nothing of either.
    """
    if root is None:
        raise Refused(422, "this server reads no folders of its own; start it with --root, or send an archive")
    missing = Refused(404, f"{path!r}: there is no such folder or manifest below the server's root")
    try:
        place = (root / path).resolve()
        there = place.exists()
    except (OSError, ValueError, RuntimeError):  # too long, a zero byte, a loop of links
        raise missing from None
    if not there or not place.is_relative_to(root):
        raise missing
    if not place.is_dir() and place.suffix.lower() not in MANIFESTS:
        raise Refused(422, f"{path!r}: is neither a folder nor a manifest ({', '.join(sorted(MANIFESTS))})")
    return place


def _hash(archive: IO[bytes]) -> str:
    archive.seek(0)
    digest = hashlib.sha256()
    while chunk := archive.read(_CHUNK):
        digest.update(chunk)
    archive.seek(0)
    return digest.hexdigest()[:16]


def _location(folder: Path) -> Path:
    """The only manifest, or the folder itself; a folder that was packed as a whole is entered."""
    while (inner := _only_folder(folder)) is not None and any(path.is_dir() or _is_manifest(path) for path in inner.iterdir()):
        folder = inner
    manifests = sorted(child for child in folder.iterdir() if _is_manifest(child))
    if len(manifests) > 1:
        names = ", ".join(manifest.name for manifest in manifests[:5])
        raise InputError(f"the archive has several manifests ({names}); keep the one that lists the images")
    return manifests[0] if manifests else folder


def _only_folder(folder: Path) -> Path | None:
    children = list(folder.iterdir())
    return children[0] if len(children) == 1 and children[0].is_dir() else None


def _is_manifest(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in MANIFESTS
