"""When does which strategy win? What the history says, by how many images a class has and how near the sources are.

    python benchmarks/when.py [--json FILE] [--quick]

No training: each finished trial of the history is compared with the others of its task. *Standing*: the share that it beats
on validation, in percent, mean over a strategy's trials of a task and then over tasks. *Short of the best*: points of validation
accuracy between the best trial of the task and the best one by that strategy, mean over tasks. Trials were sampled from the
whole search space, so a standing is that of a strategy with settings drawn by chance.

*Told apart*: does the ranker know where to train all layers and where to unfreeze them from the top? Each source dataset is
left out in turn; a ranker learnt from the others ranks both strategies, in the settings that a user is offered, on the tasks made
of it. Its lead of fine-tuning (best of one less best of the other, in points of predicted accuracy) is laid beside that of the
trials. `--quick` leaves this out, which takes minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from _report import arguments, table, write

from automl_tl.backbones import catalogue
from automl_tl.candidates import propose
from automl_tl.cost import CostModel
from automl_tl.experience import Experience, proven
from automl_tl.history import open_history
from automl_tl.home import cache
from automl_tl.ranker import rank, ranker_for
from automl_tl.records import Profile
from automl_tl.registry import strategies as known_strategies

FEW = 30
"""Training images a class, up to which they are few."""
FEWEST_TASKS = 3
"""Of a group, for a figure."""
FEWEST_TRIALS = 3
"""Of a strategy on a task: one setting drawn by chance says nothing of its best."""
Group = Callable[[Profile], bool]
WHOLE, GRADUAL = "fine-tuning", "gradual-unfreezing"


def main() -> None:
    options = arguments(__doc__, "without what the ranker says").parse_args()
    with open_history() as history:
        experience = Experience.of(history)
    nearest = {name: min(d["frechet"] for d in p.distances.values()) for name, p in experience.profiles.items()}
    middle = float(np.median([nearest[task] for task in set(experience.trials.task)]))
    groups: dict[str, Group] = {
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
    figures |= {} if options.quick else told_apart(experience, groups)
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


def told_apart(experience: Experience, groups: Mapping[str, Group]) -> dict[str, float]:
    """How far fine-tuning is ahead of gradual unfreezing, as foretold and as tried; a line for each group of tasks."""
    leads = {
        task: lead for source in sorted(set(experience.trials.source_dataset)) for task, lead in leads_of(experience, source)
    }
    figures: dict[str, float] = {}
    rows: list[list[object]] = []
    for group, holds in groups.items():
        both = np.array([lead for task, lead in leads.items() if holds(experience.profiles[task])])
        if len(both) < FEWEST_TASKS:
            continue
        right = float((np.sign(both[:, 0]) == np.sign(both[:, 1])).mean())
        (foretold, tried), ahead = both.mean(axis=0).tolist(), float((both[:, 0] > 0).mean())
        rows.append([group, len(both), f"{foretold:+.1f}", f"{tried:+.1f}", f"{ahead:.0%}", f"{right:.0%}"])
        named = {"foretold": foretold, "tried": tried, "ahead": ahead, "right": right, "tasks": len(both)}
        figures |= {f"apart_{group}_{name}": value for name, value in named.items()}
    every = np.array(list(leads.values()))
    figures["apart_correlation"] = float(np.corrcoef(every.T)[0, 1])
    words = ("tasks", "", "foretold", "tried", "foretold ahead", "the right one ahead")
    table(f"Lead of {WHOLE} over {GRADUAL} (points); correlation {figures['apart_correlation']:.2f}", words, rows)
    return figures


def leads_of(experience: Experience, source: str) -> Iterator[tuple[str, tuple[float, float]]]:
    """Each task made of `source` on which both were tried, with the lead that others' trials foretell and that of its own."""
    trials, strategies = experience.trials, known_strategies()
    known = experience.take(np.flatnonzero(trials.source_dataset != source))
    ranker, costs = ranker_for(known, cache() / "rankers"), CostModel.learn(known, strategies=strategies)
    at_hand = {name: backbone for name, backbone in catalogue().items() if backbone.source_dataset != source}
    both = {name: strategies[name] for name in (WHOLE, GRADUAL)}
    offered = [*propose(at_hand, both, seed=0, proven=proven(known)), *propose(at_hand, both, seed=0, near=True)]
    for task in sorted(set(trials.task[trials.source_dataset == source])):
        own = trials.task == task
        scores = [trials.score[own & (trials.strategy == name)] for name in (WHOLE, GRADUAL)]
        if min(map(len, scores)) >= FEWEST_TRIALS:
            ranking = rank(ranker, offered, experience.profiles[task], at_hand, costs, strategies=strategies, stage=2)
            best = [max(one.score for one in ranking.items if one.candidate.strategy == name) for name in (WHOLE, GRADUAL)]
            yield task, (100 * (best[0] - best[1]), 100 * float(scores[0].max() - scores[1].max()))


if __name__ == "__main__":
    main()
