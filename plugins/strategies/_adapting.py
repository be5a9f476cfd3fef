"""What the strategies that align two domains share: where they start, and one pass over the images of both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from automl_tl import Backbone, Batch, Classifier
from automl_tl.space import Choice, Float, Int, Space, Value

SPACE: Space = {
    "rate": Float(3e-4, 1e-2, 2e-3, log=True),
    "backbone_rate": Float(0.05, 1.0, 0.3, log=True),
    "epochs": Int(3, 40, 12),
    "batch_size": Choice((16, 32, 64), 32),
    "norms": Choice(("still", "moving"), "moving"),
    "weight_decay": Float(1e-4, 0.3, 0.02, log=True),
    "label_smoothing": Float(0.0, 0.2, 0.0),
    "augmentation": Choice(("none", "light", "medium", "strong"), "light"),
    "flip": Choice((False, True), False),
}


class Both(NamedTuple):
    """A batch of labelled and one of unlabelled images, seen by the network; float32."""

    features: Tensor
    logits: Tensor
    target_features: Tensor
    target_logits: Tensor

    def cross_entropy(self, labels: Tensor, smoothing: float) -> Tensor:
        """Of the labelled images."""
        return F.cross_entropy(self.logits, labels, label_smoothing=smoothing)


def see_both(model: Classifier, batch: Batch) -> Both:
    """One pass over labelled and unlabelled images together, so that batch norms see both domains."""
    assert batch.target is not None
    count = len(batch.images)
    features = model.backbone(torch.cat([batch.images, batch.target]))
    logits = model.head(features)
    features, logits = features.float(), logits.float()
    return Both(features[:count], logits[:count], features[count:], logits[count:])


def to_unit(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Both over the root of the source's mean square, taken as a constant: a unit, so that a weight means the same for every
    backbone. As with the paper's own distance, small features are near to each other."""
    scale = source.detach().square().mean().sqrt().clamp(min=1e-6)
    return source / scale, target / scale


def macs(backbone: Backbone, images: int, hyperparameters: Mapping[str, Value]) -> float:
    """Multiply-adds: the probe's pass, then each step with as many target images beside the source's."""
    return float(backbone.macs) * images * (1 + 6 * float(hyperparameters["epochs"]))
