"""Clients train a linear probe with noise, so that nobody can tell from it whether one image was there."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from automl_tl import Backbone, Fitted, Job, Strategy, checkpoint, federation, hookimpl
from automl_tl.errors import TrialError
from automl_tl.federation import Answer, Told
from automl_tl.records import PUBLIC, TRAIN
from automl_tl.space import Choice, Float, Int, Value

from ._federated import arrays_of, pretrained_start
from ._frozen import linear

DELTA = 1e-5
CLIP = 1.0
"""Largest length of one image's gradient."""
LARGEST = 1e6
"""Of the numbers that a server may send: far more than training leads to, far less than floats overflow at."""
LONGEST = 100.0
"""Largest length of a projected image; a typical one has length 1."""


class PrivateAveraging(Strategy):
    """Federated averaging of a linear probe that every client trains by DP-SGD, through Opacus.

    A step takes each of a client's images with the probability `sampled`, clips every image's gradient to length 1 and adds
    Gaussian noise to their sum (algorithm 1 of the paper). The noise is the least with which all steps of all rounds together are
    (ε, δ)-differentially private for any one image of a client, as Opacus accounts for them (Rényi; Mironov et al., 2019),
    towards everybody who sees what leaves the client, the server included. δ is 1e-5.

    The backbone is frozen. Its features are centred and projected on the `components` directions in which those of the public
    images vary most, each to the same variance: fewer weights need less noise, and no private image decides the directions. Nor
    does one decide the start, a probe on the public images' labels (`_federated.pretrained_start`), which spends nothing.
    """

    name = "dp-fedavg"
    paper = "Abadi et al. (2016), Deep learning with differential privacy; McMahan et al. (2017)"
    needs = frozenset({"clients"})
    space = {
        "epsilon": Choice((1.0, 3.0, 8.0), 3.0),
        "epochs": Int(2, 40, 10),
        "local_epochs": Int(1, 5, 1),
        "sampled": Choice((0.1, 0.25, 0.5), 0.25),
        "rate": Float(0.1, 30.0, 3.0, log=True),
        "components": Choice((16, 32, 64, 128), 64),
    }
    chance: Callable[[], torch.Generator] | None = None
    """What `remote` gives a real client: each round draws sampling and noise from a new one. None: from the job's seed."""

    def run(self, job: Job) -> Fitted:
        return federation.train(self, job)

    def client(self, job: Job) -> federation.Client:
        return _Client(self, job)

    def centre(self, job: Job) -> federation.Centre:
        return _Centre(self, job)

    def averaging(self, settings: dict[str, Any]) -> Any:
        from flwr.server.strategy import FedAvg

        return FedAvg(**settings)

    @classmethod
    def cost(cls, backbone: Backbone, images: int, hyperparameters: Mapping[str, Value]) -> float:
        small = float(hyperparameters["components"]) * float(hyperparameters["epochs"]) * 1000
        return images * (float(backbone.macs) + small)


class _Client:
    """It remembers nothing: what was spent before a round follows from its number."""

    def __init__(self, strategy: PrivateAveraging, job: Job) -> None:
        self.strategy, self.job = strategy, job

    def answer(self, arrays: list[np.ndarray], told: Told) -> Answer:
        hp, number, task = self.strategy.hp, int(told["round"]), self.job.task
        own = task.part(TRAIN)
        weight, bias, mean, directions = _received(arrays, told, self.strategy.facts.num_features, len(task.classes))
        x, y = projected(self.job.features().values[own], mean, directions), torch.from_numpy(task.labels[own])
        head = linear(torch.from_numpy(weight), torch.from_numpy(bias))
        secret = self.strategy.chance
        chance = secret() if secret else torch.Generator().manual_seed(self.job.seed * 1_000_003 + number)
        spent = _descend(head, x, y, hp, number, chance)
        trained = [head.weight.detach().numpy().copy(), head.bias.detach().numpy().copy()]
        return Answer(trained, len(own), {"epsilon": spent, "delta": DELTA})


def _received(arrays: list[np.ndarray], told: Told, features: int, classes: int) -> list[np.ndarray]:
    """Weight, bias, mean and directions, as an honest server could have sent them. Looks at nothing private.

    Raises:
        TrialError: they are of another form, or so large that a gradient could overflow: not a number is the same whatever
            the noise, and would tell whether the image that it was aimed at is here.
    """
    projection = checkpoint.unpack(told["projection"])  # type: ignore[arg-type]
    sent = [*arrays, *(projection[name].float().numpy() for name in ("mean", "directions"))]
    components = sent[-1].size // features
    forms = [(classes, components), (classes,), (features,), (features, components)]
    if [values.shape for values in sent] != forms or any(values.dtype != np.float32 for values in sent):
        raise TrialError("the probe or the projection that came is of another form than the one that was agreed on")
    if not all((np.abs(values) <= LARGEST).all() for values in sent):
        raise TrialError(
            f"the probe or the projection that came holds numbers beyond {LARGEST:.0e}, or none at all; no image was looked at. "
            "If the server is honest, lower the rate"
        )
    return sent


def projected(values: np.ndarray, mean: np.ndarray, directions: np.ndarray) -> Tensor:
    """Features n×d on the directions (d×components), none longer than `LONGEST`: whatever the server sent, the gradient of every
    image is a number, so that clipping holds it. Each row depends on its own image alone."""
    known = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)  # in 64 bits nothing below overflows
    found = (known - mean) @ directions
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    return torch.from_numpy((found * (LONGEST / np.maximum(lengths, LONGEST))).astype(np.float32))


def _descend(head: nn.Linear, x: Tensor, y: Tensor, hp: Any, number: int, chance: torch.Generator) -> float:
    """The private steps of round `number` on features x (n×d) and labels y; the ε spent up to its end."""
    from opacus import PrivacyEngine

    logging.getLogger("opacus.data_loader").setLevel(logging.ERROR)  # a draw may well take no image: a step of noise alone
    loader = DataLoader(TensorDataset(x, y), batch_size=max(1, round(len(x) * hp.sampled)), generator=chance)
    each = len(loader) * hp.local_epochs
    noise = noise_of(hp.epsilon, sampled=1 / len(loader), steps=each * hp.epochs)
    with warnings.catch_warnings():  # of hooks that it sets itself, and that its noise is not from a cryptographic source
        warnings.simplefilter("ignore")
        engine = PrivacyEngine(accountant="rdp")
        optimiser = torch.optim.SGD(head.parameters(), lr=hp.rate)
        module, optimiser, batches = engine.make_private(
            module=head,
            optimizer=optimiser,
            data_loader=loader,
            noise_multiplier=noise,
            max_grad_norm=CLIP,
            noise_generator=chance,
        )
        for _ in range(hp.local_epochs):
            for images, labels in batches:
                optimiser.zero_grad()
                F.cross_entropy(module(images), labels).backward()  # type: ignore[no-untyped-call]
                optimiser.step()
        module.remove_hooks()
    ((noise, sampled, taken),) = engine.accountant.history
    return spent_by(noise, sampled=sampled, steps=taken * (number + 1))


@cache
def spent_by(noise: float, *, sampled: float, steps: int) -> float:
    """ε (at δ 1e-5) of so many steps, by Opacus."""
    from opacus.accountants import RDPAccountant

    accountant = RDPAccountant()
    accountant.history = [(noise, sampled, steps)]
    with warnings.catch_warnings():  # of orders that its bound does not use
        warnings.simplefilter("ignore")
        return float(accountant.get_epsilon(DELTA))


@cache
def noise_of(epsilon: float, *, sampled: float, steps: int) -> float:
    """Standard deviation of the noise, in lengths of a clipped gradient, with which `steps` steps spend at most ε (at δ 1e-5)."""
    from opacus.accountants.utils import get_noise_multiplier

    with warnings.catch_warnings():  # of orders that its bound does not use
        warnings.simplefilter("ignore")
        return float(
            get_noise_multiplier(target_epsilon=epsilon, target_delta=DELTA, sample_rate=sampled, steps=steps, accountant="rdp")
        )


class _Centre:
    """Finds the directions in the public images; its network is the frozen backbone under the average of the probes."""

    def __init__(self, strategy: PrivateAveraging, job: Job) -> None:
        self.mean, self.directions = principal(job.features().values[job.task.part(PUBLIC)], strategy.hp.components)
        self.model = pretrained_start(strategy, job, norms="still").requires_grad_(False)  # clients have the pretrained features

    def first(self) -> list[np.ndarray]:
        """The network's head as far as it lies in the directions."""
        weight, bias = arrays_of(self.model.head)
        return [weight @ self.directions / np.square(self.directions).sum(axis=0), bias + weight @ self.mean]

    def take(self, arrays: list[np.ndarray], number: int) -> None:
        self._fold(arrays)

    def tell(self) -> dict[str, Any]:
        """Mean and directions, as the bytes of a safetensors file."""
        tensors = {"mean": torch.from_numpy(self.mean), "directions": torch.from_numpy(self.directions)}
        return {"projection": checkpoint.pack(tensors)}

    @torch.no_grad()
    def _fold(self, arrays: list[np.ndarray]) -> None:
        """Centring, projection and probe are one linear layer."""
        weight = arrays[0] @ self.directions.T
        self.model.head.weight.copy_(torch.from_numpy(weight))  # type: ignore[operator]
        self.model.head.bias.copy_(torch.from_numpy(arrays[1] - weight @ self.mean))  # type: ignore[operator]


def principal(values: np.ndarray, components: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean (d) and directions (d×components) of features n×d: projected on them, a typical image has length 1.

    Raises:
        TrialError: they do not differ.
    """
    if len(np.unique(values, axis=0)) < 2:
        raise TrialError(f"the directions are those in which public images differ, but there are {len(values)} alike; offer more")
    mean = values.mean(axis=0, dtype=np.float64)
    _, lengths, rows = np.linalg.svd(values - mean, full_matrices=False)
    kept = min(components, int((lengths > 1e-6 * lengths[0]).sum()))
    scale = np.sqrt(len(values) / kept) / lengths[:kept]
    return mean.astype(np.float32), (rows[:kept].T * scale).astype(np.float32)


@hookimpl
def register_strategies() -> list[type[Strategy]]:
    """Nothing without Flower and Opacus, which `pip install automl_tl[federated]` brings."""
    return [PrivateAveraging] if find_spec("flwr") and find_spec("opacus") else []
