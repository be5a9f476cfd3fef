"""How far two domains lie apart, for a network as it came or as it was trained, and where their images lie."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import numpy as np
from torch import nn

from automl_tl import registry
from automl_tl.device import channels_last
from automl_tl.errors import PLUGIN_FAULTS, InputError
from automl_tl.inference import outputs
from automl_tl.records import Backbone, Features

DIMENSIONS = 30
"""Principal components that are laid flat."""
STEPS = 400
PERPLEXITY = 30


def gap(source: Features, target: Features) -> dict[str, float]:
    """Every distance that is defined between the features (n×d, m×d) of two domains, by name: 0 is no gap."""
    found = {}
    for name, metric in registry.metrics("distance").items():
        try:
            found[name] = float(metric.score(Features(target.values), Features(source.values)))
        except InputError:  # undefined here, such as a spread of one image
            continue
        except PLUGIN_FAULTS as error:  # it is named and the others are told without it
            text = f"metric {name!r} failed: {type(error).__name__}: {error}"
            warnings.warn(text, registry.PluginWarning, stacklevel=2)
    return {name: value for name, value in found.items() if np.isfinite(value)}


def features_of(net: nn.Module, images: np.ndarray, index: np.ndarray, backbone: Backbone) -> Features:
    """What enters the head of a trained classifier's `net` (its backbone), n×d, of uint8 images at the positions `index`.

    Scaled so that a row has a mean square of 1 on average: distances of two networks can be compared, as shrinking the features
    shrinks no gap.
    """
    values = outputs(channels_last(net), images, index, backbone).numpy()
    return Features(values / max(float(np.sqrt((values.astype(np.float64) ** 2).mean())), 1e-12))


def gap_of(net: nn.Module, images: np.ndarray, parts: Mapping[str, np.ndarray], backbone: Backbone) -> dict[str, float]:
    """`gap` on the features of `net` between the images at parts["source"] and parts["target"], together of unit scale."""
    both = np.concatenate([parts["source"], parts["target"]])
    values = features_of(net, images, both, backbone).values
    count = len(parts["source"])
    return gap(Features(values[:count]), Features(values[count:]))


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
