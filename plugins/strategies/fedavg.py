"""Clients train, and their weights are averaged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

from torch import nn

from automl_tl import Backbone, Classifier, Fitted, Job, Strategy, federation, hookimpl
from automl_tl.layers import still_norms
from automl_tl.space import Choice, Value

from ._federated import LOCAL, WeightsCentre, WeightsClient, local_macs
from ._layers import rates
from ._untrained import untrained


class FederatedAveraging(Strategy):
    """Each round, every client trains the server's network on its own images; the new network is the average of theirs, weighted
    by their numbers of images.

    Algorithm 1 of the paper with every client in every round: w ← Σ n_k/n · w_k, from a network that the server began on its
    public images (`_federated.pretrained_start`). With `norms` still, batch norms keep the statistics of those, which the
    clients' own, each of other classes, would pull apart. From a random start there are none to keep, so they move.
    """

    name = "fedavg"
    paper = "McMahan et al. (2017), Communication-efficient learning of deep networks from decentralized data"
    needs = frozenset({"clients"})
    space = {**LOCAL, "start": Choice(("pretrained", "random"), "pretrained", usual=0.9)}

    def run(self, job: Job) -> Fitted:
        return federation.train(self, job)

    def client(self, job: Job) -> federation.Client:
        return WeightsClient(self, job)

    def centre(self, job: Job) -> federation.Centre:
        return WeightsCentre(self, job, pretrained=self.hp.start == "pretrained")

    def averaging(self, settings: dict[str, Any]) -> Any:
        from flwr.server.strategy import FedAvg

        return FedAvg(**settings)

    def build(self, backbone: nn.Module, num_classes: int) -> Classifier:
        return super().build(backbone if self.hp.start == "pretrained" else untrained(backbone, self.facts), num_classes)

    def param_groups(self, model: Classifier) -> Iterator[tuple[float, list[nn.Parameter]]]:
        return rates(model, self.hp.backbone_rate if self.hp.start == "pretrained" else 1.0)

    def start_epoch(self, model: Classifier, epoch: int) -> None:
        if self.hp.norms == "still" and self.hp.start == "pretrained":
            still_norms(model.backbone, only_frozen=False)

    @classmethod
    def cost(cls, backbone: Backbone, images: int, hyperparameters: Mapping[str, Value]) -> float:
        return local_macs(backbone, images, hyperparameters)


@hookimpl
def register_strategies() -> list[type[Strategy]]:
    """Nothing without Flower, which `pip install automl_tl[federated]` brings."""
    return [FederatedAveraging] if find_spec("flwr") else []
