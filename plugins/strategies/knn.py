"""The nearest training images vote."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch

from automl_tl import Backbone, Fitted, Job, Strategy, hookimpl
from automl_tl.errors import TrialError
from automl_tl.heads import Neighbours
from automl_tl.space import Choice, Value

from ._frozen import finished, known, score_of

COUNTS = (1, 3, 5, 10, 20, 50)


class NearestNeighbours(Strategy):
    """k-nearest neighbours on frozen features; k and the distance are chosen on the validation images.

    The share of class c is the number of the k nearest training images that are of it, over k. Nothing is assumed about the
    shape of a class: it may lie in several places. The model keeps the features of all training images (in half precision; the
    note says how many bytes), so it grows with them, and they are part of what is given away with it.
    """

    name = "knn"
    paper = "Cover and Hart (1967), Nearest neighbor pattern classification"
    space = {"neighbours": Choice(("chosen", *COUNTS), "chosen"), "distance": Choice(("chosen", "cosine", "euclidean"), "chosen")}

    def run(self, job: Job) -> Fitted:
        job.features()  # kept from now on: what they take is not this strategy's
        start = time.perf_counter()
        features, labels, held_out, held_out_labels = known(job)
        stored, stored_labels = torch.from_numpy(features).half(), torch.from_numpy(labels)
        if not stored.isfinite().all():
            raise TrialError("the features of this network go beyond 65504, the end of the half precision that they are kept in")
        counts = COUNTS if self.hp.neighbours == "chosen" else (int(self.hp.neighbours),)
        distances = ("cosine", "euclidean") if self.hp.distance == "chosen" else (self.hp.distance,)
        heads = [
            Neighbours(stored, stored_labels, len(job.task.classes), k=min(k, len(stored)), cosine=distance == "cosine")
            for distance in distances
            for k in counts
        ]
        best = max(heads, key=lambda head: score_of(head, held_out, held_out_labels))
        kind, size = "cosine" if best.cosine else "euclidean", stored.nbytes / 2**20
        return finished(job, best, start, f"{best.k} neighbours ({kind}) of {len(stored)} kept feature vectors, {size:.2f} MB")

    @classmethod
    def cost(cls, backbone: Backbone, images: int, hyperparameters: Mapping[str, Value]) -> float:
        """A forward pass, and for each head that is tried a look at every pair of images."""
        counts = len(COUNTS) if hyperparameters["neighbours"] == "chosen" else 1
        distances = 2 if hyperparameters["distance"] == "chosen" else 1
        return float(backbone.macs) * images + counts * distances * float(backbone.num_features) * images * images


@hookimpl
def register_strategies() -> list[type[Strategy]]:
    return [NearestNeighbours]
