"""What every program here shares: its arguments, its table, its figures with where they were measured."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

SHARED = Path(__file__).resolve().parents[2] / "shared"
"""Real images and networks; they are no part of the project."""
_PACKAGES = ("automl_tl", "torch", "timm", "scikit-learn", "lightgbm", "numpy")


def arguments(description: str | None, quick: str) -> argparse.ArgumentParser:
    """The options of a program; `quick` says what its short run leaves out."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    parser.add_argument("--quick", action="store_true", help=quick)
    return parser


def unpacked(name: str, folder: Path) -> Path:
    """The image set `name` of ../shared/data, unpacked into `folder`."""
    import zipfile

    archive = SHARED / "data" / f"{name}.zip"
    if not archive.exists():
        raise SystemExit(f"{archive} is not here: this program needs the images of ../shared/data")
    if not (folder / name).exists():
        with zipfile.ZipFile(archive) as file:
            file.extractall(folder)
    return folder / name


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows; the first column is text, the others are numbers."""
    from rich.console import Console
    from rich.table import Table

    grid = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        grid.add_column(column, justify="right" if index else "left")
    for row in rows:
        grid.add_row(*(f"{value:.1f}" if isinstance(value, float) else str(value) for value in row))
    Console(width=None if os.isatty(1) else 140).print(grid)


def write(path: Path | None, figures: Mapping[str, float]) -> None:
    """The figures as flat JSON, with machine, versions, commit and date."""
    if path is None:
        return
    facts = {**{name: round(float(value), 4) for name, value in figures.items()}, **where()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def merge(path: Path | None, part: str, figures: Mapping[str, float]) -> None:
    """The figures of one part into what is there: parts are measured apart, and none undoes another's.

    `measured` says of each part where its figures are from.
    """
    if path is None:
        return
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    here = where()
    known |= {name: float(f"{value:.5g}") for name, value in figures.items()} | here
    known["measured"] = known.get("measured", {}) | {part: here}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n", encoding="utf-8")


def where() -> dict[str, str]:
    """Where figures were measured."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    return {
        "machine": f"{_processor()}, {os.cpu_count()} cores, {platform.system()}{_gpu()}",
        "threads": os.environ.get("OMP_NUM_THREADS", str(os.cpu_count())),
        "versions": ", ".join([f"python {platform.python_version()}", *(f"{name} {version(name)}" for name in _PACKAGES)]),
        "commit": commit,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _gpu() -> str:
    torch = sys.modules.get("torch")
    return f", {torch.cuda.get_device_name()}" if torch is not None and torch.cuda.is_available() else ""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
