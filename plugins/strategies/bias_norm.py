"""Only shifts and scales."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import nn

from automl_tl import Backbone, Classifier, Fitted, Job, Strategy, hookimpl, loop
from automl_tl.space import Choice, Float, Int, Value
from automl_tl.strategy import REGULARISERS

from ._layers import settle
from ._probe import begin


class BiasNorm(Strategy):
    """The head, all biases, and the scales and shifts of the norms train; no other weight of the backbone moves.

    Of W x + b and γ (x - μ)/σ + β only b, γ and β descend. Few numbers (about one in a hundred) choose anew which features are
    heard and how loudly, but make no new ones: little can be forgotten, and little is overfitted. The head starts as a linear
    probe.
    """

    name = "bias-norm"
    paper = "Frankle, Schwab and Morcos (2021), Training BatchNorm and only BatchNorm; Ben Zaken et al. (2022), BitFit"
    space = {
        "rate": Float(3e-4, 3e-2, 5e-3, log=True),
        "backbone_rate": Float(0.1, 1.0, 0.5, log=True),
        "epochs": Int(3, 40, 12),
        "batch_size": Choice((16, 32, 64), 32),
        "norms": Choice(("still", "moving"), "still"),
        "label_smoothing": Float(0.0, 0.2, 0.0),
        "dropout": Float(0.0, 0.5, 0.0),
        "augmentation": Choice(("none", "light", "medium", "strong"), "light"),
        "flip": Choice((False, True), False),
        **{name: REGULARISERS[name] for name in ("randaugment", "mixup", "cutmix", "ema")},
    }
    probed: nn.Linear

    def run(self, job: Job) -> Fitted:
        job, self.probed = begin(job, norms=self.hp.norms)
        return loop.fit(self, job)

    def build(self, backbone: nn.Module, num_classes: int) -> Classifier:
        for name, parameter in backbone.named_parameters():
            # One number a channel: biases, and what norms multiply and add. Everything else is a matrix or a kernel.
            parameter.requires_grad_(parameter.ndim <= 1 or name.endswith("bias"))
        return Classifier(backbone, nn.Sequential(nn.Dropout(self.hp.dropout), self.probed))

    def param_groups(self, model: Classifier) -> Iterator[tuple[float, list[nn.Parameter]]]:
        yield self.hp.backbone_rate, [parameter for parameter in model.backbone.parameters() if parameter.requires_grad]
        yield 1.0, list(model.head.parameters())

    def start_epoch(self, model: Classifier, epoch: int) -> None:
        settle(model, self.hp.norms)

    @classmethod
    def cost(cls, backbone: Backbone, images: int, hyperparameters: Mapping[str, Value]) -> float:
        """Forward, and backward through the activations: kernels get no gradient of their own."""
        return float(backbone.macs) * images * (1 + 2 * float(hyperparameters["epochs"]))


@hookimpl
def register_strategies() -> list[type[Strategy]]:
    return [BiasNorm]
