"""Clients train on a leash, and their weights are averaged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

from torch import Tensor, nn

from automl_tl import Backbone, Batch, Classifier, Fitted, Job, Strategy, federation, hookimpl
from automl_tl.space import Float, Value

from ._federated import LOCAL, WeightsCentre, WeightsClient, local_macs
from ._layers import rates, settle


class FederatedProximal(Strategy):
    """Federated averaging whose clients descend on their loss + μ/2 · |w − w_t|², where w_t are the weights that the round began
    with (equation 2 of the paper): clients with other classes than the rest drift less far from each other.

    μ goes out with Flower's instructions, and the average is Flower's.
    """

    name = "fedprox"
    paper = "Li et al. (2020), Federated optimization in heterogeneous networks"
    needs = frozenset({"clients"})
    space = {**LOCAL, "mu": Float(1e-3, 10.0, 0.1, log=True)}
    mu: float
    begun: list[Tensor]

    def run(self, job: Job) -> Fitted:
        return federation.train(self, job)

    def client(self, job: Job) -> federation.Client:
        return WeightsClient(self, job, self._hold)

    def centre(self, job: Job) -> federation.Centre:
        return WeightsCentre(self, job)

    def averaging(self, settings: dict[str, Any]) -> Any:
        from flwr.server.strategy import FedProx

        return FedProx(proximal_mu=self.hp.mu, **settings)

    def _hold(self, model: Classifier, told: federation.Told) -> None:
        self.mu = float(told["proximal_mu"])
        self.begun = [parameter.detach().clone() for parameter in model.parameters()]

    def param_groups(self, model: Classifier) -> Iterator[tuple[float, list[nn.Parameter]]]:
        return rates(model, self.hp.backbone_rate)

    def start_epoch(self, model: Classifier, epoch: int) -> None:
        settle(model, self.hp.norms)

    def loss(self, model: Classifier, batch: Batch) -> Tensor:
        apart = [(now - then).square().sum() for now, then in zip(model.parameters(), self.begun, strict=True)]
        leash: Tensor = self.mu / 2 * sum(apart[1:], apart[0])
        return super().loss(model, batch) + leash

    @classmethod
    def cost(cls, backbone: Backbone, images: int, hyperparameters: Mapping[str, Value]) -> float:
        return local_macs(backbone, images, hyperparameters)


@hookimpl
def register_strategies() -> list[type[Strategy]]:
    """Nothing without Flower, which `pip install automl_tl[federated]` brings."""
    return [FederatedProximal] if find_spec("flwr") else []
