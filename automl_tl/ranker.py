"""Candidates in order, best first: by what was learnt from the history, or without one by what is known of the networks."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from .cost import CostModel
from .encoding import Column, Encoder
from .experience import Experience, Rows
from .explain import Picture, explain
from .home import whole
from .learning import Boosters, Learnt, Line, StageModel, learn_stages
from .record import Record
from .records import Backbone, Candidate, Profile, Ranked, Ranking
from .space import defaults

if TYPE_CHECKING:
    from .strategy import Strategy

VERSION = 8
"""Of the saved form and of the learning: a ranker of another version is learnt anew."""
FEWEST_TASKS, FEWEST_TRIALS = 2, 20
UNKNOWN_WIDER = 2.0
"""An interval is so many times as wide for a strategy that was never seen, and for a task beyond all that were."""
SIZES = ("images", "classes")
"""Meta-features in which a task may lie beyond those of the history."""
EXPLAINED, BACKGROUND = 20, 60
KEPT = 16
"""Rankers in a cache: every trial makes another history, whose ranker is another one."""
_MODELS = ("level", "effect", "order")


@dataclass(frozen=True, eq=False)
class Ranker:
    """Learnt advice. It can be saved as text: LightGBM's own format and JSON, no pickle."""

    learnt: Learnt
    trials: int
    tasks: int
    digest: str
    """Of the history that it was learnt from."""
    seed: int
    sizes: Mapping[str, tuple[float, float]]
    """The least and the most of each of `SIZES` among its tasks."""

    def basis(self, profile: Profile) -> str:
        """What the advice rests on, and where a task lies beyond that."""
        return "".join([f"{self.trials} trials over {self.tasks} tasks", *self.beyond(profile)])

    def beyond(self, profile: Profile) -> list[str]:
        """In words, what trees cannot know of a task: it is smaller or larger than all that they saw."""
        found = []
        for name, (least, most) in self.sizes.items():
            value = profile.meta.get(name, least)
            if not least <= value <= most:
                found.append(
                    f"; none with so {'few' if value < least else 'many'} {name} ({value:.0f}; {least:.0f} to {most:.0f})"
                )
        return found

    def save(self, folder: Path) -> None:
        """Write `folder` whole or not at all."""
        with whole(folder) as partial:
            partial.mkdir(parents=True)
            stages: dict[int, dict[str, Any]] = {}
            for number, stage in self.learnt.stages.items():
                stages[number] = {name: getattr(stage, name) for name in ("columns", "scale", "low", "high")}
                for kind in _MODELS:
                    text = getattr(stage.boosters, kind).model_to_string()
                    (partial / f"stage{number}-{kind}.txt").write_text(text, encoding="utf-8")
                    stages[number][kind] = xxhash.xxh128_hexdigest(text.encode())
                stages[number]["spreads"] = (stage.boosters.effect_spread, stage.boosters.order_spread)
                stages[number]["line"] = None if stage.boosters.line is None else asdict(stage.boosters.line)
            facts = {
                "version": VERSION,
                **{name: getattr(self, name) for name in ("digest", "seed", "trials", "tasks", "sizes")},
                "columns": [asdict(column) for column in self.learnt.encoder.columns],
                "options": self.learnt.encoder.options,
                "stages": stages,
                "record": self.learnt.record.facts(),
            }
            (partial / "ranker.json").write_text(json.dumps(facts), encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)

    @classmethod
    def load(cls, folder: Path) -> Ranker:
        """Read what `save` wrote; it predicts the very same."""
        facts = json.loads((folder / "ranker.json").read_text(encoding="utf-8"))
        columns = tuple(Column(**column) for column in facts["columns"])
        encoder = Encoder(columns, {name: tuple(texts) for name, texts in facts["options"].items()})
        stages = {}
        for number, stage in facts["stages"].items():
            level, effect, order = (_booster(folder / f"stage{number}-{kind}.txt", stage[kind]) for kind in _MODELS)
            line = None if stage["line"] is None else Line(**stage["line"])
            effect_spread, order_spread = stage["spreads"]
            boosters = Boosters(level, effect, order, effect_spread, order_spread, line)
            stages[int(number)] = StageModel(tuple(stage["columns"]), boosters, stage["scale"], stage["low"], stage["high"])
        learnt = Learnt(encoder, Record.read(facts["record"]), stages)
        sizes = {name: (float(least), float(most)) for name, (least, most) in facts["sizes"].items()}
        return cls(learnt, facts["trials"], facts["tasks"], facts["digest"], facts["seed"], sizes)


def learn(experience: Experience, *, seed: int = 0) -> Ranker | None:
    """Learn to rank from `experience`; None where it is too small to learn from."""
    trials, tasks = len(experience.trials), sorted(set(experience.trials.task))
    if len(tasks) < FEWEST_TASKS or trials < FEWEST_TRIALS:
        return None
    known = {
        name: [experience.profiles[task].meta[name] for task in tasks if name in experience.profiles[task].meta] for name in SIZES
    }
    sizes = {name: (min(values), max(values)) for name, values in known.items() if values}
    return Ranker(learn_stages(experience, seed=seed), trials, len(tasks), experience.digest, seed, sizes)


def ranker_for(experience: Experience, cache: Path, *, seed: int = 0) -> Ranker | None:
    """The ranker of this experience, learnt once and then read from `cache`, whoever asks first."""
    from filelock import FileLock

    cache.mkdir(parents=True, exist_ok=True)
    name = xxhash.xxh128_hexdigest(experience.digest.encode())  # of all of it: that of a part begins as the whole's does
    folder = cache / f"{name}-{seed}-v{VERSION}"
    with FileLock(cache / f"{folder.name}.lock"):
        ranker = _kept(folder)
        if ranker is None and (ranker := learn(experience, seed=seed)) is not None:
            ranker.save(folder)
        _keep_last_used(folder)
    return ranker


def _keep_last_used(folder: Path) -> None:
    """`folder` was used now; of all beside it the `KEPT` that were used last stay. Who reads one meanwhile learns it anew."""
    with suppress(OSError):  # a home that cannot be written to has what it has
        os.utime(folder)
    used: dict[Path, float] = {}
    for each in folder.parent.iterdir():
        with suppress(OSError):  # another process took it away
            if each.is_dir() and each.suffix != ".partial":
                used[each] = each.stat().st_mtime
    for each in sorted(used, key=lambda each: -used[each])[KEPT:]:
        shutil.rmtree(each, ignore_errors=True)


def _kept(folder: Path) -> Ranker | None:
    """None where there is none, or it is damaged: it is a cache, and is learnt anew."""
    try:
        return Ranker.load(folder)
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        return None


def _booster(path: Path, digest: str) -> Any:
    """Raises ValueError: it is not the text that was saved. LightGBM may end the process over one that is damaged."""
    import lightgbm

    text = path.read_text(encoding="utf-8")
    if xxhash.xxh128_hexdigest(text.encode()) != digest:
        raise ValueError(f"{path}: is not what was saved")
    return lightgbm.Booster(model_str=text)


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

    Equal predictions are ordered by predicted work: seconds hang on a measurement. The first `EXPLAINED` come with reasons.
    """
    start = time.perf_counter()
    seconds, memory, work = cost_model.predict(candidates, profile.meta.get("images", 1000.0), backbones)
    if ranker is None:
        basis, score = _without_history(candidates, profile, backbones, strategies, work)
        low, high = np.zeros(len(score)), np.ones(len(score))
        order = np.lexsort((work, -score))
        reasons: list[tuple[str, ...]] = []
    else:
        basis = ranker.basis(profile)
        rows = _rows(candidates, profile, backbones)
        table = ranker.learnt.encoder.encode(rows, ranker.learnt.record.standings(rows))
        model = ranker.learnt.stages[stage]
        logit = model.predict(table)
        (strategy,) = ranker.learnt.encoder.find("strategy")
        wider = np.where(np.isnan(table[:, strategy]) | bool(ranker.beyond(profile)), UNKNOWN_WIDER, 1.0)
        score, low, high = _sigmoid(logit), _sigmoid(logit + wider * model.low), _sigmoid(logit + wider * model.high)
        low, high = np.where(low < 0.005, 0.0, low), np.where(high > 0.99, 1.0, high)
        order = np.lexsort((work, -logit))
        reasons = _reasons(ranker.learnt.encoder, model, table, order, candidates, profile, backbones)
    columns = (score, np.minimum(low, score), np.maximum(high, score), seconds, memory)
    told = reasons + [()] * (len(order) - len(reasons))
    items = tuple(map(Ranked, [candidates[i] for i in order], *(column[order].tolist() for column in columns), told))
    return Ranking(items, basis, stage, time.perf_counter() - start)


def _sigmoid(logit: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-logit)))


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
    """Why the first ones are first: what moves their prediction away from that of the other candidates.

    Both are asked at once, as a candidate's place on the line is told from the mean of those that are asked with it.
    """
    top = order[:EXPLAINED]
    background = order[np.linspace(0, len(order) - 1, min(BACKGROUND, len(order))).astype(int)]
    both = model.contributions(table[np.concatenate([top, background])])
    relative = both[: len(top)] - both[len(top) :].mean(axis=0)
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
    work: np.ndarray,
) -> tuple[str, np.ndarray]:
    """What the order rests on, and a standing of each candidate between 0 and 1 (no accuracy: that would need a history).

    Defaults stand before draws; then backbones by their mean rank over the transferability scores, else over the distances
    of their sources, else by size, with those of which neither is known last; then the cheaper before the dearer.
    """
    names = list(dict.fromkeys(candidate.backbone for candidate in candidates))
    if any(name in profile.transferability for name in names):
        basis = "transferability scores only: there is no history to learn from"
        merit = _mean_rank([profile.transferability.get(name, {}) for name in names])
    elif any(backbones[name].source_dataset in profile.distances for name in names):
        basis = "closeness of the sources only: there is no history to learn from"
        distances = [profile.distances.get(backbones[name].source_dataset, {}) for name in names]
        merit = np.where([bool(known) for known in distances], 1 - _mean_rank(distances), 0.0)
    else:
        basis = "size of the networks only: there is no history to learn from"
        merit = _mean_rank([{"params": float(backbones[name].params)} for name in names])
    standing = dict(zip(names, merit, strict=True))
    plain = {name: defaults(strategy.space) for name, strategy in strategies.items()}
    drawn = [candidate.hyperparameters != plain.get(candidate.strategy) for candidate in candidates]
    below = [-standing[candidate.backbone] for candidate in candidates]
    order = np.lexsort(np.array([work, below, drawn], dtype=np.float64))
    score = np.empty(len(candidates))
    score[order] = 1 - np.arange(len(candidates)) / len(candidates)
    return basis, score


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
