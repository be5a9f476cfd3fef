"""How fast, as ratios to named peers: training, probes, distances, scores, start-up, advice, and a GPU where there is one.

Each `_speed_PART.py` beside this file has `evidence(folder, quick=...)`, which gives rows of the table (what, our seconds, the
peer's, ratio with quartiles) and figures by name. Peers take turns with us (`_turns`), on the same images, weights and threads.
A part that was measured is merged into --json; parts may be measured one by one.
"""

from __future__ import annotations

import os
import tempfile
from importlib import import_module
from pathlib import Path

from _report import arguments, merge, table

PARTS = tuple(sorted(path.stem.removeprefix("_speed_") for path in Path(__file__).parent.glob("_speed_*.py")))


def main() -> None:
    parser = arguments(__doc__, quick="smaller sizes, fewer rounds: whether it runs, not how fast")
    parser.add_argument("--only", action="append", choices=PARTS, metavar="PART", help=f"one of {', '.join(PARTS)} (repeatable)")
    parser.add_argument("--folder", type=Path, help="keep unpacked images and caches here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        os.environ["AUTOML_TL_HOME"] = str(folder / "home")
        (folder / "home").mkdir(parents=True, exist_ok=True)
        for part in options.only or PARTS:
            rows, figures = import_module(f"_speed_{part}").evidence(folder, quick=options.quick)
            table(part, ("", "ours, s", "peer, s", "ratio (quartiles)"), rows)
            merge(options.json, part, figures)


if __name__ == "__main__":
    main()
