"""`kill -9` at random moments of a `fit`: does the same command go on, and is anything lost?

One run of `fit` on digits is left alone; of another, each start is killed at a random moment until ten were, and the next start
goes on. After each kill the database must pass SQLite's `PRAGMA integrity_check`, and every trial that was recorded before,
finished or paused, must still be there, no epoch shorter, and in the history; at the end the predictions must be those of the
run that was left alone.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from _report import arguments, merge, table
from PIL import Image
from sklearn.datasets import load_digits

from automl_tl import predict

ONLY = ("--backbone", "resnet10t_24.omniglot_a_64", "--strategy", "fine-tuning", "--strategy", "linear-probe")
"""Two fine-tunings that are paused and taken up again, and a probe that is finished in between."""
IMAGES = 400
"""Of scikit-learn's digits: few, so that most of the time goes into starting, recording and resuming."""


def start(images: Path, out: Path, home: Path, budget: str) -> subprocess.Popen[bytes]:
    """The command whose starts are killed, in its own process group: workers that read images go with it."""
    line = [sys.executable, "-m", "automl_tl.cli", "fit", str(images), "--budget", budget, *ONLY, "--out", str(out)]
    environment = {**os.environ, "AUTOML_TL_HOME": str(home)}
    return subprocess.Popen(line, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)


def drawn(folder: Path) -> Path:
    """A folder of the first digits: CLASS/FILE, a fourth of them for the test."""
    digits = load_digits()
    for number, (image, label) in enumerate(zip(digits.images[:IMAGES], digits.target, strict=False)):
        place = folder / ("train" if number % 4 else "test") / str(label)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.uint8(image * 15)).save(place / f"{number}.png")
    return folder


def recorded(out: Path) -> dict[str, float]:
    """Trials that the run's folder says are finished or paused, and the epochs each has."""
    trials = [json.loads(path.read_text(encoding="utf-8")) for path in out.glob("trials/*/trial.json")]
    return {trial["id"]: trial["curve"][-1]["epoch"] if trial["curve"] else 0 for trial in trials}


def missing(before: dict[str, float], now: dict[str, float], known: set[str]) -> int:
    """Trials that were lost or became shorter, or that the history does not know."""
    return sum(now.get(id_, -1) < before.get(id_, 0) or id_ not in known for id_ in before.keys() | now.keys())


def in_history(home: Path) -> tuple[bool, set[str]]:
    """Whether the database is sound, and the trials in it. A start killed early has made none: sound, empty."""
    path = home / "history.db"
    if not path.exists():
        return True, set()
    with sqlite3.connect(path) as database:
        sound = database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        made = database.execute("SELECT 1 FROM sqlite_master WHERE name = 'trials'").fetchone()
        return sound, {id_ for (id_,) in database.execute("SELECT id FROM trials")} if made else set()


def killed(images: Path, out: Path, home: Path, budget: str, after: float) -> bool:
    """Start, kill after so many seconds; whether it was still running then."""
    process = start(images, out, home, budget)
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    return False


def ended(images: Path, out: Path, home: Path, budget: str) -> float:
    """Run to the end; seconds."""
    begun = time.monotonic()
    if (code := start(images, out, home, budget).wait()) != 0:
        raise SystemExit(f"fit ended with exit code {code}")
    return time.monotonic() - begun


def main() -> None:
    options = arguments(__doc__, "two kills, fewer epochs").parse_args()
    kills, budget = (2, "3 trials + 14 epochs") if options.quick else (10, "3 trials + 20 epochs")
    rng, rows, seen, sound_times, lost = random.Random(0), [], dict[str, float](), 0, 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole, out, home = folder / "whole", folder / "run", folder / "home"
        pictures = drawn(folder / "digits")
        length = ended(pictures, whole, folder / "quiet", budget)
        done = most = 0
        while done < kills:
            after = rng.uniform(0.1, 0.6) * length
            if not killed(pictures, out, home, budget, after):  # it had come to its end: begin a new run in the same home
                lost += missing(seen, recorded(out), in_history(home)[1])
                out, seen = folder / f"run{done}", {}
                continue
            done += 1
            sound, known = in_history(home)
            now = recorded(out)
            gone = missing(seen, now, known)
            sound_times, lost, most = sound_times + sound, lost + gone, max(most, len(now))
            rows.append((f"kill {done}", after, len(now), gone, "ok" if sound else "broken"))
            seen = now
        seconds = ended(pictures, out, home, budget)
        last = recorded(out)
        sound, known = in_history(home)
        gone = missing(seen, last, known)
        lost += gone
        rows.append(("last start", seconds, len(last), gone, "ok" if sound else "broken"))
        images = [np.uint8(image * 15) for image in load_digits().images]
        one, other = (predict(run, images).probabilities for run in (whole, out))
    columns = ("", "after s", "recorded trials", "missing", "integrity_check")
    table(f"kill -9 of fit --budget '{budget}' ({length:.0f} s when left alone)", columns, rows)
    difference = float(np.abs(one - other).max())
    print(f"largest difference to the probabilities of the run that was left alone: {difference:g}")
    figures = {
        "kills": kills,
        "lost_trials": lost,
        "corrupt_databases": kills - sound_times + (not sound),
        "most_recorded_at_a_kill": most,
        "probability_difference": difference,
    }
    merge(options.json, "faults", figures)
    if lost or not most or sound_times < kills or not sound or difference:
        raise SystemExit("something was lost, or nothing was there to lose")


if __name__ == "__main__":
    main()
