"""Multinomial logistic regression on frozen features, along a path of regularisations."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from automl_tl import Features, Job
from automl_tl.device import autocast, channels_last, precision
from automl_tl.features import BATCH
from automl_tl.fetching import in_batches
from automl_tl.inference import laid_out
from automl_tl.loop import CHECKPOINT
from automl_tl.norms import adopt_statistics, norms_of
from automl_tl.records import TRAIN, VALIDATION

from ._frozen import known, linear, logits_of

PATH = tuple(10.0**exponent for exponent in (0, -1, -2, -3, -4, -5))
"""Weights of the L2 penalty, strongest first: each solution starts the next."""


@dataclass(frozen=True)
class Probe:
    """A linear classifier of raw features, with what it scored on the way."""

    weight: Tensor
    """classes×d."""
    bias: Tensor
    penalty: float
    score: float
    scores: tuple[float, ...]
    """Validation accuracy along the path as far as it was walked."""

    def head(self) -> nn.Linear:
        """The classifier as a layer."""
        return linear(self.weight, self.bias)

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """n×classes, of raw n×d features."""
        return logits_of(self.head(), features).softmax(1).numpy()


def probe_job(job: Job, *, path: tuple[float, ...] = PATH) -> Probe:
    """`fit_probe` on the frozen features of a job's training and validation images."""
    return fit_probe(*known(job), len(job.task.classes), path=path)


def begin(
    job: Job, *, norms: str, trained: Callable[[nn.Module], Iterable[nn.Parameter]] = nn.Module.parameters
) -> tuple[Job, nn.Linear]:
    """The job and the probed head that training pretrained layers begins with; `trained` are those of a backbone that will train.

    Where `norms` are moving they normalise by each batch of the task, and no longer as they did when a head was fitted to the
    source's statistics: its loss would begin at up to 100, and what the backbone knows would be gone after an epoch. So those
    that will move adopt the statistics of the training images first, and the head is fitted on what the backbone gives then:
    the job that is returned has that backbone and its features. What goes on from a checkpoint has all of this in it.
    """
    start = time.perf_counter()
    if norms == "moving" and not (job.folder / CHECKPOINT).exists():
        job = adopting(job, trained)
    adopted = time.perf_counter() - start
    job.features()  # kept from now on: what they take is not this strategy's
    start = time.perf_counter()
    head = probe_job(job).head()
    return replace(job, spent=adopted + time.perf_counter() - start), head


def adopting(job: Job, trained: Callable[[nn.Module], Iterable[nn.Parameter]]) -> Job:
    """The job with a backbone whose `trained` batch norms have the statistics of the training images, and with its features; the
    same job where there are none."""
    net = job.build_backbone()
    moving = set(map(id, trained(net)))
    layers = [layer for layer in norms_of(net) if any(id(parameter) in moving for parameter in layer.parameters())]
    if not layers:
        return job
    net, images, parts = channels_last(net), job.pixels.array, [job.task.part(split) for split in (TRAIN, VALIDATION)]
    adopt_statistics(net, images, parts[0], job.backbone, seed=job.seed, layers=layers)

    @torch.inference_mode()
    def run(batch: Tensor) -> tuple[Tensor]:
        return (net(laid_out(batch, job.backbone)).float(),)

    values = np.full((len(job.task.labels), job.backbone.num_features), np.nan, np.float32)
    for dtype in dict.fromkeys((precision(net), torch.float32)):
        with autocast(dtype):
            for part in parts:
                values[part] = torch.cat([found for (found,) in in_batches(images, part, BATCH, run)]).numpy()
        if np.isfinite(values[np.concatenate(parts)]).all():  # fp16 ends at 65504
            break
    return replace(job, build_backbone=lambda: copy.deepcopy(net), features=lambda: Features(values))


def fit_probe(
    train: np.ndarray,
    train_labels: np.ndarray,
    validation: np.ndarray,
    validation_labels: np.ndarray,
    classes: int,
    *,
    path: tuple[float, ...] = PATH,
) -> Probe:
    """The classifier on the path that is best on the validation images (accuracy, then log-loss).

    `train` and `validation` are n×d features. Features are standardised by the training images and the scales folded back
    into the weights, so that the result takes raw features. The walk ends once two weaker penalties in a row are worse.
    """
    mean = train.mean(axis=0, dtype=np.float64)
    scale = train.std(axis=0, dtype=np.float64)
    scale = np.where(scale > 1e-8 * max(scale.max(initial=0.0), 1e-12), scale, 1.0)
    x = torch.from_numpy(((train - mean) / scale).astype(np.float32))
    held_out = torch.from_numpy(((validation - mean) / scale).astype(np.float32))
    y, held_out_y = torch.from_numpy(train_labels), torch.from_numpy(validation_labels)
    parameters = torch.zeros(classes, x.shape[1] + 1)
    best, scores, worse = None, [], 0
    for penalty in path:
        parameters = _minimise(x, y, parameters, penalty)
        logits = held_out @ parameters[:, :-1].T + parameters[:, -1]
        loss = float(F.cross_entropy(logits, held_out_y))
        score = float((logits.argmax(1) == held_out_y).float().mean())
        scores.append(score)
        if best is None or (score, -loss) > best[:2]:
            best, worse = (score, -loss, penalty, parameters), 0
        else:
            worse += 1
        if worse == 2:
            break
    assert best is not None
    score, _, penalty, parameters = best
    weight = parameters[:, :-1] / torch.from_numpy(scale.astype(np.float32))
    bias = parameters[:, -1] - weight @ torch.from_numpy(mean.astype(np.float32))
    return Probe(weight, bias, penalty, score, tuple(scores))


def _minimise(x: Tensor, y: Tensor, start: Tensor, penalty: float) -> Tensor:
    """Cross-entropy + penalty/2 · |weights|² by L-BFGS (the bias is free), from `start` (classes × d+1)."""
    parameters = start.clone().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [parameters], max_iter=100, tolerance_grad=1e-5, tolerance_change=1e-7, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        logits = x @ parameters[:, :-1].T + parameters[:, -1]
        loss = F.cross_entropy(logits, y) + penalty / 2 * parameters[:, :-1].square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    return parameters.detach()
