"""What learning one task after another costs. Formulas only: scores or probabilities in, numbers out.

`scores` is a T×T array: `scores[i, j]` is the score on task j after training on the tasks 0…i in turn. Scores above the
diagonal (of tasks not yet trained on) do not matter.
"""

from __future__ import annotations

import numpy as np


def backward_transfer(scores: np.ndarray) -> float:
    """Mean over the earlier tasks of score in the end − score just after learning it; below 0: forgotten.

    BWT of Lopez-Paz and Ranzato (2017), Gradient episodic memory for continual learning. 0 for a single task.
    """
    matrix = _square(scores)
    change = (matrix[-1] - np.diag(matrix))[:-1]
    return float(change.mean()) if len(change) else 0.0


def forgetting(scores: np.ndarray) -> float:
    """Mean over the earlier tasks of best score ever had − score in the end (Chaudhry et al., 2018); 0 for a single task.

    Unlike `backward_transfer` it counts what was gained on a task after learning it, and lost again.
    """
    matrix = _square(scores)
    lost = [matrix[task:-1, task].max() - matrix[-1, task] for task in range(len(matrix) - 1)]
    return float(np.mean(lost)) if lost else 0.0


def told_accuracy(probabilities: np.ndarray, labels: np.ndarray, classes: np.ndarray) -> float:
    """Accuracy where it is told which task an image is of: the most probable of the task's `classes` (positions) counts.

    Of n×(all classes) `probabilities`; every one of the `labels` is among `classes`. Without being told, a model has to tell the
    task, too: van de Ven and Tolias (2019), Three scenarios for continual learning, call these task- and class-incremental.
    """
    chosen = np.asarray(classes)[probabilities[:, classes].argmax(axis=1)]
    return float((chosen == labels).mean())


def _square(scores: np.ndarray) -> np.ndarray:
    matrix = np.asarray(scores, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
        raise ValueError(f"scores of shape {matrix.shape}: expected tasks × tasks, a row after each task that was learnt")
    return matrix
