"""The history as the ranker sees it, and candidates as rows of numbers known before training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from .records import Backbone, Profile
from .space import Value

if TYPE_CHECKING:
    from .history import History

REFERENCES = 1000
"""Tasks that a new task is compared with; more are drawn from."""
SHRINK = {"all": 4.0, "near": 1.0}
"""A mean of standings is shrunk towards nothing as by so many further trials of average standing."""


@dataclass(frozen=True, eq=False)
class Trials:
    """Columns of the finished trials, all of one length."""

    task: np.ndarray
    """Fingerprints."""
    source_dataset: np.ndarray
    """Where the task's images come from."""
    backbone: np.ndarray
    strategy: np.ndarray
    hyperparameters: Sequence[Mapping[str, Value]]
    score: np.ndarray
    """Validation accuracy, 0–1."""
    seconds: np.ndarray
    memory_mb: np.ndarray
    images: np.ndarray
    """Training images."""
    speed: np.ndarray
    """Of the machine, as `cost.calibrate` measures it; NaN: unknown."""

    def __len__(self) -> int:
        return len(self.score)

    def take(self, rows: np.ndarray) -> Trials:
        """Some of the trials."""
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        picked = {name: values[rows] for name, values in columns.items() if isinstance(values, np.ndarray)}
        return Trials(**picked, hyperparameters=[self.hyperparameters[row] for row in rows])


@dataclass(frozen=True, eq=False)
class Experience:
    """Everything that advice is learnt from."""

    trials: Trials
    profiles: Mapping[str, Profile]
    """By fingerprint."""
    backbones: Mapping[str, Backbone]
    digest: str

    @classmethod
    def of(cls, history: History) -> Experience:
        """All trials of `history` that have a score, a profile of their task and the facts of their backbone."""
        table, profiles, backbones = history.table(), history.profiles(), history.backbones()
        texts = {name: np.array(getattr(table, name), dtype=object) for name in ("task", "source_dataset", "backbone", "strategy")}
        numbers = {
            name: np.array(getattr(table, name), dtype=np.float64) for name in ("score", "seconds", "memory_mb", "images", "speed")
        }
        trials = Trials(**texts, **numbers, hyperparameters=list(table.hyperparameters))
        known = [task in profiles and name in backbones for task, name in zip(trials.task, trials.backbone, strict=True)]
        usable = np.flatnonzero(np.array(known, dtype=bool) & np.isfinite(trials.score))
        return cls(trials.take(usable), profiles, backbones, history.digest())

    def take(self, rows: np.ndarray) -> Experience:
        """The same with some of the trials; its digest is not the whole's."""
        return Experience(self.trials.take(rows), self.profiles, self.backbones, f"{self.digest}/{hash_rows(rows)}")


def hash_rows(rows: np.ndarray) -> str:
    """A short name of a selection."""
    import xxhash

    return xxhash.xxh64_hexdigest(np.ascontiguousarray(rows, dtype=np.int64))


@dataclass(frozen=True)
class Column:
    """One number about a candidate: what it is about, what it is called, and in which form it comes."""

    about: str
    """task, network, source, distance, transferability, record, strategy or hyperparameter."""
    name: str
    form: str = "value"
    """`value`; `lead` (over the best of the others looked at, or the closest source) and `place` (0: best) among the
    alternatives; `all` and `near` (over all earlier tasks, over those like this one); `option` (code of a text)."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Candidates to be encoded: each a task, a backbone, a strategy and hyperparameters."""

    profiles: Sequence[Profile]
    task: np.ndarray
    """Index into `profiles`."""
    backbones: Sequence[Backbone]
    backbone: np.ndarray
    """Index into `backbones`."""
    strategy: Sequence[str]
    hyperparameters: Sequence[Mapping[str, Value]]


def rows_of(experience: Experience) -> Rows:
    """The trials of `experience` as rows."""
    trials = experience.trials
    tasks, task = np.unique(trials.task.astype(str), return_inverse=True)
    names, backbone = np.unique(trials.backbone.astype(str), return_inverse=True)
    return Rows(
        [experience.profiles[name] for name in tasks],
        task,
        [experience.backbones[name] for name in names],
        backbone,
        list(trials.strategy),
        trials.hyperparameters,
    )


@dataclass(frozen=True)
class Encoder:
    """Which columns there are, and the codes of texts. Learnt from a history, stored beside the models as JSON."""

    columns: tuple[Column, ...]
    options: Mapping[str, tuple[str, ...]]
    """Texts of a column in the order of their codes; a text unknown here is encoded as missing."""

    @classmethod
    def of(cls, rows: Rows) -> Encoder:
        """All columns that the history has numbers for."""
        meta = sorted({name for profile in rows.profiles for name in profile.meta})
        distances = sorted({m for profile in rows.profiles for values in profile.distances.values() for m in values})
        looks = sorted({m for profile in rows.profiles for values in profile.transferability.values() for m in values})
        names = sorted({name for values in rows.hyperparameters for name in values})
        options = {"strategy": tuple(sorted(set(rows.strategy)))}
        columns = [Column("task", name) for name in meta]
        columns += [Column("source" if name.startswith("source") else "network", name) for name in _NETWORK]
        columns += [Column("distance", name, form) for name in distances for form in _RELATIVE]
        columns += [Column("transferability", name, form) for name in looks for form in _RELATIVE]
        columns += [Column("record", kind, form) for kind in KINDS for form in SHRINK]
        columns.append(Column("strategy", "strategy", "option"))
        for name in names:
            found = {values[name] for values in rows.hyperparameters if name in values}
            texts = tuple(sorted(value for value in found if isinstance(value, str)))
            if len(texts) < len(found):
                columns.append(Column("hyperparameter", name))
            if texts:
                options[name] = texts
                columns.append(Column("hyperparameter", name, "option"))
        return cls(tuple(columns), options)

    def find(self, *about: str) -> list[int]:
        """Positions of the columns about these things."""
        return [index for index, column in enumerate(self.columns) if column.about in about]

    def encode(self, rows: Rows, records: np.ndarray) -> np.ndarray:
        """n × columns, float32; `records` (n × record columns) are `Record.standings` of the same rows."""
        table = np.full((len(rows.task), len(self.columns)), np.nan, dtype=np.float32)
        columns = self.columns
        task = self.find("task")
        meta = np.array([[profile.meta.get(columns[i].name, np.nan) for i in task] for profile in rows.profiles])
        table[:, task] = meta.reshape(len(rows.profiles), len(task))[rows.task]
        network = self.find("network", "source")
        table[:, network] = np.array([[_network(b)[columns[i].name] for i in network] for b in rows.backbones])[rows.backbone]
        pairs = self.find("distance", "transferability")
        order = np.argsort(rows.task, kind="stable")
        bounds = np.searchsorted(rows.task[order], np.arange(len(rows.profiles) + 1))
        for profile, first, last in zip(rows.profiles, bounds[:-1], bounds[1:], strict=True):
            own = order[first:last]
            table[np.ix_(own, pairs)] = self._between(profile, rows.backbones, pairs)[rows.backbone[own]]
        table[:, self.find("record")] = records
        for index in self.find("hyperparameter"):
            name = columns[index].name
            table[:, index] = self._values([values.get(name) for values in rows.hyperparameters], columns[index])
        (strategy,) = self.find("strategy")
        table[:, strategy] = self._values(rows.strategy, columns[strategy])
        return table

    def _values(self, raw: Sequence[Any], column: Column) -> np.ndarray:
        """Numbers as they are, texts as codes, NaN for whatever does not fit."""
        if column.form == "option":
            codes = {text: float(code) for code, text in enumerate(self.options[column.name])}
            return np.array([codes.get(value, np.nan) for value in raw])
        if column.name in self.options:
            raw = [None if isinstance(value, str) else value for value in raw]
        return np.array(raw, dtype=np.float64)  # None becomes NaN

    def _between(self, profile: Profile, backbones: Sequence[Backbone], pairs: Sequence[int]) -> np.ndarray:
        """backbones × columns: what depends on a task and a backbone. A lead is above 0 for the best alone."""
        table = np.full((len(backbones), len(pairs)), np.nan)
        forms: dict[tuple[str, str], dict[str, np.ndarray]] = {}
        for position, index in enumerate(pairs):
            about, name, form = (column := self.columns[index]).about, column.name, column.form
            if (about, name) not in forms:
                known = profile.distances if about == "distance" else profile.transferability
                places = alternatives(known, name, best_is_low=about == "distance")
                keys = [b.source_dataset if about == "distance" else b.name for b in backbones]
                found = [places.get(key, (np.nan, np.nan, np.nan)) for key in keys]
                forms[about, name] = dict(zip(_RELATIVE, np.array(found).reshape(-1, 3).T, strict=True))
            table[:, position] = forms[about, name][form]
        return table


_RELATIVE = ("value", "lead", "place")
_NETWORK = ("params", "macs", "input_size", "num_features", "source_classes", "source_accuracy")


def _network(backbone: Backbone) -> dict[str, float]:
    return {
        "params": float(backbone.params),
        "macs": float(backbone.macs),
        "input_size": float(backbone.input_size),
        "num_features": float(backbone.num_features),
        "source_classes": float(backbone.num_classes),
        "source_accuracy": np.nan if backbone.source_accuracy is None else backbone.source_accuracy,
    }


def alternatives(
    known: Mapping[str, Mapping[str, float]], metric: str, *, best_is_low: bool
) -> dict[str, tuple[float, float, float]]:
    """Of each alternative that has `metric`: its value, its lead over the best of the others, how many are better.

    A lead is a difference for scores and, as their unit is no more than a scale, the logarithm of a ratio for distances.
    """
    values = {name: scores[metric] for name, scores in known.items() if metric in scores}
    if not values:
        return {}
    merit = np.array(list(values.values()), dtype=np.float64)
    if best_is_low:
        merit = -np.log(np.maximum(merit, 1e-9))
    ordered = np.sort(merit)
    best, second = ordered[-1], ordered[-2] if len(ordered) > 1 else ordered[-1]
    lead = merit - np.where(merit == best, second, best)
    place = len(merit) - np.searchsorted(ordered, merit, side="right")
    return {name: (values[name], float(a), float(b)) for name, a, b in zip(values, lead, place, strict=True)}


KINDS = ("backbone and strategy", "backbone", "family", "source dataset")
"""What a candidate's record is kept of. A backbone that was never tried still has a family and a source dataset."""


def _keys(kind: str, backbone: Backbone, strategy: str) -> str:
    return {
        "backbone and strategy": f"{backbone.name}\n{strategy}",
        "backbone": backbone.name,
        "family": backbone.family,
        "source dataset": backbone.source_dataset,
    }[kind]


@dataclass(frozen=True, eq=False)
class Record:
    """How candidates stood in earlier tasks: a standing is the share of the task's trials that a trial beats, minus a half."""

    source_datasets: tuple[str, ...]
    """Of each reference task."""
    grid: Mapping[str, np.ndarray]
    """Sorted values of each number of a profile: a task's coordinates are its places among them, 0–1."""
    coordinates: np.ndarray
    """References × numbers of a profile."""
    width: float
    """Tasks so far apart count 0.6 as much as an equal one."""
    keys: Mapping[str, Mapping[str, int]]
    """kind → key → position."""
    sums: Mapping[str, np.ndarray]
    """kind → references × keys: standings added up."""
    counts: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, rows: Rows, standing: np.ndarray, source_datasets: Sequence[str], *, seed: int = 0) -> Record:
        """From trials (`rows`), their standings, and the source dataset of each of the rows' tasks."""
        total = len(rows.profiles)
        kept = np.arange(total)
        if total > REFERENCES:
            kept = np.sort(np.random.default_rng(seed).choice(total, REFERENCES, replace=False))
        numbers = [profile_numbers(rows.profiles[i]) for i in kept]
        names = sorted({name for found in numbers for name in found})
        grid = {name: np.unique([found[name] for found in numbers if name in found]) for name in names}
        coordinates = _places(grid, numbers)
        apart = _apart(coordinates, coordinates)
        sources = np.array([source_datasets[i] for i in kept], dtype=object)
        apart[sources[:, None] == sources[None, :]] = np.inf
        nearest = apart.min(axis=1, initial=np.inf)
        width = float(np.median(nearest[np.isfinite(nearest)])) if np.isfinite(nearest).any() else 1.0
        reference = np.full(total, -1)
        reference[kept] = np.arange(len(kept))
        inside = reference[rows.task] >= 0
        keys, sums, counts = {}, {}, {}
        for kind in KINDS:
            index, codes = _codes(kind, rows)
            where = (reference[rows.task] * len(index) + codes)[inside]
            shape, cells = (len(kept), len(index)), len(kept) * len(index)
            keys[kind] = index
            sums[kind] = np.bincount(where, standing[inside], cells).reshape(shape)
            counts[kind] = np.bincount(where, minlength=cells).astype(np.float64).reshape(shape)
        return cls(tuple(sources), grid, coordinates, max(width, 1e-3), keys, sums, counts)

    def standings(self, rows: Rows, source_datasets: Sequence[str] | None = None) -> np.ndarray:
        """n × (kinds × all/near): the mean standing of what the row is made of, shrunk towards 0 where there is little.

        `source_datasets`, one a task of `rows`: reference tasks of the same one are left out, so that a trial does not
        predict itself nor its siblings.
        """
        weights = self._weights(rows.profiles, source_datasets)
        result = np.zeros((len(rows.task), len(KINDS) * len(SHRINK)))
        for block, kind in enumerate(KINDS):
            _, codes = _codes(kind, rows, self.keys[kind])
            seen = codes >= 0
            for offset, (form, shrink) in enumerate(SHRINK.items()):
                means = (weights[form] @ self.sums[kind]) / (weights[form] @ self.counts[kind] + shrink)
                result[seen, len(SHRINK) * block + offset] = means[rows.task[seen], codes[seen]]
        return result

    def _weights(self, profiles: Sequence[Profile], source_datasets: Sequence[str] | None) -> dict[str, np.ndarray]:
        """tasks × references: 1 each, and by closeness."""
        coordinates = _places(self.grid, [profile_numbers(profile) for profile in profiles])
        near = np.exp(-((_apart(coordinates, self.coordinates) / self.width) ** 2) / 2)
        every = np.ones_like(near)
        if source_datasets is not None:
            same = np.array(source_datasets, dtype=object)[:, None] == np.array(self.source_datasets, dtype=object)[None, :]
            near[same] = every[same] = 0.0
        near /= np.maximum(near.max(axis=1, keepdims=True, initial=0.0), 1e-9)
        return {"all": every, "near": near}


def profile_numbers(profile: Profile) -> dict[str, float]:
    """What tasks are compared by: their meta-features and their distances to the sources."""
    distances = {f"{source}/{metric}": value for source, found in profile.distances.items() for metric, value in found.items()}
    return {**profile.meta, **distances}


def _places(grid: Mapping[str, np.ndarray], numbers: Sequence[Mapping[str, float]]) -> np.ndarray:
    """tasks × numbers: the place of each value among the history's, 0–1; a half where it is unknown."""
    places = np.full((len(numbers), len(grid)), 0.5)
    for column, (name, values) in enumerate(grid.items()):
        own = np.array([found.get(name, np.nan) for found in numbers])
        known = np.isfinite(own)
        low, high = np.searchsorted(values, own[known], "left"), np.searchsorted(values, own[known], "right")
        places[known, column] = (low + high) / (2 * len(values))
    return places


def _apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Root mean square difference of the coordinates, len(a) × len(b)."""
    square = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None, :] - 2 * a @ b.T
    return np.asarray(np.sqrt(np.maximum(square, 0) / max(a.shape[1], 1)))


def _codes(kind: str, rows: Rows, known: Mapping[str, int] | None = None) -> tuple[Mapping[str, int], np.ndarray]:
    """Keys of `kind` with their positions, and the position of each row's key; -1 for one that is not in `known`."""
    strategies = {name: code for code, name in enumerate(dict.fromkeys(rows.strategy))}
    codes = np.array([strategies[name] for name in rows.strategy], dtype=np.int64)
    cells = [_keys(kind, backbone, name) for backbone in rows.backbones for name in strategies]
    index = {key: position for position, key in enumerate(dict.fromkeys(cells))} if known is None else known
    table = np.array([index.get(key, -1) for key in cells], dtype=np.int64)
    return index, table[rows.backbone * len(strategies) + codes]
