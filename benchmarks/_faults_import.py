"""`automl-tl history import`: some thousand facts of another machine, into a home that is empty at first.

So making the database is killed, too: it has no tables then, or empty ones, or the shipped facts, or all.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from _kills import Run
from _kills_elsewhere import shipped, taking, written


def prepare(scratch: Path) -> Callable[[Path], Run]:
    empty = scratch / "empty"
    empty.mkdir(exist_ok=True)
    return taking(empty, ["import", str(written(scratch))], may_be=(shipped(scratch),))
