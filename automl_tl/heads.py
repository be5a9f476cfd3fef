"""What a saved model may end in: a linear layer, or the nearest of stored features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .errors import InputError, PluginError

LINEAR, NEIGHBOURS = "linear", "neighbours"


class Neighbours(nn.Module):
    """The `k` nearest of stored features vote for their classes (Cover and Hart, 1967).

    Features n×d to logits n×classes: the logarithm of (votes + 1/classes) / (k + 1), so that softmax gives the share of the
    votes, smoothed by one vote for all. Distances are Euclidean, of unit vectors if `cosine`, and computed in float64: neither
    autocast nor cancellation changes who is near.
    """

    features: Tensor
    labels: Tensor

    def __init__(self, features: Tensor, labels: Tensor, classes: int, *, k: int, cosine: bool) -> None:
        super().__init__()
        self.register_buffer("features", features)
        self.register_buffer("labels", labels)
        self.classes = classes
        self.k = k
        self.cosine = cosine

    def forward(self, features: Tensor) -> Tensor:
        asked, stored = features.double(), self.features.double()
        if self.cosine:
            asked, stored = F.normalize(asked), F.normalize(stored)
        distances = stored.square().sum(1) - 2 * asked @ stored.T  # up to |asked|², which moves nobody's order
        nearest = distances.topk(self.k, dim=1, largest=False).indices
        votes = F.one_hot(self.labels[nearest], self.classes).sum(1).float()
        return ((votes + 1 / self.classes) / (self.k + 1)).log()


def plain(head: nn.Module, strategy: str) -> nn.Module:
    """`head` without dropout, which does nothing at prediction.

    Raises:
        PluginError: it is of no kind that a model can be saved with.
    """
    layers = [layer for layer in (head if isinstance(head, nn.Sequential) else [head]) if not isinstance(layer, nn.Dropout)]
    if len(layers) == 1 and isinstance(layers[0], (nn.Linear, Neighbours)):
        return layers[0]
    raise PluginError(
        f"strategy {strategy!r} left a head that is not linear; fold it into one nn.Linear before returning, "
        "or leave automl_tl.heads.Neighbours"
    )


def describe(head: nn.Module) -> dict[str, Any]:
    """The facts that `rebuild` needs besides the tensors."""
    if isinstance(head, Neighbours):
        return {"kind": NEIGHBOURS, "stored": len(head.labels), "k": head.k, "cosine": head.cosine}
    return {"kind": LINEAR}


def rebuild(facts: Mapping[str, Any], num_features: int, classes: int) -> nn.Module:
    """A head of the described kind, with tensors of the right shapes and no content.

    Raises:
        InputError: of no known kind, or with facts that are wrong.
    """
    kind = facts.get("kind")
    if kind == LINEAR:
        return nn.Linear(num_features, classes)
    if kind != NEIGHBOURS:
        raise InputError(f"its head is of the kind {kind!r}; known: {LINEAR}, {NEIGHBOURS}")
    stored, k = facts.get("stored"), facts.get("k")
    if not isinstance(stored, int) or not isinstance(k, int) or not 1 <= k <= stored:
        raise InputError(f"its head asks {k!r} neighbours of {stored!r} stored features")
    empty = torch.zeros(stored, num_features, dtype=torch.float16)
    return Neighbours(empty, torch.zeros(stored, dtype=torch.int64), classes, k=k, cosine=facts.get("cosine") is True)
