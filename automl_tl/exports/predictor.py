"""What classifies images, whichever form it is kept in: a run, a timm folder, an ONNX file, a torch.export program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from automl_tl import model, pixels
from automl_tl.records import Backbone, Colour

BATCH = 64
"""Images that an exported graph is given at once."""
DECODED = 2048
"""Images that `answer` has in memory at once, 300 MB at 224 pixels: a whole number of batches, so it moves no prediction."""


@dataclass(frozen=True, eq=False)
class Predictor:
    """A classifier, and how it wants its images."""

    classes: tuple[str, ...]
    input_size: int
    interpolation: str
    crop_pct: float
    crop_mode: str
    fill: Colour
    probabilities: Callable[[np.ndarray], np.ndarray]
    """uint8 n×size×size×3 to float32 n×classes."""

    def decode(self, images: Sequence[Any], where: Sequence[str]) -> np.ndarray:
        """The images as `probabilities` takes them."""
        return pixels.decode_images(
            images,
            where,
            self.input_size,
            interpolation=self.interpolation,
            crop_pct=self.crop_pct,
            crop_mode=self.crop_mode,
            fill=self.fill,
        )

    def answer(self, images: Sequence[Any], where: Sequence[str]) -> np.ndarray:
        """float32 n×classes, of images of any number."""
        blocks = [slice(start, start + DECODED) for start in range(0, len(images), DECODED)]
        parts = [self.probabilities(self.decode(images[block], where[block])) for block in blocks]
        return np.concatenate([np.empty((0, len(self.classes)), dtype=np.float32), *parts])


def open_predictor(path: Path) -> Predictor:
    """Of a run's folder, a model's folder, or what `export` wrote (its folder or, for ONNX and torch.export, the file).

    Raises:
        InputError: there is none of these, or it is damaged.
    """
    read = _of_export(path)
    return of_model(model.load(model.model_folder(path))) if read is None else read()


def is_export(path: Path) -> bool:
    """Whether it is what `export` wrote, and so no network of ours, whose gradients and cost could be had."""
    return _of_export(path) is not None


def _of_export(path: Path) -> Callable[[], Predictor] | None:
    """What reads the export there; None: there is none."""
    from . import onnx_file, timm_folder, torch_program

    for name, read in ((onnx_file.FILE, onnx_file.read), (torch_program.FILE, torch_program.read)):
        file = path if path.is_file() else path / name
        if file.suffix == Path(name).suffix and file.is_file():
            return partial(read, file)
    if (path / timm_folder.CONFIG).is_file() and not (path / model.CARD).is_file() and not (path / "model").is_dir():
        return partial(timm_folder.read, path)
    return None


def of_model(trained: model.Model) -> Predictor:
    return predictor_of(trained.backbone, trained.classes, trained.probabilities)


def predictor_of(b: Backbone, classes: tuple[str, ...], probabilities: Callable[[np.ndarray], np.ndarray]) -> Predictor:
    """What wants its images as `b` does."""
    return Predictor(classes, b.input_size, b.interpolation, b.crop_pct, b.crop_mode, b.fill, probabilities)


def batched(answer: Callable[[np.ndarray], np.ndarray], images: np.ndarray, classes: int) -> np.ndarray:
    """`answer` to all images, a batch at a time."""
    parts = [answer(np.ascontiguousarray(images[start : start + BATCH])) for start in range(0, len(images), BATCH)]
    return np.concatenate(parts) if parts else np.empty((0, classes), dtype=np.float32)
