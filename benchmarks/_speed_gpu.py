"""On a GPU: what share of the throughput on images that lie on the device already is left when they come from the disk cache.

ResNet-50 and ViT-S at 224 px with random weights, bf16, channels last, compiled or not: `loop.fit` on decoded images of
caltech101 against steps of the same network, optimiser and batch on one batch of noise on the device; feature extraction
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
from torch import nn
from torch.nn import functional as F

from automl_tl import Backbone, Candidate, Classifier, Point, Strategy, Task, load_task, loop
from automl_tl.device import autocast, channels_last, device, precision
from automl_tl.inference import predict
from automl_tl.records import TRAIN
from automl_tl.trials import job_of, pixels_of

NETWORKS = {"resnet50": 2048, "vit_small_patch16_224": 384}
BATCH = 128


def evidence(folder: Path, *, quick: bool) -> tuple[list[tuple[str, ...]], dict[str, float]]:
    if device().type != "cuda":
        print("no GPU here: nothing measured")
        return [], {}
    task = load_task(unpacked("caltech101", folder))
    rows, figures = [], {"gpu": 1.0}
    for name, width in NETWORKS.items():
        backbone = _facts(name, width)
        pixels_of(task, backbone)
        for compiled in (False,) if quick else (False, True):
            suffix = f"{name}{'_compiled' if compiled else ''}"
            torch.cuda.reset_peak_memory_stats()
            ours = _images_a_second_of_fit(task, backbone, compiled=compiled)
            figures[f"gpu_{suffix}_mb"] = torch.cuda.max_memory_allocated() / 2**20
            bare = _images_a_second(_training_step(_net(name, compiled), width, len(task.classes)))
            figures |= {f"gpu_{suffix}_images_a_second": ours, f"gpu_{suffix}_share": ours / bare}
            rows.append((f"training {suffix}, images a second", f"{ours:.0f}", f"{bare:.0f}", f"{ours / bare:.3f}"))
        looked, bare = _extraction(task, backbone)
        figures[f"gpu_{name}_features_share"] = looked / bare
        rows.append((f"features of {name}, images a second", f"{looked:.0f}", f"{bare:.0f}", f"{looked / bare:.3f}"))
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


def _images_a_second_of_fit(task: Task, backbone: Backbone, *, compiled: bool) -> float:
    """Median over epochs of the training images in the time between two reports, validation included."""
    ends: list[float] = []

    def report(point: Point) -> bool:
        torch.cuda.synchronize()
        ends.append(time.perf_counter())
        return len(ends) > 8

    hyperparameters = {"epochs": 100, "batch_size": BATCH, "augmentation": "light"}
    candidate = Candidate(backbone.name, "fine-tuning", hyperparameters)
    with tempfile.TemporaryDirectory() as scratch:
        job = job_of(task, candidate, backbone, seed=0, folder=Path(scratch), report=report)
        job.build_backbone = lambda: _net(backbone.name, compiled)
        loop.fit(Strategy(hyperparameters, backbone), job)
    return len(task.part(TRAIN)) / float(np.median(np.diff(ends[1:])))


def _training_step(net: nn.Module, width: int, classes: int) -> Callable[[], None]:
    model = channels_last(Classifier(net, nn.Linear(width, classes)))
    optimiser = torch.optim.AdamW(model.parameters())
    images = torch.randn(BATCH, 3, 224, 224, device=device()).contiguous(memory_format=torch.channels_last)
    labels, dtype = torch.randint(classes, (BATCH,), device=device()), precision(model)
    model.train()

    def step() -> None:
        with autocast(dtype):
            loss = F.cross_entropy(model(images).float(), labels)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()

    return step


def _extraction(task: Task, backbone: Backbone) -> tuple[float, float]:
    """Images a second of forward passes: over the decoded images, and over one batch on the device."""
    model = channels_last(_net(backbone.name, False)).eval()
    array, index = pixels_of(task, backbone).array, np.arange(len(task.labels))
    predict(model, array, index[:512], backbone)
    torch.cuda.synchronize()
    start = time.perf_counter()
    predict(model, array, index, backbone)
    torch.cuda.synchronize()
    ours = len(index) / (time.perf_counter() - start)
    images = torch.randn(BATCH, 3, 224, 224, device=device()).contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def step() -> None:
        with autocast(precision(model)):
            model(images)

    return ours, _images_a_second(step)


def _images_a_second(step: Callable[[], None], steps: int = 30) -> float:
    for _ in range(5):
        step()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    torch.cuda.synchronize()
    return steps * BATCH / (time.perf_counter() - start)
