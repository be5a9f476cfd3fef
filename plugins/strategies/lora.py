"""Small matrices beside the frozen ones, through PEFT."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

from torch import nn

from automl_tl import Backbone, Classifier, Fitted, Job, Strategy, hookimpl, loop
from automl_tl.adapters import is_plain
from automl_tl.errors import TrialError
from automl_tl.inference import predict
from automl_tl.layers import still_norms
from automl_tl.records import VALIDATION
from automl_tl.space import Choice, Float, Int, Value
from automl_tl.strategy import REGULARISERS

from ._probe import probe_job


class LowRank(Strategy):
    """Each matrix or kernel W of the frozen backbone gets W + scale/rank · B A, of which only B and A train:
    equation 3 of the paper, for kernels, too.

    B starts at zero, so training starts at the linear probe that the head is. Linear layers and ungrouped convolutions are
    adapted (depthwise kernels have no rank to lower). Before the model is returned, B A is added into W: what is saved is
    the plain network. Predictions are taken after that.
    """

    name = "lora"
    paper = "Hu et al. (2022), LoRA: Low-rank adaptation of large language models"
    space = {
        "rate": Float(1e-4, 1e-2, 2e-3, log=True),
        "rank": Choice((2, 4, 8, 16), 8),
        "scale": Choice((4.0, 8.0, 16.0, 32.0), 8.0),
        "epochs": Int(3, 40, 12),
        "batch_size": Choice((16, 32, 64), 32),
        "weight_decay": Float(1e-4, 0.3, 0.02, log=True),
        "label_smoothing": Float(0.0, 0.2, 0.0),
        "dropout": Float(0.0, 0.5, 0.0),
        "augmentation": Choice(("none", "light", "medium", "strong"), "light"),
        "flip": Choice((False, True), False),
        **{name: REGULARISERS[name] for name in ("randaugment", "mixup", "cutmix", "ema")},
    }
    probed: nn.Linear

    def run(self, job: Job) -> Fitted:
        self.probed = probe_job(job).head()
        fitted = loop.fit(self, job)
        adapted: Any = fitted.model.backbone
        trained = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
        model = Classifier(adapted.merge_and_unload(), self.probed).requires_grad_(False)
        probabilities = predict(model, job.pixels.array, job.task.part(VALIDATION), job.backbone)
        note = f"{trained:,} numbers trained beside {self.facts.params:,}"
        return Fitted(model, fitted.curve, probabilities, fitted.complete, (note,))

    def build(self, backbone: nn.Module, num_classes: int) -> Classifier:
        from peft import LoraConfig, get_peft_model

        whole = "|".join(map(re.escape, targets(backbone)))  # a list would also match longer names that end in one of these
        config = LoraConfig(r=self.hp.rank, lora_alpha=self.hp.scale, target_modules=whole)
        with warnings.catch_warnings():  # it asks for a configuration that only language models have
            warnings.simplefilter("ignore")
            adapted: nn.Module = get_peft_model(backbone, config)
        return Classifier(adapted, nn.Sequential(nn.Dropout(self.hp.dropout), self.probed))

    def param_groups(self, model: Classifier) -> Iterator[tuple[float, list[nn.Parameter]]]:
        yield 1.0, [parameter for parameter in model.parameters() if parameter.requires_grad]

    def start_epoch(self, model: Classifier, epoch: int) -> None:
        still_norms(model.backbone, only_frozen=False)

    @classmethod
    def cost(cls, backbone: Backbone, images: int, hyperparameters: Mapping[str, Value]) -> float:
        """Forward and backward through the activations; kernels get no gradient. The low-rank products are small beside them."""
        return float(backbone.macs) * images * (1 + 2.2 * float(hyperparameters["epochs"]))


def targets(backbone: nn.Module) -> list[str]:
    """Names of the layers to adapt, in full.

    Layers that do more than multiply by W are left out: what is added into W at the end would be another function there.
    Dilated kernels are left out, too: PEFT gives its low-rank pair their stride and padding, but not their dilation.
    """
    found = [name for name, layer in backbone.named_modules() if is_plain(layer) and getattr(layer, "dilation", (1, 1)) == (1, 1)]
    if not found:
        raise TrialError("the network has no matrix or kernel that a low-rank one could be added to")
    return found


@hookimpl
def register_strategies() -> list[type[Strategy]]:
    """Nothing without PEFT, which `pip install automl_tl[lora]` brings."""
    return [LowRank] if find_spec("peft") else []
