"""Is the advice worth taking? Every source dataset is left out in turn; all tasks made of it leave together.

    python benchmarks/advice.py [--json FILE] [--objective robustness] [--quick]

For each task left out, a ranker learnt from the others orders the candidates that were tried there. Stage 2 sees what a user's
second ranking sees: the transferability of a shortlist, and no other backbone.

Regret is in points of test accuracy, which no ranker sees. Against what? The largest test accuracy of any trial of the task is
partly luck, the more so the more trials there are: on a few hundred test images nobody could have chosen it. So it is counted
against two:

- the test accuracy of the trial with the best validation score: what a person has who trained all of them. For one task regret
  may be below 0; luck cancels in the mean.
- *hindsight*: that largest test accuracy. The row "all of them" says what even trying everything loses to luck.

Best of three: what a search begins with three trials (`surrogate`: each is chosen as if those before came out as expected), or
the first three of another way's order that differ in network or strategy; validation scores choose one of them.

A simpler way knows which settings did well, too: among candidates that it holds for equal it takes those whose settings beat the
most on average, as far as they were tried elsewhere.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from _report import arguments, table, write
from scipy.stats import weightedtau

from automl_tl import registry
from automl_tl.cost import CostModel
from automl_tl.experience import Experience, Trials, completed
from automl_tl.history import open_history
from automl_tl.objectives import ACCURACY, REQUIRED, ROBUSTNESS
from automl_tl.ranker import Ranker, learn, rank, shortlist
from automl_tl.records import Candidate, Profile, Ranked, Ranking
from automl_tl.strategy import Strategy
from automl_tl.surrogate import Observed, Surrogate

LOOKED_AT = 6
FEW_SHOT = "few-shot"
VALIDATION_IMAGES = 250
"""About as many as the tasks of the history have."""


@dataclass(frozen=True, eq=False)
class Scores:
    """What the candidates of a task came to, n each, 0–1."""

    validation: np.ndarray
    """What choices are made by, and the ranker learns from."""
    test: np.ndarray
    """What choices are judged by."""


@dataclass
class Tally:
    """What one way of choosing did, a number a task and seed."""

    first: list[float] = field(default_factory=list)
    best_of_three: list[float] = field(default_factory=list)
    first_hindsight: list[float] = field(default_factory=list)
    best_of_three_hindsight: list[float] = field(default_factory=list)
    ndcg10: list[float] = field(default_factory=list)
    kendall: list[float] = field(default_factory=list)
    """Weighted tau (Vigna, 2015) of the order with the test accuracies: what is first counts most."""

    def add(self, order: Sequence[int], scores: Scores, three: Sequence[int] = ()) -> None:
        """`order`: positions of candidates, best first; `three`: those to be tried, if not its first."""
        order = list(order)
        if len(order) > 1:
            self.kendall.append(float(weightedtau(-np.arange(len(order)), scores.test[order]).statistic))
        first, best = order[0], max(three or order[:3], key=lambda position: scores.validation[position])
        everything = scores.test[scores.validation.argmax()]
        for against, firsts, threes in (
            (everything, self.first, self.best_of_three),
            (scores.test.max(), self.first_hindsight, self.best_of_three_hindsight),
        ):
            firsts.append(100 * float(against - scores.test[first]))
            threes.append(100 * float(against - scores.test[best]))
        floor = np.quantile(scores.test, 0.1)
        gains = np.clip((scores.test - floor) / max(scores.test.max() - floor, 1e-9), 0, 1)
        discount = 1 / np.log2(np.arange(2, 12))
        got, ideal = gains[order][:10], np.sort(gains)[::-1][:10]
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
    tasks: set[str] = field(default_factory=set)
    """That were judged."""

    def add(self, way: str, order: Sequence[int], scores: Scores, three: Sequence[int] = ()) -> None:
        self.ways.setdefault(way, Tally()).add(order, scores, three)


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
    scores: Scores
    seed: int

    def positions(self, items: Sequence[Ranked]) -> list[int]:
        place = {candidate.id: position for position, candidate in enumerate(self.candidates)}
        return [place[item.candidate.id] for item in items]


def leave_one_source_out(
    experience: Experience,
    strategies: Mapping[str, type[Strategy]],
    *,
    test: np.ndarray,
    seeds: Sequence[int],
    say: Callable[[str], None] = lambda text: None,
    most_known: int | None = None,
    most_left_out: int | None = None,
) -> Result:
    """Judge the advice, and simpler ways of choosing, on each source dataset by what was learnt from the others.

    `test`: accuracy of each trial of the experience. `most_known`: learn from no more than so many of the others;
    `most_left_out`: judge on so many; both drawn by the seed.
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
            for task in sorted(set(trials.task[trials.source_dataset == source])):
                rows = np.flatnonzero((trials.task == task) & np.isfinite(test))
                if not len(rows):
                    continue
                result.tasks.add(task)
                again = _by_candidate(trials, rows)
                own = trials.take(np.array([same[0] for same in again.values()]))
                means = (np.array([values[same].mean() for same in again.values()]) for values in (trials.score, test))
                left = LeftOut(known, costs, strategies, experience.profiles[task], list(again), own, Scores(*means), seed)
                _ours(result, left, ranker)
                _simpler_ways(result, left)
                _seconds(result, left)
            say(f"seed {seed}, without {source}: {time.perf_counter() - start:.1f} s")
    return result


def _by_candidate(trials: Trials, rows: np.ndarray) -> dict[Candidate, list[int]]:
    """The rows of each candidate: some were trained with several seeds, and count once, as the mean of those."""
    found: dict[Candidate, list[int]] = defaultdict(list)
    for row in rows.tolist():
        found[Candidate(trials.backbone[row], trials.strategy[row], trials.hyperparameters[row])].append(row)
    return found


def _ours(result: Result, left: LeftOut, ranker: Ranker | None) -> None:
    """Both stages as `recommend` goes through them."""
    backbones, scores = left.known.backbones, left.scores
    profile, candidates = replace(left.profile, transferability={}), left.candidates
    for stage, way in ((1, "ours, metadata alone"), (2, "ours")):
        ranking = rank(ranker, candidates, profile, backbones, left.costs, strategies=left.strategies, stage=stage)
        order = left.positions(ranking.items)
        result.add(way, order, scores, left.positions(begun(ranking, left)))
        result.covered.append(
            float(np.mean([item.low <= scores.validation[i] <= item.high for i, item in zip(order, ranking.items, strict=True)]))
        )
        result.advise_seconds.append(ranking.seconds)
        names = shortlist(ranking, backbones, size=LOOKED_AT)
        looked = {name: found for name, found in left.profile.transferability.items() if name in names}
        profile = replace(left.profile, transferability=looked)
        candidates = [candidate for candidate in candidates if candidate.backbone in names]


def begun(ranking: Ranking, left: LeftOut) -> list[Ranked]:
    """What a search of three trials begins."""
    spaces = {name: strategy.space for name, strategy in left.strategies.items()}
    surrogate = Surrogate(ranking.items, left.known.backbones, spaces, validation_images=VALIDATION_IMAGES)
    chosen: list[int] = []
    believed: list[Observed] = []
    for _ in range(min(3, len(ranking.items))):
        promise = surrogate.improvement(believed)
        promise[chosen] = -np.inf
        chosen.append(int(promise.argmax()))
        candidate = ranking.items[chosen[-1]].candidate
        believed.append(Observed(candidate, surrogate.expected(candidate, believed), believed=True))
    return [ranking.items[place] for place in chosen]


def _simpler_ways(result: Result, left: LeftOut) -> None:
    """What a person could do without us."""
    scores, backbones = left.scores, left.known.backbones
    rng = np.random.default_rng(left.seed)
    for _ in range(20):
        result.add("random", rng.permutation(len(left.candidates)).tolist(), scores)
    result.add("all of them", np.argsort(-scores.validation, kind="stable").tolist(), scores)
    pairs, strategies, settings = _standings(left.known)
    chance = rng.random(len(left.candidates))  # among candidates of which nothing more is known

    def standing(candidate: Candidate) -> float:
        return settings.get(candidate.id, pairs.get((candidate.backbone, candidate.strategy), -1.0))

    known_best = -np.array([standing(candidate) for candidate in left.candidates])

    def add(way: str, order: np.ndarray) -> None:
        result.add(way, order.tolist(), scores, _different(order, left.candidates))

    def by(merit: Callable[[Candidate], float]) -> np.ndarray:
        values = [merit(candidate) for candidate in left.candidates]
        return np.lexsort((chance, known_best, -np.array(values)))

    add("best on average", by(standing))
    wins, nearest = _wins(left.known), _nearest(left)
    add("most often best", by(lambda c: wins.get((c.backbone, c.strategy), 0)))
    add("nearest task by profile", by(lambda c: nearest.get((c.backbone, c.strategy), -1.0)))

    def by_network(merit: Callable[[str], float]) -> np.ndarray:
        """By the network, and then by how the strategy stood."""
        values = [(merit(c.backbone), strategies.get(c.strategy, -1.0)) for c in left.candidates]
        return np.lexsort((chance, known_best, *(-np.array(values)).T[::-1]))

    add("biggest network", by_network(lambda name: float(backbones[name].params)))
    for metric in sorted({name for found in left.profile.transferability.values() for name in found}):
        looked = {name: found[metric] for name, found in left.profile.transferability.items() if metric in found}
        order = by_network(lambda name, seen=looked: seen.get(name, -np.inf))  # type: ignore[misc]
        add(f"{metric} + best strategy", order)


def _different(order: np.ndarray, candidates: Sequence[Candidate]) -> list[int]:
    """The first three of different network or strategy."""
    chosen: dict[tuple[str, str], int] = {}
    for place in order.tolist():
        chosen.setdefault((candidates[place].backbone, candidates[place].strategy), place)
    return list(chosen.values())[:3]


def _standings(known: Experience) -> tuple[dict[tuple[str, str], float], dict[str, float], dict[str, float]]:
    """Mean share of a task's trials beaten, of each backbone × strategy, of each strategy, and of each candidate (by its id).

    The first two are shrunk by two average trials, the last by two of its backbone × strategy.
    """
    trials = known.trials
    pairs: dict[tuple[str, str], list[float]] = {}
    strategies: dict[str, list[float]] = {}
    settings: dict[str, tuple[tuple[str, str], list[float]]] = {}
    for task in set(trials.task):
        rows = np.flatnonzero(trials.task == task)
        standing = trials.score[rows].argsort().argsort() / max(len(rows) - 1, 1)
        for row, value in zip(rows, standing, strict=True):
            pairs.setdefault((trials.backbone[row], trials.strategy[row]), [0.5, 0.5]).append(float(value))
            strategies.setdefault(trials.strategy[row], [0.5, 0.5]).append(float(value))
            pair = (trials.backbone[row], trials.strategy[row])
            settings.setdefault(Candidate(*pair, trials.hyperparameters[row]).id, (pair, []))[1].append(float(value))
    means = {pair: float(np.mean(values)) for pair, values in pairs.items()}
    own = {id_: float(np.mean([means[pair], means[pair], *values])) for id_, (pair, values) in settings.items()}
    return means, {name: float(np.mean(values)) for name, values in strategies.items()}, own


def _wins(known: Experience) -> Counter[tuple[str, str]]:
    """On how many tasks each backbone × strategy had the best trial."""
    trials = known.trials
    best = (rows[trials.score[rows].argmax()] for rows in (np.flatnonzero(trials.task == task) for task in set(trials.task)))
    return Counter((trials.backbone[row], trials.strategy[row]) for row in best)


def _nearest(left: LeftOut) -> dict[tuple[str, str], float]:
    """How each backbone × strategy stood, at its best, in the task most like this one of those that tried it.

    Alike: by all meta-features that both profiles have, as logarithms, in standard deviations of the known tasks.
    """
    trials, own = left.known.trials, left.profile.meta
    tasks = sorted(set(trials.task))
    names = sorted(name for name in own if all(name in left.known.profiles[task].meta for task in tasks))
    table = np.array([[left.known.profiles[task].meta[name] for name in names] for task in tasks])
    here = np.array([own[name] for name in names])
    table, here = (np.sign(each) * np.log1p(np.abs(each)) for each in (table, here))
    apart = (((table - here) / np.maximum(table.std(axis=0), 1e-9)) ** 2).sum(axis=1)
    found: dict[tuple[str, str], float] = {}
    for place in np.argsort(apart, kind="stable"):
        rows = np.flatnonzero(trials.task == tasks[place])
        standing = trials.score[rows].argsort().argsort() / max(len(rows) - 1, 1)
        best: dict[tuple[str, str], float] = {}
        for row, value in zip(rows, standing.tolist(), strict=True):
            pair = (trials.backbone[row], trials.strategy[row])
            best[pair] = max(value, best.get(pair, 0.0))
        found = best | found
    return found


def _seconds(result: Result, left: LeftOut) -> None:
    trials = left.trials
    predicted, _, _ = left.costs.predict(left.candidates, float(trials.images[0]), left.known.backbones)
    ratio = np.log(trials.seconds * trials.speed / predicted)  # predicted for a machine of speed 1
    result.factors += np.exp(np.abs(ratio[np.isfinite(ratio)])).tolist()


def figures(result: Result, experience: Experience) -> dict[str, float]:
    """One number each."""
    ours, average = result.ways["ours"], result.ways["best on average"]
    found = {
        "regret_first": np.mean(ours.first),
        "regret_best_of_three": np.mean(ours.best_of_three),
        "regret_first_hindsight": np.mean(ours.first_hindsight),
        "regret_best_of_three_hindsight": np.mean(ours.best_of_three_hindsight),
        "everything_regret_hindsight": np.mean(result.ways["all of them"].first_hindsight),
        "best_on_average_regret_first_hindsight": np.mean(average.first_hindsight),
        "regret_first_stage1": np.mean(result.ways["ours, metadata alone"].first),
        "ndcg10": np.mean(ours.ndcg10),
        "weighted_kendall": np.mean(ours.kendall),
        "best_on_average_weighted_kendall": np.mean(average.kendall),
        "coverage90": np.mean(result.covered),
        "seconds_factor_median": np.median(result.factors),
        "advise_seconds": np.median(result.advise_seconds),
        "tasks": len(result.tasks),
        "source_datasets": len(set(experience.trials.source_dataset)),
        "trials": len(experience.trials),
    }
    for way, tally in result.ways.items():
        if way not in ("ours", "ours, metadata alone", "all of them"):
            name = way.removesuffix(" + best strategy").removesuffix(" by profile").replace("-", "_").replace(" ", "_")
            found[f"{name}_regret_first"] = np.mean(tally.first)
            found[f"{name}_regret_best_of_three"] = np.mean(tally.best_of_three)
    return {name: round(float(value), 4) for name, value in found.items()}


def known_history(asked: str = ACCURACY) -> tuple[Experience, np.ndarray]:
    """All trials on tasks with this objective, and the test accuracy of each candidate, the mean of its seeds (NaN: not to be
    judged), which no ranker is shown: under attack where that is what the tasks ask for.

    Few images beside images of other classes are a question of their own: such tasks are judged where `FEW_SHOT` is asked, and
    nothing else is then.
    """
    objective = ACCURACY if asked == FEW_SHOT else asked
    figure = "robust_accuracy" if objective == ROBUSTNESS else "accuracy"
    with open_history() as history:
        experience = Experience.of(history, objective=objective)
        judged = history.find(status="finished", limit=-1)[1]
    values = completed([one.candidate.strategy for one in judged], [one.candidate.hyperparameters for one in judged])
    told: dict[tuple[str, str], list[float]] = defaultdict(list)  # of all seeds
    for one, own in zip(judged, values, strict=True):
        told[one.task, replace(one.candidate, hyperparameters=own).id].append(one.test.get(figure, np.nan))
    trials, strategies = experience.trials, registry.strategies()
    facts = zip(trials.task, trials.backbone, trials.strategy, trials.hyperparameters, strict=True)
    test = np.array([np.mean(told[task, Candidate(*candidate).id]) for task, *candidate in facts])
    beside = [task for task, name in zip(trials.task, trials.strategy, strict=True) if "source" in strategies[name].needs]
    return experience, np.where(np.isin(trials.task, beside) == (asked == FEW_SHOT), test, np.nan)


def main() -> None:
    parser = arguments(__doc__, "one seed instead of three")
    parser.add_argument("--objective", choices=(*REQUIRED, FEW_SHOT), default=ACCURACY, help="what the tasks ask for")
    options = parser.parse_args()
    experience, test = known_history(options.objective)
    seeds = (0,) if options.quick else (0, 1, 2)
    result = leave_one_source_out(experience, registry.strategies(), test=test, seeds=seeds, say=partial(print, flush=True))
    found = figures(result, experience)
    ways = sorted(result.ways.items(), key=lambda pair: float(np.mean(pair[1].first)))
    columns = ("first", "best_of_three", "first_hindsight", "best_of_three_hindsight")
    rows = [
        (
            way,
            *(f"{np.mean(getattr(tally, column)):.2f}" for column in columns),
            f"{np.mean(tally.ndcg10):.3f}",
            f"{np.mean(tally.kendall):.3f}",
        )
        for way, tally in ways
    ]
    heads = ("way", "first", "best of three", "first, hindsight", "best of three, hindsight", "NDCG@10", "weighted tau")
    table("Regret on source datasets left out, points of test accuracy", heads, rows)
    table("Figures", ("figure", "value"), [(name, f"{value:g}") for name, value in found.items()])
    write(options.json, found)


if __name__ == "__main__":
    main()
