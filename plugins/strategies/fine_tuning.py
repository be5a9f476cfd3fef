"""All weights, from a head that already fits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import nn

from automl_tl import Backbone, Classifier, Fitted, Job, Strategy, hookimpl, loop
from automl_tl.space import Choice, Float, Int, Value
from automl_tl.strategy import REGULARISERS

from ._layers import rates, settle
from ._probe import begin


class FineTuning(Strategy):
    """Linear probe first, then every weight at a low rate (LP-FT).

    The head v first: min loss(v, w⁰) over frozen features; then min loss(v, w) over both from there. A random head sends large,
    meaningless gradients into the pretrained features; a head that is already a good linear classifier does not. With `norms`
    still, batch norms normalise as they did when the head was fitted; moving ones adopt the statistics of the training images
    before it is fitted.
    """

    name = "fine-tuning"
    paper = "Kumar et al. (2022), Fine-tuning can distort pretrained features and underperform out-of-distribution"
    space = {
        "rate": Float(3e-4, 2e-2, 3e-3, log=True),
        "backbone_rate": Float(0.1, 1.0, 0.3, log=True),
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
        return rates(model, self.hp.backbone_rate)

    def start_epoch(self, model: Classifier, epoch: int) -> None:
        settle(model, self.hp.norms)

    @classmethod
    def cost(cls, backbone: Backbone, images: int, hyperparameters: Mapping[str, Value]) -> float:
        return float(backbone.macs) * images * (1 + 3 * float(hyperparameters["epochs"]))


@hookimpl
def register_strategies() -> list[type[Strategy]]:
    return [FineTuning]
