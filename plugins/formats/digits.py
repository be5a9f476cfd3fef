"""The embedded default: scikit-learn's handwritten digits."""

from __future__ import annotations

from typing import Any

import numpy as np

from automl_tl import Listing, hookimpl


class Digits:
    """1,797 images of 8×8 pixels (Alpaydin and Kaynak, 1998), a fifth of each class for the test."""

    name = "digits"

    def matches(self, location: Any) -> bool:
        return isinstance(location, str) and location == "digits"

    def open(self, location: Any) -> Listing:
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = (digits.images * (255 / 16) + 0.5).astype(np.uint8)
        splits = np.full(len(images), "train", dtype=object)
        for label in np.unique(digits.target):
            members = np.flatnonzero(digits.target == label)
            splits[np.random.default_rng(label).permutation(members)[: len(members) // 5]] = "test"
        where = [f"digit {i}" for i in range(len(images))]
        return Listing("digits", list(images), [str(label) for label in digits.target], where, list(splits))


@hookimpl
def register_formats() -> list[Digits]:
    return [Digits()]
