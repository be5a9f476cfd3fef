"""On a GPU: what share of the throughput on images that lie on the device already is left when they come from the disk cache.

ResNet-50 and ViT-S at 224 px with random weights, bf16, channels last, compiled or not, on decoded images of caltech101.
`loop.train_epoch` (share), and `loop.fit` with its validation and checkpoints (fit_share), against steps of the same network,
optimiser and batches, and passes over as many validation images, on noise that lies on the device; feature extraction
likewise. Without a GPU there is nothing to measure, and the part says so.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import timm
import torch
from _report import unpacked
from torch import Tensor, nn
from torch.nn import functional as F

from automl_tl import Backbone, Candidate, Classifier, Job, Point, Strategy, Task, load_task, loop
from automl_tl.backbones import catalogue
from automl_tl.device import autocast, channels_last, device, precision
from automl_tl.features import extract
from automl_tl.records import TRAIN, VALIDATION
from automl_tl.trials import job_of, pixels_of

NETWORKS = {"resnet50": 2048, "vit_small_patch16_224": 384}
BATCH, EPOCHS, PASSES, LOOKED = 128, 12, 6, 4096
Step = Callable[[int], object]
"""Of so many images."""
Evidence = tuple[list[tuple[str, ...]], dict[str, float]]
"""Rows of the table, and figures."""


def evidence(folder: Path, *, quick: bool) -> Evidence:
    if device().type != "cuda":
        print("no GPU here: nothing measured")
        return [], {}
    task = load_task(unpacked("caltech101", folder))
    rows: list[tuple[str, ...]] = []
    figures = {"gpu": 1.0}
    for name, width in NETWORKS.items():
        pixels_of(task, _facts(name, width))
        for part in (_plain, _looking) if quick else (_plain, _looking, _compiled):
            found, told = part(task, name, width)
            rows += found
            figures |= told
    return rows, figures


def _plain(task: Task, name: str, width: int) -> Evidence:
    backbone, net = _facts(name, width), _net(name)
    train, validation = (len(task.part(split)) for split in (TRAIN, VALIDATION))
    torch.cuda.reset_peak_memory_stats()
    ours = train / _epoch(task, backbone, net)
    whole = train / _fit(task, backbone, net)
    memory = torch.cuda.max_memory_allocated() / 2**20
    bare = train / _seconds_of(_training_step(net, width, len(task.classes)), train)
    ideal = train / (train / bare + _look(net, validation))
    rows = [_row(f"training {name}", ours, bare), _row("... with validation and checkpoints", whole, ideal)]
    return rows, {
        f"gpu_{name}_images_a_second": ours,
        f"gpu_{name}_share": ours / bare,
        f"gpu_{name}_fit_share": whole / ideal,
        f"gpu_{name}_mb": memory,
    }


def _looking(task: Task, name: str, width: int) -> Evidence:
    net = _net(name)
    ours, bare = _extraction(task, _facts(name, width), net), LOOKED / _look(net, LOOKED)
    return [_row(f"features of {name}", ours, bare)], {
        f"gpu_{name}_features_images_a_second": ours,
        f"gpu_{name}_features_share": ours / bare,
    }


def _compiled(task: Task, name: str, width: int) -> Evidence:
    """Whole batches only: for a smaller one the network would be compiled anew."""
    whole = len(task.part(TRAIN)) // BATCH * BATCH
    task = replace(task, splits={**task.splits, TRAIN: task.part(TRAIN)[:whole]})
    net: nn.Module = torch.compile(_net(name))  # type: ignore[assignment]
    ours = whole / _epoch(task, _facts(name, width), net)
    bare = whole / _seconds_of(_training_step(net, width, len(task.classes)), whole)
    return [_row(f"training {name}, compiled", ours, bare)], {
        f"gpu_{name}_compiled_images_a_second": ours,
        f"gpu_{name}_compiled_share": ours / bare,
    }


def _row(what: str, ours: float, bare: float) -> tuple[str, ...]:
    return f"{what}, images a second", f"{ours:.0f}", f"{bare:.0f}", f"{ours / bare:.3f}"


def _facts(name: str, width: int) -> Backbone:
    return replace(next(iter(catalogue().values())), name=name, input_size=224, num_features=width, num_classes=0)


def _net(name: str) -> nn.Module:
    return timm.create_model(name, num_classes=0)


def _epoch(task: Task, backbone: Backbone, net: nn.Module) -> float:
    """Seconds of an epoch of training alone: the median."""
    taken = []
    with tempfile.TemporaryDirectory() as scratch:
        strategy, job = _work(task, backbone, net, Path(scratch), lambda point: False)
        parts = loop.assemble(strategy, job)
        for epoch in range(EPOCHS):
            start = time.perf_counter()
            loop.train_epoch(strategy, parts, job, epoch, EPOCHS)
            torch.cuda.synchronize()
            taken.append(time.perf_counter() - start)
    return float(np.median(taken[1:]))


def _fit(task: Task, backbone: Backbone, net: nn.Module) -> float:
    """Seconds of an epoch with its validation and its share of the checkpoints: the mean."""
    ends: list[float] = []

    def report(point: Point) -> bool:
        torch.cuda.synchronize()
        ends.append(time.perf_counter())
        return len(ends) > EPOCHS

    with tempfile.TemporaryDirectory() as scratch:
        loop.fit(*_work(task, backbone, net, Path(scratch), report))
    return (ends[-1] - ends[0]) / (len(ends) - 1)


def _work(task: Task, backbone: Backbone, net: nn.Module, folder: Path, report: Callable[[Point], bool]) -> tuple[Strategy, Job]:
    hyperparameters = {"epochs": 100, "batch_size": BATCH, "augmentation": "light"}
    candidate = Candidate(backbone.name, "fine-tuning", hyperparameters)
    job = job_of(task, candidate, backbone, seed=0, folder=folder, report=report)
    job.build_backbone = lambda: net
    return Strategy(hyperparameters, backbone), job


def _training_step(net: nn.Module, width: int, classes: int) -> Step:
    model = channels_last(Classifier(net, nn.Linear(width, classes)))
    optimiser = torch.optim.AdamW(model.parameters(), fused=True)
    images, labels, dtype = _noise(), torch.randint(classes, (BATCH,), device=device()), precision(model)
    model.train()

    def step(count: int) -> None:
        with autocast(dtype):
            loss = F.cross_entropy(model(images[:count]).float(), labels[:count])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()

    return step


def _look(net: nn.Module, images: int) -> float:
    """Seconds of a pass over so many images."""
    model, noise = channels_last(net).eval(), _noise()
    with torch.inference_mode(), autocast(precision(model)):
        return _seconds_of(lambda count: model(noise[:count]), images)


def _noise() -> Tensor:
    return torch.randn(BATCH, 3, 224, 224, device=device()).contiguous(memory_format=torch.channels_last)


def _extraction(task: Task, backbone: Backbone, net: nn.Module) -> float:
    """Images a second of `features.extract` between its first batches and its last, four times over all images of the task: the
    median, without the first as that of its peer."""
    index = np.tile(np.arange(len(task.labels)), 4)
    rates = []
    for turn in range(PASSES):
        seen: list[tuple[float, int]] = []

        def progress(done: int, of: int, seen: list[tuple[float, int]] = seen) -> None:
            seen.append((time.perf_counter(), done))

        order = np.roll(index, turn)  # another one each time, as features are kept
        extract(task, backbone, pixels_of(task, backbone), lambda head: net, index=order, progress=progress)
        (start, before), (end, after) = seen[10], seen[-1]
        rates.append((after - before) / (end - start))
    return float(np.median(rates[1:]))


def _seconds_of(step: Step, images: int) -> float:
    """Of steps over so many images, the last batch smaller as in an epoch: the median of `EPOCHS`."""
    counts = [min(BATCH, images - start) for start in range(0, images, BATCH)]
    taken = []
    for _ in range(EPOCHS):
        start = time.perf_counter()
        for count in counts:
            step(count)
        torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return float(np.median(taken[1:]))
