"""The nearest class mean."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
import torch

from automl_tl import Backbone, Fitted, Job, Strategy, hookimpl
from automl_tl.space import Choice, Value

from ._frozen import finished, known, linear, score_of

TEMPERATURES = tuple(2.0**exponent for exponent in range(-6, 5))


class NearestMean(Strategy):
    """An image goes to the class whose mean feature is nearest.

    |f - m|² = |f|² - 2 m·f + |m|², and |f|² is the same for all classes: so the nearest mean is a linear classifier with weights
    2 m and biases -|m|² (over a temperature, which is chosen by log-loss on the validation images and moves no decision). With
    `features` standardised, each is first divided by its spread within the classes. One mean a class is little to estimate:
    this is for a handful of images.
    """

    name = "nearest-mean"
    paper = "Mensink et al. (2013), Distance-based image classification: Generalizing to new classes at near-zero cost"
    space = {"features": Choice(("chosen", "raw", "standardised"), "chosen")}

    def run(self, job: Job) -> Fitted:
        job.features()  # kept from now on: what they take is not this strategy's
        start = time.perf_counter()
        train, labels, held_out, held_out_labels = known(job)
        train = train.astype(np.float64)
        means = np.stack([train[labels == label].mean(axis=0) for label in range(len(job.task.classes))])
        within = train - (means[labels] if len(train) > len(means) else means.mean(axis=0))  # one image a class has no spread
        spread = np.maximum(within.std(axis=0), 1e-3 * within.std() + 1e-12)
        kinds = ("raw", "standardised") if self.hp.features == "chosen" else (self.hp.features,)
        made = []
        for kind in kinds:
            scale = spread if kind == "standardised" else np.full_like(spread, within.std() + 1e-12)
            for temperature in TEMPERATURES:
                weight = 2 * means / scale**2 / temperature / means.shape[1]
                bias = -(means**2 / scale**2).sum(axis=1) / temperature / means.shape[1]
                made.append((kind, linear(torch.from_numpy(weight), torch.from_numpy(bias))))
        kind, head = max(made, key=lambda item: score_of(item[1], held_out, held_out_labels))
        return finished(job, head, start, f"means of {kind} features")

    @classmethod
    def cost(cls, backbone: Backbone, images: int, hyperparameters: Mapping[str, Value]) -> float:
        """A forward pass, and for each kind of features and temperature a look at the held-out images."""
        kinds = 2 if hyperparameters["features"] == "chosen" else 1
        return float(backbone.macs) * images + kinds * len(TEMPERATURES) * float(backbone.num_features) * images


@hookimpl
def register_strategies() -> list[type[Strategy]]:
    return [NearestMean]
