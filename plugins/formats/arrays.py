"""Images and labels in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from automl_tl import Listing, hookimpl
from automl_tl.data import class_name
from automl_tl.errors import InputError


class Arrays:
    """A pair (images, labels): an array or tensor N×H×W, N×H×W×3 or N×3×H×W, or a sequence of such, PIL images or paths."""

    name = "arrays"

    def matches(self, location: Any) -> bool:
        return isinstance(location, tuple) and len(location) == 2

    def open(self, location: Any) -> Listing:
        images, labels = (part if hasattr(part, "__len__") else list(part) for part in location)  # a generator gives them once
        shape = getattr(images, "shape", ())
        texts = getattr(getattr(images, "dtype", None), "kind", "") in ("U", "T", "O")  # paths, or images of several sizes
        if shape and len(shape) not in (3, 4) and not (texts and len(shape) == 1):
            raise InputError(f"images of shape {tuple(shape)}; expected N×H×W, N×H×W×3, N×H×W×4 or a row of paths")
        if len(images) != len(labels):
            raise InputError(f"{len(images)} images, but {len(labels)} labels; give one label for each image")
        where = [f"image {i}" for i in range(len(images))]
        for image, place in zip(images, where, strict=True):
            if isinstance(image, (str, Path)) and not Path(image).is_file():
                raise InputError(f"{place}: {image}: there is no such file")
        plain = labels.tolist() if hasattr(labels, "tolist") else labels
        return Listing("arrays", list(images), [_class(label, place) for label, place in zip(plain, where, strict=True)], where)


def _class(label: Any, where: str) -> str:
    """The name of a class: a text, or a number without a fraction."""
    if _is_missing(label):
        raise InputError(f"{where}: has no label; give it one or remove it")
    if not isinstance(label, (str, int, float, np.generic)) or (isinstance(label, float) and not label.is_integer()):
        raise InputError(f"{where}: its label is {label!r}; labels are classes: texts or whole numbers, one for each image")
    return class_name(label)


def _is_missing(label: Any) -> bool:
    """Whether it is None, NaN, or pandas' NA, of which nobody can say whether it equals itself."""
    try:
        return label is None or bool(label != label)
    except TypeError:
        return True


@hookimpl
def register_formats() -> list[Arrays]:
    return [Arrays()]
