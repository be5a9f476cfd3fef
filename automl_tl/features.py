"""Frozen features: one forward pass a backbone and task, kept on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from . import checkpoint
from .data import Pixels
from .device import autocast, channels_last, device, precision
from .errors import ZooError
from .fetching import in_batches
from .home import cache
from .inference import laid_out
from .records import Backbone, Features, Task

BATCH = 128
SAMPLE = 256
"""Features of a source that are kept besides its mean and covariance."""

Progress = Callable[[int, int], None]


def extract(
    task: Task,
    backbone: Backbone,
    pixels: Pixels,
    build: Callable[[bool], nn.Module],
    *,
    index: np.ndarray | None = None,
    progress: Progress | None = None,
) -> Features:
    """Features (and, where there is a source head, its probabilities) of the images at `index`, in that order.

    `build(head)` gives the network, headless or with its source head. Without `index` there is a row for each image of the task,
    those of test images not a number: nobody may learn from them, so they are not computed.

    Raises:
        ZooError: the network gives numbers that are not finite.
    """
    asked = task.before_test() if index is None else index
    path = cached_at("features", task, backbone, asked)
    if path.exists():
        tensors, _ = checkpoint.load(path)
    else:
        tensors = _forward(backbone, pixels, build, asked, progress)
        path.parent.mkdir(exist_ok=True)
        checkpoint.save(path, tensors, {"backbone": backbone.name, "task": task.name})
    values, probabilities = tensors["values"].numpy(), tensors.get("probabilities")
    said = None if probabilities is None else probabilities.float().numpy()
    if index is not None:
        return Features(values, task.labels[index], said)
    images = len(task.labels)
    return Features(_spread(values, asked, images), task.labels, None if said is None else _spread(said, asked, images))


def _spread(rows: np.ndarray, places: np.ndarray, count: int) -> np.ndarray:
    """`count` rows, those at `places` given, the others not a number."""
    if len(places) == count:
        return rows
    whole = np.full((count, rows.shape[1]), np.nan, dtype=rows.dtype)
    whole[places] = rows
    return whole


def cached_at(kind: str, task: Task, backbone: Backbone, index: np.ndarray) -> Path:
    """The file for what `backbone` gives on the images at `index`: the same images wherever they lie, and the same weights."""
    digest = hashlib.sha256(task.hashes[index].tobytes())
    b = backbone
    preparation = (b.input_size, b.interpolation, b.crop_pct, b.mean, b.std)
    digest.update(f"{b.zoo}/{b.name}/{b.digest}/{preparation}/{device().type}".encode())
    return cache() / kind / f"{digest.hexdigest()[:32]}.safetensors"


@torch.inference_mode()
def _forward(
    backbone: Backbone,
    pixels: Pixels,
    build: Callable[[bool], nn.Module],
    index: np.ndarray,
    progress: Progress | None,
) -> dict[str, Tensor]:
    net = channels_last(build(backbone.num_classes > 0).eval())
    head = _source_head(net, backbone)
    if backbone.num_classes and head is None:  # what enters the head cannot be seen: two networks, two passes
        headless = channels_last(build(False).eval())
    seen: list[Tensor] = []
    if head is not None:
        head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    dtype = precision(net)
    done = 0

    def run(batch: Tensor) -> tuple[Tensor, ...]:
        nonlocal done
        images = laid_out(batch, backbone)
        output = net(images)
        if not backbone.num_classes:
            values = output
        elif head is not None:
            values = seen.pop()
        else:
            values = headless(images)
        done += len(batch)
        if progress is not None:
            progress(done, len(index))
        return (values.float(), output.float().softmax(1)) if backbone.num_classes else (values.float(),)

    with autocast(dtype):  # around all batches: the weights are cast once
        parts = in_batches(pixels.array, index, BATCH, run)
    tensors = {"values": torch.cat([values for values, *_ in parts])}
    if not tensors["values"].isfinite().all():
        raise ZooError(f"{backbone.name}: its features are not finite numbers; its weights are damaged: fetch or train it anew")
    if backbone.num_classes:
        tensors["probabilities"] = torch.cat([said for _, said in parts]).half()
    return tensors


def _source_head(net: nn.Module, backbone: Backbone) -> nn.Linear | None:
    """The last layer, if it is linear on the features: its input is what the headless network gives."""
    linears = [layer for layer in net.modules() if isinstance(layer, nn.Linear)]
    if linears and linears[-1].in_features == backbone.num_features and linears[-1].out_features == backbone.num_classes:
        return linears[-1]
    return None


def source_statistics(values: np.ndarray, *, seed: int = 0) -> Features:
    """What is kept of a source: mean, covariance factor (d×min(d, n-1)) and a sample of the rows of `values` (n×d)."""
    mean = values.mean(axis=0, dtype=np.float64)
    centred = (values - mean) / np.sqrt(max(len(values) - 1, 1))
    _, singular, directions = np.linalg.svd(centred, full_matrices=False)
    factor = (directions * singular[:, None]).T
    chosen = np.random.default_rng(seed).permutation(len(values))[:SAMPLE]
    return Features(values[np.sort(chosen)].astype(np.float32), mean=mean.astype(np.float32), factor=factor.astype(np.float32))
