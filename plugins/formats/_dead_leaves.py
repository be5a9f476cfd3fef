"""Dead leaves: images of shapes that cover each other, made by formula.

Lee, Mumford and Huang (2001), Occlusion models for natural images; as something to learn from: Baradad et al. (2021), Learning
to see by looking at noise. A class is the shape of the leaves, how their sizes are spread, and how they are filled.
"""

from __future__ import annotations

from itertools import product

import numpy as np

SHAPES = ("disk", "square", "triangle", "bar")
SIZES = {"small": (2.0, 6.0, 3.0), "large": (8.0, 28.0, 3.0), "mixed": (2.0, 28.0, 2.0)}
"""Least and greatest radius in pixels of 64, and the exponent of their power law."""
FILLS = ("plain", "striped")
CLASSES = tuple("-".join(names) for names in product(SHAPES, SIZES, FILLS))
LEAVES = {"small": 300, "large": 50, "mixed": 120}


def dead_leaves(each: int, *, side: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (classes·each)×side×side×3 images and their int64 labels in `CLASSES`; those of one class follow each other."""
    images = []
    for label, name in enumerate(CLASSES):
        rng = np.random.default_rng((seed, label))
        shape, sizes, fill = name.split("-")
        images.append(_image_class(shape, sizes, fill, each, side, rng))
    return np.concatenate(images), np.repeat(np.arange(len(CLASSES)), each)


def _image_class(shape: str, sizes: str, fill: str, each: int, side: int, rng: np.random.Generator) -> np.ndarray:
    """All images of a class at once: one leaf on each of them at a time, the later over the earlier."""
    low, high, power = SIZES[sizes]
    y, x = np.mgrid[:side, :side].astype(np.float32)
    palette = rng.uniform(0, 255, (each, 8, 3))
    pixels = np.repeat(palette[:, :1, None], side, axis=1).repeat(side, axis=2).astype(np.float32)
    for _ in range(LEAVES[sizes]):
        centre = rng.uniform(-4, side + 4, (each, 2))
        draw = rng.random(each)
        radius = (low ** (1 - power) + draw * (high ** (1 - power) - low ** (1 - power))) ** (1 / (1 - power)) * side / 64
        angle = rng.uniform(0, 2 * np.pi, each)
        colour = palette[np.arange(each), rng.integers(8, size=each)] + rng.normal(0, 20, (each, 3))
        pitch, depth = rng.uniform(1.5, 4, each), rng.uniform(30, 90, each)
        for i in range(each):  # only the pixels near the leaf are touched
            reach = int(np.ceil(1.5 * radius[i])) + 1
            column, row = centre[i].astype(int)
            box = (slice(max(row - reach, 0), max(row + reach + 1, 0)), slice(max(column - reach, 0), max(column + reach + 1, 0)))
            u, v = x[box] - centre[i, 0], y[box] - centre[i, 1]
            cos, sin = np.cos(angle[i]), np.sin(angle[i])
            along, across = (cos * u + sin * v) / radius[i], (cos * v - sin * u) / radius[i]
            ink = colour[i]
            if fill == "striped":
                ink = ink + (depth[i] * np.sin(along * radius[i] * 2 / pitch[i] * np.pi / 2))[..., None]
            pixels[i][box] = np.where(_covers(shape, along, across)[..., None], ink, pixels[i][box])
    return pixels.clip(0, 255).astype(np.uint8)


def _covers(shape: str, along: np.ndarray, across: np.ndarray) -> np.ndarray:
    """Where a leaf of radius 1 lies."""
    if shape == "disk":
        return np.asarray(along**2 + across**2 < 1)
    if shape == "square":
        return np.asarray(np.maximum(np.abs(along), np.abs(across)) < 0.9)
    if shape == "bar":
        return np.asarray((np.abs(along) < 1.4) & (np.abs(across) < 0.45))
    sides = [np.cos(turn) * along + np.sin(turn) * across for turn in (0, 2 * np.pi / 3, 4 * np.pi / 3)]
    return np.asarray(np.max(sides, axis=0) < 0.65)
