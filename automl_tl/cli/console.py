"""What commands print with: a line, JSON, a table, a bar."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from automl_tl.advice import Progress


NUMBER = 9
"""Characters up to which a cell of a table stays in one line: numbers and single words do, names and ids fold."""


def say(text: str) -> None:
    """A line of work that goes on: at once, also where nobody sits at a terminal."""
    print(text, flush=True)


def print_json(facts: Any) -> None:
    print(json.dumps(facts, indent=1, default=str))


def print_table(title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    class Screen(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # rich itself would end the program, which may have more to do than to print

    console = Screen(width=None if sys.stdout.isatty() else 160)
    narrow = sum(max(map(len, column)) + 3 for column in zip(columns, *rows, strict=True)) > console.width
    table = Table(title=title or None, box=box.SIMPLE_HEAD, title_justify="left", collapse_padding=narrow)
    for header, *cells in zip(columns, *rows, strict=True):
        whole = max(map(len, cells), default=0) <= NUMBER
        # names are folded, never cut: those of networks differ at their ends
        table.add_column(header.replace(" ", "\n") if whole and narrow else header, no_wrap=whole, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)


def figure(value: float | None) -> str:
    """Nothing where there is no value: most tables have gaps."""
    return "" if value is None else f"{value:.4g}"


@contextmanager
def progress_bars(silent: bool) -> Iterator[Progress | None]:
    """A bar for each step that takes time; silent for programs."""
    if silent or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress as Bars

    bars = Bars(console=Console(stderr=True), transient=True)
    known: dict[str, Any] = {}

    def step(what: str, done: int, total: int) -> None:
        if what not in known:
            bars.start()
            known[what] = bars.add_task(what, total=total)
        bars.update(known[what], completed=done)
        if all(task.finished for task in bars.tasks):
            bars.stop()
            for bar in known.values():
                bars.remove_task(bar)
            known.clear()  # what is done once more, as the images of a source are read, has a bar once more

    try:
        yield step
    finally:
        bars.stop()
