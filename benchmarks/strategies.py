"""Every strategy against its baseline, on real images: what each is for, shown or not.

Each `_strategies_PART.py` beside this file has `evidence(folder, quick=...)`, which gives rows of the table (baseline, strategy,
figure, paper) and figures by name. Runs are kept in --folder as they end, so a second call goes on where the first stopped.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from _report import arguments, merge

PARTS = tuple(sorted(path.stem.removeprefix("_strategies_") for path in Path(__file__).parent.glob("_strategies_*.py")))


def main() -> None:
    parser = arguments(__doc__, quick="fewer sets, seeds and epochs: whether it runs, not how it does")
    parser.add_argument("--only", action="append", choices=PARTS, metavar="PART", help=f"one of {', '.join(PARTS)} (repeatable)")
    parser.add_argument("--folder", type=Path, help="keep what is unpacked and measured here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        os.environ["AUTOML_TL_HOME"] = str(folder / "home")
        (folder / "home").mkdir(parents=True, exist_ok=True)
        for part in options.only or PARTS:
            rows, figures = import_module(f"_strategies_{part}").evidence(folder / part, quick=options.quick)
            show(part, rows)
            merge(options.json, part, figures)


def show(part: str, rows: Sequence[Sequence[str]]) -> None:
    """The table of one part."""
    from rich.console import Console
    from rich.table import Table

    grid = Table("baseline", "strategy", "figure", "paper", title=part, title_justify="left")
    for row in rows:
        grid.add_row(*row)
    Console(width=None if os.isatty(1) else 180).print(grid)


if __name__ == "__main__":
    main()
