"""A zip from a stranger, unpacked: images and manifests only, nothing outside the folder, no bomb."""

from __future__ import annotations

import shutil
import stat
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from automl_tl.errors import InputError
from automl_tl.images import SUFFIXES, is_hidden

MANIFESTS = frozenset({".csv", ".tsv", ".parquet"})
MOST_ENTRIES = 500_000
MOST_BYTES = 8 * 2**30
"""Of all files together, unpacked."""
MOST_RATIO = 200
"""Unpacked to packed, of the archive as a whole: images hardly shrink, and the emptiest BMP shrinks to a thousandth."""
SMALL = 64 * 2**20
"""An archive that unpacks to less is no bomb, whatever its ratio."""
LONGEST_NAME = 255
MOST_PARTS = 50
"""Of a name: each is a folder in the next."""
MOST_DIRECTORY = 128 * 2**20
"""Bytes of the zip's list of its entries, which lies in memory as a whole: 268 for each of the most that are taken."""
_ENTRY = b"PK\x01\x02"
"""What each entry of that list begins with."""
_CHUNK = 2**20


@dataclass(frozen=True)
class Unpacked:
    """What came out of an archive."""

    bytes: int
    passed_over: int
    """Files that are neither images nor manifests."""


class _Guarded:
    """An archive whose list of entries is looked at before `zipfile` makes an object of each: it reads the list at once, however
    long it is, and does not believe the number of entries that the zip tells."""

    def __init__(self, archive: IO[bytes]) -> None:
        self._archive = archive

    def __getattr__(self, name: str) -> Any:
        return getattr(self._archive, name)

    def read(self, size: int = -1) -> bytes:
        if size > MOST_DIRECTORY:
            raise InputError(
                f"the archive's list of entries has {size:,} bytes, more than the {MOST_DIRECTORY:,} that are accepted"
            )
        data = self._archive.read(size)
        if (entries := data.count(_ENTRY)) > MOST_ENTRIES:
            raise InputError(f"the archive has {entries:,} entries, more than the {MOST_ENTRIES:,} that are accepted")
        return data


def unpack(archive: IO[bytes], folder: Path) -> Unpacked:
    """Unpack into `folder`, which is empty. Everything is checked before the first file is written.

    Raises:
        InputError: no zip, damaged, encrypted, a bomb, or an entry that leads elsewhere; it is named.
    """
    try:
        with zipfile.ZipFile(cast(IO[bytes], _Guarded(archive))) as file:
            wanted, passed_over = _check(file.infolist(), _size(archive))
            _check_room(folder, sum(entry.file_size for entry in wanted.values()))
            written = sum(_write(file, entry, folder / name) for name, entry in wanted.items())
    except InputError:  # which is a ValueError, too
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, OverflowError, NotImplementedError) as error:
        raise InputError(f"the archive cannot be unpacked: {error}; send a zip of CLASS/FILE") from None
    except OSError as error:
        raise InputError(f"the archive cannot be unpacked: {error.strerror}: {Path(error.filename or '').name!r}") from None
    return Unpacked(written, passed_over)


def _size(archive: IO[bytes]) -> int:
    archive.seek(0, 2)
    return archive.tell()


def _check(entries: list[zipfile.ZipInfo], packed: int) -> tuple[dict[str, zipfile.ZipInfo], int]:
    """Name → entry of the files that are written, and how many others there are."""
    total = sum(entry.file_size for entry in entries)
    if total > MOST_BYTES:
        raise InputError(f"the archive unpacks to {total:,} bytes, more than the {MOST_BYTES:,} that are accepted")
    if total > SMALL and total > MOST_RATIO * packed:
        raise InputError(f"the archive unpacks to {total / packed:,.0f} times its size: it looks like a bomb, not like images")
    wanted: dict[str, zipfile.ZipInfo] = {}
    passed_over = 0
    for entry in entries:
        path = _inside(entry)
        if entry.is_dir():
            continue
        hidden = any(map(is_hidden, path.parts))
        if hidden or path.suffix.lower() not in SUFFIXES | MANIFESTS:
            passed_over += 1
        elif str(path) in wanted:
            raise InputError(f"the archive has {entry.filename!r} twice")
        else:
            wanted[str(path)] = entry
    folders = {str(parent) for name in wanted for parent in PurePosixPath(name).parents}
    if both := sorted(folders & wanted.keys()):
        raise InputError(f"the archive has {both[0]!r} both as a file and as a folder")
    return wanted, passed_over


def _inside(entry: zipfile.ZipInfo) -> PurePosixPath:
    """The path of an entry below the folder."""
    name = entry.filename
    path = PurePosixPath(name)
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise InputError(f"the archive has {name!r}, a {'link' if stat.S_ISLNK(kind) else 'special file'}; pack files only")
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or (len(name) > 1 and name[1] == ":"):
        raise InputError(f"the archive has {name!r}, which leads out of it; pack with relative names and forward slashes")
    too_long = any(len(part.encode(errors="replace")) > LONGEST_NAME for part in path.parts)
    if not name or too_long or not name.isprintable():
        raise InputError(f"the archive has {name[:80]!r}, which is no name for a file")
    if len(path.parts) > MOST_PARTS:
        raise InputError(f"the archive has {name[:80]!r}…, a name of {len(path.parts)} parts; up to {MOST_PARTS} are taken")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InputError(f"the archive's {name!r} is packed in an unusual way; pack with plain zip (deflate)")
    if entry.flag_bits & 1:
        raise InputError(f"the archive is encrypted ({name!r}); send it without a password")
    return path


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > 0.9 * free:
        raise InputError(f"the archive unpacks to {needed:,} bytes, but the server has only {free:,} left; delete what is old")


def _write(file: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path) -> int:
    """Never more than the entry announced: that is what was checked."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with file.open(entry) as source, path.open("xb") as target:
        while chunk := source.read(_CHUNK):
            written += len(chunk)
            if written > entry.file_size:
                raise InputError(f"the archive's {entry.filename!r} is larger than it says")
            target.write(chunk)
    return written
