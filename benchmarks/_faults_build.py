"""`automl-tl history build`: two small tasks, four trials each, on two workers."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from _kills import NETWORK, Run, used_home
from _kills_database import learnt, trials

DIGITS = {"location": "digits", "source_dataset": "digits", "most_judged": 60}
PLAN = {
    "tasks": [{"name": "eight", "per_class": 8, **DIGITS}, {"name": "six", "per_class": 6, "seed": 1, **DIGITS}],
    "trials": 4,
    "strategies": ["linear-probe", "knn", "fine-tuning"],
    "backbones": [NETWORK],
    "settings": {"epochs": [3, 4]},
}
ALL = 8


def prepare(scratch: Path) -> Callable[[Path], Run]:
    home, plan = used_home(scratch), scratch / "plan.json"
    plan.write_text(json.dumps(PLAN), encoding="utf-8")
    before = len(trials(home / "history.db"))

    def begin(place: Path) -> Run:
        shutil.copytree(home, place / "home")
        line = [sys.executable, "-m", "automl_tl.cli", "history", "build", str(plan), "--data", str(place)]

        def said(pattern: str) -> int:
            path = place / "said.txt"
            return len(re.findall(pattern, path.read_text(encoding="utf-8"), re.MULTILINE)) if path.exists() else 0

        def outcome(database: Path) -> object:
            found = learnt(database)
            finished = [facts for facts, curve in found["trials"].values() if facts[0] == "finished" and curve]
            if len(found["trials"]) != before + ALL or len(finished) < ALL:
                raise SystemExit(f"the build has {len(found['trials']) - before} trials and not {ALL}")
            return found

        def wrong(database: Path, expected: object) -> Iterator[tuple[str, str]]:
            """What it said was done is recorded: it says so afterwards. Each trial was done once in all starts together."""
            done, new = said(r"^\d+/\d+ "), len(trials(database)) - before
            if new < done:
                yield "lost_trials", f"{done} trials were reported, {new} are recorded"

        return Run(place / "home", line, outcome, lambda: said(r"trials and \d+ profiles to run"), wrong)

    return begin
