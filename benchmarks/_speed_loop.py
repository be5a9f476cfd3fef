"""`loop.fit` against loops that people write, epoch by epoch in turns: one network, one batch size, the same real images.

- plain: a bare PyTorch loop on images that are decoded already, with the same augmentation, precision, memory layout, clipping
  and validation, that keeps nothing: the floor.
- decoding: the same loop behind a `DataLoader` that opens and augments each file anew (torchvision's transforms for the same
  augmentation), with no and with as many worker processes as there are cores; the faster one counts.
- timm: `timm.data.create_loader` with its default training transforms, workers, optimiser and label smoothing, as its train
  script puts them together; a recipe of its own, so the work is not the same.

An epoch is a pass over the training images and a validation; ours saves its checkpoint, too.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from _report import unpacked
from _turns import ratio, row
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from automl_tl import Backbone, Candidate, Classifier, Point, Strategy, Task, load_task, loop
from automl_tl.augment import augment, normalise
from automl_tl.backbones import build, catalogue
from automl_tl.batches import AUGMENTATIONS
from automl_tl.device import autocast, channels_last, precision
from automl_tl.home import cache
from automl_tl.pixels import pixels_of
from automl_tl.records import TRAIN, VALIDATION
from automl_tl.trials import job_of

CASES = (
    ("caltech101", "resnet10t_24.tiny_imagenet_64"),
    ("rsscn7", "resnet10t_40.tiny_imagenet_64"),
    ("brain_tumor", "mobilenetv4_small_050.tiny_imagenet_64"),
    ("photographs", "resnet10t_24.tiny_imagenet_64"),
)
"""What decoding costs beside training depends on both: brain_tumor has larger files (160 × 160) and a light network. All that
../shared/data has are thumbnails; *photographs* are some of caltech101's, enlarged to the size of pictures that people take."""
PHOTOGRAPHS, A_CLASS, LONGER_SIDE = "caltech101", 2, 1600
ROUNDS, FEWER_ROUNDS = 12, 4
BATCH, RATE, DECAY, EPOCHS = 32, 1e-3, 0.02, 15
HOW = AUGMENTATIONS["light"]
WORKERS = (0, os.cpu_count() or 1)
"""Processes that decode for the peer."""
Epochs = Iterator[None]
"""Each `next` trains and validates once."""


def evidence(folder: Path, *, quick: bool) -> tuple[list[tuple[str, ...]], dict[str, float]]:
    rows, figures = [], {}
    for number, (name, network) in enumerate(CASES[:1] if quick else CASES):
        large = name == "photographs"
        images = _photographs(unpacked(PHOTOGRAPHS, folder), folder / name) if large else unpacked(name, folder)
        task, backbone = load_task(images), catalogue()[network]
        shutil.rmtree(cache() / "pixels", ignore_errors=True)
        begun = time.perf_counter()
        pixels_of(task, backbone)
        decoded = time.perf_counter() - begun
        seconds = _epochs(task, backbone, 3 if quick else FEWER_ROUNDS if large else ROUNDS)
        suffix = f"_{name}" if number else ""
        ours = seconds.pop("ours")
        figures[f"loop_images_a_second{suffix}"] = len(task.part(TRAIN)) / float(np.median(ours))
        figures[f"loop_decode_once_seconds{suffix}"] = decoded
        loaders = {workers: seconds.pop(f"decoding {workers}") for workers in WORKERS}
        workers = min(loaders, key=lambda one: float(np.median(loaders[one])))
        figures[f"loop_decoding_workers{suffix}"] = workers
        for peer, took in {**seconds, "decoding": loaders[workers]}.items():
            figures |= ratio(f"loop_over_{peer}{suffix}", ours, took)
            rows.append(row(f"epoch of {name}, {network}: {peer}", ours, took, figures, f"loop_over_{peer}{suffix}"))
            if peer == "decoding":  # what decoding once costs, spread over a run
                figures[f"loop_over_decoding_run{suffix}"] = float(
                    EPOCHS * np.median(took) / (decoded + EPOCHS * np.median(ours))
                )
    return rows, figures


def _photographs(source: Path, folder: Path) -> Path:
    """The first training images of each class of `source`, enlarged."""
    for directory in sorted((source / "train").iterdir()):
        (folder / directory.name).mkdir(parents=True)
        for path in sorted(directory.iterdir())[:A_CLASS]:
            with Image.open(path) as image:
                factor = LONGER_SIDE / max(image.size)
                size = (round(image.width * factor), round(image.height * factor))
                image.convert("RGB").resize(size, Image.Resampling.LANCZOS).save(folder / directory.name / path.name, quality=90)
    return folder


def _epochs(task: Task, backbone: Backbone, count: int) -> dict[str, list[float]]:
    """Seconds of so many epochs of everyone, the first of each left out: while `loop.fit` waits for `report`, the others run."""
    peers: dict[str, Epochs] = {
        "plain": _loop(task, backbone, lambda: _decoded(task, backbone, TRAIN), lambda: _decoded(task, backbone, VALIDATION)),
        **{f"decoding {workers}": _decoding(task, backbone, workers) for workers in WORKERS},
        "timm": _timm(task, backbone),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ("ours", *peers)}
    began = time.perf_counter()

    def report(point: Point) -> bool:
        nonlocal began
        seconds["ours"].append(time.perf_counter() - began)
        for name in peers if len(seconds["ours"]) % 2 else reversed(peers):
            start = time.perf_counter()
            next(peers[name])
            seconds[name].append(time.perf_counter() - start)
        began = time.perf_counter()
        return len(seconds["ours"]) > count

    hyperparameters = {"epochs": 100, "batch_size": BATCH, "rate": RATE, "weight_decay": DECAY, "augmentation": "light"}
    candidate = Candidate(backbone.name, "fine-tuning", hyperparameters)
    with tempfile.TemporaryDirectory() as scratch:
        job = job_of(task, candidate, backbone, seed=0, folder=Path(scratch), report=report)
        loop.fit(Strategy(hyperparameters, backbone), job)
    return {name: took[1:] for name, took in seconds.items()}


def _model(task: Task, backbone: Backbone) -> nn.Module:
    head = nn.Linear(backbone.num_features, len(task.classes))
    return Classifier(build(backbone), head)


def _loop(
    task: Task,
    backbone: Backbone,
    training: Callable[[], Iterator[tuple[Tensor, Tensor]]],
    validation: Callable[[], Iterator[tuple[Tensor, Tensor]]],
) -> Epochs:
    """The plain loop, with nothing but what trains."""
    model = channels_last(_model(task, backbone))
    dtype = precision(model)
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
    while True:
        model.train()
        for images, labels in training():
            with autocast(dtype):
                loss = F.cross_entropy(model(images).float(), labels)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
        model.eval()
        with torch.inference_mode(), autocast(dtype):
            for images, _ in validation():
                model(images).float().softmax(1)
        yield


def _decoded(task: Task, backbone: Backbone, split: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of images that lie in memory."""
    array, labels, part = pixels_of(task, backbone).array, torch.from_numpy(task.labels), task.part(split)
    generator = torch.Generator().manual_seed(0)
    order = part[torch.randperm(len(part), generator=generator).numpy()] if split == TRAIN else part
    size = BATCH if split == TRAIN else 256
    for start in range(0, len(order), size):
        index = order[start : start + size]
        images = torch.from_numpy(array[np.sort(index)]).permute(0, 3, 1, 2)
        if split == TRAIN:
            images = augment(images, HOW, size=backbone.input_size, generator=generator)
        images = normalise(images, backbone.mean, backbone.std).contiguous(memory_format=torch.channels_last)
        yield images, labels[np.sort(index)]


class Files(Dataset):
    """Images that are opened each time they are asked for."""

    def __init__(self, task: Task, split: str) -> None:
        part = task.part(split)
        self.paths, self.labels = [task.images[i] for i in part], task.labels[part]
        self.transform: Callable[[Image.Image], Tensor] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        assert self.transform is not None
        return self.transform(Image.open(self.paths[index]).convert("RGB")), int(self.labels[index])


def _decoding(task: Task, backbone: Backbone, workers: int) -> Epochs:
    from torchvision import transforms

    size = backbone.input_size
    last = [transforms.ToTensor(), transforms.Normalize(backbone.mean, backbone.std)]
    changed = [transforms.RandomResizedCrop(size, (HOW.scale, 1.0)), transforms.ColorJitter(HOW.jitter, HOW.jitter)]
    loaders = []
    for split, first in ((TRAIN, changed), (VALIDATION, [transforms.Resize(size), transforms.CenterCrop(size)])):
        files = Files(task, split)
        files.transform = transforms.Compose([*first, *last])
        batch = BATCH if split == TRAIN else 256
        loaders.append(DataLoader(files, batch, shuffle=split == TRAIN, num_workers=workers, persistent_workers=workers > 0))
    return _loop(task, backbone, lambda: _laid_out(loaders[0]), lambda: _laid_out(loaders[1]))


def _laid_out(loader: DataLoader) -> Iterator[tuple[Tensor, Tensor]]:
    for images, labels in loader:
        yield images.contiguous(memory_format=torch.channels_last), labels


def _timm(task: Task, backbone: Backbone) -> Epochs:
    """timm's loader and training parts, with the defaults of its train script where images and network leave a choice."""
    from timm.data import create_loader
    from timm.loss import LabelSmoothingCrossEntropy
    from timm.optim import create_optimizer_v2

    loaders = [
        create_loader(
            Files(task, split),
            input_size=(3, backbone.input_size, backbone.input_size),
            batch_size=BATCH,
            is_training=split == TRAIN,
            use_prefetcher=False,
            num_workers=os.cpu_count() or 1,
            mean=backbone.mean,
            std=backbone.std,
            interpolation="random" if split == TRAIN else backbone.interpolation,
            persistent_workers=True,
        )
        for split in (TRAIN, VALIDATION)
    ]
    model = _model(task, backbone)
    optimiser = create_optimizer_v2(model, "adamw", lr=RATE, weight_decay=DECAY)
    smoothed = LabelSmoothingCrossEntropy(0.1)
    while True:
        model.train()
        for images, labels in loaders[0]:
            loss = smoothed(model(images), labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        model.eval()
        with torch.inference_mode():
            for images, _ in loaders[1]:
                model(images)
        yield
