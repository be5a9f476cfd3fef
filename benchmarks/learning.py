"""Does more history make better advice? Regret on source datasets left out, by how many of the others are known.

    python benchmarks/learning.py [--json FILE] [--svg FILE] [--quick]

As `advice.py`, but the ranker sees trials of 2, 4, 8 … of the other source datasets only, drawn by the seed; the same tasks are
judged each time. Regret: points of test accuracy between the first choice and the trial with the best validation score. The
picture goes to docs/images/learning.svg.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from _chart import Line, chart
from _report import arguments, table, write
from advice import known_history, leave_one_source_out

from automl_tl import registry

SVG = Path(__file__).resolve().parents[1] / "docs" / "images" / "learning.svg"
WAYS = {"ours": "our first choice", "ours, metadata alone": "without a look at the images", "best on average": "best on average"}


def picture(counts: list[int], tasks: list[float], regrets: dict[str, list[float]], random: float) -> str:
    """Regret by the number of known source datasets, on a scale of doublings."""
    places = [math.log2(count) for count in counts]
    ticks = [(place, f"{count} ({known:.0f} tasks)") for place, count, known in zip(places, counts, tasks, strict=True)]
    if len(ticks) > 2 and places[-1] - places[-2] < 1:
        ticks[-2] = places[-2], str(counts[-2])  # too near the last for more
    lines = [Line(f"{WAYS[way]} {own[-1]:.1f}", list(zip(places, own, strict=True))) for way, own in regrets.items()]
    title = "Points of accuracy that the first choice loses, by the experience it rests on"
    return chart(title, "source datasets known", lines, ticks, note=f"chance: {random:.1f}")


def main() -> None:
    parser = arguments(__doc__, "one seed, three source datasets left out, three sizes")
    parser.add_argument("--svg", type=Path, default=SVG, help="the picture")
    options = parser.parse_args()
    experience, test = known_history()
    trials = experience.trials
    others = len(set(trials.source_dataset)) - 1
    doublings = [2**power for power in range(1, 10) if 2**power < others]
    counts = [doublings[0], doublings[-1], others] if options.quick else [*doublings, others]
    seeds, most_left_out = ((0,), 3) if options.quick else ((0, 1, 2), None)
    regrets: dict[str, list[float]] = {way: [] for way in WAYS}
    tasks, random = [], 0.0
    for count in counts:
        result = leave_one_source_out(
            experience, registry.strategies(), test=test, seeds=seeds, most_known=count, most_left_out=most_left_out
        )
        for way, own in regrets.items():
            own.append(float(np.mean(result.ways[way].first)))
        tasks.append(count / (others + 1) * len(set(trials.task)))
        random = float(np.mean(result.ways["random"].first))
        print(f"{count} source datasets known: " + ", ".join(f"{way} {own[-1]:.2f}" for way, own in regrets.items()), flush=True)
    rows = [(str(count), *(f"{own[i]:.2f}" for own in regrets.values())) for i, count in enumerate(counts)]
    table("Regret of the first choice", ("source datasets known", *WAYS.values()), rows)
    options.svg.parent.mkdir(parents=True, exist_ok=True)
    options.svg.write_text(picture(counts, tasks, regrets, random), encoding="utf-8")
    figures = {f"regret_first_{count}_known": regrets["ours"][i] for i, count in enumerate(counts)}
    average = {f"best_on_average_regret_first_{count}_known": regrets["best on average"][i] for i, count in enumerate(counts)}
    write(options.json, {**figures, **average, "random_regret_first": random, "seeds": len(seeds), "trials": len(trials)})


if __name__ == "__main__":
    main()
