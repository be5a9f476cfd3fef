"""Fractals by iterated function systems: images with classes, made by formula.

Kataoka et al. (2020), Pre-training without natural images: a class is one system of affine maps, its images are small
changes of the maps. The maps are drawn through their singular values, so that every system contracts (Anderson and Farrell,
2022, Improving fractal pre-training), and a system is kept only if its picture is not nearly empty.
"""

from __future__ import annotations

import numpy as np

CHAINS, STEPS, WARM_UP = 160, 96, 16
"""Points are followed in so many chains at once; the first steps are not drawn."""
FILLED = 0.18
"""Share of the pixels that the unchanged system of a class must reach."""


def fractals(classes: int, each: int, *, side: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (classes·each)×side×side×3 images and their int64 labels; those of one class follow each other."""
    images, labels = [], []
    for label in range(classes):
        rng = np.random.default_rng((seed, label))
        system = _system(rng, side)
        changed = system[None] * rng.uniform(0.88, 1.12, (each, *system.shape))
        density = _densities(_turned(_points(changed, rng), rng), side)
        images.append(_coloured(density, rng))
        labels.append(np.full(each, label, dtype=np.int64))
    return np.concatenate(images), np.concatenate(labels)


def _system(rng: np.random.Generator, side: int) -> np.ndarray:
    """k×2×3 affine maps, drawn until their picture fills enough of its square."""
    while True:
        maps = int(rng.integers(2, 7))
        turn, lean = rng.uniform(0, 2 * np.pi, (2, maps))
        large = rng.uniform(0.4, 0.9, maps)
        small = large * rng.uniform(0.3, 1.0, maps)
        stretch = np.zeros((maps, 2, 2))
        stretch[:, 0, 0], stretch[:, 1, 1] = large, small * rng.choice((-1, 1), maps)
        linear = _rotation(turn) @ stretch @ _rotation(lean)
        system = np.concatenate([linear, rng.uniform(-1, 1, (maps, 2, 1))], axis=2)
        if (_densities(_points(system[None], rng), side) > 0).mean() > FILLED:
            return system


def _points(systems: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """n×(chains·steps)×2 points of the attractors of `systems` (n×k×2×3), by the chaos game (Barnsley, 1988)."""
    n = len(systems)
    weight = np.abs(np.linalg.det(systems[..., :2])) + 0.02
    bounds = np.cumsum(weight / weight.sum(axis=1, keepdims=True), axis=1)[:, None, :-1]
    rows = np.arange(n)[:, None]
    at = np.zeros((n, CHAINS, 2))
    visited = []
    for step in range(WARM_UP + STEPS):
        chosen = (rng.random((n, CHAINS, 1)) > bounds).sum(axis=2)
        one = systems[rows, chosen]
        at = one[..., 0] * at[..., :1] + one[..., 1] * at[..., 1:] + one[..., 2]
        if step >= WARM_UP:
            visited.append(at)
    return np.concatenate(visited, axis=1)


def _turned(points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    angle = rng.normal(0, 0.25, len(points))
    return np.asarray(points @ _rotation(angle))


def _rotation(angle: np.ndarray) -> np.ndarray:
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([np.stack([cos, -sin], axis=-1), np.stack([sin, cos], axis=-1)], axis=-2)


def _densities(points: np.ndarray, side: int) -> np.ndarray:
    """n×side×side, 0–1: how often each pixel was visited, on a logarithmic scale."""
    low, high = np.quantile(points, (0.005, 0.995), axis=1, keepdims=True)
    cell = ((points - low) / np.maximum(high - low, 1e-9) * side).astype(np.int64)
    inside = ((cell >= 0) & (cell < side)).all(axis=2)
    flat = (np.arange(len(points))[:, None] * side + cell[..., 1]) * side + cell[..., 0]
    counts = np.bincount(flat[inside], minlength=len(points) * side * side).reshape(-1, side, side)
    logarithm = np.log1p(counts)
    return np.asarray(logarithm / np.maximum(logarithm.max(axis=(1, 2), keepdims=True), 1e-9))


def _coloured(density: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Ink of a random colour on black: a class is its shape."""
    ink = rng.uniform(90, 255, (len(density), 1, 1, 3))
    return np.asarray(ink * (0.25 * (density > 0) + 0.75 * density)[..., None]).astype(np.uint8)
