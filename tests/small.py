"""Small real tasks and quick settings, for tests that train."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.datasets import load_digits

from automl_tl import Task, load_task

TINY = "mobilenetv4_small_050.tiny_imagenet_64"
QUICK = "resnet10t_24.omniglot_a_64"


def arrays(count: int = 240) -> tuple[list[np.ndarray], list[int]]:
    """Real handwriting, 8 × 8."""
    digits = load_digits()
    return [np.uint8(image * 15) for image in digits.images[:count]], digits.target[:count].tolist()


def digits(count: int = 240, **options: Any) -> Task:
    return load_task(arrays(count), **{"name": "few digits", "test": 0.25, **options})
