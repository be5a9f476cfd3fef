"""The training images of an epoch, as a network meets them: ordered, augmented, mixed, on the device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from .augment import Augmentation, augment, normalise
from .device import accelerator, device
from .fetching import fetched, sent
from .mixing import mix
from .randaugment import randaugment
from .records import TARGET, TRAIN
from .space import Value
from .strategy import TRAINING, Batch, Job, Strategy

AUGMENTATIONS = {
    "none": Augmentation(),
    "light": Augmentation(scale=0.7, jitter=0.1),
    "medium": Augmentation(scale=0.5, rotate=8, jitter=0.25),
    "strong": Augmentation(scale=0.3, rotate=15, jitter=0.4),
}
# Each use of chance has numbers of its own, so that asking for one more does not move the others.
ORDER, UNLABELLED, MIXING, RANDAUGMENT = 0, 500_001, 600_001, 700_001


def option(strategy: Strategy, name: str) -> Value:
    """A hyperparameter of the loop: the strategy's, or the loop's default."""
    value: Value = getattr(strategy.hp, name, TRAINING[name].default)
    return value


def batches(strategy: Strategy, job: Job, epoch: int) -> Iterator[Batch]:
    """The training images in an order of this epoch's own, augmented, on the device; this process's share of each batch.

    The last, smaller batch is kept unless it is a single image, which batch norm cannot take. Where the task brings unlabelled
    images and the strategy needs them there (`target_beside`), each batch has as many of those beside it.
    """
    generator, mixing, random_operations = (_chance(job, epoch, use) for use in (ORDER, MIXING, RANDAUGMENT))
    mixup, cutmix = float(option(strategy, "mixup")), float(option(strategy, "cutmix"))
    train = job.task.part(TRAIN)
    order = train[torch.randperm(len(train), generator=generator).numpy()]
    size = int(option(strategy, "batch_size"))
    processes, rank = accelerator().num_processes, accelerator().process_index
    parts = [np.sort(order[step * size : (step + 1) * size]) for step in range(steps_of(strategy, job))]
    target = "target" in strategy.needs and strategy.target_beside
    beside = _unlabelled(strategy, job, epoch, [len(index) for index in parts]) if target else None
    for index, images in zip(parts, fetched(job.pixels.array, parts), strict=True):
        views = _views(strategy, job, images, generator, random_operations)
        labels = sent(torch.from_numpy(job.task.labels[index]), device())
        whole = Batch(views, labels, None if beside is None else next(beside))
        share = slice(rank, None, processes) if len(index) >= 2 * processes else slice(None)
        yield mix(whole, mixup=mixup, cutmix=cutmix, generator=mixing).part(share)


def _chance(job: Job, epoch: int, use: int) -> torch.Generator:
    return torch.Generator().manual_seed(job.seed * 1_000_003 + epoch + use)


def _unlabelled(strategy: Strategy, job: Job, epoch: int, sizes: Sequence[int]) -> Iterator[Tensor]:
    """Batches of these `sizes` of the task's unlabelled images, in random orders one after the other."""
    generator, random_operations = _chance(job, epoch, UNLABELLED), _chance(job, epoch, UNLABELLED + RANDAUGMENT)
    images = job.task.part(TARGET)

    def parts() -> Iterator[np.ndarray]:
        waiting = np.empty(0, dtype=np.int64)
        for size in sizes:
            while len(waiting) < size:
                waiting = np.concatenate([waiting, images[torch.randperm(len(images), generator=generator).numpy()]])
            yield np.sort(waiting[:size])
            waiting = waiting[size:]

    for batch in fetched(job.pixels.array, parts()):
        yield _views(strategy, job, batch, generator, random_operations)


def _views(
    strategy: Strategy, job: Job, images: Tensor, generator: torch.Generator, random_operations: torch.Generator
) -> Tensor:
    """`images` as the network meets them in training."""
    views = augment(images, augmentation(strategy), size=job.pixels.size, generator=generator)
    if magnitude := float(option(strategy, "randaugment")):
        views = randaugment(views, magnitude, generator=random_operations)
    return normalise(views, job.backbone.mean, job.backbone.std).contiguous(memory_format=torch.channels_last)


def steps_of(strategy: Strategy, job: Job) -> int:
    """Batches of an epoch."""
    images, size = len(job.task.part(TRAIN)), int(option(strategy, "batch_size"))
    return max(1, images // size + (images % size > 1))


def augmentation(strategy: Strategy) -> Augmentation:
    """What the strategy's hyperparameters say about changing the images."""
    how = AUGMENTATIONS[str(option(strategy, "augmentation"))]
    return replace(how, flip=bool(option(strategy, "flip")))
