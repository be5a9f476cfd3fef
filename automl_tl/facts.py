"""Records as plain facts (JSON objects), and back, checked: what comes from a file is trusted in nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from functools import cache
from typing import Any

from .errors import HistoryError
from .records import CENTER, CROP_MODES, INTERPOLATIONS, LARGEST_SIDE, Backbone, Candidate, Outcome, Point, Profile, Trial

STATUSES = ("finished", "stopped", "failed")
MOST_CROPPED, LARGEST_CROP = 0.1, 2.0
"""Share of an image's shorter side that is looked at; some networks of timm see more than there is."""


@dataclass(frozen=True)
class TaskFacts:
    """What the history knows of a task."""

    fingerprint: str
    name: str
    source_dataset: str
    classes: int
    train: int
    validation: int
    test: int
    objective: str = "accuracy"


def outcome_facts(outcome: Outcome) -> dict[str, Any]:
    """What a program is told of a search."""
    return {
        "winner": asdict(outcome.winner),
        "trials": [asdict(trial) for trial in outcome.trials],
        "seconds": outcome.seconds,
        "rule": outcome.rule,
        "notes": outcome.notes,
        "warnings": outcome.profile.warnings,
        "basis": outcome.ranking.basis,
        "interrupted": outcome.interrupted,
    }


def task_facts_of(facts: Mapping[str, Any]) -> TaskFacts:
    _check_whole(TaskFacts, facts)
    facts = {"objective": "accuracy", **facts}  # older facts know no other
    _texts(facts, "fingerprint", "name", "source_dataset", "objective")
    _counts(facts, "classes", "train", "validation", "test")
    return TaskFacts(**facts)


def backbone_facts(backbone: Backbone) -> dict[str, Any]:
    """Without the place of the weights, which is a matter of this machine.

    Nor a crop mode that nearly all have: facts that were written before there were others stay the same.
    """
    facts = asdict(replace(backbone, weights="", kwargs=dict(backbone.kwargs)))
    return facts if backbone.crop_mode != CENTER else {name: value for name, value in facts.items() if name != "crop_mode"}


def backbone_of(facts: Mapping[str, Any]) -> Backbone:
    _check_whole(Backbone, facts)
    _texts(facts, "name", "zoo", "architecture", "family", "source_dataset", "source_domain")
    _counts(facts, "input_size", "params", "macs", "num_features")
    if facts["input_size"] > LARGEST_SIDE:
        raise HistoryError(f"input_size: expected at most {LARGEST_SIDE} pixels, but got {facts['input_size']}")
    for name in ("mean", "std"):
        if not isinstance(facts[name], (list, tuple)) or len(facts[name]) != 3 or not all(map(is_number, facts[name])):
            raise HistoryError(f"{name}: expected three numbers, but got {facts[name]!r}")
    if min(facts["std"]) <= 0:
        raise HistoryError(f"std: expected numbers above 0, but got {facts['std']!r}")
    _counts({"num_classes": 0, "download_bytes": 0, **facts}, "num_classes", "download_bytes")
    if not crop_fits(facts["crop_pct"]):
        raise HistoryError(f"crop_pct: expected {MOST_CROPPED} to {LARGEST_CROP}, but got {facts['crop_pct']!r}")
    if facts.get("source_accuracy") is not None:
        _amounts(facts, "source_accuracy")
    _texts({"licence": "", "weights": "", "digest": "", **facts}, "interpolation", "licence", "weights", "digest")
    _texts({"crop_mode": CENTER, **facts}, "crop_mode")
    if facts["interpolation"] not in INTERPOLATIONS:
        raise HistoryError(f"interpolation: expected one of {', '.join(INTERPOLATIONS)}, but got {facts['interpolation']!r}")
    if facts.get("crop_mode", CENTER) not in CROP_MODES:
        raise HistoryError(f"crop_mode: expected one of {', '.join(CROP_MODES)}, but got {facts['crop_mode']!r}")
    _object(facts, "kwargs")
    return Backbone(**{**facts, "mean": tuple(facts["mean"]), "std": tuple(facts["std"])})


def profile_of(facts: Mapping[str, Any]) -> Profile:
    _check_whole(Profile, facts)
    _texts(facts, "task", "fingerprint")
    _numbers(facts, "meta")
    for name in ("distances", "transferability"):
        for about in _object(facts, name):
            _numbers(facts[name], about)
    if not isinstance(facts.get("warnings", ()), (list, tuple)):
        raise HistoryError(f"warnings: expected a list, but got {facts['warnings']!r}")
    return Profile(**{**facts, "warnings": tuple(facts.get("warnings", ()))})


def trial_of(facts: Mapping[str, Any]) -> Trial:
    _check_whole(Trial, facts)
    _texts(facts, "id", "task")
    if facts["status"] not in STATUSES:
        raise HistoryError(f"status: expected one of {', '.join(STATUSES)}, but got {facts['status']!r}")
    _counts(facts, "seed")
    candidate = _object(facts, "candidate")
    _check_names(Candidate, candidate)
    _texts(candidate, "backbone", "strategy")
    for name, value in _object(candidate, "hyperparameters").items():
        if not isinstance(value, (bool, str)) and not is_number(value):
            raise HistoryError(f"hyperparameters: {name!r} is {value!r}; expected a finite number, a text or a truth value")
    for name in ("validation", "test"):
        _numbers(facts, name)
        if not 0 <= (accuracy := facts.get(name, {}).get("accuracy", 0.0)) <= 1:
            raise HistoryError(f"{name}: expected an accuracy of 0 to 1, but got {accuracy!r}")
    scores = facts.get("validation", {})
    if "accuracy" not in scores and (scores or facts["status"] == "finished"):
        raise HistoryError("validation: a finished trial has an accuracy, and so has one with other scores")
    if facts["status"] == "failed" and scores:
        raise HistoryError("validation: a failed trial has no score")
    _amounts(facts, "seconds", "memory_mb")
    _texts({"artefact": "", "error": "", **facts}, "artefact", "error")
    provenance = _object(facts, "provenance")
    if "speed" in provenance:
        _amounts(provenance, "speed")
    if not isinstance(facts.get("curve", ()), (list, tuple)):
        raise HistoryError(f"curve: expected a list of points, but got {facts['curve']!r}")
    curve = tuple(_point_of(point) for point in facts.get("curve", ()))
    return Trial(**{**facts, "candidate": Candidate(**candidate), "curve": curve})


def _point_of(facts: Mapping[str, Any]) -> Point:
    _check_names(Point, facts)
    _amounts(facts, "epoch", "seconds", "memory_mb")
    if facts["loss"] is not None and not is_number(facts["loss"]):
        raise HistoryError(f"loss: expected a finite number or nothing, but got {facts['loss']!r}")
    if not is_number(facts["score"]):
        raise HistoryError(f"score: expected a finite number, but got {facts['score']!r}")
    _texts({"note": "", **facts}, "note")
    return Point(**{**facts, "epoch": float(facts["epoch"])})  # or its text would not be that of the table


@cache
def _fields_of(record: type) -> tuple[frozenset[str], frozenset[str]]:
    """All fields of a record, and those that have no default."""
    known = fields(record)
    required = (field.name for field in known if field.default is MISSING and field.default_factory is MISSING)
    return frozenset(field.name for field in known), frozenset(required)


def _check_whole(record: type, facts: Any) -> None:
    """Names, and that all of it is JSON, also what lies deeper: that is asked once, of the outermost object."""
    _check_names(record, facts)
    if fault := fault_as_json(facts):
        raise HistoryError(f"a {record.__name__} that JSON cannot hold: {fault}")


_STRICT = json.JSONEncoder(allow_nan=False, ensure_ascii=False, default=dict)


def fault_as_json(value: Any) -> str:
    """Why JSON cannot hold `value`; empty: it can. Python reads more than JSON has: NaN, halves of a surrogate pair."""
    try:
        _STRICT.encode(value).encode()
    except (ValueError, RecursionError) as error:
        return str(error)
    return ""


def _check_names(record: type, facts: Any) -> None:
    if not isinstance(facts, Mapping):
        raise HistoryError(f"expected an object with the fields of a {record.__name__}, but got {type(facts).__name__}")
    known, required = _fields_of(record)
    if strange := facts.keys() - known:
        raise HistoryError(f"{min(strange, key=str)!r} is no field of a {record.__name__}; known: {', '.join(sorted(known))}")
    if missing := required - facts.keys():
        raise HistoryError(f"incomplete: {min(missing)!r} is missing")


def _texts(facts: Mapping[str, Any], *names: str) -> None:
    for name in names:
        if not isinstance(facts[name], str):
            raise HistoryError(f"{name}: expected a text, but got {facts[name]!r}")


def _counts(facts: Mapping[str, Any], *names: str) -> None:
    for name in names:
        if not is_whole(facts[name]):
            raise HistoryError(f"{name}: expected a whole number, but got {facts[name]!r}")


def _amounts(facts: Mapping[str, Any], *names: str) -> None:
    """Numbers that are not below 0; a name may be missing."""
    for name in names:
        value = facts.get(name, 0.0)
        if not is_number(value) or value < 0:
            raise HistoryError(f"{name}: expected a finite number, not below 0, but got {value!r}")


def is_whole(value: Any) -> bool:
    """A count: not below 0, and what SQLite keeps."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def is_number(value: Any) -> bool:
    """Finite, and a double: what SQLite and JSON keep."""
    if isinstance(value, int):
        return not isinstance(value, bool) and -(2**63) <= value < 2**63
    return isinstance(value, float) and abs(value) <= sys.float_info.max


def crop_fits(value: Any) -> bool:
    """A `crop_pct` that images can be prepared with."""
    return is_number(value) and bool(MOST_CROPPED <= value <= LARGEST_CROP)


def _object(facts: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = facts.get(name, {})
    if not isinstance(value, Mapping):
        raise HistoryError(f"{name}: expected an object, but got {value!r}")
    return value


def _numbers(facts: Mapping[str, Any], name: str) -> None:
    for key, value in _object(facts, name).items():
        if not is_number(value):
            raise HistoryError(f"{name}: {key!r} is {value!r}; expected a finite number")
