"""Images and labels in memory."""

from __future__ import annotations

from typing import Any

import numpy as np

from automl_tl import Listing, hookimpl
from automl_tl.errors import InputError


class Arrays:
    """A pair (images, labels): an array N×H×W or N×H×W×3, or a sequence of arrays, PIL images or paths."""

    name = "arrays"

    def matches(self, location: Any) -> bool:
        return isinstance(location, tuple) and len(location) == 2

    def open(self, location: Any) -> Listing:
        images, labels = location
        if isinstance(images, np.ndarray) and images.dtype != object and images.ndim not in (3, 4):
            raise InputError(f"images of shape {images.shape}; expected N×H×W, N×H×W×3 or N×H×W×4")
        if len(images) != len(labels):
            raise InputError(f"{len(images)} images, but {len(labels)} labels; give one label for each image")
        where = [f"image {i}" for i in range(len(images))]
        plain = labels.tolist() if hasattr(labels, "tolist") else labels
        return Listing("arrays", list(images), [_class(label, place) for label, place in zip(plain, where, strict=True)], where)


def _class(label: Any, where: str) -> str:
    """The name of a class: a text, or a number without a fraction."""
    if label is None or label != label:
        raise InputError(f"{where}: has no label; give it one or remove it")
    if not isinstance(label, (str, int, float, np.generic)) or (isinstance(label, float) and not label.is_integer()):
        raise InputError(f"{where}: its label is {label!r}; labels are classes: texts or whole numbers, one for each image")
    return str(label)


@hookimpl
def register_formats() -> list[Arrays]:
    return [Arrays()]
