"""Adversarial training at twice the price of the usual one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from automl_tl import Backbone, Batch, Classifier, Fitted, Job, Strategy, hookimpl
from automl_tl.attacks import cross_entropy_of
from automl_tl.space import Float, Value

from . import _adversarial


class FastAdversarial(Strategy):
    """The base strategy, on images that one step of the gradient's sign changed, from a random start within epsilon.

    Algorithm 3 of the paper: the step is `share` · epsilon, 1.25 by default. It can fail all at once, standing this attack and
    no other (catastrophic overfitting). As the best epoch is chosen by an attack of ten steps, the model from before is kept.
    """

    name = "fast-adversarial"
    paper = "Wong et al. (2020), Fast is better than free: revisiting adversarial training"
    needs = frozenset({"epsilon"})
    space = {**_adversarial.SPACE, "share": Float(0.75, 1.5, 1.25)}

    def run(self, job: Job) -> Fitted:
        attack = _adversarial.Attacker(job.task.epsilon, job.backbone, 1, self.hp.share)

        def harden(plain: _adversarial.Loss) -> _adversarial.Loss:
            def loss(model: Classifier, batch: Batch) -> Tensor:
                return plain(model, replace(batch, images=attack(model, batch.images, cross_entropy_of(batch.labels))))

            return loss

        return _adversarial.train(job, vars(self.hp), harden)

    @classmethod
    def requires(cls, hyperparameters: Mapping[str, Value]) -> frozenset[str]:
        return _adversarial.requires(cls.needs, hyperparameters)

    @classmethod
    def cost(cls, backbone: Backbone, images: int, hyperparameters: Mapping[str, Value]) -> float:
        return _adversarial.macs(backbone, images, hyperparameters, 1.0)


@hookimpl
def register_strategies() -> list[type[Strategy]]:
    return [FastAdversarial]
