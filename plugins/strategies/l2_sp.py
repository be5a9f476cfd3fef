"""All weights, tied to where they came from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from automl_tl import Backbone, Batch, Classifier, Fitted, Job, Strategy, hookimpl, loop
from automl_tl.space import Choice, Float, Int, Value
from automl_tl.strategy import REGULARISERS

from ._layers import rates, settle
from ._probe import begin


class StartingPoint(Strategy):
    """Fine-tuning whose L2 penalty pulls to the pretrained weights instead of to zero.

    Equation 4 of the paper: loss + alpha/2 · |w - w⁰|² over the backbone + beta/2 · |v|² over the new head. Weight decay would
    pull the backbone to zero, where nothing was learnt; here there is none. The head starts as a linear probe.
    """

    name = "l2-sp"
    paper = "Li, Grandvalet and Davoine (2018), Explicit inductive bias for transfer learning with convolutional networks"
    space = {
        "rate": Float(3e-4, 2e-2, 2e-3, log=True),
        "backbone_rate": Float(0.1, 1.0, 0.3, log=True),
        "alpha": Float(1e-4, 1.0, 0.01, log=True),
        "beta": Float(1e-4, 0.1, 0.01, log=True),
        "epochs": Int(3, 60, 24),
        "batch_size": Choice((16, 32, 64), 32),
        "norms": Choice(("still", "moving"), "still"),
        "label_smoothing": Float(0.0, 0.2, 0.0),
        "augmentation": Choice(("none", "light", "medium", "strong"), "light"),
        "flip": Choice((False, True), False),
        **{name: REGULARISERS[name] for name in ("randaugment", "mixup", "cutmix", "ema")},
    }
    probed: nn.Linear
    start: list[Tensor]

    def run(self, job: Job) -> Fitted:
        self.hp.weight_decay = 0.0
        job, self.probed = begin(job, norms=self.hp.norms)
        return loop.fit(self, job)

    def build(self, backbone: nn.Module, num_classes: int) -> Classifier:
        self.start = [parameter.detach().clone() for parameter in backbone.parameters()]
        return Classifier(backbone, self.probed)

    def param_groups(self, model: Classifier) -> Iterator[tuple[float, list[nn.Parameter]]]:
        return rates(model, self.hp.backbone_rate)

    def start_epoch(self, model: Classifier, epoch: int) -> None:
        self.start = [origin.to(p.device) for origin, p in zip(self.start, model.backbone.parameters(), strict=True)]
        settle(model, self.hp.norms)

    def loss(self, model: Classifier, batch: Batch) -> Tensor:
        away = sum((p - origin).square().sum() for p, origin in zip(model.backbone.parameters(), self.start, strict=True))
        head = sum(p.square().sum() for p in model.head.parameters())
        penalised: Tensor = super().loss(model, batch) + self.hp.alpha / 2 * away + self.hp.beta / 2 * head
        return penalised

    @classmethod
    def cost(cls, backbone: Backbone, images: int, hyperparameters: Mapping[str, Value]) -> float:
        """As fine-tuning, and a look at every weight in each step."""
        epochs, batch = float(hyperparameters["epochs"]), float(hyperparameters["batch_size"])
        return float(backbone.macs) * images * (1 + 3 * epochs) + 3.0 * backbone.params * epochs * images / batch


@hookimpl
def register_strategies() -> list[type[Strategy]]:
    return [StartingPoint]
