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
        if np.ndim(labels) != 1:
            raise InputError(f"labels of shape {np.shape(labels)}; expected one for each image")
        if len(images) != len(labels):
            raise InputError(f"{len(images)} images, but {len(labels)} labels; give one label for each image")
        where = [f"image {i}" for i in range(len(images))]
        return Listing("arrays", list(images), [str(label) for label in labels], where)


@hookimpl
def register_formats() -> list[Arrays]:
    return [Arrays()]
