"""How much a classifier loses on images that are noisy, blurred, badly lit or squeezed.

Twelve corruptions with five severities each, after Hendrycks and Dietterich (2019), Benchmarking neural network robustness to
common corruptions and perturbations. Strengths of noise, brightness, contrast, pixelation and JPEG are those of that paper for
ImageNet-C; blurs are measured in shares of the image's side, so that they mean the same at 32 as at 224 pixels. Fog is thinner
(0.4–1.6, not 1.5–3) and of octaves that always halve; brightness is added to red, green and blue, not to the V of HSV. What needs
other people's photographs (frost) or a warp (elastic, snow) is left out, so figures compare with each other and not with
published ones.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

SEVERITIES = (1, 2, 3, 4, 5)
_Corrupt = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class Robustness:
    """Accuracy on clean and on corrupted images."""

    clean: float
    images: int
    accuracy: Mapping[str, tuple[float, ...]]
    """Corruption → accuracy at the severities 1…5."""

    @property
    def mean(self) -> float:
        """Mean corruption accuracy: over all corruptions and severities, each counting the same."""
        return float(np.mean([value for values in self.accuracy.values() for value in values]))


def robustness(
    probabilities: Callable[[np.ndarray], np.ndarray], images: np.ndarray, labels: np.ndarray, *, seed: int = 0
) -> Robustness:
    """Accuracy of `probabilities` (uint8 N×H×W×3 → N×c) under every corruption and severity: 61 passes over `images`."""

    def accuracy(seen: np.ndarray) -> float:
        return float((probabilities(seen).argmax(axis=1) == labels).mean())

    found = {name: tuple(accuracy(corrupt(images, name, s, seed=seed)) for s in SEVERITIES) for name in CORRUPTIONS}
    return Robustness(accuracy(images), len(labels), found)


def corrupt(images: np.ndarray, name: str, severity: int, *, seed: int = 0) -> np.ndarray:
    """uint8 N×H×W×3 `images`, corrupted; an image's noise depends on `seed` and its place alone."""
    function, strengths = CORRUPTIONS[name]
    strength = strengths[severity - 1]
    changed = np.empty_like(images)
    for place, image in enumerate(images):
        values = image.astype(np.float32) / 255
        result = function(values, strength, np.random.default_rng([seed, place]))
        changed[place] = np.clip(result * 255 + 0.5, 0, 255).astype(np.uint8)
    return changed


# Each takes floats 0–1, H×W×3, and gives floats that may leave 0–1


def _gaussian_noise(image: np.ndarray, deviation: float, rng: np.random.Generator) -> np.ndarray:
    return np.asarray(image + rng.normal(0, deviation, image.shape).astype(np.float32))


def _shot_noise(image: np.ndarray, photons: float, rng: np.random.Generator) -> np.ndarray:
    """Of light that comes in whole photons."""
    return np.asarray(rng.poisson(image * photons) / photons)


def _impulse_noise(image: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Salt and pepper: a share of all values becomes 0 or 1."""
    hit = rng.random(image.shape) < share
    return np.where(hit, (rng.random(image.shape) < 0.5).astype(np.float32), image)


def _defocus_blur(image: np.ndarray, radius: float, rng: np.random.Generator) -> np.ndarray:
    """The mean over a disc."""
    reach = max(1.0, radius * image.shape[0])
    steps = np.arange(-int(reach), int(reach) + 1)
    down, across = np.meshgrid(steps, steps, indexing="ij")
    # a pixel on the rim counts by how much of it the disc covers
    weights = np.clip(reach + 0.5 - np.hypot(down, across), 0, 1)
    return _mean_of_shifts(image, down.ravel(), across.ravel(), weights.ravel())


def _motion_blur(image: np.ndarray, length: float, rng: np.random.Generator) -> np.ndarray:
    """The mean along a line at a random angle."""
    pixels = max(2.0, length * image.shape[0])
    along = np.linspace(-pixels / 2, pixels / 2, 8 * int(np.ceil(pixels)))  # dense, as each is rounded to a pixel
    angle = rng.uniform(0, np.pi)
    down, across = np.rint(along * np.sin(angle)).astype(int), np.rint(along * np.cos(angle)).astype(int)
    return _mean_of_shifts(image, down, across, np.ones(len(along)))


def _zoom_blur(image: np.ndarray, most: float, rng: np.random.Generator) -> np.ndarray:
    """The mean of the image and of closer and closer views of its centre."""
    height, width = image.shape[:2]
    picture = _picture(image)
    views = [image]
    for factor in np.linspace(1, most, 6)[1:]:
        half = (width / factor / 2, height / factor / 2)
        box = (width / 2 - half[0], height / 2 - half[1], width / 2 + half[0], height / 2 + half[1])
        views.append(_floats(picture.resize((width, height), Image.Resampling.BILINEAR, box=box)))
    return np.asarray(np.mean(views, axis=0))


def _fog(image: np.ndarray, amount: float, rng: np.random.Generator) -> np.ndarray:
    """Clouds of every size (noise whose octaves halve in height) laid over the image, which keeps its brightest value."""
    height, width = image.shape[:2]
    clouds, weight = np.zeros((height, width), dtype=np.float32), 1.0
    cells = 2
    while cells <= max(height, width):
        octave = Image.fromarray(rng.random((cells, cells), dtype=np.float32))
        clouds += weight * np.asarray(octave.resize((width, height), Image.Resampling.BICUBIC))
        weight, cells = weight / 2, cells * 2
    clouds = (clouds - clouds.min()) / max(float(np.ptp(clouds)), 1e-6)
    top = float(image.max())
    return np.asarray((image + amount * clouds[:, :, None]) * top / (top + amount))


def _brightness(image: np.ndarray, amount: float, rng: np.random.Generator) -> np.ndarray:
    return np.asarray(image + amount)


def _contrast(image: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """A share of the contrast is left."""
    middle = image.mean(axis=(0, 1), keepdims=True)
    return np.asarray((image - middle) * share + middle)


def _pixelation(image: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Down to a share of the side, and up again in blocks."""
    height, width = image.shape[:2]
    small = (max(1, round(width * share)), max(1, round(height * share)))
    reduced = _picture(image).resize(small, Image.Resampling.BOX)
    return _floats(reduced.resize((width, height), Image.Resampling.NEAREST))


def _jpeg(image: np.ndarray, quality: float, rng: np.random.Generator) -> np.ndarray:
    buffer = io.BytesIO()
    _picture(image).save(buffer, "JPEG", quality=int(quality))
    return _floats(Image.open(buffer))


def _gaussian_blur(image: np.ndarray, deviation: float, rng: np.random.Generator) -> np.ndarray:
    return _floats(_picture(image).filter(ImageFilter.GaussianBlur(deviation * image.shape[0])))


CORRUPTIONS: Mapping[str, tuple[_Corrupt, tuple[float, ...]]] = {
    "gaussian noise": (_gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38)),  # standard deviation
    "shot noise": (_shot_noise, (60, 25, 12, 5, 3)),  # photons at full light
    "impulse noise": (_impulse_noise, (0.03, 0.06, 0.09, 0.17, 0.27)),  # share of values
    "defocus blur": (_defocus_blur, (0.013, 0.018, 0.027, 0.036, 0.045)),  # radius over side
    "gaussian blur": (_gaussian_blur, (0.005, 0.009, 0.013, 0.018, 0.027)),  # standard deviation over side
    "motion blur": (_motion_blur, (0.045, 0.067, 0.089, 0.112, 0.134)),  # length over side
    "zoom blur": (_zoom_blur, (1.11, 1.16, 1.21, 1.26, 1.33)),  # closest view
    "fog": (_fog, (0.4, 0.7, 1.0, 1.3, 1.6)),  # thickness
    "brightness": (_brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),  # added
    "contrast": (_contrast, (0.4, 0.3, 0.2, 0.1, 0.05)),  # share left
    "pixelation": (_pixelation, (0.6, 0.5, 0.4, 0.3, 0.25)),  # share of the side
    "jpeg": (_jpeg, (25, 18, 15, 10, 7)),  # quality
}
"""Name → function and its strength at the severities 1…5."""


def _mean_of_shifts(image: np.ndarray, down: np.ndarray, across: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted mean of the image shifted by each (down, across), its edges repeated."""
    reach = int(max(np.abs(down).max(), np.abs(across).max()))
    wide = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    height, width = image.shape[:2]
    total = np.zeros_like(image)
    for y, x, weight in zip(down.tolist(), across.tolist(), weights.tolist(), strict=True):
        if weight > 0:
            total += weight * wide[reach + y : reach + y + height, reach + x : reach + x + width]
    return np.asarray(total / weights.sum())


def _picture(image: np.ndarray) -> Image.Image:
    return Image.fromarray((image * 255 + 0.5).astype(np.uint8))


def _floats(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture, dtype=np.float32) / 255
