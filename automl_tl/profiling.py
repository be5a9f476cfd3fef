"""A task in numbers: meta-features, distances to the sources, transferability of the backbones."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from . import features, registry
from .backbones import build
from .cards import folders
from .data import picked
from .errors import PLUGIN_FAULTS, AutomlError, InputWarning, ZooError
from .model import as_it_starts, start_of
from .norms import norm_statistics
from .pixels import pixels_of
from .records import TARGET, TRAIN, Backbone, Features, Norms, Profile, Task
from .scores import scores
from .sources import read_sources

if TYPE_CHECKING:
    from torch import nn

LOOK = 1000
"""Training images that backbones are looked at through."""
IMBALANCED = 5
"""Largest class over smallest, from which on a person should know."""
REFERENCE = "embedded"
"""The zoo whose reference encoder counts: the shipped history was measured with it."""
WHOLE = 4000
"""Up to so many images, all are decoded and all features computed at once: training asks for the others soon."""

Progress = Callable[[str, int, int], None]


def profile_task(
    task: Task,
    backbones: Mapping[str, Backbone],
    *,
    look: tuple[str, ...] = (),
    seed: int = 0,
    progress: Progress | None = None,
) -> Profile:
    """Profile `task`; of the backbones named in `look` with what `look_through` measures.

    Distances are taken between the task's training images and every source whose statistics are at hand, on the features of the
    reference encoder. Test images are never looked at. Where the images that count are of another domain than the labelled ones,
    appearance and distances are theirs, and the meta-features `gap_…` are the distances of the two domains.
    """
    start = time.perf_counter()
    sample = look_sample(task, seed)
    seen = domain_sample(task, seed)
    notes = imbalance(task)
    meta = count_features(task)
    distances: dict[str, dict[str, float]] = {}
    if (reference := reference_encoder()) is not None:
        encoder, sources = reference
        labelled = look_features(task, encoder, sample, progress)
        meta |= appearance(task, encoder, seen) | separability(labelled)
        target = labelled
        if TARGET in task.splits:
            target = look_features(task, encoder, seen, progress)
            gap = scores("distance", Features(target.values), Features(labelled.values), notes)
            meta |= {f"gap_{name}": value for name, value in gap.items()}
        for source, statistics in sources.items():
            distances[source] = scores("distance", target, statistics, notes)
    seconds = time.perf_counter() - start
    profile = Profile(task.name, task.fingerprint, meta, distances, {}, seconds, (*task.warnings, *dict.fromkeys(notes)))
    return look_through(profile, task, backbones, look=look, seed=seed, progress=progress) if look else profile


def look_through(
    profile: Profile,
    task: Task,
    backbones: Mapping[str, Backbone],
    *,
    look: tuple[str, ...],
    seed: int = 0,
    progress: Progress | None = None,
) -> Profile:
    """`profile` with the transferability of the backbones named in `look`, and how familiar the images are to them."""
    start = time.perf_counter()
    sample, notes = look_sample(task, seed), list[str]()
    transferability = {name: dict(found) for name, found in profile.transferability.items()}
    for name in look:
        target = look_features(task, backbones[name], sample, progress)
        transferability[name] = scores("transferability", target, None, notes)
        if (norms := _norms(task, backbones[name], sample)) is not None:
            transferability[name] |= scores("familiarity", replace(target, norms=norms), None, notes)
    seconds = profile.seconds + time.perf_counter() - start
    warnings = tuple(dict.fromkeys((*profile.warnings, *notes)))
    return replace(profile, transferability=transferability, seconds=seconds, warnings=warnings)


def task_features(
    task: Task, backbone: Backbone, *, index: np.ndarray | None = None, progress: Progress | None = None
) -> Features:
    """Frozen features of the images at `index`; cached. Without it as `features.extract` gives those of the whole task."""
    decoding = None if progress is None else lambda done, total: progress(f"decoding to {backbone.input_size} px", done, total)
    told = None if progress is None else lambda done, total: progress(f"features of {backbone.name}", done, total)
    pixels = pixels_of(task, backbone, progress=decoding)
    return features.extract(task, backbone, pixels, lambda head: _network(task, backbone, head), index=index, progress=told)


def _network(task: Task, backbone: Backbone, head: bool = False) -> nn.Module:
    """As it was pretrained; where only an earlier model has its weights, as it starts from there."""
    left = task.earlier and backbone == as_it_starts(task, backbone)
    return start_of(task, backbone) if left else build(backbone, head=head)


def look_features(task: Task, backbone: Backbone, sample: np.ndarray, progress: Progress | None = None) -> Features:
    """Features of the images at `sample`; of a small task, those of all but test images are computed, and kept, at once."""
    task, sample = _looked_at(task, sample)
    seen = task_features(task, backbone, progress=progress)
    probabilities = None if seen.probabilities is None else seen.probabilities[sample]
    return Features(seen.values[sample], task.labels[sample], probabilities)


def _looked_at(task: Task, sample: np.ndarray) -> tuple[Task, np.ndarray]:
    """A large task without the images that are not at `sample`, and where those are in it: each network may want its images in
    another size, and most networks that are looked at are never trained."""
    large = len(task.before_test()) > WHOLE
    return (picked(task, sample), np.arange(len(sample))) if large else (task, sample)


def _norms(task: Task, backbone: Backbone, sample: np.ndarray) -> Norms | None:
    """What the batch norms of a backbone see of the images at `sample`."""
    task, sample = _looked_at(task, sample)
    return norm_statistics(task, backbone, pixels_of(task, backbone), lambda: _network(task, backbone), index=sample)


def look_sample(task: Task, seed: int) -> np.ndarray:
    """Positions of about `LOOK` training images, each class in proportion but with at least two where it has them: there are more
    where so many classes are small. All of them where there are no more than `LOOK`."""
    train = task.part(TRAIN)
    if len(train) <= LOOK:
        return train
    rng = np.random.default_rng(seed)
    chosen = []
    for label in np.unique(task.labels[train]):
        members = train[task.labels[train] == label]
        share = max(2, round(LOOK * len(members) / len(train)))
        chosen.append(rng.permutation(members)[:share])
    return np.sort(np.concatenate(chosen))


def domain_sample(task: Task, seed: int) -> np.ndarray:
    """Positions of the images that distances are taken of: `look_sample`, or at most `LOOK` of another domain that counts."""
    if TARGET not in task.splits:
        return look_sample(task, seed)
    return np.sort(np.random.default_rng(seed).permutation(task.part(TARGET))[:LOOK])


def count_features(task: Task) -> dict[str, float]:
    """Meta-features that need labels alone."""
    train = task.part(TRAIN)
    counts = np.bincount(task.labels[train], minlength=len(task.classes))
    shares = counts[counts > 0] / counts.sum()
    return {
        "images": float(len(train)),
        "classes": float(len(task.classes)),
        "images_per_class": float(counts.mean()),
        "smallest_class": float(counts.min()),
        "imbalance": float(counts.max() / max(counts.min(), 1)),
        "label_entropy": float(-(shares * np.log(shares)).sum() / np.log(max(len(counts), 2))),
        "majority": float(shares.max()),
    }


def imbalance(task: Task) -> list[str]:
    """A warning where the training classes differ much in size; those that only an earlier model knows are none."""
    counts = np.bincount(task.labels[task.part(TRAIN)], minlength=len(task.classes))
    least, most = int(np.where(counts > 0, counts, np.inf).argmin()), int(counts.argmax())
    if counts[most] < IMBALANCED * counts[least]:
        return []
    sizes = f"{task.classes[most]!r} has {counts[most]} training images, {task.classes[least]!r} has {counts[least]}"
    return [f"the classes are imbalanced: {sizes}; look at balanced accuracy and at each class"]


def appearance(task: Task, backbone: Backbone, sample: np.ndarray) -> dict[str, float]:
    """Meta-features of pixels: size, brightness, contrast, colour, entropy of the grey values, sharpness of edges.

    Pixels are those of `LOOK` images at most, evenly spaced in `sample`, where the images of a class may lie together.
    """
    task, sample = _looked_at(task, sample)
    pixels = pixels_of(task, backbone)
    seen = sample[np.linspace(0, len(sample) - 1, min(LOOK, len(sample))).astype(int)]
    images = pixels.array[seen].astype(np.float32) / 255
    red, green, blue = np.moveaxis(images, 3, 0)  # a tenth of the time of reductions over an axis of three
    grey = (red + green + blue) / 3
    spread = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    colourfulness = spread.mean(axis=(1, 2))
    histogram = np.histogram(grey, bins=64, range=(0, 1))[0] / grey.size
    occupied = histogram[histogram > 0]
    edges = np.abs(np.diff(grey, axis=1)).mean() + np.abs(np.diff(grey, axis=2)).mean()
    found = {
        "brightness": float(grey.mean()),
        "contrast": float(grey.std(axis=(1, 2)).mean()),
        "colourfulness": float(colourfulness.mean()),
        "grey_share": float((colourfulness < 0.02).mean()),
        "pixel_entropy": float(-(occupied * np.log2(occupied)).sum()),
        "edges": float(edges),
        "variety": float(images.std(axis=0).mean()),
    }
    if task.sizes is not None:
        width, height = task.sizes[sample].T.astype(np.float64)
        found |= {
            "side": float(np.median(np.sqrt(width * height))),
            "aspect": float(np.median(np.maximum(width, height) / np.maximum(np.minimum(width, height), 1))),
        }
    return found


def separability(target: Features) -> dict[str, float]:
    """Share of the variance of features that lies between the classes, and the effective dimension of the features."""
    assert target.labels is not None
    values = target.values.astype(np.float64)
    centred = values - values.mean(axis=0)
    total = float((centred**2).sum())
    between = 0.0
    for label in np.unique(target.labels):
        members = centred[target.labels == label]
        between += len(members) * float((members.mean(axis=0) ** 2).sum())
    spectrum = np.linalg.eigvalsh(centred.T @ centred if centred.shape[1] <= len(centred) else centred @ centred.T)
    dimension = float(spectrum.sum() ** 2 / np.maximum((spectrum**2).sum(), 1e-30))
    return {"between_share": between / max(total, 1e-30), "effective_dimension": dimension}


def reference_encoder() -> tuple[Backbone, dict[str, Features]] | None:
    """The one encoder that distances are taken with, as those of two cannot be compared: that of the zoo `REFERENCE`, or else of
    any. With the sources whose statistics were taken with it, by a zoo or in an added folder; None where no zoo has one.

    Warns of statistics that cannot be used, or had (`PluginWarning`).
    """
    taken = _added_sources()
    zoos: list[Any] = sorted(registry.zoos().values(), key=lambda zoo: zoo.name == REFERENCE)
    last: Any = None  # whose word on a source counts
    for zoo in zoos:
        try:
            if (reference := getattr(zoo, "reference", None)) is not None:
                taken[reference] = {**taken.get(reference, {}), **zoo.sources()}
                last = zoo
        except AutomlError:  # in words, with what to do
            raise
        except PLUGIN_FAULTS as error:
            text = f"the sources of zoo {zoo.name!r} are left out: {type(error).__name__}: {error}"
            warnings.warn(text, registry.PluginWarning, stacklevel=2)
    if last is None:
        return None
    encoder = registry.lookup("backbone", last.reference, {backbone.name: backbone for backbone in last.list()})
    found = taken.pop(encoder.name)
    for other, sources in taken.items():
        if not sources:
            continue
        left_out = f"statistics taken with {other}: {', '.join(sources)} left out"
        warnings.warn(f"{left_out}; only {encoder.name} can be compared: see `zoo describe`", InputWarning, stacklevel=2)
    return encoder, found


def _added_sources() -> dict[str, dict[str, Features]]:
    """Encoder → source → statistics in the folders that the user added."""
    found: dict[str, dict[str, Features]] = {}
    for folder in folders():
        try:
            encoder, sources = read_sources(folder)
        except ZooError as error:
            warnings.warn(f"left out: {error}", InputWarning, stacklevel=3)
            continue
        if encoder is not None:
            found.setdefault(encoder, {}).update(sources)
    return found


def describe_source(task: Task, encoder: Backbone, *, most: int = 20_000) -> Features:
    """Statistics of a source's training images under `encoder`, for `sources.write_source`; of at most `most` of them."""
    train = task.part(TRAIN)
    chosen = np.sort(np.random.default_rng(0).permutation(train)[:most])
    seen = task_features(task, encoder, index=chosen)
    return features.source_statistics(seen.values)
