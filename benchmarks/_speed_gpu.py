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
from pathlib import Path

import numpy as np
import torch
from _report import unpacked
from torch import Tensor, nn
from torch.nn import functional as F

from automl_tl import Backbone, Candidate, Classifier, Point, Strategy, Task, load_task, loop
from automl_tl.device import autocast, channels_last, device, precision
from automl_tl.features import extract
from automl_tl.records import TRAIN, VALIDATION
from automl_tl.trials import job_of, pixels_of

NETWORKS = {"resnet50": 2048, "vit_small_patch16_224": 384}
BATCH, EPOCHS, LOOKED = 128, 12, 4096
Step = Callable[[int], None]
"""Of so many images."""


def evidence(folder: Path, *, quick: bool) -> tuple[list[tuple[str, ...]], dict[str, float]]:
    if device().type != "cuda":
        print("no GPU here: nothing measured")
        return [], {}
    task = load_task(unpacked("caltech101", folder))
    train, validation = (len(task.part(split)) for split in (TRAIN, VALIDATION))
    rows, figures = [], {"gpu": 1.0}
    for compiled in (False,) if quick else (False, True):
        for name, width in NETWORKS.items():
            suffix = f"{name}{'_compiled' if compiled else ''}"
            backbone, net = _facts(suffix, width), _net(name, compiled)
            pixels_of(task, backbone)
            torch.cuda.reset_peak_memory_stats()
            epochs, fits = _epochs(task, backbone, net)
            figures[f"gpu_{suffix}_mb"] = torch.cuda.max_memory_allocated() / 2**20
            bare = train / _seconds_of(_training_step(net, width, len(task.classes)), train)
            ideal = train / (train / bare + _seconds_of(_look(net), validation))
            ours, whole = train / epochs, train / fits
            figures |= {
                f"gpu_{suffix}_images_a_second": ours,
                f"gpu_{suffix}_share": ours / bare,
                f"gpu_{suffix}_fit_share": whole / ideal,
            }
            rows.append((f"training {suffix}, images a second", f"{ours:.0f}", f"{bare:.0f}", f"{ours / bare:.3f}"))
            rows.append(("... with validation and checkpoints", f"{whole:.0f}", f"{ideal:.0f}", f"{whole / ideal:.3f}"))
            if not compiled:
                looked, bare = _extraction(task, backbone, net), LOOKED / _seconds_of(_look(net), LOOKED)
                figures |= {f"gpu_{name}_features_images_a_second": looked, f"gpu_{name}_features_share": looked / bare}
                rows.append(("... its features", f"{looked:.0f}", f"{bare:.0f}", f"{looked / bare:.3f}"))
    return rows, figures


def _facts(name: str, width: int) -> Backbone:
    from dataclasses import replace

    from automl_tl.backbones import catalogue

    known = next(iter(catalogue().values()))
    return replace(known, name=name, input_size=224, num_features=width, num_classes=0)


def _net(name: str, compiled: bool) -> nn.Module:
    import timm

    net = timm.create_model(name, num_classes=0)
    return torch.compile(net) if compiled else net  # type: ignore[return-value]


def _epochs(task: Task, backbone: Backbone, net: nn.Module) -> tuple[float, float]:
    """Seconds of an epoch of training, and of one with its validation and its share of the checkpoints: medians."""
    hyperparameters = {"epochs": 100, "batch_size": BATCH, "augmentation": "light"}
    candidate, strategy = Candidate(backbone.name, "fine-tuning", hyperparameters), Strategy(hyperparameters, backbone)
    ends: list[float] = []

    def report(point: Point) -> bool:
        torch.cuda.synchronize()
        ends.append(time.perf_counter())
        return len(ends) > EPOCHS

    with tempfile.TemporaryDirectory() as scratch:
        job = job_of(task, candidate, backbone, seed=0, folder=Path(scratch), report=report)
        job.build_backbone = lambda: net
        parts = loop.assemble(strategy, job)
        taken = []
        for epoch in range(EPOCHS):
            start = time.perf_counter()
            loop.train_epoch(strategy, parts, job, epoch, EPOCHS)
            torch.cuda.synchronize()
            taken.append(time.perf_counter() - start)
        del parts
        loop.fit(strategy, job)
    return float(np.median(taken[1:])), (ends[-1] - ends[0]) / (len(ends) - 1)


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


def _look(net: nn.Module) -> Step:
    model = channels_last(net).eval()
    images, dtype = _noise(), precision(model)

    @torch.inference_mode()
    def step(count: int) -> None:
        with autocast(dtype):
            model(images[:count])

    return step


def _noise() -> Tensor:
    return torch.randn(BATCH, 3, 224, 224, device=device()).contiguous(memory_format=torch.channels_last)


def _extraction(task: Task, backbone: Backbone, net: nn.Module) -> float:
    """Images a second of `features.extract` between its first batch and its last, four times over all images of the task."""
    index = np.tile(np.arange(len(task.labels)), 4)
    seen: list[tuple[float, int]] = []

    def progress(done: int, of: int) -> None:
        seen.append((time.perf_counter(), done))

    extract(task, backbone, pixels_of(task, backbone), lambda head: net, index=index, progress=progress)
    (start, before), (end, after) = seen[10], seen[-1]
    return (after - before) / (end - start)


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
