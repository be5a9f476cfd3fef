"""The baseline that transfer is measured against."""

from __future__ import annotations

from torch import nn

from automl_tl import Classifier, Strategy, hookimpl
from automl_tl.space import Choice, Float, Int
from automl_tl.strategy import REGULARISERS

from ._untrained import untrained


class FromScratch(Strategy):
    """The backbone's architecture with random weights: what the images alone can teach."""

    name = "from-scratch"
    paper = "He et al. (2019), Rethinking ImageNet pre-training"
    pretrained = False
    space = {
        "rate": Float(3e-4, 1e-2, 2e-3, log=True),
        "epochs": Int(5, 60, 30),
        "batch_size": Choice((16, 32, 64), 32),
        "weight_decay": Float(1e-4, 0.3, 0.05, log=True),
        "label_smoothing": Float(0.0, 0.2, 0.0),
        "augmentation": Choice(("none", "light", "medium", "strong"), "light"),
        "flip": Choice((False, True), False),
        **REGULARISERS,
    }

    def build(self, backbone: nn.Module, num_classes: int) -> Classifier:
        return super().build(untrained(backbone, self.facts), num_classes)


@hookimpl
def register_strategies() -> list[type[Strategy]]:
    return [FromScratch]
