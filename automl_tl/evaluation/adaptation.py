"""How fast a candidate learnt: read from its learning curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from automl_tl.records import Point

SHARES = (0.9, 0.95)


@dataclass(frozen=True)
class Adaptation:
    """Epochs and seconds to a share of the final score, and the area under the curve."""

    final: float
    """Of the model that is kept: the best score of the curve."""
    epochs: Mapping[float, float]
    """Share of `final` → the first measured epoch that reached it."""
    seconds: Mapping[float, float]
    """Likewise, since the start of the trial."""
    area: float
    """Mean height of the best score so far, by epochs from the first measured one to the last; 0–1."""


def adaptation(curve: Sequence[Point], *, shares: Sequence[float] = SHARES) -> Adaptation | None:
    """Adaptation speed of one trial; None where nothing was measured.

    The curve is that of the best score so far, for that is the model one would have had. Nothing is put between measured
    epochs: a share counts as reached when it was seen to be. The area is a trapezoid sum, divided by the epochs it spans, so
    that trials of unlike length compare; a curve of one point has its score for area.
    """
    if not curve:
        return None
    best = np.maximum.accumulate([point.score for point in curve])
    epochs = np.array([point.epoch for point in curve], dtype=np.float64)
    final = float(best[-1])
    first = {share: curve[int(np.argmax(best >= share * final))] for share in shares}
    width = epochs[-1] - epochs[0]
    area = float(np.trapezoid(best, epochs) / width) if width > 0 else final
    return Adaptation(
        final,
        {share: point.epoch for share, point in first.items()},
        {share: point.seconds for share, point in first.items()},
        area,
    )
