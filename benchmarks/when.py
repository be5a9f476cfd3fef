"""When does which strategy win? What the history says, by how many images a class has and how near the sources are.

    python benchmarks/when.py [--json FILE] [--quick]

No training: each finished trial of the history is compared with the others of its task. *Standing*: the share that it beats
on validation, in percent, mean over a strategy's trials of a task and then over tasks. *Short of the best*: points of validation
accuracy between the best trial of the task and the best one by that strategy, mean over tasks. Trials were sampled from the
whole search space, so a standing is that of a strategy with settings drawn by chance.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from _report import arguments, table, write

from automl_tl.experience import Experience
from automl_tl.history import open_history
from automl_tl.records import Profile

FEW = 30
"""Training images a class, up to which they are few."""
FEWEST_TASKS = 3
"""Of a group, for a figure."""


def main() -> None:
    options = arguments(__doc__, "the same: it takes seconds").parse_args()
    with open_history() as history:
        experience = Experience.of(history)
    nearest = {name: min(d["frechet"] for d in p.distances.values()) for name, p in experience.profiles.items()}
    middle = float(np.median([nearest[task] for task in set(experience.trials.task)]))
    groups: dict[str, Callable[[Profile], bool]] = {
        "all": lambda profile: True,
        "few": lambda profile: profile.meta["images_per_class"] <= FEW,
        "many": lambda profile: profile.meta["images_per_class"] > FEW,
        "near": lambda profile: nearest[profile.fingerprint] <= middle,
        "far": lambda profile: nearest[profile.fingerprint] > middle,
    }
    standings, gaps = standing_of(experience)
    strategies = sorted(set(experience.trials.strategy), key=lambda name: -mean(standings, name, experience, groups["all"])[0])
    figures, rows = {}, []
    for strategy in strategies:
        row: list[object] = [strategy]
        for group, holds in groups.items():
            standing, tasks = mean(standings, strategy, experience, holds)
            gap, _ = mean(gaps, strategy, experience, holds)
            row.append(f"{standing:.0f} / {gap:.1f}" if tasks >= FEWEST_TASKS else "–")
            if tasks >= FEWEST_TASKS:
                name = strategy.replace("-", "_")
                figures |= {f"{name}_{group}_standing": standing, f"{name}_{group}_short": gap, f"{name}_{group}_tasks": tasks}
        rows.append(row)
    table("Standing (%) / short of the best (points)", ("strategy", *groups), rows)
    counts = {"tasks": len(set(experience.trials.task)), "trials": len(experience.trials), "middle_frechet": middle}
    write(options.json, figures | counts)


Found = dict[tuple[str, str], float]


def standing_of(experience: Experience) -> tuple[Found, Found]:
    """(task, strategy) → mean standing in percent; → points that its best trial is short of the best."""
    trials = experience.trials
    standings: Found = {}
    gaps: Found = {}
    for task in set(trials.task):
        rows = np.flatnonzero(trials.task == task)
        scores = trials.score[rows]
        beaten = (scores[:, None] > scores).sum(1) + ((scores[:, None] == scores).sum(1) - 1) / 2
        standing = 100 * beaten / max(len(rows) - 1, 1)
        for strategy in set(trials.strategy[rows]):
            own = trials.strategy[rows] == strategy
            standings[task, strategy] = float(standing[own].mean())
            gaps[task, strategy] = 100 * float(scores.max() - scores[own].max())
    return standings, gaps


def mean(found: Found, strategy: str, experience: Experience, holds: Callable[[Profile], bool]) -> tuple[float, int]:
    """Over the tasks of a group where the strategy was tried, and their number."""
    values = [value for (task, name), value in found.items() if name == strategy and holds(experience.profiles[task])]
    return float(np.mean(values)) if values else float("nan"), len(values)


if __name__ == "__main__":
    main()
