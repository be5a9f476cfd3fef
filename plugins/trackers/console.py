"""A line for each trial, the best so far, and the time left."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path

from automl_tl import Point, Task, Trial, hookimpl
from automl_tl.facts import trial_of

ERASE = "\r\x1b[2K"
"""What a terminal takes back the line by."""


class Console:
    """Prints to standard error. On a terminal the running trial's line is rewritten after each epoch.

    A trial that goes on after a pause keeps its number; where there was no time for another epoch, nothing is said anew.
    Trials of an earlier start count, too. The best score of an epoch counts while its trial runs: what a strategy does after its
    last epoch may change it.
    """

    name = "console"

    def opened(self, task: Task, seconds: float, folder: Path) -> None:
        self.end = time.monotonic() + seconds
        texts = (path.read_text(encoding="utf-8") for path in folder.glob("trials/*/trial.json"))
        before = sorted(map(trial_of, map(json.loads, texts)), key=lambda trial: trial.provenance.get("date", ""))
        self.best = max((trial.score for trial in before if trial.score is not None), default=-1.0)
        self.numbers = {trial.id: number for number, trial in enumerate(before, 1)}
        self.said: dict[str, str] = {}

    def started(self, trial: Trial) -> None:
        self.numbers.setdefault(trial.id, len(self.numbers) + 1)
        self.reached = self.best
        self._show(trial, "starts")

    def epoch(self, trial: Trial, point: Point) -> None:
        self.reached = max(self.reached, point.score)
        self._show(trial, f"epoch {point.epoch:g}, score {point.score:.3f} {point.note}")

    def finished(self, trial: Trial) -> None:
        text = trial.error
        if not text:
            self.best = max(self.best, trial.score or 0.0)
            verb = "done" if trial.status == "finished" else "paused"
            accuracy, score = trial.validation["accuracy"], trial.validation.get("score")
            asked = "" if score is None else f"score {score:.3f}, "
            text = f"{verb}: {asked}accuracy {accuracy:.3f} in {trial.seconds:.0f} s"
        self.reached = self.best
        if text != self.said.get(trial.id):
            self._show(trial, text, last=True)
        elif sys.stderr.isatty():
            print(ERASE, end="", file=sys.stderr, flush=True)
        self.said[trial.id] = text

    def _show(self, trial: Trial, text: str, *, last: bool = False) -> None:
        if not last and not sys.stderr.isatty():
            return
        left = self.end - time.monotonic()
        clock = f", {max(left, 0) / 60:.1f} min left" if math.isfinite(left) else ""
        name = f"{trial.candidate.strategy} on {trial.candidate.backbone}"
        line = f"[{self.numbers[trial.id]}] {name}: {text} (best {max(self.reached, 0):.3f}{clock})"
        print(f"{ERASE * sys.stderr.isatty()}{line}", end="\n" if last else "", file=sys.stderr, flush=True)


@hookimpl
def register_trackers() -> list[Console]:
    return [Console()]
