"""Clients tell what they think of public images; no weight leaves them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from automl_tl import Backbone, Batch, Classifier, Fitted, Job, Strategy, checkpoint, federation, hookimpl, loop
from automl_tl.device import device
from automl_tl.errors import TrialError
from automl_tl.federation import Answer, Told
from automl_tl.inference import predict
from automl_tl.records import PUBLIC, TRAIN
from automl_tl.space import Choice, Int, Value

from ._federated import LOCAL, pretrained_start, train_locally
from ._layers import rates, settle


class FederatedDistillation(Strategy):
    """Each round, a client first learns what all clients together think of the public images (digest), then trains on its own
    (revisit), then tells its class probabilities of the public images; the server averages them (algorithm 1 of the paper).

    The paper's clients stop at a model of their own each. Here the server, too, has a network, which learns from the average what
    public images show (ensemble distillation: Lin et al., 2020); it is judged and kept. Labels of public images are the server's
    alone: what they teach a probe (`_federated.pretrained_start`) is what the rounds have to surpass. What is distilled is
    softened by `temperature` on both sides, and the server learns the labels beside it, half and half (Hinton et al., 2015):
    clients with few images agree on much that is wrong.
    """

    name = "federated-distillation"
    paper = "Li and Wang (2019), FedMD: Heterogenous federated learning via model distillation"
    needs = frozenset({"clients"})
    space = {**LOCAL, "temperature": Choice((1.0, 2.0, 4.0), 2.0), "server_epochs": Int(1, 5, 2)}
    said: Tensor | None = None
    """While it digests: public images × classes."""
    known: Tensor | None = None
    """While the server digests: labels of the public images."""

    def run(self, job: Job) -> Fitted:
        return federation.train(self, job)

    def client(self, job: Job) -> federation.Client:
        return _Client(self, job)

    def centre(self, job: Job) -> federation.Centre:
        return _Centre(self, job)

    def averaging(self, settings: dict[str, Any]) -> Any:
        from flwr.server.strategy import FedAvg

        return FedAvg(**settings)

    def param_groups(self, model: Classifier) -> Iterator[tuple[float, list[nn.Parameter]]]:
        return rates(model, self.hp.backbone_rate)

    def start_epoch(self, model: Classifier, epoch: int) -> None:
        settle(model, self.hp.norms)

    def loss(self, model: Classifier, batch: Batch) -> Tensor:
        if self.said is None:
            return super().loss(model, batch)
        heat, logits = float(self.hp.temperature), model(batch.images).float()
        loss = F.cross_entropy(logits / heat, self.said[batch.labels]) * heat**2
        if self.known is None:
            return loss
        return (loss + F.cross_entropy(logits, self.known[batch.labels], label_smoothing=self.hp.label_smoothing)) / 2

    def digest(self, parts: loop.Parts, job: Job, said: np.ndarray, epochs: range, of: int, *, labelled: bool = False) -> None:
        """Train on what was said about the public images, and on their labels where they are known."""
        public = job.task.part(PUBLIC)
        rows = job.task.labels.copy()
        rows[public] = np.arange(len(public))  # instead of its class, an image names its row of `said`
        task = replace(job.task, splits={TRAIN: public}, labels=rows)
        self.said = torch.from_numpy(said.astype(np.float32)).to(device())
        self.known = torch.from_numpy(job.task.labels[public]).to(device()) if labelled else None
        try:
            for epoch in epochs:
                loop.train_epoch(
                    self, parts, replace(job, task=task, seed=job.seed + 500_000), epoch, (epoch / of, (epoch + 1) / of)
                )
        finally:
            self.said = self.known = None

    def opinion(self, model: nn.Module, job: Job) -> np.ndarray:
        """Softened class probabilities of the public images."""
        logits = np.log(np.clip(predict(model, job.pixels.array, job.task.part(PUBLIC), job.backbone), 1e-12, None))
        warm = np.exp((logits - logits.max(axis=1, keepdims=True)) / self.hp.temperature)
        return np.asarray(warm / warm.sum(axis=1, keepdims=True), dtype=np.float32)

    @classmethod
    def cost(cls, backbone: Backbone, images: int, hyperparameters: Mapping[str, Value]) -> float:
        """Clients learn their images and, as many again in all, the public ones; the server the public ones."""
        each = float(hyperparameters["local_epochs"]) + 1 + 0.25 * float(hyperparameters["server_epochs"])
        return 3.0 * backbone.macs * images * float(hyperparameters["epochs"]) * each


class _Client:
    """Its network stays in its folder, one file a round; the last two are kept, so that a round can be repeated."""

    def __init__(self, strategy: FederatedDistillation, job: Job) -> None:
        self.strategy, self.job = strategy, job

    def answer(self, arrays: list[np.ndarray], told: Told) -> Answer:
        number, strategy, job = int(told["round"]), self.strategy, self.job
        (said,) = arrays
        if len(said) != len(job.task.part(PUBLIC)):
            here = len(job.task.part(PUBLIC))
            raise TrialError(f"the server has {len(said)} public images, but here are {here}; give their folder with --public")
        parts = loop.assemble(strategy, job)
        if number:
            tensors, _ = checkpoint.load(self._path(number - 1))
            parts.model.load_state_dict(tensors)
            strategy.digest(parts, job, said, range(number, number + 1), int(strategy.hp.epochs))
        loss = train_locally(strategy, parts, job, number)
        job.folder.mkdir(parents=True, exist_ok=True)
        checkpoint.save(self._path(number), parts.model.state_dict(), {"round": number})
        self._path(number - 2).unlink(missing_ok=True)
        return Answer([strategy.opinion(parts.model, job)], 1, {"loss": loss})  # each client's word counts the same

    def _path(self, number: int) -> Any:
        return self.job.folder / f"own-{number}.safetensors"


class _Centre:
    """A network of the server's own, which learns from what the clients say."""

    def __init__(self, strategy: FederatedDistillation, job: Job) -> None:
        self.strategy, self.job = strategy, job
        if not len(job.task.part(PUBLIC)):
            raise TrialError("clients tell what they think of public images, but there are none; offer some")
        self.model = pretrained_start(strategy, job)

    def first(self) -> list[np.ndarray]:
        """Nothing is said yet; clients do not look at it."""
        return [np.zeros((len(self.job.task.part(PUBLIC)), len(self.job.task.classes)), dtype=np.float32)]

    def take(self, arrays: list[np.ndarray], number: int) -> None:
        each, strategy = int(self.strategy.hp.server_epochs), self.strategy
        parts = loop.assemble(strategy, self.job)
        if number:  # at first the pretrained network, as the clients have it
            parts.model.load_state_dict(self.model.state_dict())
        epochs = range(number * each, (number + 1) * each)
        strategy.digest(parts, self.job, arrays[0], epochs, int(strategy.hp.epochs) * each, labelled=True)
        self.model = parts.model

    def tell(self) -> dict[str, Any]:
        return {}


@hookimpl
def register_strategies() -> list[type[Strategy]]:
    """Nothing without Flower, which `pip install automl_tl[federated]` brings."""
    return [FederatedDistillation] if find_spec("flwr") else []
