"""What strategies that train a backbone and a head share: two rates, and norms that stay still."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from automl_tl import Classifier
from automl_tl.layers import still_norms


def rates(model: Classifier, backbone_rate: float) -> Iterator[tuple[float, list[nn.Parameter]]]:
    """The pretrained weights at a share of the rate, everything else at the whole."""
    pretrained = set(model.backbone.parameters())
    yield backbone_rate, list(model.backbone.parameters())
    yield 1.0, [parameter for parameter in model.parameters() if parameter not in pretrained]


def settle(model: Classifier, norms: str) -> None:
    """Batch norms keep the statistics that they came with where `norms` is "still"."""
    if norms == "still":
        still_norms(model.backbone, only_frozen=False)
