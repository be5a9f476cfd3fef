"""A linear classifier on frozen features."""

from __future__ import annotations

import time
from collections.abc import Mapping

from automl_tl import Backbone, Fitted, Job, Strategy, hookimpl
from automl_tl.space import Choice, Value

from ._frozen import finished
from ._probe import PATH, probe_job

STEPS = 100
"""Of L-BFGS, for a penalty: what an estimate of the cost assumes."""


class LinearProbe(Strategy):
    """Logistic regression on the frozen backbone's features; its L2 penalty is chosen on the validation images.

    Cross-entropy(W f + b) + penalty/2 · |W|² over the features f, by L-BFGS along a path of penalties. Features are computed
    once for each backbone and task, so this costs one forward pass over the images.
    """

    name = "linear-probe"
    paper = "Alain and Bengio (2016), Understanding intermediate layers using linear classifier probes"
    space = {"penalty": Choice(("chosen", *PATH), "chosen")}

    def run(self, job: Job) -> Fitted:
        job.features()  # kept from now on: what they take is not this strategy's
        start = time.perf_counter()
        probe = probe_job(job, path=PATH if self.hp.penalty == "chosen" else (float(self.hp.penalty),))
        return finished(job, probe.head(), start, f"L2 penalty {probe.penalty:g}")

    @classmethod
    def cost(cls, backbone: Backbone, images: int, hyperparameters: Mapping[str, Value]) -> float:
        """A forward pass, and for each penalty a number of steps over the features."""
        penalties = len(PATH) if hyperparameters["penalty"] == "chosen" else 1
        return float(backbone.macs) * images + STEPS * penalties * float(backbone.num_features) * images


@hookimpl
def register_strategies() -> list[type[Strategy]]:
    return [LinearProbe]
