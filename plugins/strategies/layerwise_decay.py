"""All weights, the lower the slower."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import nn

from automl_tl import Backbone, Classifier, Fitted, Job, Strategy, hookimpl, loop
from automl_tl.layers import layer_groups
from automl_tl.space import Choice, Float, Int, Value
from automl_tl.strategy import REGULARISERS

from ._layers import settle
from ._probe import begin


class LayerwiseDecay(Strategy):
    """Every group of layers learns at `decay` times the rate of the one above it, the head at the full rate.

    The rate of the group n below the head is rate · decayⁿ. Nothing is frozen and no depth has to be found: general layers
    drift little, special ones much. All start at once, from a linear probe; gradual unfreezing brings them in one after the
    other.
    """

    name = "layerwise-decay"
    paper = "Clark et al. (2020), ELECTRA: Pre-training text encoders as discriminators rather than generators (layer-wise rates)"
    space = {
        "rate": Float(3e-4, 2e-2, 2e-3, log=True),
        "decay": Float(0.2, 0.95, 0.6),
        "epochs": Int(3, 60, 24),
        "batch_size": Choice((16, 32, 64), 32),
        "norms": Choice(("still", "moving"), "still"),
        "weight_decay": Float(1e-4, 0.3, 0.02, log=True),
        "label_smoothing": Float(0.0, 0.2, 0.0),
        "dropout": Float(0.0, 0.5, 0.0),
        "augmentation": Choice(("none", "light", "medium", "strong"), "light"),
        "flip": Choice((False, True), False),
        **REGULARISERS,
    }
    probed: nn.Linear

    def run(self, job: Job) -> Fitted:
        job, self.probed = begin(job, norms=self.hp.norms)
        return loop.fit(self, job)

    def build(self, backbone: nn.Module, num_classes: int) -> Classifier:
        return Classifier(backbone, nn.Sequential(nn.Dropout(self.hp.dropout), self.probed))

    def param_groups(self, model: Classifier) -> Iterator[tuple[float, list[nn.Parameter]]]:
        yield 1.0, list(model.head.parameters())
        for below, group in enumerate(reversed(layer_groups(model.backbone)), start=1):
            yield self.hp.decay**below, group

    def start_epoch(self, model: Classifier, epoch: int) -> None:
        settle(model, self.hp.norms)

    @classmethod
    def cost(cls, backbone: Backbone, images: int, hyperparameters: Mapping[str, Value]) -> float:
        return float(backbone.macs) * images * (1 + 3 * float(hyperparameters["epochs"]))


@hookimpl
def register_strategies() -> list[type[Strategy]]:
    return [LayerwiseDecay]
