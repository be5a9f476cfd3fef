"""What every classifier of frozen features leaves, whatever it is made of."""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import Tensor, nn

from automl_tl import Classifier, Fitted, Job, Point
from automl_tl.device import device, memory_mb
from automl_tl.records import TRAIN, VALIDATION


def known(job: Job) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Features and labels of the training images, then of the validation images."""
    features, labels = job.features().values, job.task.labels
    train, validation = job.task.part(TRAIN), job.task.part(VALIDATION)
    return features[train], labels[train], features[validation], labels[validation]


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A layer with these weights (classes×d) and biases."""
    head = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
    return head


def logits_of(head: nn.Module, features: np.ndarray) -> Tensor:
    """n×classes, of raw n×d features."""
    with torch.inference_mode():
        logits: Tensor = head(torch.from_numpy(features.astype(np.float32)))
    return logits


def score_of(head: nn.Module, features: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Accuracy, then negative log-loss: larger is better in both."""
    logits = logits_of(head, features)
    y = torch.from_numpy(labels)
    return float((logits.argmax(1) == y).float().mean()), -float(nn.functional.cross_entropy(logits, y))


def finished(job: Job, head: nn.Module, start: float, note: str) -> Fitted:
    """The untouched backbone under `head`; one point of a curve, which began at `start` (`time.perf_counter()`)."""
    _, _, features, labels = known(job)
    probabilities = logits_of(head, features).softmax(1).numpy()
    score = float((probabilities.argmax(1) == labels).mean())
    point = Point(1, time.perf_counter() - start, None, score, memory_mb(), note)
    job.report(point)
    model = Classifier(job.build_backbone(), head).requires_grad_(False).to(device())
    return Fitted(model, [point], probabilities, notes=(note,))
