"""How well candidates do, learnt from the history.

Three LightGBM models of the same numbers: a regression of how high scores are on a task as a whole, and, within a task, a
regression of a candidate's distance from the mean and a LambdaRank (Burges, 2010). The regression within a task begins at a
straight line in one transferability score, and its trees learn what the line misses: trees cannot go beyond the leads that they
saw, and a network may be further ahead on the images at hand than any was before. How far apart the blend of the two puts
candidates is fitted on source datasets that were left out, and so are the intervals (conformal, over the left-out residuals;
Vovk et al., 2018).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .encoding import Column, Encoder
from .experience import Experience, rows_of
from .record import Record
from .threads import processors, spread

STAGES = (1, 2)
FOLDS = 6
MOST_LEFT_OUT, MOST_ROWS = 15_000, 60_000
"""Trials for the left-out predictions and for the models; a larger history is sampled."""
FEWEST_SAMPLED = 200
"""Tasks in a sample, where there are so many: of larger ones only a part is taken."""
LEVEL_SAMPLE = 2000
"""Candidates that the level of a task is averaged over."""
MANY = 20_000
"""Rows from which on a second thread pays."""
LEVELS = 31
"""Of the standing that LambdaRank is taught."""
COVERAGE = 0.9
ORDER_SAY = 0.5
"""Of the LambdaRank, to 1 of the regression: alone it does better at the top of large tables and worse on small ones."""
_ROUNDS = 120
_LEARNING = {
    "learning_rate": 0.05,
    "num_leaves": 12,
    "max_bin": 63,
    "feature_fraction": 0.5,
    "bagging_fraction": 0.8,
    "lambda_l2": 2.0,
    "cat_smooth": 5.0,
    "min_data_per_group": 10,
    "max_cat_to_onehot": 8,
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
}


def predict_by(booster: Any, data: np.ndarray) -> np.ndarray:
    """What a LightGBM booster says of each row; the same however many threads ask."""
    return np.asarray(booster.predict(data, num_threads=1 if len(data) < MANY else processors()))


@dataclass(frozen=True)
class Line:
    """A straight line in one column, within a task."""

    column: int
    """Position among the stage's."""
    slope: float
    share: bool
    """Whether the column holds shares, 0–1, which are taken as logits."""

    def values(self, data: np.ndarray) -> np.ndarray:
        """Of the candidates of one task, n: 0 is their mean, and where the column is not known."""
        return self.slope * _line_values(data[:, self.column], np.zeros(len(data), dtype=np.int64), share=self.share)


@dataclass(frozen=True, eq=False)
class Boosters:
    """The three models, each a LightGBM booster."""

    level: Any
    """Logit of the score; averaged over the candidates of a task."""
    effect: Any
    """Logit less the task's mean, and less the line."""
    order: Any
    """LambdaRank."""
    effect_spread: float
    """Standard deviation of what `effect` and the line say within a task of their history."""
    order_spread: float
    line: Line | None
    """None: no score is known at this stage, or none tells."""

    def predict_level(self, data: np.ndarray) -> np.ndarray:
        return predict_by(self.level, data)

    def predict_blend(self, data: np.ndarray) -> np.ndarray:
        """Of the candidates of one task: their order is told by `effect` and `order` together, how far apart they are by
        `effect`, as what LambdaRank adds up is no distance. Only differences mean something."""
        effect, order = (predict_by(booster, data) for booster in (self.effect, self.order))
        effect = effect if self.line is None else effect + self.line.values(data)
        both = effect / self.effect_spread + ORDER_SAY * order / self.order_spread
        _, place, times = np.unique(both, return_inverse=True, return_counts=True)
        steps = np.add.reduceat(np.sort(effect), np.cumsum(times) - times) / times  # what is held for equal stays so
        return np.asarray(steps[place] / self.effect_spread)

    def contributions(self, data: np.ndarray) -> np.ndarray:
        """Of each column to the blend."""
        effect, order = (booster.predict(data, pred_contrib=True)[:, :-1] for booster in (self.effect, self.order))
        if self.line is not None:
            effect[:, self.line.column] += self.line.values(data)
        return np.asarray(effect / self.effect_spread + ORDER_SAY * order / self.order_spread)


@dataclass(frozen=True, eq=False)
class StageModel:
    """What is known at one stage, learnt."""

    columns: tuple[int, ...]
    """Positions among the encoder's: a first ranking has no transferability."""
    boosters: Boosters
    scale: float
    """Logits to a unit of the blend."""
    low: float
    """Residual (logit) that all but 5 % of the left-out trials lie above."""
    high: float

    def predict(self, table: np.ndarray) -> np.ndarray:
        """Logits of the scores of encoded candidates for one task."""
        data = np.ascontiguousarray(table[:, self.columns])
        some = np.linspace(0, len(data) - 1, min(LEVEL_SAMPLE, len(data))).astype(int)
        blend = self.boosters.predict_blend(data)
        return np.asarray(self.boosters.predict_level(data[some]).mean() + self.scale * (blend - blend.mean()))

    def contributions(self, table: np.ndarray) -> np.ndarray:
        """How much each column moves the logit within a task, n × the encoder's columns: LightGBM's own, blended likewise."""
        result = np.zeros(table.shape)
        result[:, self.columns] = self.scale * self.boosters.contributions(np.ascontiguousarray(table[:, self.columns]))
        return result


@dataclass(frozen=True, eq=False)
class Learnt:
    """Everything a ranking needs."""

    encoder: Encoder
    record: Record
    stages: Mapping[int, StageModel]


def learn_stages(experience: Experience, *, seed: int) -> Learnt:
    """Learn both stages; of a history that is larger than `MOST_ROWS` from a sample."""
    experience = experience.take(_sample(experience.trials.task, MOST_ROWS, seed))
    rows, lessons = rows_of(experience), _lessons(experience)
    encoder = Encoder.of(rows)
    record = Record.of(rows, lessons.standing, lessons.task_groups, seed=seed)
    table = encoder.encode(rows, record.standings(rows, lessons.task_groups))
    left_out = _leave_out(experience, encoder, table, seed)

    def learn(stage: int) -> StageModel:
        out, columns = left_out[stage], _columns(encoder, stage)
        scale = _fit_scale(out)
        low, high = _conformal(out.logit - out.level - scale * out.blend, out.weight, len(np.unique(out.task)))
        return StageModel(columns, _fit(table, lessons, encoder, columns, seed), scale, low, high)

    stages = dict(zip(STAGES, spread(learn, STAGES), strict=True))
    return Learnt(encoder, record, stages)


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


def _fit(table: np.ndarray, lessons: _Lessons, encoder: Encoder, columns: tuple[int, ...], seed: int) -> Boosters:
    import lightgbm

    order = np.argsort(lessons.task, kind="stable")  # LambdaRank wants the trials of a task together
    data, lessons = np.ascontiguousarray(table[order][:, columns]), lessons.take(order)
    options = [position for position, index in enumerate(columns) if encoder.columns[index].form == "option"]
    leaf = int(np.clip(len(data) / 60, 3, 40))
    learning = {
        **_LEARNING,
        "bagging_freq": int(len(data) > 1),  # four fifths of one trial are none
        "min_data_in_leaf": leaf,
        "num_threads": 1 if len(data) < MANY else 2,  # fixed, not the machine's: other sums, other trees
        "seed": seed,
        "monotone_constraints": [_direction(encoder.columns[index]) for index in columns],
    }

    def train(target: np.ndarray, objective: dict[str, Any], weight: np.ndarray | None, group: np.ndarray | None) -> Any:
        lesson = lightgbm.Dataset(data, target, weight=weight, group=group, categorical_feature=options)
        return lightgbm.train(learning | objective, lesson, num_boost_round=_ROUNDS)

    level = train(lessons.logit, {"objective": "regression"}, lessons.weight, None)
    line, along = _best_line(data, lessons, [encoder.columns[index] for index in columns])
    effect = train(_centred(lessons.logit, lessons.task) - along, {"objective": "regression"}, lessons.weight, None)
    ranking = {"objective": "lambdarank", "label_gain": list(range(LEVELS)), "lambdarank_truncation_level": 10}
    ordering = train(lessons.level, ranking, None, _group_sizes(lessons.task))
    said = (predict_by(effect, data) + along, predict_by(ordering, data))
    spreads = [max(float(_centred(values, lessons.task).std()), 1e-6) for values in said]
    return Boosters(level, effect, ordering, spreads[0], spreads[1], line)


def _best_line(data: np.ndarray, lessons: _Lessons, columns: Sequence[Column]) -> tuple[Line | None, np.ndarray]:
    """By least squares in the transferability score that leaves least over, and what it says of each row; none that falls."""
    best: Line | None = None
    along, gain = np.zeros(len(data)), 0.0
    logit = _centred(lessons.logit, lessons.task)
    for position, column in enumerate(columns):
        if column.about != "transferability" or column.form != "value":
            continue
        raw = data[:, position]
        known = raw[np.isfinite(raw)]
        share = bool(len(known) and known.min() >= 0 and known.max() <= 1)
        values = _line_values(raw, lessons.task, share=share)
        both, own = float((lessons.weight * values * logit).sum()), float((lessons.weight * values**2).sum())
        if own > 0 and both > 0 and both**2 / own > gain:
            gain, best = both**2 / own, Line(position, both / own, share)
            along = best.slope * values
    return best, along


def _line_values(raw: np.ndarray, task: np.ndarray, *, share: bool) -> np.ndarray:
    """`raw`, or its logit, less the mean of the task's known ones; 0 where it is not known."""
    known = np.isfinite(raw)
    values = np.where(known, _logit(raw) if share else raw, 0.0)
    means = np.bincount(task, values) / np.maximum(np.bincount(task, known), 1)
    return np.asarray(np.where(known, values - means[task], 0.0))


def _direction(column: Column) -> int:
    """What is known without data: more of these is never worse, nor better."""
    if column.about in ("transferability", "distance"):
        return -1 if column.form == "place" or (column.about == "distance" and column.form == "value") else 1
    return 1 if column.about == "record" else 0


def _group_sizes(task: np.ndarray) -> np.ndarray:
    """Trials of each task, in pieces of at most 1,000: LambdaRank compares all pairs, and takes no more than 10,000."""
    sizes: list[int] = []
    for size in np.bincount(task).tolist():
        sizes += [min(1000, size - first) for first in range(0, size, 1000)]
    return np.array(sizes)


@dataclass(frozen=True, eq=False)
class _LeftOut:
    """What models that had not seen the group said of each trial, and what was true."""

    level: np.ndarray
    blend: np.ndarray
    logit: np.ndarray
    task: np.ndarray
    weight: np.ndarray


def _leave_out(experience: Experience, encoder: Encoder, table: np.ndarray, seed: int) -> dict[int, _LeftOut]:
    """For each stage, `FOLDS` times: learn without some of the groups, predict those."""
    kept = _sample(experience.trials.task, MOST_LEFT_OUT, seed)
    experience, table = experience.take(kept), table[kept]
    rows, lessons = rows_of(experience), _lessons(experience)
    groups = np.random.default_rng(seed).permutation(lessons.group.max() + 1)
    folds = np.array_split(groups, min(FOLDS, len(groups)))
    records = encoder.find("record")
    found = {stage: (np.zeros(len(kept)), np.zeros(len(kept))) for stage in STAGES}

    def without(fold: np.ndarray) -> None:
        out = np.isin(lessons.group, fold)
        inside, outside = np.flatnonzero(~out), np.flatnonzero(out)
        training = experience.take(inside)
        known, own = rows_of(training), _lessons(training)
        # The whole's groups: a single source that is left would be grouped by tasks, and its trials see their own standing.
        groups = [lessons.task_groups[task] for task in np.unique(lessons.task[inside])]
        record = Record.of(known, own.standing, groups, seed=seed)
        seen = table.copy()
        seen[:, records] = record.standings(rows, lessons.task_groups)
        for stage in STAGES:
            columns = _columns(encoder, stage)
            boosters = _fit(seen[inside], own, encoder, columns, seed)
            judged = np.ascontiguousarray(seen[outside][:, columns])
            level, task = boosters.predict_level(judged), lessons.task[outside]
            found[stage][0][outside] = level - _centred(level, task)
            for own_rows in (np.flatnonzero(task == code) for code in np.unique(task)):
                blend = boosters.predict_blend(judged[own_rows])
                found[stage][1][outside[own_rows]] = blend - blend.mean()

    list(spread(without, folds))
    return {stage: _LeftOut(*pair, lessons.logit, lessons.task, lessons.weight) for stage, pair in found.items()}


def _fit_scale(out: _LeftOut) -> float:
    """Logits to a unit of the blend, by least squares; above 0, as the order must stay."""
    logit = _centred(out.logit, out.task)
    return max(float((out.weight * out.blend * logit).sum() / max((out.weight * out.blend**2).sum(), 1e-9)), 1e-3)


def _conformal(residual: np.ndarray, weight: np.ndarray, tasks: int) -> tuple[float, float]:
    """Residuals that bound the middle 90 %, tasks weighing the same.

    What is to be covered is a trial of another task, so the correction for a finite number is of tasks: the middle holds 90 % of
    one more than there are (Lee, Barber and Willett, 2023, Distribution-free inference with hierarchical data). Of fewer than
    nine, that is all.
    """
    tail = max((1 - COVERAGE * (tasks + 1) / tasks) / 2, 0.0)
    order = np.argsort(residual)
    share = np.cumsum(weight[order]) / weight.sum()
    low = residual[order][min(int(np.searchsorted(share, tail + 1e-9)), len(order) - 1)]
    high = residual[order][min(int(np.searchsorted(share, 1 - tail - 1e-9)), len(order) - 1)]
    return float(low), float(high)


def _centred(values: np.ndarray, task: np.ndarray) -> np.ndarray:
    sums, counts = np.bincount(task, values), np.bincount(task)
    return np.asarray(values - (sums / np.maximum(counts, 1))[task])


def _logit(score: np.ndarray) -> np.ndarray:
    kept = np.clip(score, 0.005, 0.995)
    return np.asarray(np.log(kept / (1 - kept)))


def _sample(task: np.ndarray, most: int, seed: int) -> np.ndarray:
    """Rows of `most` trials: a standing in a task means little when most of its trials are left out.

    So many of each task are taken first that `FEWEST_SAMPLED` tasks would do; then one more of each while there is room.
    """
    if len(task) <= most:
        return np.arange(len(task))
    rng = np.random.default_rng(seed)
    codes = np.unique(task.astype(str), return_inverse=True)[1]
    codes = rng.permutation(codes.max() + 1)[codes]  # which tasks are taken is left to chance
    order = np.lexsort((rng.random(len(codes)), codes))
    place = np.arange(len(codes)) - np.searchsorted(codes[order], codes[order])
    turn = np.maximum(place, most // FEWEST_SAMPLED - 1)
    return np.sort(order[np.lexsort((codes[order], turn))][:most])
