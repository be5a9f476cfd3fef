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
        return F.normalize(features.double()) if self.cosine else features.double()

    def _votes(self, features: Tensor, stored: Tensor) -> Tensor:
        """n×classes."""
        distances = stored.square().sum(1) - 2 * self._placed(features) @ stored.T  # up to |asked|², which moves nobody's order
        nearest = distances.topk(self.k, dim=1, largest=False).indices
        return F.one_hot(self.labels[nearest], self.classes).sum(1).float()


class Tasks(nn.Module):
    """A linear layer for each task, on features of its own: N×(tasks · d), side by side, to N×classes logits.

    `classes` has the positions of each task's classes. No one says whose image it is: the logits of all stand beside each other,
    and the largest wins. A class that several tasks know has the larger of its logits.
    """

    def __init__(self, classes: Sequence[Sequence[int]], num_features: int) -> None:
        super().__init__()
        self.classes = [list(own) for own in classes]
        self.layers = nn.ModuleList(nn.Linear(num_features, len(own)) for own in self.classes)

    def forward(self, features: Tensor) -> Tensor:
        parts = features.chunk(len(self.classes), dim=1)
        found = [layer(part.contiguous()) for layer, part in zip(self.layers, parts, strict=True)]
        width = 1 + max(place for own in self.classes for place in own)
        logits: Tensor = found[0].new_full((features.shape[0], width), -torch.inf)
        for own, values in zip(self.classes, found, strict=True):
            logits[:, own] = torch.maximum(logits[:, own], values)
        return logits


def cool(head: nn.Module, temperature: float) -> None:
    """Divide the logits that `head` gives by `temperature`, for good, so that no later step needs to know: linear layers in their
    weights, votes by a number.

    Guo et al. (2017), On calibration of modern neural networks. The class that is predicted stays the same.
    """
    with torch.no_grad():
        for layer in head.modules():
            if isinstance(layer, nn.Linear):
                layer.weight.div_(temperature)
                layer.bias.div_(temperature)
            elif isinstance(layer, Neighbours):
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
        return {"kind": TASKS, "classes": head.classes}
    return {"kind": LINEAR}


def rebuild(facts: Mapping[str, Any], num_features: int, classes: int) -> nn.Module:
    """A head of the described kind, with tensors of the right shapes and no content.

    Raises:
        InputError: of no known kind, or with facts that are wrong.
    """
    kind = facts.get("kind")
    if kind == LINEAR:
        return nn.Linear(num_features, classes)
    if kind == TASKS:
        return Tasks(_places(facts.get("classes"), classes), num_features)
    if kind != NEIGHBOURS:
        raise InputError(f"its head is of the kind {kind!r}; known: {LINEAR}, {NEIGHBOURS}, {TASKS}")
    stored, k, temperature = facts.get("stored"), facts.get("k"), facts.get("temperature", 1.0)
    if not isinstance(stored, int) or not isinstance(k, int) or not 1 <= k <= stored:
        raise InputError(f"its head asks {k!r} neighbours of {stored!r} stored features")
    if not isinstance(temperature, int | float) or not 0 < temperature < math.inf:
        raise InputError(f"its head divides logits by {temperature!r}")
    empty, labels = torch.zeros(stored, num_features, dtype=torch.float16), torch.zeros(stored, dtype=torch.int64)
    return Neighbours(empty, labels, classes, k=k, cosine=facts.get("cosine") is True, temperature=temperature)


def _places(of_tasks: object, classes: int) -> list[list[int]]:
    """The classes of each task, all in range and none left out."""
    lists = of_tasks if isinstance(of_tasks, list) and all(isinstance(own, list) and own for own in of_tasks) else []
    places = {place for own in lists for place in own if isinstance(place, int)}
    if places != set(range(classes)) or not all(isinstance(place, int) for own in lists for place in own):
        raise InputError(f"the tasks of its head do not have the {classes} classes among them")
    return lists
