"""Images without any photograph, made by formula: sources to pretrain on that need no download."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from automl_tl import Listing, hookimpl
from automl_tl.errors import InputError

from ._dead_leaves import CLASSES, dead_leaves
from ._fractals import fractals

PREFIX = "formula:"
SIDE = 64
SEED = 2020


def _fractals() -> tuple[np.ndarray, list[str], int]:
    images, labels = fractals(80, 100, side=SIDE, seed=SEED)
    return images, [f"system {label:02d}" for label in labels], 100


def _dead_leaves() -> tuple[np.ndarray, list[str], int]:
    images, labels = dead_leaves(200, side=SIDE, seed=SEED)
    return images, [CLASSES[label] for label in labels], 200


SOURCES: dict[str, Callable[[], tuple[np.ndarray, list[str], int]]] = {"fractals": _fractals, "dead_leaves": _dead_leaves}
"""Name → images, class names, images a class."""


class Formula:
    """`formula:fractals` and `formula:dead_leaves`: always the same images; of each class the last sixth is for the test."""

    name = "formula"

    def matches(self, location: Any) -> bool:
        return isinstance(location, str) and location.startswith(PREFIX)

    def open(self, location: Any) -> Listing:
        name = location.removeprefix(PREFIX)
        if name not in SOURCES:
            raise InputError(f"{location}: there is no such formula; known are {', '.join(PREFIX + known for known in SOURCES)}")
        images, labels, each = SOURCES[name]()
        splits = ["test" if number % each >= each * 5 // 6 else "train" for number in range(len(images))]
        return Listing(name, list(images), labels, [f"image {number}" for number in range(len(images))], splits)


@hookimpl
def register_formats() -> list[Formula]:
    return [Formula()]
