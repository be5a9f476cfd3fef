"""Small real tasks and quick settings, for tests that train."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.datasets import load_digits

from automl_tl import Task, load_task

TINY = "mobilenetv4_small_050.tiny_imagenet_64"
QUICK = "resnet10t_24.omniglot_a_64"


def arrays(count: int = 240, classes: int = 10) -> tuple[list[np.ndarray], list[int]]:
    """Real handwriting, 8 × 8."""
    digits = load_digits()
    chosen = np.flatnonzero(digits.target < classes)[:count]
    return [np.uint8(image * 15) for image in digits.images[chosen]], digits.target[chosen].tolist()


def digits(count: int = 240, classes: int = 10, **options: Any) -> Task:
    return load_task(arrays(count, classes), **{"name": "few digits", "test": 0.25, **options})
