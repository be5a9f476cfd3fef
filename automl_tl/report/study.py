"""One page about a study of data efficiency."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from automl_tl.home import write_text

from .draw import Law, laws
from .outcome import pages

if TYPE_CHECKING:
    from automl_tl.study import Study

POINTS = 40
"""Of a drawn curve."""


def report_study(study: Study, folder: Path, *, rows: list[tuple[float, int, list[float]]], words: str) -> Path:
    """Write `study.html` into `folder`, which needs nothing else. `rows` and `words`: the study's means and its finding."""
    counts = [run.images for run in study.runs]
    along = np.geomspace(min(counts), max(counts), POINTS)
    drawn = []
    for kind, curve in study.curves.items():
        low, high = curve.band(along)
        drawn.append(
            Law(
                kind,
                [(float(run.images), run.score) for run in study.runs if run.kind == kind],
                _points(along, 1 - curve.law.error(along)),
                _points(along, 1 - high),
                _points(along, 1 - low),
            )
        )
    page = pages().get_template("study.html").render(study=study, picture=laws(drawn), rows=rows, words=words)
    path = folder / "study.html"
    write_text(path, page)
    return path


def _points(along: np.ndarray, scores: np.ndarray) -> list[tuple[float, float]]:
    return [(float(x), min(1.0, max(0.0, float(y)))) for x, y in zip(along, scores, strict=True)]
