"""Where the task lies among the sources: a flat map of frozen features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from automl_tl.backbones import build
from automl_tl.evaluation.domains import features_of, flattened, gap
from automl_tl.model import Model
from automl_tl.pixels import pixels_of
from automl_tl.profiling import domain_sample, look_features, reference_encoder
from automl_tl.records import TARGET, TRAIN, Features, Task

OWN, THEIRS, SOURCES = 150, 60, 5
"""Images of the task, images of each source, and nearest sources on the map: more would take longer than they tell."""
FEWEST = 12


@dataclass(frozen=True, eq=False)
class DomainMap:
    """Points of the plane, by group."""

    encoder: str
    """Backbone whose features were laid flat."""
    groups: Mapping[str, np.ndarray]
    """"this task" or source → n×2, within 0–1."""


def domain_map(task: Task, distances: Mapping[str, Mapping[str, float]], *, seed: int = 0) -> DomainMap | None:
    """The images that `distances` were taken of among kept features of the nearest sources; None where there are too few."""
    if (reference := reference_encoder()) is None:
        return None
    encoder, sources = reference
    own = look_features(task, encoder, domain_sample(task, seed)).values
    own = own[np.sort(np.random.default_rng(seed).permutation(len(own))[:OWN])]
    near = nearest({name: distances[name] for name in sources if name in distances})[:SOURCES]
    groups = {"this task": own, **{name: sources[name].values[:THEIRS] for name in near}}
    if not near or sum(map(len, groups.values())) < FEWEST:
        return None
    return DomainMap(encoder.name, flattened(groups, seed=seed))


@dataclass(frozen=True, eq=False)
class GapMap:
    """The two domains of an adaptation, as one network sees them."""

    when: str
    distances: Mapping[str, float]
    """metric → value, on features of unit scale."""
    groups: Mapping[str, np.ndarray]
    """Domain → n×2, within 0–1."""


def gap_maps(task: Task, trained: Model, *, seed: int = 0) -> list[GapMap]:
    """The domains of `task` on the features of the winner's network before and after it was trained; none where there is one."""
    if TARGET not in task.splits:
        return []
    rng = np.random.default_rng(seed)
    parts = {"labelled domain": np.setdiff1d(task.part(TRAIN), task.part(TARGET)), "target": task.part(TARGET)}
    parts = {name: np.sort(rng.permutation(part)[:OWN]) for name, part in parts.items()}
    first = len(parts["labelled domain"])
    images, both = pixels_of(task, trained.backbone).array, np.concatenate(list(parts.values()))
    found = []
    for when, net in (("before training", build(trained.backbone)), ("after training", trained.net.backbone)):
        values = features_of(net, images, both, trained.backbone).values
        source, target = values[:first], values[first:]
        flat = flattened(dict(zip(parts, (source, target), strict=True)), seed=seed)
        found.append(GapMap(when, gap(Features(source), Features(target)), flat))
    return found


def nearest(distances: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Sources by their mean place among all, over the metrics."""
    places: dict[str, list[int]] = {name: [] for name in distances}
    for metric in sorted({metric for scores in distances.values() for metric in scores}):
        order = sorted((name for name in distances if metric in distances[name]), key=lambda name: distances[name][metric])
        for place, name in enumerate(order):
            places[name].append(place)
    return sorted(distances, key=lambda name: float(np.mean(places[name] or [len(distances)])))
