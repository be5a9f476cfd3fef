"""Where things lie on this machine: history, caches, added networks. Nothing is ever written into the package."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

from .errors import InputError


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
    """Decoded images and features: may be deleted at any time."""
    return home() / "cache"


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all: a crash, a power cut or another writer leaves the old one or a new one.

    Bytes of a file's name that are no text become \\xNN.
    """
    partial = path.with_name(f"{path.name}.{os.urandom(6).hex()}.partial")  # each thread its own; `tempfile` hides it from others
    try:
        with partial.open("xb") as file:
            file.write(text.encode("utf-8", errors="backslashreplace"))
            file.flush()
            os.fsync(file.fileno())  # or the name may reach the disk before the text, and an empty file outlives a power cut
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)  # what could not be written; on success it is gone
