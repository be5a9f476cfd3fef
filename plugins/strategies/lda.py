"""Class means, measured in the covariance that the classes share."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
import torch

from automl_tl import Backbone, Fitted, Job, Strategy, hookimpl
from automl_tl.space import Choice, Value

from ._frozen import finished, known, linear


class DiscriminantAnalysis(Strategy):
    """Linear discriminant analysis with the covariance shrunk as Ledoit and Wolf say.

    Classes are Gaussians with means m and one covariance S: the logits are m·S⁻¹·f - m·S⁻¹·m / 2 + log(prior). With fewer
    images than features the sample covariance has no inverse; (1 - a) S + a tr(S)/d I has, and a is estimated, not tuned.
    Directions that vary much within classes count for little, which the nearest mean cannot say.
    """

    name = "lda"
    paper = "Fisher (1936), The use of multiple measurements in taxonomic problems; shrinkage: Ledoit and Wolf (2004)"
    space = {"priors": Choice(("counted", "equal"), "counted")}

    def run(self, job: Job) -> Fitted:
        from sklearn.covariance import ledoit_wolf

        job.features()  # kept from now on: what they take is not this strategy's
        start = time.perf_counter()
        train, labels, _, _ = known(job)
        train = train.astype(np.float64)
        counts = np.bincount(labels, minlength=len(job.task.classes))
        means = np.stack([train[labels == label].mean(axis=0) for label in range(len(counts))])
        # One image a class has no spread within: then what counts is that of the classes.
        centres = means[labels] if len(train) > len(counts) else means.mean(axis=0)
        covariance, shrinkage = ledoit_wolf(train - centres, assume_centered=True)
        degrees = len(train) / max(len(train) - len(counts), 1)  # the means were estimated from the same images
        tiny = 1e-8 * np.trace(covariance) / len(covariance) + 1e-12
        weight = np.linalg.solve(degrees * covariance + tiny * np.eye(len(covariance)), means.T).T
        prior = counts / counts.sum() if self.hp.priors == "counted" else np.full(len(counts), 1 / len(counts))
        bias = np.log(prior) - (weight * means).sum(axis=1) / 2
        head = linear(torch.from_numpy(weight), torch.from_numpy(bias))
        return finished(job, head, start, f"covariance shrunk by {shrinkage:.3f}")

    @classmethod
    def cost(cls, backbone: Backbone, images: int, hyperparameters: Mapping[str, Value]) -> float:
        """A forward pass, and a covariance and its inverse."""
        d = float(backbone.num_features)
        return float(backbone.macs) * images + d * d * (images + d)


@hookimpl
def register_strategies() -> list[type[Strategy]]:
    return [DiscriminantAnalysis]
