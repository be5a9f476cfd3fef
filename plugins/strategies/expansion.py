"""A network that grows: adapters and a head for each task, and nothing of the tasks before is touched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from automl_tl import Backbone, Batch, Classifier, Fitted, Job, Strategy, hookimpl, loop
from automl_tl.adapters import Grown
from automl_tl.errors import TrialError
from automl_tl.heads import Tasks
from automl_tl.space import Choice, Value

from . import _layers, _retaining


class Expansion(Strategy):
    """Low-rank kernels and norms of its own for each task, beside the first task's network, which stays as it is.

    A kernel W becomes W + B A, with B and A of each task's own (the paper's parallel adapters, of low rank here). What earlier
    tasks' heads say does not change by a bit. An image passes once for each task, and the logits of all tasks' heads stand
    beside each other: the largest wins. No head has seen another's images, so which task an image is of is told less well than
    its class where the task is known.
    """

    name = "expansion"
    paper = "Rebuffi, Bilen and Vedaldi (2018), Efficient parametrization of multi-domain deep neural networks"
    needs = frozenset({"earlier model"})
    space = {
        **{name: one for name, one in _retaining.SPACE.items() if name != "among"},
        "rank": Choice((2, 4, 8, 16), 8),
    }
    head: Tasks
    own: Tensor

    def run(self, job: Job) -> Fitted:
        self.head, self.own = _grown_head(job), torch.from_numpy(_retaining.own_classes(job))
        fitted = _retaining.balanced(job, loop.fit(self, job))
        grown = fitted.model.get_submodule("backbone")
        assert isinstance(grown, Grown)
        own = sum(p.numel() for p in fitted.model.parameters() if p.requires_grad)
        fitted.notes = (f"{grown.tasks} tasks; {own:,} numbers for the newest beside {self.facts.params:,}",)
        return fitted

    def build(self, backbone: nn.Module, num_classes: int) -> Classifier:
        grown = backbone if isinstance(backbone, Grown) else Grown(backbone, [])
        grown.grow(self.hp.rank)
        self.head.requires_grad_(False)
        self.head.layers[-1].requires_grad_(True)
        return Classifier(grown, self.head)

    def param_groups(self, model: Classifier) -> Iterator[tuple[float, list[nn.Parameter]]]:
        yield 1.0, [parameter for parameter in model.parameters() if parameter.requires_grad]

    def start_epoch(self, model: Classifier, epoch: int) -> None:
        _layers.settle(model, self.hp.norms)

    def loss(self, model: Classifier, batch: Batch) -> Tensor:
        grown = model.backbone
        assert isinstance(grown, Grown)
        logits = self.newest(model)(grown.features(batch.images, grown.tasks - 1)).float()
        own = self.own.to(logits.device)
        return nn.functional.cross_entropy(logits, torch.searchsorted(own, batch.labels), label_smoothing=self.hp.label_smoothing)

    @staticmethod
    def newest(model: Classifier) -> nn.Module:
        assert isinstance(model.head, Tasks)
        return model.head.layers[-1]

    @classmethod
    def cost(cls, backbone: Backbone, images: int, hyperparameters: Mapping[str, Value]) -> float:
        """Forward, and backward through the activations; shared kernels get no gradient."""
        return _retaining.macs(backbone, images, hyperparameters, passes=2.4)


def _grown_head(job: Job) -> Tasks:
    """The earlier heads as they are, and a linear probe of the earlier features for the new task.

    Raises:
        TrialError: the earlier model has a head that has no weights.
    """
    earlier, own = _retaining.earlier_model(job), _retaining.own_classes(job)
    old, width = earlier.net.head, earlier.backbone.num_features
    if isinstance(old, Tasks):
        classes, layers = list(old.classes), list(old.layers)
    elif isinstance(old, nn.Linear):
        classes, layers = [list(range(old.out_features))], [old]
    else:
        raise TrialError("the earlier model's head is of neighbours, which has no weights; train that model by another strategy")
    head = Tasks([*classes, own.tolist()], width)
    for layer, known in zip(head.layers, layers, strict=False):
        layer.load_state_dict(known.state_dict())
    weight, bias = _retaining.probe_new(job, width)
    with torch.no_grad():
        head.layers[-1].weight.copy_(weight)  # type: ignore[operator]
        head.layers[-1].bias.copy_(bias)  # type: ignore[operator]
    seen = job.features().values
    _retaining.balance_head(job, head, np.concatenate([seen, seen[:, :width]], axis=1))  # the new pass starts as the first task's
    return head


@hookimpl
def register_strategies() -> list[type[Strategy]]:
    return [Expansion]
