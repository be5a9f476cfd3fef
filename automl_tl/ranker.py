"""How well each candidate will do: learnt from the history, ordered and with intervals.

Two LightGBM models of the same numbers, both blind to the task that is judged: a regression of the validation score and a
LambdaRank of the standing within a task (Burges, 2010). Their blend is fitted on predictions for source datasets that were left
out, and so are the intervals (split-conformal over the left-out residuals; Vovk et al., 2018).
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .cost import CostModel
from .encoding import Column, Encoder, Experience, Record, Rows, rows_of
from .explain import Picture, explain
from .home import write_text
from .records import Backbone, Candidate, Profile, Ranked, Ranking
from .space import defaults

if TYPE_CHECKING:
    from .strategy import Strategy

VERSION = 1
"""Of the saved form and of the learning: a ranker of another version is learnt anew."""
STAGES = (1, 2)
FEWEST_TASKS, FEWEST_TRIALS = 2, 20
FOLDS = 6
MOST_LEFT_OUT, MOST_ROWS = 40_000, 200_000
"""Trials for the left-out predictions and for the models; a larger history is sampled."""
LEVELS = 31
"""Of the standing that LambdaRank is taught."""
COVERAGE = 0.9
UNKNOWN_WIDER = 2.0
"""An interval is so many times as wide for a strategy that was never seen."""
EXPLAINED, BACKGROUND = 20, 200
_ROUNDS = 160
_LEARNING = {
    "learning_rate": 0.05,
    "num_leaves": 12,
    "feature_fraction": 0.5,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "lambda_l2": 2.0,
    "cat_smooth": 5.0,
    "min_data_per_group": 10,
    "max_cat_to_onehot": 8,
    "deterministic": True,
    "force_row_wise": True,
    "num_threads": 2,
    "verbosity": -1,
}


@dataclass(frozen=True, eq=False)
class StageModel:
    """What is known at one stage, learnt."""

    columns: tuple[int, ...]
    """Positions among the encoder's: a first ranking has no transferability."""
    expected: Any
    """LightGBM booster: logit of the score."""
    order: Any
    """LightGBM booster: LambdaRank."""
    spread: float
    """Standard deviation of what `order` says within a task."""
    blend: tuple[float, float]
    """Weights of the two within a task."""
    low: float
    """Residual (logit) that all but 5 % of the left-out trials lie above."""
    high: float

    def predict(self, table: np.ndarray, task: np.ndarray) -> np.ndarray:
        """Logits of the scores of encoded candidates; `task` says which compete with each other."""
        seen = np.ascontiguousarray(table[:, self.columns])
        return _blended(self.expected.predict(seen), self.order.predict(seen) / self.spread, task, self.blend)

    def contributions(self, table: np.ndarray) -> np.ndarray:
        """How much each column moves the logit, n × the encoder's columns: LightGBM's own, blended as the prediction is."""
        seen = np.ascontiguousarray(table[:, self.columns])
        parts = [booster.predict(seen, pred_contrib=True)[:, :-1] for booster in (self.expected, self.order)]
        result = np.zeros(table.shape)
        result[:, self.columns] = self.blend[0] * parts[0] + self.blend[1] / self.spread * parts[1]
        return result


@dataclass(frozen=True, eq=False)
class Ranker:
    """Learnt advice. It can be saved as text: LightGBM's own format and JSON, no pickle."""

    encoder: Encoder
    record: Record
    stages: Mapping[int, StageModel]
    trials: int
    tasks: int
    digest: str
    """Of the history that it was learnt from."""
    seed: int

    @property
    def basis(self) -> str:
        return f"{self.trials} trials over {self.tasks} tasks"

    def save(self, folder: Path) -> None:
        """Write `folder` whole or not at all."""
        partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        stages = {}
        for number, stage in self.stages.items():
            (partial / f"stage{number}-expected.txt").write_text(stage.expected.model_to_string(), encoding="utf-8")
            (partial / f"stage{number}-order.txt").write_text(stage.order.model_to_string(), encoding="utf-8")
            stages[number] = {name: getattr(stage, name) for name in ("columns", "spread", "blend", "low", "high")}
        facts = {
            "version": VERSION,
            "digest": self.digest,
            "seed": self.seed,
            "trials": self.trials,
            "tasks": self.tasks,
            "columns": [asdict(column) for column in self.encoder.columns],
            "options": self.encoder.options,
            "stages": stages,
            "record": _record_facts(self.record),
        }
        write_text(partial / "ranker.json", json.dumps(facts))
        shutil.rmtree(folder, ignore_errors=True)
        partial.replace(folder)

    @classmethod
    def load(cls, folder: Path) -> Ranker:
        """Read what `save` wrote; it predicts the very same."""
        import lightgbm

        facts = json.loads((folder / "ranker.json").read_text(encoding="utf-8"))
        columns = tuple(Column(**column) for column in facts["columns"])
        options = {name: tuple(texts) for name, texts in facts["options"].items()}
        stages = {}
        for number, stage in facts["stages"].items():
            models = [lightgbm.Booster(model_file=folder / f"stage{number}-{kind}.txt") for kind in ("expected", "order")]
            blend = (stage["blend"][0], stage["blend"][1])
            stages[int(number)] = StageModel(
                tuple(stage["columns"]), models[0], models[1], stage["spread"], blend, stage["low"], stage["high"]
            )
        return cls(
            Encoder(columns, options),
            _record_of(facts["record"]),
            stages,
            facts["trials"],
            facts["tasks"],
            facts["digest"],
            facts["seed"],
        )


def learn(experience: Experience, *, seed: int = 0) -> Ranker | None:
    """Learn to rank from `experience`; None where it is too small to learn from."""
    trials = experience.trials
    tasks = len(set(trials.task))
    if tasks < FEWEST_TASKS or len(trials) < FEWEST_TRIALS:
        return None
    total = len(trials)
    if total > MOST_ROWS:
        experience = experience.take(_sample(total, MOST_ROWS, seed))
    rows, lessons = rows_of(experience), _lessons(experience)
    encoder = Encoder.of(rows)
    record = Record.of(rows, lessons.standing, lessons.task_groups, seed=seed)
    table = encoder.encode(rows, record.standings(rows, lessons.task_groups))
    left_out = _leave_out(experience, encoder, table, seed)
    stages = {}
    for stage in STAGES:
        columns = _columns(encoder, stage)
        models = _fit(table, lessons, encoder, columns, seed)
        expected, order, task, logit, weight = left_out[stage]
        blend = _fit_blend(expected, order, task, logit, weight)
        low, high = _conformal(logit - _blended(expected, order, task, blend), weight)
        stages[stage] = StageModel(columns, models[0], models[1], models[2], blend, low, high)
    return Ranker(encoder, record, stages, total, tasks, experience.digest, seed)


@dataclass(frozen=True, eq=False)
class _Lessons:
    """What is to be predicted of each trial."""

    task: np.ndarray
    """Codes 0…tasks-1."""
    group: np.ndarray
    """Codes of what is left out together: source datasets, or tasks where there is one source alone."""
    task_groups: list[str]
    """The group of each task."""
    logit: np.ndarray
    level: np.ndarray
    """0…LEVELS-1: standing by score, from the task's 10 % point to its best."""
    standing: np.ndarray
    """-½…½: standing by rank."""
    weight: np.ndarray
    """A task counts the same however often it was tried."""

    def take(self, rows: np.ndarray) -> _Lessons:
        columns = ("task", "group", "logit", "level", "standing", "weight")
        return _Lessons(task_groups=self.task_groups, **{name: getattr(self, name)[rows] for name in columns})


def _lessons(experience: Experience) -> _Lessons:
    trials = experience.trials
    names, task = np.unique(trials.task.astype(str), return_inverse=True)
    source = np.empty(len(names), dtype=object)
    source[task] = trials.source_dataset
    by_source = len(set(source)) > 1
    task_groups = [str(group) for group in (source if by_source else names)]
    group = np.unique(task_groups, return_inverse=True)[1][task]
    level, standing = np.zeros(len(task), dtype=np.int64), np.zeros(len(task))
    order = np.argsort(task, kind="stable")
    for own in np.split(order, np.searchsorted(task[order], np.arange(1, len(names)))):
        scores = trials.score[own]
        floor, best = np.quantile(scores, 0.1), scores.max()
        level[own] = np.rint(np.clip((scores - floor) / max(best - floor, 1e-9), 0, 1) * (LEVELS - 1))
        ordered = np.sort(scores)
        below, upto = np.searchsorted(ordered, scores, "left"), np.searchsorted(ordered, scores, "right")
        standing[own] = (below + upto) / (2 * len(scores)) - 0.5
    weight = len(task) / len(names) / np.bincount(task)[task]
    return _Lessons(task, group, task_groups, _logit(trials.score), level, standing, weight)


def _columns(encoder: Encoder, stage: int) -> tuple[int, ...]:
    hidden = encoder.find("transferability") if stage == 1 else []
    return tuple(index for index in range(len(encoder.columns)) if index not in hidden)


def _fit(
    table: np.ndarray, lessons: _Lessons, encoder: Encoder, columns: tuple[int, ...], seed: int
) -> tuple[Any, Any, float]:
    """The regression, the LambdaRank, and the spread of the latter within a task."""
    import lightgbm

    order = np.argsort(lessons.task, kind="stable")  # LambdaRank wants the trials of a task together
    data, lessons = np.ascontiguousarray(table[order][:, columns]), lessons.take(order)
    options = [position for position, index in enumerate(columns) if encoder.columns[index].form == "option"]
    leaf = int(np.clip(len(data) / 60, 3, 40))
    learning = {
        **_LEARNING,
        "min_data_in_leaf": leaf,
        "seed": seed,
        "monotone_constraints": [_direction(encoder.columns[index]) for index in columns],
    }

    def train(target: np.ndarray, objective: dict[str, Any], weight: np.ndarray | None, group: np.ndarray | None) -> Any:
        lesson = lightgbm.Dataset(data, target, weight=weight, group=group, categorical_feature=options)
        return lightgbm.train(learning | objective, lesson, num_boost_round=_ROUNDS)

    expected = train(lessons.logit, {"objective": "regression"}, lessons.weight, None)
    ranking = {"objective": "lambdarank", "label_gain": list(range(LEVELS)), "lambdarank_truncation_level": 10}
    ordering = train(lessons.level, ranking, None, _group_sizes(lessons.task))
    spread = float(_centred(ordering.predict(data), lessons.task).std())
    return expected, ordering, max(spread, 1e-6)


def _direction(column: Column) -> int:
    """What is known without data: more of these is never worse, nor better."""
    if column.about in ("transferability", "distance"):
        sign = -1 if column.form == "place" or (column.about == "distance" and column.form == "value") else 1
        return sign
    return 1 if column.about == "record" else 0


def _group_sizes(task: np.ndarray) -> np.ndarray:
    """Trials of each task, in pieces of at most 1,000: LambdaRank compares all pairs, and takes no more than 10,000."""
    sizes: list[int] = []
    for size in np.bincount(task):
        sizes += [1000] * (size // 1000) + [size % 1000] * (size % 1000 > 0)
    return np.array(sizes)


_LeftOut = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _leave_out(experience: Experience, encoder: Encoder, table: np.ndarray, seed: int) -> dict[int, _LeftOut]:
    """Predictions for groups that the models have not seen: expected logit, order, and of each trial its task, logit, weight."""
    kept = _sample(len(experience.trials), MOST_LEFT_OUT, seed)
    experience, table = experience.take(kept), table[kept].copy()
    rows, lessons = rows_of(experience), _lessons(experience)
    groups = np.random.default_rng(seed).permutation(lessons.group.max() + 1)
    folds = np.array_split(groups, min(FOLDS, len(groups)))
    records = encoder.find("record")
    found = {stage: (np.zeros(len(kept)), np.zeros(len(kept))) for stage in STAGES}
    for fold in folds:
        out = np.isin(lessons.group, fold)
        inside, outside = np.flatnonzero(~out), np.flatnonzero(out)
        training = experience.take(inside)
        known, own = rows_of(training), _lessons(training)
        record = Record.of(known, own.standing, own.task_groups, seed=seed)
        table[:, records] = record.standings(rows, lessons.task_groups)
        for stage in STAGES:
            columns = _columns(encoder, stage)
            expected, order, spread = _fit(table[inside], own, encoder, columns, seed)
            judged = np.ascontiguousarray(table[outside][:, columns])
            found[stage][0][outside] = expected.predict(judged)
            found[stage][1][outside] = order.predict(judged) / spread
    return {stage: (*pair, lessons.task, lessons.logit, lessons.weight) for stage, pair in found.items()}


def _fit_blend(
    expected: np.ndarray, order: np.ndarray, task: np.ndarray, logit: np.ndarray, weight: np.ndarray
) -> tuple[float, float]:
    """Weights of both models within a task, at least 0, by least squares on left-out trials; a little shrunk to (1, 0)."""
    from scipy.optimize import nnls

    scale = np.sqrt(weight)
    parts = np.stack([_centred(expected, task), _centred(order, task)], axis=1) * scale[:, None]
    prior = np.sqrt(0.01 * len(task)) * np.diag(parts.std(axis=0) + 1e-9)
    target = np.concatenate([_centred(logit, task) * scale, prior @ np.array([1.0, 0.0])])
    weights, _ = nnls(np.concatenate([parts, prior]), target)
    return float(weights[0]), float(weights[1])


def _blended(expected: np.ndarray, order: np.ndarray, task: np.ndarray, blend: tuple[float, float]) -> np.ndarray:
    """The level of a task is the regression's; within it both speak."""
    centred = _centred(expected, task)
    return np.asarray(expected - centred + blend[0] * centred + blend[1] * _centred(order, task))


def _conformal(residual: np.ndarray, weight: np.ndarray) -> tuple[float, float]:
    """Residuals that bound the middle 90 %, tasks weighing the same, with the correction for a finite number of trials."""
    tail = (1 - COVERAGE) / 2
    order = np.argsort(residual)
    share = np.cumsum(weight[order]) / (weight.sum() + weight.max())
    low = residual[order][max(int(np.searchsorted(share, tail)) - 1, 0)]
    high = residual[order][min(int(np.searchsorted(share, 1 - tail)), len(order) - 1)]
    return float(low), float(high)


def _centred(values: np.ndarray, task: np.ndarray) -> np.ndarray:
    sums, counts = np.bincount(task, values), np.bincount(task)
    return np.asarray(values - (sums / np.maximum(counts, 1))[task])


def _logit(score: np.ndarray) -> np.ndarray:
    kept = np.clip(score, 0.005, 0.995)
    return np.asarray(np.log(kept / (1 - kept)))


def _sigmoid(logit: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-logit)))


def _sample(total: int, most: int, seed: int) -> np.ndarray:
    if total <= most:
        return np.arange(total)
    return np.sort(np.random.default_rng(seed).choice(total, most, replace=False))


def ranker_for(experience: Experience, cache: Path, *, seed: int = 0) -> Ranker | None:
    """The ranker of this experience, learnt once and then read from `cache`, whoever asks first."""
    from filelock import FileLock

    if len(set(experience.trials.task)) < FEWEST_TASKS or len(experience.trials) < FEWEST_TRIALS:
        return None
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / f"{experience.digest[:32]}-{seed}-v{VERSION}"
    with FileLock(cache / f"{folder.name}.lock"):
        if (folder / "ranker.json").exists():
            return Ranker.load(folder)
        ranker = learn(experience, seed=seed)
        assert ranker is not None
        ranker.save(folder)
        return ranker


def rank(
    ranker: Ranker | None,
    candidates: Sequence[Candidate],
    profile: Profile,
    backbones: Mapping[str, Backbone],
    cost_model: CostModel,
    *,
    strategies: Mapping[str, type[Strategy]],
    stage: int,
) -> Ranking:
    """Candidates, best first. Without a ranker: by transferability, or by what else is known, as the basis says.

    Equal predictions are ordered by predicted seconds. The first `EXPLAINED` come with reasons.
    """
    start = time.perf_counter()
    seconds, memory = cost_model.predict(candidates, profile.meta.get("images", 1000.0), backbones)
    if ranker is None:
        basis, score = _without_history(candidates, profile, backbones, strategies, seconds)
        low, high = np.zeros(len(score)), np.ones(len(score))
        order = np.lexsort((seconds, -score))
        reasons: list[tuple[str, ...]] = []
    else:
        basis = ranker.basis
        rows = _rows(candidates, profile, backbones)
        table = ranker.encoder.encode(rows, ranker.record.standings(rows))
        model = ranker.stages[stage]
        logit = model.predict(table, rows.task)
        (strategy,) = ranker.encoder.find("strategy")
        wider = np.where(np.isnan(table[:, strategy]), UNKNOWN_WIDER, 1.0)
        score, low, high = _sigmoid(logit), _sigmoid(logit + wider * model.low), _sigmoid(logit + wider * model.high)
        low, high = np.where(low < 0.005, 0.0, low), np.where(high > 0.99, 1.0, high)
        order = np.lexsort((seconds, -logit))
        reasons = _reasons(ranker.encoder, model, table, order, candidates, profile, backbones)
    columns = (score, np.minimum(low, score), np.maximum(high, score), seconds, memory)
    numbers = np.stack(columns, axis=1)[order].tolist()
    told = reasons + [()] * (len(order) - len(reasons))
    items = tuple(
        Ranked(candidates[index], *row, why) for index, row, why in zip(order.tolist(), numbers, told, strict=True)
    )
    return Ranking(items, basis, stage, time.perf_counter() - start)


def _rows(candidates: Sequence[Candidate], profile: Profile, backbones: Mapping[str, Backbone]) -> Rows:
    names = {name: code for code, name in enumerate(dict.fromkeys(candidate.backbone for candidate in candidates))}
    return Rows(
        [profile],
        np.zeros(len(candidates), dtype=np.int64),
        [backbones[name] for name in names],
        np.array([names[candidate.backbone] for candidate in candidates], dtype=np.int64),
        [candidate.strategy for candidate in candidates],
        [candidate.hyperparameters for candidate in candidates],
    )


def _reasons(
    encoder: Encoder,
    model: StageModel,
    table: np.ndarray,
    order: np.ndarray,
    candidates: Sequence[Candidate],
    profile: Profile,
    backbones: Mapping[str, Backbone],
) -> list[tuple[str, ...]]:
    """Why the first ones are first: what moves their prediction away from that of the other candidates."""
    top = order[:EXPLAINED]
    background = order[np.linspace(0, len(order) - 1, min(BACKGROUND, len(order))).astype(int)]
    relative = model.contributions(table[top]) - model.contributions(table[background]).mean(axis=0)
    reasons = []
    for row, index in enumerate(top):
        candidate = candidates[index]
        picture = Picture(candidate, backbones[candidate.backbone], profile, encoder.columns, relative[row], table[index])
        reasons.append(explain(picture))
    return reasons


def _without_history(
    candidates: Sequence[Candidate],
    profile: Profile,
    backbones: Mapping[str, Backbone],
    strategies: Mapping[str, type[Strategy]],
    seconds: np.ndarray,
) -> tuple[str, np.ndarray]:
    """What the order rests on, and a standing of each candidate between 0 and 1 (no accuracy: that would need a history).

    Backbones stand by their mean rank over the transferability scores, else over the distances of their sources, else by
    size; of one backbone, defaults stand before draws and the cheaper before the dearer.
    """
    names = list(dict.fromkeys(candidate.backbone for candidate in candidates))
    if any(name in profile.transferability for name in names):
        basis = "transferability scores only: there is no history to learn from"
        merit = _mean_rank([profile.transferability.get(name, {}) for name in names])
    elif any(backbones[name].source_dataset in profile.distances for name in names):
        basis = "closeness of the sources only: there is no history to learn from"
        merit = 1 - _mean_rank([profile.distances.get(backbones[name].source_dataset, {}) for name in names])
    else:
        basis = "size of the networks only: there is no history to learn from"
        merit = _mean_rank([{"params": float(backbones[name].params)} for name in names])
    standing = dict(zip(names, merit, strict=True))
    plain = {name: defaults(strategy.space) for name, strategy in strategies.items()}
    score = np.array([standing[candidate.backbone] for candidate in candidates])
    drawn = np.array([candidate.hyperparameters != plain.get(candidate.strategy) for candidate in candidates])
    cost = np.argsort(np.argsort(seconds, kind="stable"), kind="stable") / len(candidates)
    within = (drawn + cost) / 2  # below 1
    return basis, np.asarray((score * len(names) + 1 - within) / (len(names) + 1))


def _mean_rank(found: Sequence[Mapping[str, float]]) -> np.ndarray:
    """0 (worst) … 1 (best): mean over the scores of the share of the others that one beats; 0 for one without scores."""
    ranks: list[list[float]] = [[] for _ in found]
    for metric in sorted({name for scores in found for name in scores}):
        values = np.sort([scores[metric] for scores in found if metric in scores])
        for own, scores in zip(ranks, found, strict=True):
            if metric in scores:
                own.append(float(np.searchsorted(values, scores[metric])) / max(len(values) - 1, 1))
    return np.array([float(np.mean(own)) if own else 0.0 for own in ranks])


def shortlist(ranking: Ranking, backbones: Mapping[str, Backbone], *, size: int = 6) -> list[str]:
    """The backbones worth a look, best first: half of them simply the best, the others the best of further source datasets.

    What metadata cannot say is mostly how well a source suits the images; looking at several is the remedy.
    """
    order = list(dict.fromkeys(item.candidate.backbone for item in ranking.items))
    chosen = order[: (size + 1) // 2]
    sources = {backbones[name].source_dataset for name in chosen}
    others: list[str] = []
    for name in order[len(chosen) :]:
        if backbones[name].source_dataset not in sources:
            sources.add(backbones[name].source_dataset)
            others.append(name)
    rest = [name for name in order if name not in chosen and name not in others]
    chosen = [*chosen, *others, *rest][:size]
    return [name for name in order if name in chosen]


def _record_facts(record: Record) -> dict[str, Any]:
    """`Record` as JSON; sums and counts as (position, value) pairs of the cells that are not empty."""
    filled = {kind: np.flatnonzero(counts) for kind, counts in record.counts.items()}
    return {
        "source_datasets": record.source_datasets,
        "grid": {name: values.tolist() for name, values in record.grid.items()},
        "coordinates": record.coordinates.tolist(),
        "width": record.width,
        "keys": {kind: list(keys) for kind, keys in record.keys.items()},
        "cells": {kind: cells.tolist() for kind, cells in filled.items()},
        "sums": {kind: record.sums[kind].ravel()[cells].tolist() for kind, cells in filled.items()},
        "counts": {kind: record.counts[kind].ravel()[cells].tolist() for kind, cells in filled.items()},
    }


def _record_of(facts: dict[str, Any]) -> Record:
    tables: dict[str, dict[str, np.ndarray]] = {"sums": {}, "counts": {}}
    for name, kinds in tables.items():
        for kind, keys in facts["keys"].items():
            kinds[kind] = np.zeros((len(facts["source_datasets"]), len(keys)))
            kinds[kind].ravel()[facts["cells"][kind]] = facts[name][kind]
    return Record(
        tuple(facts["source_datasets"]),
        {name: np.array(values) for name, values in facts["grid"].items()},
        np.array(facts["coordinates"]).reshape(len(facts["source_datasets"]), len(facts["grid"])),
        facts["width"],
        {kind: {key: position for position, key in enumerate(keys)} for kind, keys in facts["keys"].items()},
        tables["sums"],
        tables["counts"],
    )
