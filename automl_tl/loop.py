"""The one training loop: read it top to bottom.

It owns device, precision, clipping, schedule, evaluation, early stopping, checkpoints and the budget; a strategy owns what
its paper changes (see `strategy`). An epoch depends on the seed and its number alone, so a resumed run repeats an
uninterrupted one bit for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from . import checkpoint
from .augment import Augmentation, augment, normalise
from .device import accelerator, autocast, channels_last, device, memory_mb, precision, reset_memory
from .errors import TrialError
from .inference import predict
from .objectives import validate
from .processes import agreed, average_gradients, average_statistics, leads
from .records import TARGET, TRAIN, VALIDATION, Point
from .space import Value
from .strategy import TRAINING, Batch, Classifier, Fitted, Job, Strategy

AUGMENTATIONS = {
    "none": Augmentation(),
    "light": Augmentation(scale=0.7, jitter=0.1),
    "medium": Augmentation(scale=0.5, rotate=8, jitter=0.25),
    "strong": Augmentation(scale=0.3, rotate=15, jitter=0.4),
}
CHECKPOINT = "checkpoint.safetensors"
PATIENCE = 0.4
"""Stop after this share of the epochs (at least 4) without a better validation score."""
WARM_UP = 0.1
CLIP = 1.0


@dataclass
class _Progress:
    """What a checkpoint holds beside the weights."""

    epoch: int = 0
    seconds: float = 0.0
    best_score: float = -1.0
    best_loss: float = math.inf
    best_epoch: int = -1
    curve: list[Point] = field(default_factory=list)
    scaler: dict[str, float] = field(default_factory=dict)
    """Of fp16 gradients, where they are used."""


def fit(strategy: Strategy, job: Job) -> Fitted:
    """Train `strategy` on `job` to the best epoch by validation score (ties: lower validation loss).

    Goes on from the checkpoint in `job.folder` if there is one, and leaves one if it stops before its last epoch.

    Raises:
        TrialError: the loss is no longer a number.
    """
    torch.manual_seed(job.seed)
    reset_memory()
    model = strategy.build(job.build_backbone(), len(job.task.classes))
    channels_last(model)
    dtype = precision(model)
    optimiser = _optimiser(strategy, model)
    progress, best = _Progress(), _weights(model)
    path = job.folder / CHECKPOINT
    if path.exists():
        progress, best = _restore(path, model, optimiser)
    scaler = torch.amp.GradScaler(device().type, enabled=dtype == torch.float16)
    if progress.scaler:
        scaler.load_state_dict(progress.scaler)
    epochs = int(_option(strategy, "epochs"))
    patience = max(4, math.ceil(PATIENCE * epochs))
    last, complete = 0.0, True
    while progress.epoch < epochs:
        if progress.epoch >= job.stop_after or _time_is_up(job, last):
            complete = False
            break
        start = time.perf_counter()
        loss = _train_epoch(strategy, model, optimiser, scaler, job, progress.epoch, epochs, dtype)
        progress.scaler = scaler.state_dict()
        memory = memory_mb()
        validated = validate(model, job.pixels.array, job.task, job.backbone, dtype=dtype)
        score, validation_loss = agreed(validated.score, validated.loss)
        last = time.perf_counter() - start
        progress.epoch += 1
        progress.seconds += last
        if (score, -validation_loss) > (progress.best_score, -progress.best_loss):
            progress.best_score, progress.best_loss, progress.best_epoch = score, validation_loss, progress.epoch
            best = _weights(model)
        point = Point(progress.epoch, progress.seconds, loss, score, memory)
        progress.curve.append(point)
        stop = job.report(point)
        if progress.epoch - progress.best_epoch >= patience:
            break
        if progress.epoch < epochs:
            _save(path, model, optimiser, best, progress)
        if stop:
            complete = progress.epoch == epochs
            break
    model.load_state_dict(best)
    probabilities = predict(model, job.pixels.array, job.task.part(VALIDATION), job.backbone, dtype=dtype)
    return Fitted(model, progress.curve, probabilities, complete)


def _train_epoch(
    strategy: Strategy,
    model: Classifier,
    optimiser: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    job: Job,
    epoch: int,
    epochs: int,
    dtype: torch.dtype,
) -> float:
    """One pass over the training images; the mean loss."""
    torch.manual_seed(job.seed * 1_000_003 + epoch)
    model.train()
    strategy.start_epoch(model, epoch)
    trained = [p for group in optimiser.param_groups for p in group["params"] if p.requires_grad]
    total = torch.zeros((), device=device())
    steps = _steps(strategy, job)
    for step, batch in enumerate(batches(strategy, job, epoch)):
        factor = schedule((epoch + step / steps) / epochs)
        for group in optimiser.param_groups:
            group["lr"] = group["peak"] * factor
        with autocast(dtype):
            loss = strategy.loss(model, batch)
        optimiser.zero_grad(set_to_none=True)
        accelerator().backward(scaler.scale(loss))
        average_gradients(trained)
        scaler.unscale_(optimiser)
        nn.utils.clip_grad_norm_(trained, CLIP)
        scaler.step(optimiser)
        scaler.update()
        total += loss.detach()
    average_statistics(model)
    (mean,) = agreed(float(total) / steps)
    if not math.isfinite(mean):
        raise TrialError(f"the loss of {job.strategy} on {job.backbone.name} became {mean} in epoch {epoch + 1}; lower the rate")
    return mean


def batches(strategy: Strategy, job: Job, epoch: int) -> Iterator[Batch]:
    """The training images in an order of this epoch's own, augmented, on the device; this process's share of each batch.

    The last, smaller batch is kept unless it is a single image, which batch norm cannot take. Where the task brings unlabelled
    images and the strategy needs them, each batch has as many of those beside it.
    """
    generator = torch.Generator().manual_seed(job.seed * 1_000_003 + epoch)
    train = job.task.part(TRAIN)
    order = train[torch.randperm(len(train), generator=generator).numpy()]
    size = int(_option(strategy, "batch_size"))
    processes, rank = accelerator().num_processes, accelerator().process_index
    beside = _unlabelled(strategy, job, epoch, size) if "target" in strategy.needs else None
    for step in range(_steps(strategy, job)):
        index = np.sort(order[step * size : (step + 1) * size])
        inputs = _views(strategy, job, index, generator)
        labels = torch.from_numpy(job.task.labels[index]).to(device())
        share = slice(rank, None, processes) if len(index) >= 2 * processes else slice(None)
        yield Batch(inputs[share], labels[share], None if beside is None else next(beside)[share])


def _unlabelled(strategy: Strategy, job: Job, epoch: int, size: int) -> Iterator[Tensor]:
    """Batches of the task's unlabelled images without end, in random orders one after the other."""
    generator = torch.Generator().manual_seed(job.seed * 1_000_003 + epoch + 500_001)  # the labelled ones keep theirs
    images = job.task.part(TARGET)
    waiting = np.empty(0, dtype=np.int64)
    while True:
        while len(waiting) < size:
            waiting = np.concatenate([waiting, images[torch.randperm(len(images), generator=generator).numpy()]])
        yield _views(strategy, job, np.sort(waiting[:size]), generator)
        waiting = waiting[size:]


def _views(strategy: Strategy, job: Job, index: np.ndarray, generator: torch.Generator) -> Tensor:
    """The images at `index` as the network meets them in training."""
    images = torch.from_numpy(job.pixels.array[index]).to(device()).permute(0, 3, 1, 2)
    views = augment(images, augmentation(strategy), size=job.pixels.size, generator=generator)
    return normalise(views, job.backbone.mean, job.backbone.std).contiguous(memory_format=torch.channels_last)


def _steps(strategy: Strategy, job: Job) -> int:
    images, size = len(job.task.part(TRAIN)), int(_option(strategy, "batch_size"))
    return max(1, images // size + (images % size > 1))


def augmentation(strategy: Strategy) -> Augmentation:
    """What the strategy's hyperparameters say about changing the images."""
    how = AUGMENTATIONS[str(_option(strategy, "augmentation"))]
    return replace(how, flip=bool(_option(strategy, "flip")))


def schedule(done: float) -> float:
    """Share of the peak rate at `done` (0–1) of all steps: a straight climb, then half a cosine (Loshchilov and Hutter, 2017)."""
    if done < WARM_UP:
        return max(done / WARM_UP, 0.01)
    return 0.5 * (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP)))


def _optimiser(strategy: Strategy, model: Classifier) -> torch.optim.Optimizer:
    """AdamW or SGD with Nesterov momentum; norms and biases are not decayed."""
    rate, decay = float(_option(strategy, "rate")), float(_option(strategy, "weight_decay"))
    groups = []
    for factor, parameters in strategy.param_groups(model):
        for ndims, group_decay in ((True, decay), (False, 0.0)):
            group = [p for p in parameters if (p.ndim > 1) == ndims]
            if group:
                groups.append({"params": group, "lr": rate * factor, "peak": rate * factor, "weight_decay": group_decay})
    if _option(strategy, "optimiser") == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=rate)


def _option(strategy: Strategy, name: str) -> Value:
    """A hyperparameter of the loop: the strategy's, or the loop's default."""
    value: Value = getattr(strategy.hp, name, TRAINING[name].default)
    return value


def _time_is_up(job: Job, last_epoch: float) -> bool:
    """Whether the next epoch, as long as the last, would end too late. All processes follow the first one's clock."""
    (late,) = agreed(float(time.monotonic() + last_epoch > job.deadline))
    return bool(late)


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


def _save(path: Path, model: nn.Module, optimiser: torch.optim.Optimizer, best: dict[str, Tensor], progress: _Progress) -> None:
    if not leads():
        return
    moments = {
        f"{index}.{name}": value
        for index, state in optimiser.state_dict()["state"].items()
        for name, value in state.items()
        if isinstance(value, Tensor)
    }
    tensors = {
        **checkpoint.prefixed(model.state_dict(), "model"),
        **checkpoint.prefixed(best, "best"),
        **checkpoint.prefixed(moments, "moment"),
    }
    checkpoint.save(path, tensors, asdict(progress))


def _restore(path: Path, model: nn.Module, optimiser: torch.optim.Optimizer) -> tuple[_Progress, dict[str, Tensor]]:
    tensors, facts = checkpoint.load(path)
    model.load_state_dict(checkpoint.nested(tensors, "model"))
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in checkpoint.nested(tensors, "moment").items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
    curve = [Point(**point) for point in facts.pop("curve")]
    return _Progress(**facts, curve=curve), checkpoint.nested(tensors, "best")
