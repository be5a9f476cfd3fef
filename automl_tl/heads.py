"""What a saved model may end in: a linear layer, one for each of several tasks, or the nearest of stored features."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .errors import InputError, PluginError

LINEAR, NEIGHBOURS, TASKS = "linear", "neighbours", "tasks"
BLOCK = 1 << 22
"""Numbers that `Neighbours` has in memory at once, however many images it is asked about: distances, and votes to be counted."""

TRUST = 8.0
"""By how much the tasks' logarithms of strangeness count where no kept image tells."""


class Neighbours(nn.Module):
    """The `k` nearest of stored features vote for their classes (Cover and Hart, 1967).

    Features n×d to logits n×classes: the logarithm of (votes + 1/classes) / (k + 1), so that softmax gives the share of the
    votes, smoothed by one vote for all; all of it over `temperature` (see `cool`). Distances are Euclidean, of unit vectors if
    `cosine`, and computed in float64: neither autocast nor cancellation changes who is near.
    """

    features: Tensor
    labels: Tensor

    def __init__(self, features: Tensor, labels: Tensor, classes: int, *, k: int, cosine: bool, temperature: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("features", features)
        self.register_buffer("labels", labels)
        self.classes = classes
        self.k = k
        self.cosine = cosine
        self.temperature = temperature

    def forward(self, features: Tensor) -> Tensor:
        stored = self._placed(self.features)
        if torch.compiler.is_exporting():  # a graph has no loop over as many images as it will be asked about
            votes = self._votes(features, stored)
        else:
            block = max(1, BLOCK // (len(stored) + self.k * self.classes))
            parts: tuple[Tensor, ...] = features.split(block)  # type: ignore[no-untyped-call]
            votes = torch.cat([self._votes(part, stored) for part in parts])
        return ((votes + 1 / self.classes) / (self.k + 1)).log() / self.temperature

    def _placed(self, features: Tensor) -> Tensor:
        if features.device.type == "mps":  # Apple's GPUs have no float64
            features = features.cpu()
        return F.normalize(features.double()) if self.cosine else features.double()

    def _votes(self, features: Tensor, stored: Tensor) -> Tensor:
        """n×classes."""
        distances = stored.square().sum(1) - 2 * self._placed(features) @ stored.T  # up to |asked|², which moves nobody's order
        nearest = distances.topk(self.k, dim=1, largest=False).indices
        return F.one_hot(self.labels[nearest], self.classes).sum(1).float()


class Tasks(nn.Module):
    """A linear layer for each task, on features of its own: N×(tasks · d + tasks), side by side and then how strange the image is
    to each task's norms (`adapters.Grown`), to N×classes logits.

    `classes` has the positions of each task's classes. No one says whose image it is. Logits of different tasks have never been
    trained against each other, and those of a task that an image is strange to may be huge. So a class has the probability that
    its own task's layer gives it, times that of the task: a softmax of `bias` - `trust` · strangeness over the tasks. Of a class
    that several tasks know the probabilities add up. Logits are logarithms, divided by `temperature` (see `cool`).
    """

    def __init__(
        self,
        classes: Sequence[Sequence[int]],
        num_features: int,
        *,
        trust: float = TRUST,
        bias: Sequence[float] = (),
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        self.classes = [list(own) for own in classes]
        self.layers = nn.ModuleList(nn.Linear(num_features, len(own)) for own in self.classes)
        self.trust = trust
        self.bias = list(bias) or [0.0] * len(self.classes)
        self.temperature = temperature

    def forward(self, features: Tensor) -> Tensor:
        found, strange = self.parts(features)
        whose = (strange.new_tensor(self.bias) - self.trust * strange).log_softmax(1)
        return self.joined([values + whose[:, task, None] for task, values in enumerate(found)]) / self.temperature

    def parts(self, features: Tensor) -> tuple[list[Tensor], Tensor]:
        """N×classes of each task: the logarithms of its own probabilities; and N×tasks, the strangeness."""
        tasks = len(self.classes)
        own, strange = features[:, :-tasks], features[:, -tasks:].float()
        found = [layer(part.contiguous()) for layer, part in zip(self.layers, own.chunk(tasks, dim=1), strict=True)]
        return [values.float().log_softmax(1) for values in found], strange

    def joined(self, found: Sequence[Tensor]) -> Tensor:
        """N×classes of all tasks, of logarithms of probabilities of each task's classes."""
        width = 1 + max(place for own in self.classes for place in own)
        logits: Tensor = found[0].new_full((found[0].shape[0], width), -torch.inf)
        for own, values in zip(self.classes, found, strict=True):
            logits[:, own] = torch.logaddexp(logits[:, own], values)
        return logits


def cool(head: nn.Module, temperature: float) -> None:
    """Divide the logits that `head` gives by `temperature`, for good, so that no later step needs to know: a linear layer in its
    weights, others by a number.

    Guo et al. (2017), On calibration of modern neural networks. The class that is predicted stays the same.
    """
    with torch.no_grad():
        for layer in head if isinstance(head, nn.Sequential) else (head,):
            if isinstance(layer, nn.Linear):
                layer.weight.div_(temperature)
                layer.bias.div_(temperature)
            elif isinstance(layer, (Neighbours, Tasks)):
                layer.temperature *= temperature


def plain(head: nn.Module, strategy: str) -> nn.Module:
    """`head` without dropout, which does nothing at prediction.

    Raises:
        PluginError: it is of no kind that a model can be saved with.
    """
    layers = [layer for layer in (head if isinstance(head, nn.Sequential) else [head]) if not isinstance(layer, nn.Dropout)]
    if len(layers) == 1 and isinstance(layers[0], (nn.Linear, Neighbours, Tasks)):
        return layers[0]
    raise PluginError(
        f"strategy {strategy!r} left a head that is not linear; fold it into one nn.Linear before returning, "
        "or leave automl_tl.heads.Neighbours or Tasks"
    )


def describe(head: nn.Module) -> dict[str, Any]:
    """The facts that `rebuild` needs besides the tensors."""
    if isinstance(head, Neighbours):
        told = {"stored": len(head.labels), "k": head.k, "cosine": head.cosine, "temperature": head.temperature}
        return {"kind": NEIGHBOURS, **told}
    if isinstance(head, Tasks):
        apart = {"trust": head.trust, "bias": head.bias}
        return {"kind": TASKS, "classes": head.classes, "temperature": head.temperature, **apart}
    return {"kind": LINEAR}


def rebuild(facts: Mapping[str, Any], num_features: int, classes: int) -> nn.Module:
    """A head of the described kind, with tensors of the right shapes and no content.

    Raises:
        InputError: of no known kind, or with facts that are wrong.
    """
    kind, temperature = facts.get("kind"), facts.get("temperature", 1.0)
    if kind == LINEAR:
        return nn.Linear(num_features, classes)
    if not _is_finite(temperature) or temperature <= 0:
        raise InputError(f"its head divides logits by {temperature!r}")
    if kind == TASKS:
        places = _places(facts.get("classes"), classes)
        trust, bias = facts.get("trust", 0.0), facts.get("bias", [0.0] * len(places))  # older heads have none
        if not _is_finite(trust) or not isinstance(bias, list) or len(bias) != len(places) or not all(map(_is_finite, bias)):
            raise InputError(f"its head tells {len(places)} tasks apart by a trust of {trust!r} and a bias of {bias!r}")
        return Tasks(places, num_features, trust=trust, bias=bias, temperature=temperature)
    if kind != NEIGHBOURS:
        raise InputError(f"its head is of the kind {kind!r}; known: {LINEAR}, {NEIGHBOURS}, {TASKS}")
    stored, k = facts.get("stored"), facts.get("k")
    if not isinstance(stored, int) or not isinstance(k, int) or not 1 <= k <= stored:
        raise InputError(f"its head asks {k!r} neighbours of {stored!r} stored features")
    empty, labels = torch.zeros(stored, num_features, dtype=torch.float16), torch.zeros(stored, dtype=torch.int64)
    return Neighbours(empty, labels, classes, k=k, cosine=facts.get("cosine") is True, temperature=temperature)


def _is_finite(number: object) -> bool:
    return isinstance(number, int | float) and math.isfinite(number)


def _places(of_tasks: object, classes: int) -> list[list[int]]:
    """The classes of each task, all in range and none left out."""
    lists = of_tasks if isinstance(of_tasks, list) and all(isinstance(own, list) and own for own in of_tasks) else []
    places = {place for own in lists for place in own if isinstance(place, int)}
    if places != set(range(classes)) or not all(isinstance(place, int) for own in lists for place in own):
        raise InputError(f"the tasks of its head do not have the {classes} classes among them")
    return lists
