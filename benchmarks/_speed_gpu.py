"""On a GPU: what share of the throughput on images that lie on the device already is left when they come from the disk cache.

ResNet-50 and ViT-S at 224 px with random weights, bf16, channels last, compiled or not, on decoded images of caltech101.
`loop.train_epoch` (share), and `loop.fit` with its validation and checkpoints (fit_share), against steps of the same network,
optimiser, clipping and batches, and passes over as many validation images, on noise that lies on the device; feature extraction
likewise. Clipping is part of the recipe, not of its data. Epoch by epoch in turns: what a host makes of the
same step differs by a tenth from one half minute to the next.
Without a GPU there is nothing to measure, and the part says so.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import timm
import torch
from _report import unpacked
from _turns import in_turns, ratio
from torch import Tensor, nn
from torch.nn import functional as F

from automl_tl import Backbone, Candidate, Classifier, Job, Point, Strategy, Task, load_task, loop
from automl_tl.backbones import catalogue
from automl_tl.device import autocast, channels_last, device, precision
from automl_tl.features import extract
from automl_tl.pixels import pixels_of
from automl_tl.records import TRAIN, VALIDATION
from automl_tl.trials import job_of

NETWORKS = {"resnet50": 2048, "vit_small_patch16_224": 384}
BATCH, EPOCHS, PASSES, LOOKED = 128, 12, 6, 4096
FITTED = 30
"""Epochs of a whole training, which holds the checkpoints that a longer one has."""
Pass = Callable[[int], None]
"""Over so many images, to its end."""
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
    memory = _memory(task, backbone, net)
    train, validation = (len(task.part(split)) for split in (TRAIN, VALIDATION))
    steps, look = _training(net, width, len(task.classes)), _looking_at(net)

    def bare() -> None:
        steps(train)
        look(validation)

    rows, figures = _epochs(task, backbone, net, f"gpu_{name}", f"training {name}")
    row, whole = _told("... with validation and checkpoints", f"gpu_{name}_fit", train, *_fit(task, backbone, net, bare))
    return [*rows, row], {**figures, **whole, f"gpu_{name}_mb": memory}


def _looking(task: Task, name: str, width: int) -> Evidence:
    """Seconds that an image takes: `features.extract` between its first batches and its last, four times over all images of the
    task, and the passes alone."""
    net, backbone = _net(name), _facts(name, width)
    look, index = _looking_at(net), np.tile(np.arange(len(task.labels)), 4)
    ours: list[float] = []
    bare: list[float] = []
    for turn in range(PASSES):
        ours.append(_extraction(task, backbone, net, np.roll(index, turn)))  # another order each time, as features are kept
        start = time.perf_counter()
        look(LOOKED)
        bare.append((time.perf_counter() - start) / LOOKED)
    row, figures = _told(f"features of {name}", f"gpu_{name}_features", 1, ours[1:], bare[1:])
    return [row], figures


def _compiled(task: Task, name: str, width: int) -> Evidence:
    """Whole batches only: for a smaller one the network would be compiled anew."""
    whole = len(task.part(TRAIN)) // BATCH * BATCH
    task = replace(task, splits={**task.splits, TRAIN: task.part(TRAIN)[:whole]})
    net: nn.Module = torch.compile(_net(name))  # type: ignore[assignment]
    return _epochs(task, _facts(name, width), net, f"gpu_{name}_compiled", f"training {name}, compiled")


def _told(
    what: str, name: str, images: int, ours: Sequence[float], bare: Sequence[float]
) -> tuple[tuple[str, ...], dict[str, float]]:
    figures = ratio(f"{name}_share", ours, bare)
    rate = images / float(np.median(ours))
    spread = f"{figures[f'{name}_share']:.3f} ({figures[f'{name}_share_q1']:.3f}–{figures[f'{name}_share_q3']:.3f})"
    row = (f"{what}, images a second", f"{rate:.0f}", f"{images / float(np.median(bare)):.0f}", spread)
    return row, {f"{name}_images_a_second": rate, **figures}


def _facts(name: str, width: int) -> Backbone:
    return replace(next(iter(catalogue().values())), name=name, input_size=224, num_features=width, num_classes=0)


def _net(name: str) -> nn.Module:
    return timm.create_model(name, num_classes=0)


def _epochs(task: Task, backbone: Backbone, net: nn.Module, name: str, what: str) -> Evidence:
    """Epochs of training alone, without the first."""
    steps, images = _training(net, backbone.num_features, len(task.classes)), len(task.part(TRAIN))
    with tempfile.TemporaryDirectory() as scratch:
        strategy, job = _work(task, backbone, net, Path(scratch), lambda point: False)
        parts = loop.assemble(strategy, job)

        def epoch() -> None:
            loop.train_epoch(strategy, parts, job, 0, (0.0, 1 / EPOCHS))
            torch.cuda.synchronize()

        seconds, _ = in_turns({"ours": epoch, "bare": lambda: steps(images)}, EPOCHS)
    row, figures = _told(what, name, images, seconds["ours"][1:], seconds["bare"][1:])
    return [row], figures


def _memory(task: Task, backbone: Backbone, net: nn.Module) -> float:
    """MB of the device that an epoch takes, before anything else lies there."""
    with tempfile.TemporaryDirectory() as scratch:
        return loop.fit(*_work(task, backbone, net, Path(scratch), lambda point: True)).curve[0].memory_mb


def _fit(task: Task, backbone: Backbone, net: nn.Module, bare: Callable[[], None]) -> tuple[list[float], list[float]]:
    """Seconds of each epoch of `loop.fit`, with its validation and the checkpoint before it, and of `bare` after it. The first
    waits for what is done once."""
    ours: list[float] = []
    theirs: list[float] = []
    began = time.perf_counter()

    def report(point: Point) -> bool:
        nonlocal began
        torch.cuda.synchronize()
        ended = time.perf_counter()
        ours.append(ended - began)
        bare()
        began = time.perf_counter()
        theirs.append(began - ended)
        return len(ours) > FITTED

    with tempfile.TemporaryDirectory() as scratch:
        loop.fit(*_work(task, backbone, net, Path(scratch), report))
    return ours[1:], theirs[1:]


def _work(task: Task, backbone: Backbone, net: nn.Module, folder: Path, report: Callable[[Point], bool]) -> tuple[Strategy, Job]:
    hyperparameters = {"epochs": 100, "batch_size": BATCH, "augmentation": "light"}
    candidate = Candidate(backbone.name, "fine-tuning", hyperparameters)
    job = job_of(task, candidate, backbone, seed=0, folder=folder, report=report)
    job.build_backbone = lambda: net
    return Strategy(hyperparameters, backbone), job


def _training(net: nn.Module, width: int, classes: int) -> Pass:
    """Steps over noise, the last batch smaller as in an epoch."""
    model = channels_last(Classifier(net, nn.Linear(width, classes)))
    parameters = list(model.parameters())
    optimiser = torch.optim.AdamW(parameters, fused=True)
    images, labels, dtype = _noise(), torch.randint(classes, (BATCH,), device=device()), precision(model)

    def steps(count: int) -> None:
        model.train()
        for start in range(0, count, BATCH):
            size = min(BATCH, count - start)
            with autocast(dtype):
                loss = F.cross_entropy(model(images[:size]).float(), labels[:size])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, loop.CLIP)
            optimiser.step()
        torch.cuda.synchronize()

    return steps


def _looking_at(net: nn.Module) -> Pass:
    model, noise = channels_last(net), _noise()
    dtype = precision(model)

    @torch.inference_mode()
    def look(count: int) -> None:
        model.eval()
        with autocast(dtype):
            for start in range(0, count, BATCH):
                model(noise[: min(BATCH, count - start)])
        torch.cuda.synchronize()

    return look


def _noise() -> Tensor:
    return torch.randn(BATCH, 3, 224, 224, device=device()).contiguous(memory_format=torch.channels_last)


def _extraction(task: Task, backbone: Backbone, net: nn.Module, index: np.ndarray) -> float:
    """Seconds that an image takes, once the first ten batches are done."""
    seen: list[tuple[float, int]] = []
    extract(
        task,
        backbone,
        pixels_of(task, backbone),
        lambda head: net,
        index=index,
        progress=lambda done, of: seen.append((time.perf_counter(), done)),
    )
    (start, before), (end, after) = seen[10], seen[-1]
    return (end - start) / (after - before)
