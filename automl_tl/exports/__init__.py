"""A trained model in the form that somebody else's program wants it in."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from automl_tl import model
from automl_tl.errors import InputError
from automl_tl.home import check_writable, write_text

FORMS = ("timm", "onnx", "torch", "hub")
STAGED = ".export-*.partial"
ABANDONED = 24 * 3600
"""Seconds after which the folder of an unfinished export is that of a killed one; another export may still be at work before."""


@dataclass(frozen=True)
class Exported:
    """What an export left, or would leave."""

    form: str
    where: str
    """A folder, or the address of a repository."""
    files: dict[str, int]
    """Name → bytes."""
    largest_difference: float
    """Of a probability, from the run's network, on probe images."""
    written: bool = True
    """False: nothing left this machine, as it was a dry run."""


def export_run(run: Path, *, to: str, out: str | Path | None = None, dry_run: bool = False) -> Exported:
    """Bring the winner of `run` into the form `to`: in the folder `out` (default `run/exports/FORM`), or in a hub repository.

    With `dry_run`, everything is made and checked, and nothing is kept or sent.

    Raises:
        InputError: no such form, no model, `out` cannot be used, or the network does not fit the form.
        PluginError: a package of the form's extra is missing.
    """
    if to not in FORMS:
        raise InputError(f"--to {to}: there is no such form; known: {', '.join(FORMS)}")
    if to == "hub":
        return _to_hub(run, out, dry_run=dry_run)
    trained = model.load(model.model_folder(run))
    folder = Path(out) if out is not None else run / "exports" / to
    with _staged(folder, keep=not dry_run) as made:
        difference = _write(made, run, trained, to)
        files = _sizes(made)
    return Exported(to, str(folder), files, difference, written=not dry_run)


def _to_hub(run: Path, out: str | Path | None, *, dry_run: bool) -> Exported:
    from . import hub

    if out is None:
        raise InputError("--to hub: say where with --out OWNER/NAME")
    repository = hub.check_name(str(out))
    trained = model.load(model.model_folder(run))
    with tempfile.TemporaryDirectory(prefix="automl_tl_") as temporary:
        folder = Path(temporary)
        difference = _write(folder, run, trained, "timm", repository=repository)
        files = _sizes(folder)
        where = repository if dry_run else hub.push(folder, repository)
    return Exported("hub", where, files, difference, written=not dry_run)


def _write(folder: Path, run: Path, trained: model.Model, form: str, *, repository: str | None = None) -> float:
    from . import onnx_file, timm_folder, torch_program
    from .card import write_card

    if form == "onnx":
        return onnx_file.write(folder, trained)
    if form == "torch":
        return torch_program.write(folder, trained)
    difference = timm_folder.write(folder, trained)
    write_text(folder / "README.md", write_card(run, trained, repository=repository))
    return difference


@contextmanager
def _staged(folder: Path, *, keep: bool) -> Iterator[Path]:
    """A folder on the disk of `folder`, whose files come to it once all are there."""
    nearest = check_writable(folder)
    _sweep(nearest)
    made = Path(tempfile.mkdtemp(prefix=".export-", suffix=".partial", dir=nearest))
    try:
        yield made
        names = {path.name for path in made.iterdir()}
        present = [path for path in folder.iterdir() if not path.match(STAGED)] if folder.exists() else []
        others = sorted(path.name for path in present if path.name not in names)
        if others:
            raise InputError(f"{folder}: holds other things ({', '.join(others[:3])}); choose another --out")
        if keep:
            folder.mkdir(parents=True, exist_ok=True)
            for path in present:  # killed from here on, the export lacks a file, rather than having one of another model
                path.unlink(missing_ok=True)
            for name in sorted(names):
                os.replace(made / name, folder / name)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Remove what exports that were killed left in `folder`."""
    for left in folder.glob(STAGED):
        with suppress(FileNotFoundError):  # another export has removed it meanwhile
            if time.time() - left.stat().st_mtime > ABANDONED:
                shutil.rmtree(left, ignore_errors=True)


def _sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
