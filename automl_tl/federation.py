"""Federated training: clients learn from images that never leave them; a server makes one model of what they send.

The rounds, the messages and the averaging are Flower's (Beutel et al., 2020; see `flower`). A federated strategy brings the two
sides; here is what lies between: whose images a simulated client sees, and what the server does between rounds (judge, keep,
report, stop). A round is an epoch of the learning curve.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from . import checkpoint
from .device import memory_mb, reset_memory
from .errors import TrialError
from .extras import require
from .loop import last_epoch, time_is_up
from .objectives import Validated, validate
from .records import PUBLIC, TRAIN, Point
from .strategy import Classifier, Fitted, Job, Strategy

if TYPE_CHECKING:
    from .flower import Meeting

CHECKPOINT = "rounds.safetensors"
Told = Mapping[str, bool | bytes | float | int | str]
"""What the server says beside the arrays: "round" (from 0), "plan" (JSON, to real clients), and what the strategy adds."""


@dataclass(frozen=True, eq=False)
class Answer:
    """All that leaves a client in a round. There is no other way out."""

    arrays: list[np.ndarray]
    """Weights, or class probabilities of public images; float32."""
    images: int
    """How many training images it rests on: its share in the average."""
    facts: dict[str, float] = field(default_factory=dict)
    """Single numbers, such as the mean training loss."""


class Client(Protocol):
    """A client's side of a federated strategy. What it remembers between rounds lies in its job's folder."""

    def answer(self, arrays: list[np.ndarray], told: Told) -> Answer:
        """Learn from its own images, starting at what the server sent."""


class Centre(Protocol):
    """The server's side of a federated strategy."""

    model: Classifier
    """What is judged and kept."""

    def first(self) -> list[np.ndarray]:
        """What the first round sends."""

    def take(self, arrays: list[np.ndarray], number: int) -> None:
        """Bring the average of the answers to round `number` (from 0) into `model`."""

    def tell(self) -> dict[str, Any]:
        """What every round says beside the arrays."""


class Federated(Protocol):
    """What a federated strategy has besides `Strategy`: both sides, and what a client gives away."""

    hp: Any

    def client(self, job: Job) -> Client:
        """The side of a client whose images are `job.task`'s, with `PUBLIC` ones beside them."""

    def centre(self, job: Job) -> Centre:
        """The server's side; it looks at `PUBLIC` and validation images alone."""

    def averaging(self, settings: dict[str, Any]) -> Any:
        """One of Flower's strategies with these settings: how answers become one."""


def require_flower() -> None:
    """Check for Flower and Opacus, and see that Flower tells nobody of the training (its telemetry is on by default).

    Raises:
        PluginError: one is missing; names the extra.
    """
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    require("federated", "flwr", "opacus")


def train(strategy: Strategy, job: Job, *, meeting: Meeting | None = None, plan: str = "") -> Fitted:
    """Rounds until the last, the deadline or a word to stop; the best by validation score is kept, the start counting as well.

    Without a `meeting` the clients of `job.task` are simulated in this process, one after the other, through the same messages
    as real ones. Goes on from the checkpoint in `job.folder` if there is one.

    Raises:
        TrialError: a client failed, or what came of the answers is no longer a number.
    """
    require_flower()
    from . import flower

    torch.manual_seed(job.seed)
    reset_memory()
    job = replace(job, path=None)  # what weights do for the loss is a matter of one descent, and here are many
    sides = cast(Federated, strategy)
    rounds = _Rounds(sides.centre(job), job, int(strategy.hp.epochs), plan)
    rounds.restore()
    if rounds.left and not rounds.must_wait():
        meeting = meeting or flower.near(_simulated(sides, job))
        settings = {
            "initial_parameters": flower.packed(rounds.arrays),
            "evaluate_fn": rounds.judge,
            "on_fit_config_fn": rounds.say,
            "fit_metrics_aggregation_fn": rounds.hear,
            "min_fit_clients": meeting.clients,
            "min_available_clients": meeting.clients,
            "fraction_evaluate": 0.0,
            "min_evaluate_clients": 0,
        }
        with suppress(_Enough):
            meeting.run(sides.averaging(settings), rounds.left)
    return rounds.fitted()


def _simulated(sides: Federated, job: Job) -> list[Client]:
    assert job.task.clients is not None, "a strategy that needs clients was given a task without"
    return [sides.client(job_of_client(job, number)) for number in range(int(job.task.clients.max()) + 1)]


def job_of_client(job: Job, number: int) -> Job:
    """What client `number` of a simulation may see: its own images and the public ones, none of the server's for judging."""
    task = job.task
    assert task.clients is not None
    own = task.part(TRAIN)[task.clients[task.part(TRAIN)] == number]
    splits = {TRAIN: own, PUBLIC: task.part(PUBLIC)}
    return replace(
        job,
        task=replace(task, name=f"client {number + 1} of {task.name}", splits=splits, clients=None),
        folder=job.folder / f"client-{number}",
        seed=(job.seed * 1000 + number + 1) % 2**31,
        report=lambda point: False,
    )


class _Enough(Exception):
    """No further round."""


class _Rounds:
    """What the server does between Flower's rounds."""

    def __init__(self, centre: Centre, job: Job, rounds: int, plan: str) -> None:
        self.centre, self.job, self.rounds, self.plan = centre, job, rounds, plan
        self.arrays = centre.first()
        self.curve: list[Point] = []
        self.best: dict[str, Tensor] = self._weights()
        self.best_score, self.best_loss = -1.0, math.inf
        self.heard: dict[str, float] = {}
        self.before = 0
        """Rounds of earlier calls: Flower counts those of this one, from 1."""
        self.start = time.perf_counter()

    @property
    def done(self) -> int:
        return len(self.curve)

    @property
    def left(self) -> int:
        return self.rounds - self.done

    def must_wait(self) -> bool:
        """Whether the next round is for another call: it is beyond the rung, or as long as the last it would end too late."""
        return self.done >= self.job.stop_after or time_is_up(self.job, last_epoch(self.curve))

    def say(self, number: int) -> dict[str, Any]:
        """Beside the arrays of Flower's round `number`."""
        return {"round": self.before + number - 1, "plan": self.plan, **self.centre.tell()}

    def hear(self, answers: Sequence[tuple[int, Mapping[str, Any]]]) -> dict[str, Any]:
        """The facts of all answers: of a loss the mean over all images, of anything else the largest."""
        names = sorted({name for _, facts in answers for name in facts})
        for name in names:
            values = [(images, float(facts[name])) for images, facts in answers if name in facts]
            whole = sum(images for images, _ in values)
            mean = sum(images * value for images, value in values) / max(whole, 1)
            self.heard[name] = mean if name == "loss" else max(value for _, value in values)
        return dict(self.heard)

    def judge(self, number: int, arrays: list[np.ndarray], _: dict[str, Any]) -> None:
        """After Flower's round `number`; 0 is before the first: what the server begins with may be the best there is."""
        if number == 0:
            if not self.done:
                self._keep_if_best()
            self.start = time.perf_counter()
            return
        if not all(np.isfinite(values).all() for values in arrays):
            raise TrialError(f"what the clients sent is no longer a number in round {self.done + 1}; lower the rate")
        self.arrays = arrays
        self.centre.take(arrays, self.done)
        found = self._keep_if_best()
        spent = (self.curve[-1].seconds if self.curve else 0.0) + time.perf_counter() - self.start
        self.start = time.perf_counter()
        self.curve.append(Point(self.done + 1, spent, self.heard.get("loss"), found.score, memory_mb(), self._note()))
        stop = self.job.report(self.curve[-1])
        if self.left:
            self._save()
        if stop or (self.left and self.must_wait()):
            raise _Enough

    def _keep_if_best(self) -> Validated:
        found = validate(self.centre.model, self.job.pixels.array, self.job.task, self.job.backbone)
        if (found.score, -found.loss) > (self.best_score, -self.best_loss):
            self.best_score, self.best_loss, self.best = found.score, found.loss, self._weights()
        return found

    def _note(self) -> str:
        """What privacy was spent, where it was accounted for."""
        if "epsilon" not in self.heard:
            return ""
        return f"ε {self.heard['epsilon']:.2f} at δ {self.heard['delta']:.0e} for every image of a client"

    def _weights(self) -> dict[str, Tensor]:
        return {name: tensor.detach().cpu().clone() for name, tensor in self.centre.model.state_dict().items()}

    @property
    def _path(self) -> Path:
        return self.job.folder / CHECKPOINT

    def _save(self) -> None:
        arrays = {str(number): torch.from_numpy(values) for number, values in enumerate(self.arrays)}
        parts = {"array": arrays, "model": self.centre.model.state_dict(), "best": self.best}
        tensors = {name: tensor for prefix, part in parts.items() for name, tensor in checkpoint.prefixed(part, prefix).items()}
        facts = {"score": self.best_score, "loss": self.best_loss, "curve": [asdict(point) for point in self.curve]}
        checkpoint.save(self._path, tensors, facts)

    def restore(self) -> None:
        if not self._path.exists():
            return
        tensors, facts = checkpoint.load(self._path)
        arrays = checkpoint.nested(tensors, "array")
        self.arrays = [arrays[str(number)].numpy() for number in range(len(arrays))]
        self.centre.model.load_state_dict(checkpoint.nested(tensors, "model"))
        self.best = checkpoint.nested(tensors, "best")
        self.best_score, self.best_loss = facts["score"], facts["loss"]
        self.curve = [Point(**point) for point in facts["curve"]]
        self.before = self.done

    def fitted(self) -> Fitted:
        model = self.centre.model
        model.load_state_dict(self.best)
        found = validate(model, self.job.pixels.array, self.job.task, self.job.backbone)
        return Fitted(model, self.curve, found.probabilities, complete=not self.left)
