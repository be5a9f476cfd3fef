"""Nearest neighbours."""

from __future__ import annotations

import numpy as np
import torch

from automl_tl import Features, hookimpl

from ._inputs import indicators, labelled

NEIGHBOURS = 5
BLOCK = 1024


def knn_accuracy(values: np.ndarray, labels: np.ndarray) -> float:
    """Share of the images whose class gets most votes from the 5 other images of highest cosine similarity s.

    A vote weighs 1 + s, which is never negative: a majority, and similarity decides between classes of as many neighbours.
    Leave-one-out accuracy of the classifier of Wu et al. (2018), Unsupervised feature learning via non-parametric instance
    discrimination, with that weight. A feature of 0 has a similarity of 0 to all.

    Args:
        values: n×d features. Worked through in blocks of rows: memory does not grow with n².
        labels: n, each of 0…classes-1 in use.
    """
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    lengths[lengths == 0] = 1
    # Seven digits of a cosine will do; torch finds the largest of a row ten times faster than numpy parts it.
    directions = torch.from_numpy(np.divide(values, lengths, dtype=np.float32, casting="same_kind"))
    members = indicators(labels)
    right = 0
    for start in range(0, len(values), BLOCK):
        similarity = directions[start : start + BLOCK] @ directions.T
        similarity.diagonal(start).fill_(-torch.inf)
        highest, nearest = (found.numpy() for found in similarity.topk(min(NEIGHBOURS, len(values) - 1), dim=1, sorted=False))
        votes = ((1 + highest)[:, :, None] * members[nearest]).sum(axis=1)
        right += int((votes.argmax(axis=1) == labels[start : start + BLOCK]).sum())
    return right / len(values)


class KNN:
    """Leave-one-out accuracy of five nearest neighbours by cosine; higher is better."""

    name = "knn"
    kind = "transferability"

    def score(self, target: Features, source: Features | None) -> float:
        return knn_accuracy(*labelled(target))


@hookimpl
def register_metrics() -> list[KNN]:
    return [KNN()]
