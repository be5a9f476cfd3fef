"""Does more history make better advice? Regret on source datasets left out, by how many of the others are known.

    python benchmarks/learning.py [--json FILE] [--svg FILE] [--quick]

As `advice.py`, but the ranker sees trials of 2, 4, 8 … of the other source datasets only, drawn by the seed; the same tasks are
judged each time. Regret: points of test accuracy between the first choice and the trial with the best validation score. The
picture goes to docs/images/learning.svg.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from _report import arguments, table, write
from advice import known_history, leave_one_source_out
from markupsafe import Markup

from automl_tl import registry

SVG = Path(__file__).resolve().parents[1] / "docs" / "images" / "learning.svg"
WAYS = {"ours": "our first choice", "ours, metadata alone": "without a look at the images", "best on average": "best on average"}
DASHES = {"ours": "", "ours, metadata alone": "7 4", "best on average": "2 3"}
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 360, 56, 210, 34, 48


def picture(counts: list[int], tasks: list[float], regrets: dict[str, list[float]], random: float) -> str:
    """Regret by the number of known source datasets, on a scale of doublings."""
    most = 1.1 * max([*(value for own in regrets.values() for value in own), random])
    steps = np.log2(counts)

    def place(step: float, regret: float) -> tuple[float, float]:
        across = LEFT + (WIDTH - LEFT - RIGHT) * (step - steps[0]) / max(steps[-1] - steps[0], 1e-9)
        return round(float(across), 1), round(TOP + (HEIGHT - TOP - BOTTOM) * (1 - regret / most), 1)

    floor, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = [Markup('<text x="{}" y="18" font-weight="bold">Regret of the first choice, points of accuracy</text>').format(LEFT)]
    for value in np.linspace(0, most, 6):
        y = place(steps[0], float(value))[1]
        parts.append(Markup('<line x1="{}" x2="{}" y1="{}" y2="{}" stroke="#ccc"/>').format(LEFT, right, y, y))
        parts.append(Markup('<text x="{}" y="{}" text-anchor="end">{}</text>').format(LEFT - 6, y + 4, f"{value:.1f}"))
    for step, count, known in zip(steps, counts, tasks, strict=True):
        x = place(float(step), 0)[0]
        told = f"{count} ({known:.0f} tasks)"
        parts.append(Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(x, floor + 18, told))
    middle = (LEFT + right) / 2
    parts.append(Markup('<text x="{}" y="{}" text-anchor="middle">source datasets known</text>').format(middle, floor + 38))
    ends = sorted((place(steps[-1], own[-1])[1], way) for way, own in regrets.items())
    labels = {way: max(y, ends[0][0] + 16 * index) for index, (y, way) in enumerate(ends)}
    for way, own in regrets.items():
        path = " ".join(f"{x},{y}" for x, y in (place(float(s), v) for s, v in zip(steps, own, strict=True)))
        line = '<polyline points="{}" fill="none" stroke="currentColor" stroke-width="{}" stroke-dasharray="{}"/>'
        parts.append(Markup(line).format(path, 3 if way == "ours" else 1.5, DASHES[way]))
        parts.append(Markup('<text x="{}" y="{}">{}</text>').format(right + 8, labels[way] + 4, f"{WAYS[way]} {own[-1]:.1f}"))
    y = place(steps[0], random)[1]
    parts.append(Markup('<text x="{}" y="{}" fill="#777">random choice {}</text>').format(LEFT + 6, y - 4, f"{random:.1f}"))
    parts.append(Markup('<line x1="{}" x2="{}" y1="{}" y2="{}" stroke="#999"/>').format(LEFT, right, y, y))
    head = Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {} {}" font-family="sans-serif" font-size="13" color="#234">'
        "<title>Regret of the first choice by the size of the history</title>"
        '<rect width="100%" height="100%" fill="white"/>'
    ).format(WIDTH, HEIGHT)
    return str(head + Markup("").join(parts) + Markup("</svg>\n"))


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
