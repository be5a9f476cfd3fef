"""`automl-tl fit --budget 5m` with the embedded zoo, on six sets that the ranker has never seen, and `make demo`.

    python benchmarks/fit.py [--json FILE] [--only SET ...] [--seeds N] [--quick]

For each set: a home of its own, whose history has no trial of that source dataset; the command as a person types it; then,
on the same images and split, what a person could do without it:

- *linear probe*, *fine-tuning*: with their defaults, on the largest embedded backbone;
- *from scratch*: the winner's network from random weights, with as many epochs as the same time holds (at most 60, until
  2026-11-26).

Test accuracy in percent. The demo is scikit-learn's digits in one minute, also with a history that does not know them. A set that
was measured is merged into --json, so that a run which is stopped loses one set at most. With several --seeds, which decide
the splits, the search and the training of all four, a figure is their mean, and its lowest and highest are given beside it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from _report import arguments, merge, table, unpacked

from automl_tl import Backbone, Candidate, Task, load_task
from automl_tl.backbones import catalogue
from automl_tl.history import open_history
from automl_tl.registry import strategies
from automl_tl.space import Int, defaults
from automl_tl.trials import Limits, judge_on_test, run_trial

DEMO = "digits"
SETS = ("cifar10", "sign_digits", "magnetic_tile", "smiles", "brain_tumor", "traffic_signs")
FIRST = {"cifar10": 2000}
"""Training images that are used, where it is not all."""
PILOT = 2
"""Epochs that tell how many from-scratch epochs the time holds."""


def images_of(name: str, folder: Path) -> Path:
    """The set as a folder; of some sets the first so many training images, the classes in equal shares."""
    whole = unpacked(name, folder)
    if name not in FIRST:
        return whole
    part = folder / f"{name}_{FIRST[name]}"
    if not part.exists():
        classes = sorted((whole / "train").iterdir())
        for directory in classes:
            (part / "train" / directory.name).mkdir(parents=True)
            for image in sorted(directory.iterdir())[: FIRST[name] // len(classes)]:
                shutil.copy(image, part / "train" / directory.name)
        shutil.copytree(whole / "test", part / "test")
    return part


@contextmanager
def home_without(source_dataset: str, folder: Path) -> Any:
    """A new home whose history knows nothing of `source_dataset`."""
    before = os.environ.get("AUTOML_TL_HOME")
    os.environ["AUTOML_TL_HOME"] = str(folder)
    try:
        with open_history() as history:
            tasks = [key for key, facts in history.tasks().items() if facts.source_dataset == source_dataset]
            for task in tasks:
                history.db.execute("DELETE FROM points WHERE trial IN (SELECT id FROM trials WHERE task = ?)", [task])
                for name in ("trials", "profiles", "meta_features", "distances", "scores"):
                    history.db.execute(f"DELETE FROM {name} WHERE task = ?", [task])
                history.db.execute("DELETE FROM tasks WHERE fingerprint = ?", [task])
        yield
        with open_history() as history:  # beside the task that was just run there
            if sum(facts.source_dataset == source_dataset for facts in history.tasks().values()) > 1:
                raise SystemExit(f"the history came to know {source_dataset}: were the shipped facts changed meanwhile?")
    finally:
        os.environ.pop("AUTOML_TL_HOME")
        if before is not None:
            os.environ["AUTOML_TL_HOME"] = before


def fitted(images: Path | str, out: Path, budget: str, *options: str) -> dict[str, Any]:
    """What the command says of itself, and how long it really took."""
    command = [sys.executable, "-m", "automl_tl.cli", "fit", str(images), "--budget", budget, "--out", str(out), "--json"]
    start = time.perf_counter()
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr}")
    return {**json.loads(done.stdout), "wall_seconds": time.perf_counter() - start}


def trained(
    task: Task, backbone: Backbone, strategy: str, seed: int, limits: Limits | None = None, **changed: Any
) -> dict[str, float]:
    """Test accuracy of one choice, and its seconds."""
    hyperparameters = {**defaults(strategies()[strategy].space), **changed}
    with tempfile.TemporaryDirectory() as folder:
        candidate = Candidate(backbone.name, strategy, hyperparameters)
        trial, result = run_trial(task, candidate, backbone, seed=seed, folder=Path(folder), limits=limits)
    if result is None:
        raise SystemExit(trial.error)
    return {"accuracy": judge_on_test(task, backbone, result.model)["accuracy"], "seconds": trial.seconds}


def from_scratch(task: Task, backbone: Backbone, seed: int, seconds: float) -> dict[str, float]:
    """The network from random weights, its schedule as long as the time lets it be."""
    pilot = trained(task, backbone, "from-scratch", seed, Limits(stop_after=PILOT))
    epochs = max(PILOT, int(seconds / pilot["seconds"] * PILOT))
    scratch = strategies()["from-scratch"]
    scratch.space = {**scratch.space, "epochs": Int(PILOT, epochs, epochs)}  # searches stop at 60
    limits = Limits(deadline=time.monotonic() + seconds)
    return {**trained(task, backbone, "from-scratch", seed, limits, epochs=epochs), "epochs": epochs}


def compare(name: str, folder: Path, budget: str, seed: int) -> dict[str, float]:
    """One row."""
    images = name if name == DEMO else images_of(name, folder)
    embedded = {key: backbone for key, backbone in catalogue().items() if backbone.zoo == "embedded"}
    largest = max(embedded.values(), key=lambda backbone: backbone.params)
    with home_without(name, folder / "homes" / f"{name}_{seed}"):
        outcome = fitted(images, folder / "runs" / f"{name}_{seed}", budget, "--seed", str(seed))
        task = load_task(images, seed=seed)
        winner = outcome["winner"]
        network = embedded[winner["candidate"]["backbone"]]
        rows: Mapping[str, dict[str, float]] = {
            "probe": trained(task, largest, "linear-probe", seed),
            "fine_tuning": trained(task, largest, "fine-tuning", seed),
            "from_scratch": from_scratch(task, network, seed, outcome["seconds"]),
        }
    accuracies = {key: 100 * row["accuracy"] for key, row in rows.items()}
    best = max(accuracies["probe"], accuracies["fine_tuning"])
    ours = 100 * winner["test"]["accuracy"]
    found = {"fit": ours, **accuracies, "lead": ours - best, "seconds": outcome["wall_seconds"]}
    said = ", ".join(f"{key} {value:.2f}" for key, value in found.items())
    print(
        f"{name}, seed {seed}: {winner['candidate']['strategy']} on {network.name}, {len(outcome['trials'])} trials; {said}",
        flush=True,
    )
    return found


def together(name: str, rows: list[dict[str, float]]) -> dict[str, float]:
    """Figures of a set: means over the seeds, and from where to where they go."""
    columns = {column: [row[column] for row in rows] for column in rows[0]}
    figures = {f"{name}_{column}": sum(values) / len(values) for column, values in columns.items()}
    if len(rows) > 1:
        figures |= {f"{name}_{column}_lowest": min(values) for column, values in columns.items()}
        figures |= {f"{name}_{column}_highest": max(values) for column, values in columns.items()}
    return {**figures, f"{name}_seeds": len(rows)}


def main() -> None:
    parser = arguments(__doc__, "the demo and a set, one minute each")
    parser.add_argument("--only", action="append", choices=(DEMO, *SETS), metavar="SET", help="one of these sets (repeatable)")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="each set so many times, the budget each time")
    options = parser.parse_args()
    columns = ("fit", "probe", "fine_tuning", "from_scratch", "lead", "seconds")
    rows: list[tuple[object, ...]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.only or (DEMO, *SETS)[: 2 if options.quick else None]:
            budget = "1m" if options.quick or name == DEMO else "5m"
            found = together(name, [compare(name, Path(folder), budget, seed) for seed in range(options.seeds)])
            rows.append((f"{name}, {budget}", *(found[f"{name}_{column}"] for column in columns)))
            merge(options.json, name, found)
    table("Test accuracy (%)", ("set, budget", *columns), rows)


if __name__ == "__main__":
    main()
