"""Is the advice worth taking? Every source dataset is left out in turn; all tasks made of it leave together.

    python benchmarks/advice.py [--json FILE] [--quick]

For each task left out, a ranker learnt from the others orders the candidates that were tried there. Stage 2 sees what a user's
second ranking sees: the transferability of a shortlist, and no other backbone. Regret: points of validation accuracy below the
best trial of the task.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from _report import arguments, table, write

from automl_tl import registry
from automl_tl.cost import CostModel
from automl_tl.experience import Experience, Trials
from automl_tl.history import open_history
from automl_tl.ranker import Ranker, learn, rank, shortlist
from automl_tl.records import Candidate, Profile, Ranking
from automl_tl.strategy import Strategy

LOOKED_AT = 6


@dataclass
class Tally:
    """What one way of choosing did, a number a task and seed."""

    first: list[float] = field(default_factory=list)
    best_of_three: list[float] = field(default_factory=list)
    ndcg10: list[float] = field(default_factory=list)

    def add(self, order: Sequence[int], scores: np.ndarray) -> None:
        """`order`: positions of candidates, best first; `scores`: what each came to."""
        chosen = scores[list(order)]
        self.first.append(100 * float(scores.max() - chosen[0]))
        self.best_of_three.append(100 * float(scores.max() - chosen[:3].max()))
        gains = np.clip((scores - np.quantile(scores, 0.1)) / max(scores.max() - np.quantile(scores, 0.1), 1e-9), 0, 1)
        discount = 1 / np.log2(np.arange(2, 12))
        got, ideal = gains[list(order)][:10], np.sort(gains)[::-1][:10]
        self.ndcg10.append(float((got * discount[: len(got)]).sum() / max((ideal * discount[: len(ideal)]).sum(), 1e-9)))


@dataclass
class Result:
    """The tallies of all ways, and what only ours has."""

    ways: dict[str, Tally] = field(default_factory=dict)
    covered: list[float] = field(default_factory=list)
    """Share of a task's trials inside their 90 % intervals."""
    factors: list[float] = field(default_factory=list)
    """Real over predicted seconds or the other way round, whichever is above 1."""
    advise_seconds: list[float] = field(default_factory=list)

    def add(self, way: str, order: Sequence[int], scores: np.ndarray) -> None:
        self.ways.setdefault(way, Tally()).add(order, scores)


@dataclass(frozen=True, eq=False)
class LeftOut:
    """One task that was left out, and what was learnt from the others."""

    known: Experience
    costs: CostModel
    strategies: Mapping[str, type[Strategy]]
    profile: Profile
    candidates: list[Candidate]
    """Those that were tried on it."""
    trials: Trials
    """What they came to, in the same order."""
    seed: int

    def positions(self, ranking: Ranking) -> list[int]:
        place = {candidate.id: position for position, candidate in enumerate(self.candidates)}
        return [place[item.candidate.id] for item in ranking.items]


def leave_one_source_out(
    experience: Experience,
    strategies: Mapping[str, type[Strategy]],
    *,
    seeds: Sequence[int],
    say: Callable[[str], None] = lambda text: None,
    most_known: int | None = None,
    most_left_out: int | None = None,
) -> Result:
    """Judge the advice, and simpler ways of choosing, on each source dataset by what was learnt from the others.

    `most_known`: learn from no more than so many of the others; `most_left_out`: judge on so many; both drawn by the seed.
    """
    result = Result()
    trials = experience.trials
    for seed in seeds:
        sources = sorted(set(trials.source_dataset))
        judged = np.random.default_rng(seed).permutation(sources)[:most_left_out]
        for source in sorted(judged.tolist()):
            start = time.perf_counter()
            others = np.random.default_rng((seed, sources.index(source))).permutation(
                [name for name in sources if name != source]
            )
            known = experience.take(np.flatnonzero(np.isin(trials.source_dataset.astype(str), others[:most_known])))
            ranker = learn(known, seed=seed)
            costs = CostModel.learn(known, strategies=strategies, speed=1.0, seed=seed)
            out = trials.take(np.flatnonzero(trials.source_dataset == source))
            for task in sorted(set(out.task)):
                own = out.take(np.flatnonzero(out.task == task))
                tried = zip(own.backbone, own.strategy, own.hyperparameters, strict=True)
                candidates = [Candidate(*facts) for facts in tried]
                left = LeftOut(known, costs, strategies, experience.profiles[task], candidates, own, seed)
                _ours(result, left, ranker)
                _simpler_ways(result, left)
                _seconds(result, left)
            say(f"seed {seed}, without {source}: {time.perf_counter() - start:.1f} s")
    return result


def _ours(result: Result, left: LeftOut, ranker: Ranker | None) -> None:
    """Both stages as `recommend` goes through them."""
    backbones, scores = left.known.backbones, left.trials.score
    profile, candidates = replace(left.profile, transferability={}), left.candidates
    for stage, way in ((1, "ours, metadata alone"), (2, "ours")):
        ranking = rank(ranker, candidates, profile, backbones, left.costs, strategies=left.strategies, stage=stage)
        order = left.positions(ranking)
        result.add(way, order, scores)
        result.covered.append(
            float(np.mean([item.low <= scores[i] <= item.high for i, item in zip(order, ranking.items, strict=True)]))
        )
        result.advise_seconds.append(ranking.seconds)
        names = shortlist(ranking, backbones, size=LOOKED_AT)
        looked = {name: found for name, found in left.profile.transferability.items() if name in names}
        profile = replace(left.profile, transferability=looked)
        candidates = [candidate for candidate in candidates if candidate.backbone in names]


def _simpler_ways(result: Result, left: LeftOut) -> None:
    """What a person could do without us."""
    scores, backbones = left.trials.score, left.known.backbones
    rng = np.random.default_rng(left.seed)
    for _ in range(20):
        result.add("random", rng.permutation(len(scores)).tolist(), scores)
    pairs, strategies = _standings(left.known)
    chance = rng.random(len(scores))  # among candidates that such a way holds for equal

    def by(merit: Callable[[Candidate], float]) -> list[int]:
        values = [merit(candidate) for candidate in left.candidates]
        return np.lexsort((chance, -np.array(values))).tolist()

    result.add("best on average", by(lambda c: pairs.get((c.backbone, c.strategy), -1.0)), scores)
    best = max(strategies, key=lambda name: strategies[name])
    result.add("biggest network", by(lambda c: (c.strategy == best) * float(backbones[c.backbone].params)), scores)
    for metric in sorted({name for found in left.profile.transferability.values() for name in found}):
        looked = {name: found[metric] for name, found in left.profile.transferability.items() if metric in found}
        worst = min(looked.values()) - 1
        order = by(lambda c, seen=looked, low=worst: seen.get(c.backbone, low) if c.strategy == best else low)  # type: ignore[misc]
        result.add(f"{metric} + best strategy", order, scores)


def _standings(known: Experience) -> tuple[dict[tuple[str, str], float], dict[str, float]]:
    """Mean share of a task's trials beaten, of each backbone × strategy and of each strategy; shrunk by two average trials."""
    trials = known.trials
    pairs: dict[tuple[str, str], list[float]] = {}
    strategies: dict[str, list[float]] = {}
    for task in set(trials.task):
        rows = np.flatnonzero(trials.task == task)
        standing = trials.score[rows].argsort().argsort() / max(len(rows) - 1, 1)
        for row, value in zip(rows, standing, strict=True):
            pairs.setdefault((trials.backbone[row], trials.strategy[row]), [0.5, 0.5]).append(float(value))
            strategies.setdefault(trials.strategy[row], [0.5, 0.5]).append(float(value))
    return {k: float(np.mean(v)) for k, v in pairs.items()}, {k: float(np.mean(v)) for k, v in strategies.items()}


def _seconds(result: Result, left: LeftOut) -> None:
    trials = left.trials
    predicted, _ = left.costs.predict(left.candidates, float(trials.images[0]), left.known.backbones)
    ratio = np.log(trials.seconds * trials.speed / predicted)  # predicted for a machine of speed 1
    result.factors += np.exp(np.abs(ratio[np.isfinite(ratio)])).tolist()


def figures(result: Result, experience: Experience) -> dict[str, float]:
    """One number each."""
    ours, average = result.ways["ours"], result.ways["best on average"]
    found = {
        "regret_first": np.mean(ours.first),
        "regret_best_of_three": np.mean(ours.best_of_three),
        "regret_first_stage1": np.mean(result.ways["ours, metadata alone"].first),
        "best_on_average_regret_first": np.mean(average.first),
        "random_regret_first": np.mean(result.ways["random"].first),
        "ndcg10": np.mean(ours.ndcg10),
        "coverage90": np.mean(result.covered),
        "seconds_factor_median": np.median(result.factors),
        "advise_seconds": np.median(result.advise_seconds),
        "tasks": len(set(experience.trials.task)),
        "source_datasets": len(set(experience.trials.source_dataset)),
        "trials": len(experience.trials),
    }
    for way, tally in result.ways.items():
        if way.endswith(" + best strategy"):
            found[f"{way.split()[0].replace('-', '_')}_regret_first"] = np.mean(tally.first)
    return {name: round(float(value), 4) for name, value in found.items()}


def main() -> None:
    options = arguments(__doc__, "one seed instead of three").parse_args()
    with open_history() as history:
        experience = Experience.of(history)
    seeds = (0,) if options.quick else (0, 1, 2)
    result = leave_one_source_out(experience, registry.strategies(), seeds=seeds, say=lambda text: print(text, flush=True))
    found = figures(result, experience)
    ways = sorted(result.ways.items(), key=lambda pair: float(np.mean(pair[1].first)))
    rows = [
        (way, f"{np.mean(tally.first):.2f}", f"{np.mean(tally.best_of_three):.2f}", f"{np.mean(tally.ndcg10):.3f}")
        for way, tally in ways
    ]
    table("Advice on source datasets left out", ("way", "regret of the first", "regret of best of three", "NDCG@10"), rows)
    table("Figures", ("figure", "value"), [(name, f"{value:g}") for name, value in found.items()])
    write(options.json, found)


if __name__ == "__main__":
    main()
