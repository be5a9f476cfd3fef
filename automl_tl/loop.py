"""The one training loop: read it top to bottom.

It owns device, precision, clipping, schedule, evaluation, early stopping, checkpoints and the budget; a strategy owns what
its paper changes (see `strategy`). An epoch depends on the seed and its number alone, so a resumed run repeats an
uninterrupted one bit for bit.
"""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import checkpoint
from .averaging import average_into
from .batches import AUGMENTATIONS as AUGMENTATIONS
from .batches import batches, option, steps_of
from .device import (
    accelerator,
    autocast,
    channels_last,
    device,
    memory_mb,
    out_of_memory,
    precision,
    release_memory,
    reset_memory,
)
from .errors import TrialError, TrialWarning
from .fetching import ahead
from .inference import outputs, predict
from .objectives import validate
from .processes import agreed, average_gradients, average_statistics, leads
from .records import PUBLIC, TRAIN, VALIDATION, Point
from .strategy import Batch, Classifier, Fitted, Job, Strategy

CHECKPOINT = "checkpoint.safetensors"
PATIENCE = 0.25
"""Stop after this share of the epochs (at least 4) without a better validation score, once the rate has fallen to half its
peak. While it is high, a score may lie below that of the head which training began with, and still end far above it."""
WARM_UP = 0.1
CLIP = 1.0
TRIED = 32
"""Images that show, before the training, whether fp16 will do."""
SAVING = 0.03
"""Share of the time that checkpoints may take: on a GPU an epoch can be shorter than writing down what it gave."""


@dataclass
class _Progress:
    """What a checkpoint holds beside the weights."""

    epoch: int = 0
    seconds: float = 0.0
    last: float = 0.0
    """Of the seconds, those of the last epoch."""
    best_score: float = -1.0
    best_loss: float = math.inf
    best_epoch: int = -1
    curve: list[Point] = field(default_factory=list)
    scaler: dict[str, float] = field(default_factory=dict)
    """Of fp16 gradients, where they are used."""
    cycle: int = 1
    left: int = 0
    """Epochs that this cycle has yet to train."""
    began: int = 0
    """Epochs before this schedule."""
    done: float = 0.0
    """Share of the schedule that lies behind, 0–1."""
    pieces: int = 1
    """Of a batch, since memory did not suffice for it whole."""


@dataclass(frozen=True, eq=False)
class Parts:
    """What moves while it trains."""

    model: Classifier
    average: Classifier | None
    """Of the model's weights along the way, where `ema` asks for it: then this is what is judged and kept."""
    optimiser: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    dtype: torch.dtype

    @property
    def judged(self) -> Classifier:
        return self.average or self.model


def fit(strategy: Strategy, job: Job) -> Fitted:
    """Train `strategy` on `job` to the best epoch by validation score (ties: lower validation loss).

    With `cycles`, the schedule begins anew after its last epoch, each time from the best weights so far and for twice as long:
    warm restarts (Loshchilov and Hutter, 2017), which find what a longer training would, in steps that can be stopped after.

    Where the budget ends before the last epoch, what is left of the schedule runs faster, so that the rate has come down by then:
    a model that is cut off at a high rate lies well below what it has learnt (Li et al., 2020, Budgeted training). If there is
    more after all, in a later call, the epochs that were left out follow with a schedule of their own.

    Goes on from the checkpoint in `job.folder` if there is one, and leaves one: another cycle can go on from its end.

    Raises:
        TrialError: the loss is no longer a number.
    """
    torch.manual_seed(job.seed)
    reset_memory()
    parts = assemble(strategy, job)
    if job.path is not None:
        job.path.begin(parts.model)
    first = int(option(strategy, "epochs"))
    progress, best = _Progress(seconds=job.spent, left=first), _weights(parts.judged)
    path = job.folder / CHECKPOINT
    if path.exists():
        progress, best = _restore(path, parts, job)
    kept = _Kept(progress.epoch)
    cycles = int(option(strategy, "cycles"))
    complete = progress.cycle > cycles
    while progress.cycle <= cycles:
        if progress.epoch >= job.stop_after or time_is_up(job, progress.last):
            kept.save(path, parts, best, progress, job, now=True)
            break
        epochs = epochs_in(progress.cycle, first)
        patience, half_rate = max(4, math.ceil(PATIENCE * epochs)), round((1 + WARM_UP) / 2 * epochs)
        start = time.perf_counter()
        pace = _pace(job, progress)
        until = progress.done + (1 - progress.done) / pace
        loss = train_epoch(strategy, parts, job, progress.epoch, (progress.done, until))
        progress.scaler, progress.pieces = parts.scaler.state_dict(), job.room.pieces
        memory = memory_mb()
        validated = validate(parts.judged, job.pixels.array, job.task, job.backbone, dtype=parts.dtype)
        score, validation_loss = agreed(validated.score, validated.loss)
        progress.last = time.perf_counter() - start
        progress.epoch, progress.left, progress.done = progress.epoch + 1, progress.left - 1, until
        progress.seconds += progress.last
        if (score, -validation_loss) > (progress.best_score, -progress.best_loss):
            progress.best_score, progress.best_loss, progress.best_epoch = score, validation_loss, progress.epoch
            best = _weights(parts.judged)
            if job.path is not None:
                job.path.mark()
        point = Point(progress.epoch, progress.seconds, loss, score, memory)
        progress.curve.append(point)
        stop = job.report(point)
        if progress.epoch - max(progress.best_epoch, progress.began + half_rate) >= patience:
            progress.left = 0
        if pace == 1 or not progress.left:
            _restart(parts, best, progress, job, first)
        complete = progress.cycle > cycles
        kept.save(path, parts, best, progress, job, now=stop or complete)
        if stop:
            break
    parts.model.load_state_dict(best)
    if job.path is not None:
        job.path.end()
    probabilities = predict(parts.model, job.pixels.array, job.task.part(VALIDATION), job.backbone)  # in fp32, as it is used
    return Fitted(parts.model, progress.curve, probabilities, complete)


def assemble(strategy: Strategy, job: Job) -> Parts:
    model = strategy.build(job.build_backbone(), len(job.task.classes))
    channels_last(model)
    dtype = _held_by(precision(model), model, job)
    average = copy.deepcopy(model).requires_grad_(False) if float(option(strategy, "ema")) else None
    scaler = torch.amp.GradScaler(device().type, enabled=dtype == torch.float16)
    return Parts(model, average, _optimiser(strategy, model), scaler, dtype)


def _held_by(dtype: torch.dtype, model: Classifier, job: Job) -> torch.dtype:
    """`dtype`, but fp32 for fp16 where some images show that it cannot hold what the network computes: it ends at 65504."""
    if dtype != torch.float16:
        return dtype
    parts = map(job.task.part, (TRAIN, PUBLIC, VALIDATION))
    index = next(part for part in parts if len(part))  # of a federated server others have the images for training
    found = outputs(model, job.pixels.array, index[:TRIED], job.backbone, dtype=dtype)
    return dtype if found.isfinite().all() else torch.float32


def train_epoch(strategy: Strategy, parts: Parts, job: Job, epoch: int, span: tuple[float, float]) -> float:
    """One pass over the training images, from where to where in the schedule (0–1) `span` says; the mean loss."""
    model, optimiser, scaler = parts.model, parts.optimiser, parts.scaler
    torch.manual_seed(job.seed * 1_000_003 + epoch)
    model.train()
    strategy.start_epoch(model, epoch)
    trained = [p for group in optimiser.param_groups for p in group["params"] if p.requires_grad]
    total = torch.zeros((), device=device())
    steps, (done, until) = steps_of(strategy, job), span
    for step, batch in enumerate(ahead(batches(strategy, job, epoch), Batch.tensors)):
        factor = schedule(done + (until - done) * step / steps)
        for group in optimiser.param_groups:
            group["lr"] = group["peak"] * factor
        loss = _backward(strategy, parts, job, batch)
        average_gradients(trained)
        scaler.unscale_(optimiser)
        if job.path is not None:
            job.path.before()
        nn.utils.clip_grad_norm_(trained, CLIP)
        scaler.step(optimiser)
        scaler.update()
        _shrink(optimiser)
        if job.path is not None:
            job.path.after()
        if parts.average is not None:
            average_into(parts.average, model, decay=float(option(strategy, "ema")), step=epoch * steps + step)
        total += loss
    average_statistics(model)
    if parts.average is not None:
        average_statistics(parts.average)
    (mean,) = agreed(float(total) / steps)
    if not math.isfinite(mean):
        raise TrialError(f"the loss of {job.strategy} on {job.backbone.name} became {mean} in epoch {epoch + 1}; lower the rate")
    return mean


def _backward(strategy: Strategy, parts: Parts, job: Job, batch: Batch) -> Tensor:
    """The loss of a batch, its gradients left in the weights: taken in twice as many pieces, from then on, if memory runs out.

    Raises:
        TrialError: it runs out for two images, too.
    """
    while True:
        try:
            return _in_pieces(strategy, parts, batch, job.room.pieces)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            images = len(batch.labels) // job.room.pieces
            if images < 4:  # batch norm needs two
                raise TrialError(f"memory runs out with {images} images at once: {str(error).splitlines()[0]}") from None
        job.room.pieces *= 2
        release_memory()  # only here has the error, and what its traceback held, gone
        warnings.warn(
            f"{job.strategy} on {job.backbone.name}: memory runs out with {images} images at once; goes on with {images // 2}, "
            "whose gradients are added up to those of the batch",
            TrialWarning,
            stacklevel=4,
        )


def _check_loss(loss: object) -> None:
    """In words that lead to the strategy's `loss`; torch's do not. Raises TypeError."""
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        given = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise TypeError(f"`loss` gave {given}; expected a tensor with one number, the mean over the batch")


def _in_pieces(strategy: Strategy, parts: Parts, batch: Batch, pieces: int) -> Tensor:
    """The mean loss of the pieces of a batch, each as heavy as it has images; those of all classes, in whose order a batch is."""
    whole = torch.zeros((), device=device())
    images = len(batch.labels)
    pieces = max(1, min(pieces, images // 2))
    for number in range(pieces):
        share = slice(number, None, pieces)
        with autocast(parts.dtype):
            loss = strategy.loss(parts.model, batch.part(share))
            _check_loss(loss)
            loss = loss * (len(batch.labels[share]) / images)
        if not number:  # not before: what a strategy has in its loss may leave gradients of its own
            parts.optimiser.zero_grad(set_to_none=True)
        accelerator().backward(parts.scaler.scale(loss))
        whole += loss.detach()
    return whole


def schedule(done: float, *, warm_up: float = WARM_UP) -> float:
    """Share of the peak rate at `done` (0–1) of all steps: a straight climb, then half a cosine (Loshchilov and Hutter, 2017)."""
    if done < warm_up:
        return max(done / warm_up, 0.01)
    return 0.5 * (1 + math.cos(math.pi * (done - warm_up) / (1 - warm_up)))


def epochs_in(cycle: int, first: int) -> int:
    """Of a cycle, counted from 1, if the `first` one has so many."""
    return int(first * 2 ** (cycle - 1))


def _pace(job: Job, progress: _Progress) -> int:
    """Epochs in which the schedule is to end: those that are left of its cycle, or as many as the budget lasts for."""
    room, until = float(progress.left), job.stop_after - progress.epoch
    if progress.last and math.isfinite(job.deadline):
        room = min(room, (job.deadline - time.monotonic()) / progress.last)
    if job.final:
        room = min(room, until)
    elif room >= until:  # there it only pauses: how much more there will be is not known yet
        room = progress.left
    (room,) = agreed(room)
    return max(int(room), 1)


def _restart(parts: Parts, best: dict[str, Tensor], progress: _Progress, job: Job, first: int) -> None:
    """The next cycle, or what a hurry left out of this one, from the best weights; the optimiser forgets the steps that led
    elsewhere. `first`: epochs of the first cycle."""
    if progress.left <= 0:
        progress.cycle, progress.left = progress.cycle + 1, epochs_in(progress.cycle + 1, first)
    progress.began, progress.done = progress.epoch, 0.0
    parts.model.load_state_dict(best)
    if parts.average is not None:
        parts.average.load_state_dict(best)
    parts.optimiser.state.clear()
    if job.path is not None:
        job.path.back()


def _optimiser(strategy: Strategy, model: Classifier) -> torch.optim.Optimizer:
    """AdamW or SGD with Nesterov momentum; norms and biases are neither decayed nor shrunk."""
    rate, decay, l1 = (float(option(strategy, name)) for name in ("rate", "weight_decay", "l1"))
    groups = []
    for factor, parameters in _param_groups(strategy, model):
        for ndims, group_decay in ((True, decay), (False, 0.0)):
            group = [p for p in parameters if (p.ndim > 1) == ndims]
            if group:
                peak = rate * factor
                groups.append(
                    {"params": group, "lr": peak, "peak": peak, "weight_decay": group_decay, "l1": l1 if ndims else 0.0}
                )
    fused = device().type == "cuda"  # one kernel a step instead of a dozen
    if option(strategy, "optimiser") == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=0.9, nesterov=True, fused=fused)
    return torch.optim.AdamW(groups, lr=rate, fused=fused)


def _param_groups(strategy: Strategy, model: Classifier) -> Iterator[tuple[float, list[nn.Parameter]]]:
    """In words that lead to the strategy's `param_groups`, where it gives something else. Raises TypeError."""
    given: Any = strategy.param_groups(model)
    for group in given if isinstance(given, Iterable) else [given]:
        factor, parameters = group if isinstance(group, (tuple, list)) and len(group) == 2 else (None, None)
        parameters = list(parameters) if isinstance(parameters, Iterable) else [None]  # a generator would give them only once
        if not isinstance(factor, Real) or not all(isinstance(parameter, nn.Parameter) for parameter in parameters):
            kinds = ", ".join(type(part).__name__ for part in group) if isinstance(group, (tuple, list)) else ""
            found = f"({kinds})" if kinds else f"a {type(group).__name__}"
            raise TypeError(f"`param_groups` gave {found}; expected pairs of a factor on the rate and a list of parameters")
        yield float(factor), parameters


@torch.no_grad()
def _shrink(optimiser: torch.optim.Optimizer) -> None:
    """The step of an L1 penalty, apart from the optimiser's as weight decay is: each weight goes rate · `l1` towards 0, and not
    beyond (soft thresholding, Daubechies et al., 2004). As a term of the loss, Adam would scale it away."""
    for group in optimiser.param_groups:
        if step := group["lr"] * group["l1"]:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.sub_(parameter.clamp(-step, step))


def last_epoch(curve: Sequence[Point]) -> float:
    """Seconds of the last epoch, of an earlier call, too; 0 before the first."""
    if not curve:
        return 0.0
    return curve[-1].seconds - (curve[-2].seconds if len(curve) > 1 else 0.0)


def time_is_up(job: Job, last: float) -> bool:
    """Whether the next epoch, as long as the `last`, would end too late. All processes follow the first one's clock."""
    (late,) = agreed(float(time.monotonic() + last > job.deadline))
    return bool(late)


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


@dataclass
class _Kept:
    """What the checkpoint holds."""

    epoch: int
    due: float = 0.0
    """When it may be written again, by the seconds of training: they are what would be lost."""

    def save(self, path: Path, parts: Parts, best: dict[str, Tensor], progress: _Progress, job: Job, *, now: bool) -> None:
        """Write the checkpoint if it lags behind and either must be written `now` or is due."""
        began = time.perf_counter()
        if progress.epoch == self.epoch or not (now or progress.seconds >= self.due):
            return
        if leads():
            tensors = {
                **checkpoint.prefixed(parts.model.state_dict(), "model"),
                **checkpoint.prefixed(parts.average.state_dict() if parts.average else {}, "average"),
                **checkpoint.prefixed(best, "best"),
                **checkpoint.prefixed(checkpoint.moments(parts.optimiser), "moment"),
                **checkpoint.prefixed(job.path.state_dict() if job.path else {}, "path"),
            }
            checkpoint.save(path, tensors, asdict(progress))
        self.epoch, self.due = progress.epoch, progress.seconds + (time.perf_counter() - began) / SAVING


def _restore(path: Path, parts: Parts, job: Job) -> tuple[_Progress, dict[str, Tensor]]:
    """Put the checkpoint's state into `parts`."""
    tensors, facts = checkpoint.load(path)
    parts.model.load_state_dict(checkpoint.nested(tensors, "model"))
    if parts.average is not None:
        parts.average.load_state_dict(checkpoint.nested(tensors, "average"))
    if job.path is not None:
        job.path.load_state_dict(checkpoint.nested(tensors, "path"))
    checkpoint.remember(parts.optimiser, checkpoint.nested(tensors, "moment"))
    progress = _Progress(**{**facts, "curve": [Point(**point) for point in facts["curve"]]})
    if progress.scaler:
        parts.scaler.load_state_dict(progress.scaler)
    job.room.pieces = max(job.room.pieces, progress.pieces)
    return progress, checkpoint.nested(tensors, "best")
