"""`automl-tl fit`: two fine-tunings of which one is paused after an epoch."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from _kills import NETWORK, Run, used_home
from _kills_database import learnt, trials
from _kills_images import drawn, pictures

from automl_tl import predict
from automl_tl.guard import DEATHS

BUDGET = "4 trials + 9 epochs"
ONLY = ("--backbone", NETWORK, "--strategy", "fine-tuning", "--strategy", "linear-probe")
UNSEEN = 400


def prepare(scratch: Path) -> Callable[[Path], Run]:
    home, images = used_home(scratch), drawn(scratch / "digits", 240)

    def begin(place: Path) -> Run:
        out = place / "run"
        shutil.copytree(home, place / "home")
        line = [sys.executable, "-m", "automl_tl.cli", "fit", str(images), "--budget", BUDGET, *ONLY, "--out", str(out)]

        def progress() -> int:
            """When something of a trial was written last."""
            return max((path.stat().st_mtime_ns for path in out.glob("trials/**/*")), default=0)

        def outcome(database: Path) -> object:
            probabilities = predict(out, pictures(UNSEEN)).probabilities
            if probabilities.shape[0] != UNSEEN or not np.isfinite(probabilities).all():
                raise SystemExit(f"fit left a model that does not predict: {probabilities}")
            return learnt(database), probabilities.tolist()

        def wrong(database: Path, expected: object) -> Iterator[tuple[str, str]]:
            """The run's folder tells of no trial that the history does not know, and each file in it is whole."""
            known = trials(database)
            for path in out.glob("trials/*/trial.json"):
                trial = json.loads(path.read_text(encoding="utf-8"))
                if known.get(trial["id"], (0, 0))[1] < len(trial["curve"]):
                    yield (
                        "lost_trials",
                        f"{trial['id']} has {len(trial['curve'])} points in the run's folder, fewer in the history",
                    )

        def given_up_next(database: Path, expected: object) -> bool:
            """A trial in which `DEATHS` starts in a row die before an epoch has ended is one that has failed, by design."""
            return any(len(path.read_text(encoding="utf-8")) >= DEATHS - 1 for path in out.glob("trials/**/deaths.txt"))

        return Run(place / "home", line, outcome, progress, wrong, given_up_next)

    return begin
