"""Where the task lies among the sources: a flat map of frozen features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from automl_tl.profiling import look_features, look_sample, reference_encoders
from automl_tl.records import Backbone, Task

OWN, THEIRS, SOURCES = 150, 60, 5
"""Images of the task, images of each source, and nearest sources on the map: more would take longer than they tell."""
DIMENSIONS = 30
STEPS = 400
PERPLEXITY = 30
FEWEST = 12


@dataclass(frozen=True, eq=False)
class DomainMap:
    """Points of the plane, by group."""

    encoder: str
    """Backbone whose features were laid flat."""
    groups: Mapping[str, np.ndarray]
    """"this task" or source → n×2, within 0–1."""


def domain_maps(
    task: Task, backbones: Mapping[str, Backbone], distances: Mapping[str, Mapping[str, float]], *, seed: int = 0
) -> list[DomainMap]:
    """One map for each reference encoder: training images of the task among kept features of the nearest sources."""
    found = []
    for encoder, sources in reference_encoders(backbones):
        sample = look_sample(task, seed)
        own = look_features(task, encoder, sample).values
        rng = np.random.default_rng(seed)
        own = own[np.sort(rng.permutation(len(own))[:OWN])]
        near = nearest({name: distances[name] for name in sources if name in distances})[:SOURCES]
        groups = {"this task": own, **{name: sources[name].values[:THEIRS] for name in near}}
        if near and sum(map(len, groups.values())) >= FEWEST:
            found.append(DomainMap(encoder.name, flattened(groups, seed=seed)))
    return found


def nearest(distances: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Sources by their mean place among all, over the metrics."""
    places: dict[str, list[int]] = {name: [] for name in distances}
    for metric in sorted({metric for scores in distances.values() for metric in scores}):
        order = sorted((name for name in distances if metric in distances[name]), key=lambda name: distances[name][metric])
        for place, name in enumerate(order):
            places[name].append(place)
    return sorted(distances, key=lambda name: float(np.mean(places[name] or [len(distances)])))


def flattened(groups: Mapping[str, np.ndarray], *, seed: int = 0) -> dict[str, np.ndarray]:
    """t-SNE (van der Maaten and Hinton, 2008) of all rows together, within 0–1; seeded, started from principal components."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    values = np.concatenate(list(groups.values())).astype(np.float64)
    values += np.random.default_rng(seed).normal(0, 1e-9 + 1e-6 * values.std(), values.shape)  # equal images need a place each
    reduced = PCA(min(DIMENSIONS, *values.shape), svd_solver="full").fit_transform(values)
    perplexity = min(PERPLEXITY, (len(values) - 1) / 3)
    flat = TSNE(perplexity=perplexity, init="pca", max_iter=STEPS, random_state=seed, n_jobs=1).fit_transform(reduced)
    flat = (flat - flat.min(axis=0)) / np.maximum(np.ptp(flat, axis=0), 1e-9)
    ends = np.cumsum([len(rows) for rows in groups.values()])
    return dict(zip(groups, np.split(flat, ends[:-1]), strict=True))
