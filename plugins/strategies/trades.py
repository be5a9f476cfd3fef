"""Adversarial training that trades accuracy for robustness by a number."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from automl_tl import Backbone, Batch, Classifier, Fitted, Job, Strategy, hookimpl
from automl_tl.attacks import held
from automl_tl.norms import unmoved
from automl_tl.space import Float, Int, Value

from . import _adversarial
from ._losses import divergence


class Trades(Strategy):
    """The base strategy's loss on clean images + `weight` · KL(f(x) ‖ f(x')), for the x' within epsilon where it is largest.

    Equation 5 and algorithm 1 of the paper; `weight` is its 1/λ. The first term is for accuracy, the second for a smooth
    neighbourhood of each image. The search for x' starts at random within epsilon, where the paper starts from a small noise.
    """

    name = "trades"
    paper = "Zhang et al. (2019), Theoretically principled trade-off between robustness and accuracy"
    needs = frozenset({"epsilon"})
    space = {**_adversarial.SPACE, "weight": Float(1.0, 10.0, 6.0, log=True), "steps": Int(2, 10, 5)}

    def run(self, job: Job) -> Fitted:
        attack = _adversarial.Attacker(job.task.epsilon, job.backbone, self.hp.steps)

        def harden(plain: _adversarial.Loss) -> _adversarial.Loss:
            def loss(model: Classifier, batch: Batch) -> Tensor:
                with held(model), torch.no_grad():  # as the attacker sees the changed ones
                    still = model(batch.images).float()
                changed = attack(model, batch.images, lambda logits: divergence(still, logits.float()))
                with unmoved(model):  # the clean images move the norms once, in `plain`
                    said = model(batch.images).float()
                return plain(model, batch) + float(self.hp.weight) * divergence(said, model(changed).float()).mean()

            return loss

        return _adversarial.train(job, vars(self.hp), harden)

    @classmethod
    def requires(cls, hyperparameters: Mapping[str, Value]) -> frozenset[str]:
        return _adversarial.requires(cls.needs, hyperparameters)

    @classmethod
    def cost(cls, backbone: Backbone, images: int, hyperparameters: Mapping[str, Value]) -> float:
        return _adversarial.macs(backbone, images, hyperparameters, float(hyperparameters["steps"]) + 2)


@hookimpl
def register_strategies() -> list[type[Strategy]]:
    return [Trades]
