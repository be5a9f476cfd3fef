"""A line for each trial, the best so far, and the time left."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path

from automl_tl import Point, Task, Trial, hookimpl


class Console:
    """Prints to standard error. On a terminal the running trial's line is rewritten after each epoch."""

    name = "console"

    def opened(self, task: Task, seconds: float, folder: Path) -> None:
        self.end = time.monotonic() + seconds
        self.best = -1.0
        self.count = 0

    def started(self, trial: Trial) -> None:
        self.count += 1
        self._show(trial, "starts")

    def epoch(self, trial: Trial, point: Point) -> None:
        self.best = max(self.best, point.score)
        self._show(trial, f"epoch {point.epoch:g}, score {point.score:.3f} {point.note}")

    def finished(self, trial: Trial) -> None:
        if trial.error:
            self._show(trial, trial.error, last=True)
            return
        self.best = max(self.best, trial.score or 0.0)
        verb = "done" if trial.status == "finished" else "paused"
        accuracy, score = trial.validation["accuracy"], trial.validation.get("score")
        asked = "" if score is None else f"score {score:.3f}, "
        self._show(trial, f"{verb}: {asked}accuracy {accuracy:.3f} in {trial.seconds:.0f} s", last=True)

    def _show(self, trial: Trial, text: str, *, last: bool = False) -> None:
        if not last and not sys.stderr.isatty():
            return
        left = self.end - time.monotonic()
        clock = f", {max(left, 0) / 60:.1f} min left" if math.isfinite(left) else ""
        name = f"{trial.candidate.strategy} on {trial.candidate.backbone}"
        line = f"[{self.count}] {name}: {text} (best {max(self.best, 0):.3f}{clock})"
        erase = "\r\x1b[2K" if sys.stderr.isatty() else ""
        print(f"{erase}{line}", end="\n" if last else "", file=sys.stderr, flush=True)


@hookimpl
def register_trackers() -> list[Console]:
    return [Console()]
