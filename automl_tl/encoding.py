"""Candidates as rows of numbers, all known before training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .experience import Rows, distinct
from .facts import is_number
from .record import KINDS, SHRINK
from .records import Backbone, Profile


@dataclass(frozen=True)
class Column:
    """One number about a candidate: what it is about, what it is called, and in which form it comes."""

    about: str
    """task, network, source, distance, transferability, record, strategy or hyperparameter."""
    name: str
    form: str = "value"
    """`value`; `lead` (over the best of the others looked at, or the closest source) and `place` (0: best) among the
    alternatives; `all` and `near` (over all earlier tasks, over those like this one); `option` (code of a text)."""

    @property
    def key(self) -> str:
        """Of its texts among `Encoder.options`: a hyperparameter may have any name, also that of another column."""
        return f"{self.about}/{self.name}"


@dataclass(frozen=True)
class Encoder:
    """Which columns there are, and the codes of texts. Learnt from a history, stored beside the models as JSON."""

    columns: tuple[Column, ...]
    options: Mapping[str, tuple[str, ...]]
    """Texts of a column, by its key, in the order of their codes; a text unknown here is encoded as missing."""

    @classmethod
    def of(cls, rows: Rows) -> Encoder:
        """All columns that the history has numbers for."""
        meta = sorted({name for profile in rows.profiles for name in profile.meta})
        distances = sorted({m for profile in rows.profiles for values in profile.distances.values() for m in values})
        looks = sorted({m for profile in rows.profiles for values in profile.transferability.values() for m in values})
        names = sorted({name for values in rows.hyperparameters for name in values})
        columns = [Column("task", name) for name in meta]
        columns += [Column("source" if name.startswith("source") else "network", name) for name in _NETWORK]
        columns += [Column("distance", name, form) for name in distances for form in _RELATIVE]
        columns += [Column("transferability", name, form) for name in looks for form in _RELATIVE]
        columns += [Column("record", kind, form) for kind in KINDS for form in SHRINK]
        columns.append(Column("strategy", "strategy", "option"))
        options = {columns[-1].key: tuple(sorted(set(rows.strategy)))}
        for name in names:
            found = {values[name] for values in rows.hyperparameters if name in values}
            texts = tuple(sorted(value for value in found if isinstance(value, str)))
            if len(texts) < len(found):
                columns.append(Column("hyperparameter", name))
            if texts:
                columns.append(Column("hyperparameter", name, "option"))
                options[columns[-1].key] = texts
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
            table[own[:, None], pairs] = self._between(profile, rows.backbones, pairs)[rows.backbone[own]]
        table[:, self.find("record")] = records
        settings, setting = distinct(rows.hyperparameters)
        for index in self.find("hyperparameter"):
            name = columns[index].name
            table[:, index] = self._values([values.get(name) for values in settings], columns[index])[setting]
        (strategy,) = self.find("strategy")
        table[:, strategy] = self._values(rows.strategy, columns[strategy])
        return table

    def _values(self, raw: Sequence[Any], column: Column) -> np.ndarray:
        """Numbers as they are, texts as codes, NaN for whatever does not fit."""
        if column.form == "option":
            codes = {text: float(code) for code, text in enumerate(self.options[column.key])}
            return np.array([codes.get(value, np.nan) for value in raw])
        return np.array([value if isinstance(value, bool) or is_number(value) else np.nan for value in raw], dtype=np.float64)

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
