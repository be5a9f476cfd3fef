"""What better sources are worth, and whether the advice sees which source suits.

For three sets that the ranker has never seen: `fit` with the embedded zoo alone; the same with four real networks added
(`zoo add ../shared/weights`: ImageNet, iNaturalist birds and insects, a labeller of everyday photographs); and, as the truth
about sources, a linear probe on each of the networks. Test accuracy in percent. A set that was measured is merged into --json.

- *spread*: best less median probe: how much the choice of the network matters on this set;
- *regret*: best probe less the probe on the network that the advice names first;
- *agreement*: Spearman's correlation of the advice's order of the networks that it looked at with that of the probes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from _report import SHARED, arguments, merge, table
from fit import fitted, home_without, images_of, trained
from scipy.stats import spearmanr

from automl_tl import load_task
from automl_tl.backbones import catalogue

SETS = ("caltech101", "rsscn7", "traffic_signs")


def command(*words: str) -> Any:
    """What a command prints as JSON, or None."""
    done = subprocess.run([sys.executable, "-m", "automl_tl.cli", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"automl-tl {' '.join(words)}: {done.stderr}")
    return json.loads(done.stdout) if "--json" in words else None


def compare(name: str, folder: Path, budget: str) -> dict[str, float]:
    """One row."""
    images = images_of(name, folder)
    with home_without(name, folder / "homes" / name):
        embedded = fitted(images, folder / "runs" / f"{name}-embedded", budget)
        command("zoo", "add", str(SHARED / "weights"))
        real = fitted(images, folder / "runs" / f"{name}-real", budget)
        advice = command("recommend", str(images), "--top", "10000", "--json")
        order = list(dict.fromkeys(item["candidate"]["backbone"] for item in advice["ranking"]))
        task = load_task(images)
        probes = {key: 100 * trained(task, each, "linear-probe", 0)["accuracy"] for key, each in catalogue().items()}
    print(f"{name}: advice {order}")
    print(f"{name}: probes { ({key: round(value, 1) for key, value in probes.items()}) }", flush=True)
    print(f"{name}: {real['winner']['candidate']['strategy']} on {real['winner']['candidate']['backbone']}", flush=True)
    looked = [probes[key] for key in order]
    return {
        "embedded": 100 * embedded["winner"]["test"]["accuracy"],
        "real": 100 * real["winner"]["test"]["accuracy"],
        "spread": max(probes.values()) - float(np.median(list(probes.values()))),
        "regret": max(probes.values()) - looked[0],
        "agreement": float(spearmanr(range(len(looked)), [-value for value in looked]).statistic),
    }


def main() -> None:
    parser = arguments(__doc__, "one set, one minute")
    parser.add_argument("--only", action="append", choices=SETS, metavar="SET", help="one of these sets (repeatable)")
    options = parser.parse_args()
    sets, budget = (SETS[2:], "1m") if options.quick else (options.only or SETS, "5m")
    columns = ("embedded", "real", "spread", "regret", "agreement")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in sets:
            found = compare(name, Path(folder), budget)
            rows.append((name, *(f"{found[column]:.2f}" for column in columns)))
            merge(options.json, name, {f"{name}_{column}": value for column, value in found.items()})
    table(f"Real sources, fit --budget {budget}", ("set", *columns), rows)


if __name__ == "__main__":
    main()
