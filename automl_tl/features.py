"""Frozen features: one forward pass a backbone and task, kept on disk."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from . import checkpoint
from .device import autocast, channels_last, device, precision
from .errors import PLUGIN_FAULTS, ZooError
from .fetching import in_batches
from .home import cache
from .inference import laid_out
from .pixels import Pixels
from .records import CENTER, Backbone, Features, Task

VERSION = 2
"""Of what is kept on disk: what an earlier version found is computed anew."""
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
    tensors = checkpoint.cached(path)
    if tensors is None:
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
    """The file for what `backbone` gives on the images at `index`: the same images wherever they lie, and the same weights
    in the same network: two cards may take other features from one file."""
    digest = hashlib.sha256(task.hashes[index].tobytes())
    b = backbone
    cropped = () if b.crop_mode == CENTER else (b.crop_mode,)  # what was kept before there were others stays good
    preparation = (b.input_size, b.interpolation, b.crop_pct, b.mean, b.std, *cropped)
    network = json.dumps([b.architecture, dict(b.kwargs)], sort_keys=True, default=repr)
    digest.update(f"{VERSION}/{b.zoo}/{b.name}/{b.digest}/{network}/{preparation}/{device().type}".encode())
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
    head = source_head(net, backbone)
    if backbone.num_classes and head is None:  # what enters the head cannot be seen: two networks, two passes
        headless = channels_last(build(False).eval())
    seen: list[Tensor] = []
    if head is not None:
        head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    done = 0  # images

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

    for dtype in dict.fromkeys((precision(net), torch.float32)):  # fp16 ends at 65504, beyond which some networks go
        done = 0
        with autocast(dtype):  # around all batches: the weights are cast once
            parts = in_batches(pixels.array, index, BATCH, run)
        tensors = {"values": torch.cat([values for values, *_ in parts])}
        if tensors["values"].isfinite().all():
            break
    else:
        raise ZooError(f"{backbone.name}: its features are not finite numbers; its weights are damaged: fetch or train it anew")
    if backbone.num_classes:
        tensors["probabilities"] = torch.cat([said for _, said in parts]).half()
    return tensors


def source_head(net: nn.Module, backbone: Backbone) -> nn.Linear | None:
    """What `net` itself calls its classifier, if that is one linear layer and all that the headless network goes without.

    Then its input is what the headless network gives. It is not where two heads share the work, as in distilled transformers,
    whose features are the mean of two, nor where a norm belongs to the head and goes with it, as in LeViT.
    """
    try:
        head = net.get_classifier()  # type: ignore[operator]
        fits = isinstance(head, nn.Linear) and (head.in_features, head.out_features) == (
            backbone.num_features,
            backbone.num_classes,
        )
        return head if fits and _dropped(net) == _tensors(head) else None
    except PLUGIN_FAULTS:  # a network of somebody's zoo that cannot say: two networks, two passes
        return None


def _dropped(net: nn.Module) -> set[int]:
    """The weights that a network loses with its head. A copy loses it, of the layers alone: they share their weights."""
    headless = copy.deepcopy(net, {id(tensor): tensor for tensor in (*net.parameters(), *net.buffers())})
    headless.reset_classifier(0)  # type: ignore[operator]
    return _tensors(net) - _tensors(headless)


def _tensors(net: nn.Module) -> set[int]:
    """Which weights these are."""
    return {id(tensor) for tensor in (*net.parameters(), *net.buffers())}


def source_statistics(values: np.ndarray, *, seed: int = 0) -> Features:
    """What is kept of a source: mean, covariance factor (d×min(d, n-1)) and a sample of the rows of `values` (n×d)."""
    mean = values.mean(axis=0, dtype=np.float64)
    centred = (values - mean) / np.sqrt(max(len(values) - 1, 1))
    _, singular, directions = np.linalg.svd(centred, full_matrices=False)
    factor = (directions * singular[:, None]).T
    chosen = np.random.default_rng(seed).permutation(len(values))[:SAMPLE]
    return Features(values[np.sort(chosen)].astype(np.float32), mean=mean.astype(np.float32), factor=factor.astype(np.float32))
