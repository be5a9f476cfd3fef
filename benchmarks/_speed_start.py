"""Start-up: `automl-tl --help` and `import automl_tl`, each in new processes, beside Python alone and the libraries beneath."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from _turns import in_turns

LINES = {
    "python": ["-c", "pass"],
    "import": ["-c", "import automl_tl"],
    "help": ["-m", "automl_tl.cli", "--help"],
    "import_torch": ["-c", "import torch"],
    "import_timm": ["-c", "import timm"],
}


def evidence(folder: Path, *, quick: bool) -> tuple[list[tuple[str, ...]], dict[str, float]]:
    def start(line: list[str]) -> Callable[[], object]:
        return lambda: subprocess.run([sys.executable, *line], stdout=subprocess.DEVNULL, check=True)

    seconds, _ = in_turns({name: start(line) for name, line in LINES.items()}, 3 if quick else 11)
    figures = {f"{name}_seconds": float(np.median(took)) for name, took in seconds.items()}
    rows = []
    for name in ("help", "import"):
        for peer in ("import_torch", "import_timm"):
            rows.append((f"{name} against {peer}", *(f"{figures[f'{one}_seconds']:.3f}" for one in (name, peer)), ""))
    return rows, figures
