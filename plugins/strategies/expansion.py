"""A network that grows: adapters and a head for each task, and nothing of the tasks before is touched."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from automl_tl import Backbone, Batch, Classifier, Features, Fitted, Job, Strategy, hookimpl, loop, memory
from automl_tl.adapters import Grown
from automl_tl.device import channels_last, device
from automl_tl.errors import TrialError
from automl_tl.heads import TRUST, Tasks
from automl_tl.inference import outputs, predict
from automl_tl.norms import adopt_statistics, norms_of
from automl_tl.records import KEPT, KEPT_VALIDATION, STATISTICS, TRAIN, VALIDATION
from automl_tl.space import Choice, Value

from . import _layers, _retaining

STRANGE = 0.05
"""Share of the new validation images that may be found to be an earlier task's, before the heads have their say."""


class Expansion(Strategy):
    """Low-rank kernels and norms of its own for each task, beside the first task's network, which stays as it is.

    A kernel W becomes W + B A, with B and A of each task's own (the paper's parallel adapters, of low rank here). Its own norms
    take the statistics of its images, or keep the first task's, whichever suits a probe. What earlier tasks' passes and heads
    compute does not change by a bit.

    The paper is told which task an image is of; here nobody says. An image passes once for each task, and a task is the more
    probable, the less strange its norms find the image (`heads.Tasks`). How much that counts is fitted where there are images of
    what the earlier model knows; without them, nearly all new validation images shall count as new.
    """

    name = "expansion"
    paper = "Rebuffi, Bilen and Vedaldi (2018), Efficient parametrization of multi-domain deep neural networks"
    needs = frozenset({"earlier model"})
    space = {
        **{name: one for name, one in _retaining.SPACE.items() if name not in ("among", "backbone_rate")},
        "rank": Choice((2, 4, 8, 16), 8),
    }
    head: Tasks
    own: Tensor

    def run(self, job: Job) -> Fitted:
        start = time.perf_counter()
        job = _grown(job, self.hp.rank, self.hp.norms)
        self.head, self.own = _grown_head(job), torch.from_numpy(_retaining.own_classes(job))
        fitted = loop.fit(self, replace(job, spent=time.perf_counter() - start))
        net = fitted.model
        assert isinstance(net, Classifier)
        assert isinstance(net.head, Tasks)
        assert isinstance(net.backbone, Grown)
        _tell_apart(net.head, job, _values(net.backbone, job, VALIDATION, KEPT_VALIDATION))
        probabilities = predict(net, job.pixels.array, job.task.part(VALIDATION), job.backbone)
        own = sum(p.numel() for p in net.parameters() if p.requires_grad)
        note = f"{net.backbone.tasks} tasks; {own:,} numbers for the newest beside {self.facts.params:,}"
        return replace(fitted, probabilities=probabilities, notes=(note,))

    def build(self, backbone: nn.Module, num_classes: int) -> Classifier:
        self.head.requires_grad_(False)
        self.head.layers[-1].requires_grad_(True)
        return Classifier(backbone, self.head)

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


def _grown(job: Job, rank: int, norms: str) -> Job:
    """The job with adapters for its task in the earlier network, and with the features that come out.

    The new norms take the statistics of the task's images where these will move, or where a probe of what comes out then is
    better; else they begin as the first task's.
    """
    earlier, width = job.build_backbone(), job.backbone.num_features
    grown = earlier if isinstance(earlier, Grown) else _first(job, earlier)
    grown.to(device())
    torch.manual_seed(job.seed)  # of the adapters, which are random before the loop begins
    newest = nn.ModuleList(grown.grow(rank))
    channels_last(grown)
    layers, splits = norms_of(newest), (TRAIN, VALIDATION, KEPT_VALIDATION)
    before, values = copy.deepcopy(newest.state_dict()), _values(grown, job, *splits)
    if layers:
        adopt_statistics(grown, job.pixels.array, job.task.part(TRAIN), job.backbone, seed=job.seed, layers=layers)
        newest_ones, adopted = slice(-width - grown.tasks, -grown.tasks), _values(grown, job, *splits)
        as_it_was, better = (_retaining.probe_new(job, one[:, newest_ones]).score for one in (values, adopted))
        if norms == "moving" or better > as_it_was:
            values = adopted
        else:
            newest.load_state_dict(before)
            _values(grown, job, VALIDATION)
    return replace(job, build_backbone=lambda: grown, features=lambda: Features(values))


def _first(job: Job, earlier: nn.Module) -> Grown:
    """The network of one task, with what its batch norms saw of that task's images: as it is remembered, or else of kept ones.

    Raises:
        TrialError: what is remembered belongs to another network.
    """
    found, kept = memory.recall(job.task.earlier, STATISTICS), job.task.part(KEPT)
    seen = found[0] if found is not None else {}
    if found is None and len(kept) and norms_of(earlier):
        seen = memory.seen_by_norms(earlier, job.pixels.array, kept, job.backbone, seed=job.seed)
    grown = Grown(earlier, [])
    try:
        if seen:
            grown.saw(0, seen["mean"], seen["variance"])
    except (KeyError, ValueError) as error:
        raise TrialError(f"the statistics that the earlier model remembers are not its own ({error}); delete them") from None
    return grown


def _values(grown: Grown, job: Job, *splits: str) -> np.ndarray:
    """What comes out for the images of `splits`; a row for each image of the task, those of others not a number. From now on
    `grown` knows what the newest norms see of the training images."""
    images, layers = job.pixels.array, norms_of(nn.ModuleList(grown.newest()))
    if layers:
        seen = memory.seen_by_norms(grown, images, job.task.part(TRAIN), job.backbone, seed=job.seed, layers=layers)
        grown.saw(grown.tasks - 1, seen["mean"], seen["variance"])
    index = np.concatenate([job.task.part(split) for split in splits])
    found = outputs(grown, images, index, job.backbone).numpy()
    values = np.full((len(job.task.labels), found.shape[1]), np.nan, np.float32)
    values[index] = found
    return values


def _grown_head(job: Job) -> Tasks:
    """The earlier heads as they are, and a linear probe of the newest features for the new task.

    Raises:
        TrialError: the earlier model has a head that has no weights.
    """
    earlier, own = _retaining.earlier_model(job), _retaining.own_classes(job)
    old, width = earlier.net.head, earlier.backbone.num_features
    bias, trust = [0.0], TRUST
    if isinstance(old, Tasks):
        classes, layers, bias, trust = list(old.classes), list(old.layers), old.bias, old.trust
    elif isinstance(old, nn.Linear):
        classes, layers = [list(range(old.out_features))], [old]
    else:
        raise TrialError("the earlier model's head is of neighbours, which has no weights; train that model by another strategy")
    head = Tasks([*classes, own.tolist()], width, trust=trust, bias=[*bias, 0.0])
    for layer, known in zip(head.layers, layers, strict=False):
        layer.load_state_dict(known.state_dict())
    tasks, values = len(head.classes), job.features().values
    probe = _retaining.probe_new(job, values[:, -width - tasks : -tasks])
    head.layers[-1].load_state_dict(probe.head().state_dict())
    _tell_apart(head, job, values)
    return head


def _tell_apart(head: Tasks, job: Job, values: np.ndarray) -> None:
    """Set how much strangeness counts in `head`, and the newest task's bias, by what the grown network gives (`_values`).

    With kept images the two numbers are those of the least cross-entropy, new and kept images weighing the same (as in
    `_retaining.balanced`). Without them all but `STRANGE` of the new images are to be less strange to their own norms.
    """
    net = next(head.parameters()).device
    with torch.no_grad():
        parts, strange = head.parts(torch.from_numpy(values).to(net))
    if (index := _retaining.both(job)) is None:
        seen = strange[job.task.part(VALIDATION)]
        standing = strange.new_tensor(head.bias[:-1]) - head.trust * seen[:, :-1]
        ahead = -head.trust * seen[:, -1] - standing.amax(1)
        head.bias[-1] = -max(0.0, float(ahead.quantile(STRANGE)))
        return
    found, strange = [part[index] for part in parts], strange[index]
    labels = torch.from_numpy(job.task.labels[index]).to(net)

    def logits(moved: Tensor) -> Tensor:
        bias = torch.cat([strange.new_tensor(head.bias[:-1]), moved[1:]])
        whose = (bias - head.trust * moved[0].exp() * strange).log_softmax(1)
        return head.joined([part + whose[:, task, None] for task, part in enumerate(found)])

    factor, bias = _retaining.fairest(logits, labels, len(job.task.part(VALIDATION)))
    head.trust, head.bias[-1] = head.trust * float(np.exp(factor)), bias


@hookimpl
def register_strategies() -> list[type[Strategy]]:
    return [Expansion]
