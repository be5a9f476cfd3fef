"""Only the top of the network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import nn

from automl_tl import Backbone, Classifier, Fitted, Job, Strategy, hookimpl, loop
from automl_tl.layers import MOST_GROUPS, layer_groups, still_norms
from automl_tl.space import Choice, Float, Int, Value
from automl_tl.strategy import REGULARISERS

from ._probe import begin


class LastBlocks(Strategy):
    """The last `blocks` groups of layers train, from a linear probe; all below stay as pretrained.

    Of the weights w = (w₁ … w_L), groups from the stem up, only the last k and the head descend. Low layers find edges and
    colours, which serve any images; high ones are made for the source's classes. What is frozen passes forward only, keeps the
    batch statistics of the source, and needs neither gradients nor moments in memory. Norms that move adopt those of the task
    first (see `begin`).
    """

    name = "last-blocks"
    paper = "Yosinski et al. (2014), How transferable are features in deep neural networks?"
    space = {
        "blocks": Int(1, MOST_GROUPS - 1, 2),
        "rate": Float(3e-4, 2e-2, 2e-3, log=True),
        "backbone_rate": Float(0.1, 1.0, 0.5, log=True),
        "epochs": Int(3, 40, 12),
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
        job, self.probed = begin(job, norms=self.hp.norms, trained=self._trained)
        return loop.fit(self, job)

    def build(self, backbone: nn.Module, num_classes: int) -> Classifier:
        backbone.requires_grad_(False)
        for parameter in self._trained(backbone):
            parameter.requires_grad_(True)
        return Classifier(backbone, nn.Sequential(nn.Dropout(self.hp.dropout), self.probed))

    def _trained(self, backbone: nn.Module) -> list[nn.Parameter]:
        return [parameter for group in layer_groups(backbone)[-self.hp.blocks :] for parameter in group]

    def param_groups(self, model: Classifier) -> Iterator[tuple[float, list[nn.Parameter]]]:
        yield self.hp.backbone_rate, self._trained(model.backbone)
        yield 1.0, list(model.head.parameters())

    def start_epoch(self, model: Classifier, epoch: int) -> None:
        still_norms(model.backbone, only_frozen=self.hp.norms == "moving")

    @classmethod
    def cost(cls, backbone: Backbone, images: int, hyperparameters: Mapping[str, Value]) -> float:
        """Features once; then each epoch forward through all, and backward (twice that work) through the trained share."""
        share = int(hyperparameters["blocks"]) / MOST_GROUPS
        return float(backbone.macs) * images * (1 + float(hyperparameters["epochs"]) * (1 + 2 * share))


@hookimpl
def register_strategies() -> list[type[Strategy]]:
    return [LastBlocks]
