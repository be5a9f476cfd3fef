"""Where things lie on this machine: history, caches, added networks. Nothing is ever written into the package."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import platformdirs

from .errors import AutomlError, InputError

Parsed = TypeVar("Parsed")


def home() -> Path:
    """The user's data folder; `AUTOML_TL_HOME` moves it. Made when first asked for.

    Raises:
        InputError: it cannot be made.
    """
    moved = os.environ.get("AUTOML_TL_HOME")
    path = Path(moved).expanduser() if moved else platformdirs.user_data_path("automl_tl", appauthor=False)
    try:
        (path / "cache").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be made or used: {error.strerror}; set AUTOML_TL_HOME to another folder") from None
    return path


def cache() -> Path:
    """What can be made again, such as decoded images, features and rankers: may be deleted at any time."""
    return home() / "cache"


def read_json(path: Path, parse: Callable[[Any], Parsed], *, remedy: str) -> Parsed:
    """What `parse` makes of the JSON in a file that this project wrote.

    Raises:
        InputError: it is damaged; `remedy` says what to do.
        OSError: it cannot be read, as when it is not there.
    """
    try:
        return parse(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, AttributeError, RecursionError, AutomlError) as error:
        raise InputError(f"{path}: is damaged: {error}; {remedy}") from None
    except KeyError as error:
        raise InputError(f"{path}: is damaged: {error} is missing; {remedy}") from None


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all: a crash, a power cut or another writer leaves the old one or a new one.

    Bytes of a file's name that are no text become \\xNN.
    """
    with whole(path) as partial, partial.open("xb") as file:
        file.write(text.encode("utf-8", errors="backslashreplace"))
        file.flush()
        os.fsync(file.fileno())  # or the name may reach the disk before the text, and an empty file outlives a power cut


def check_writable(folder: Path) -> Path:
    """`folder`, or the nearest one above it that is there. Worth asking before the work whose results are written there.

    Raises:
        InputError: it cannot be written to.
    """
    nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise InputError(f"{nearest}: is not a folder that can be written to; choose another --out")
    return nearest


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A place for a file, or a folder, that becomes `path` at the end of the block; where the block fails it is gone."""
    partial = path.with_name(f"{path.name}.{os.urandom(6).hex()}.partial")  # each thread its own; `tempfile` hides it from others
    try:
        yield partial
        partial.replace(path)
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)
