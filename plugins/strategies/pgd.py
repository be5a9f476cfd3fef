"""Adversarial training on projected gradient descent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from automl_tl import Backbone, Batch, Classifier, Fitted, Job, Strategy, hookimpl
from automl_tl.attacks import cross_entropy_of
from automl_tl.space import Int, Value

from . import _adversarial


class PGD(Strategy):
    """The base strategy, on images that `steps` steps of projected gradient ascent changed, all in place of the clean ones.

    Equation 2.1 of the paper: min over weights of the mean over images of the max over changes within epsilon of the loss.
    """

    name = "pgd"
    paper = "Madry et al. (2018), Towards deep learning models resistant to adversarial attacks"
    needs = frozenset({"epsilon"})
    space = {**_adversarial.SPACE, "steps": Int(2, 10, 5)}

    def run(self, job: Job) -> Fitted:
        attack = _adversarial.Attacker(job.task.epsilon, job.backbone, self.hp.steps)

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
        return _adversarial.macs(backbone, images, hyperparameters, float(hyperparameters["steps"]))


@hookimpl
def register_strategies() -> list[type[Strategy]]:
    return [PGD]
