"""What a model says of images: asked, and written down."""

from __future__ import annotations

import csv
import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from .data import shown
from .errors import InputError, InputWarning
from .exports.predictor import open_predictor
from .home import check_writable, whole
from .images import SUFFIXES, images_below, is_one, passed_over


@dataclass(frozen=True, eq=False)
class Predictions:
    """Class probabilities of some images."""

    where: tuple[str, ...] = field(repr=False)
    classes: tuple[str, ...]
    probabilities: np.ndarray
    """n×classes."""

    @property
    def labels(self) -> list[str]:
        """The most probable class of each image."""
        return [self.classes[index] for index in self.probabilities.argmax(1)]


def predict(run: Path | str, images: Path | str | Sequence[Any]) -> Predictions:
    """Classify images with the winner of a run: a folder of images, one image, or a list of paths, PIL images or arrays.

    `run` may also be what `export` wrote: a timm folder, an ONNX file or a torch.export program, or the folder of one.

    Raises:
        InputError: no model in `run`, no image, or one that cannot be read (it is named).
    """
    trained = open_predictor(Path(run))
    listed, where = _unlabelled(images)
    return Predictions(tuple(where), trained.classes, trained.answer(listed, where))


def _unlabelled(images: Path | str | Sequence[Any]) -> tuple[list[Any], list[str]]:
    if not isinstance(images, (str, Path)):
        images = [images] if is_one(images) else images
        if not isinstance(images, Iterable):
            raise InputError(f"a {type(images).__name__} is no image; give a folder of images, one image, or a list of images")
        images = list(images)  # a generator gives them once
        return images, [shown(image) if isinstance(image, (str, Path)) else f"image {i}" for i, image in enumerate(images)]
    root = Path(images)
    if root.is_file():
        return [root], [shown(root)]
    found = images_below(root)
    missed = passed_over(root)
    if not found:
        raise InputError(f"{root} is not an image or a folder with images{missed and '; ' + missed}")
    if missed:
        warnings.warn(missed, InputWarning, stacklevel=3)
    return list(found), [shown(path.relative_to(root)) for path in found]


def write_predictions(predictions: Predictions, path: Path) -> None:
    """A CSV: path, label, confidence, and the probability of each class.

    A file is written whole or not at all; what a link leads to is replaced, not the link. A pipe or a device is written to.
    """
    check_file(path)
    if _is_stream(path):
        with path.open("w", newline="", encoding="utf-8") as file:
            _write_rows(predictions, file)
        return
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        _write_rows(predictions, file)


def _write_rows(predictions: Predictions, file: TextIO) -> None:
    writer = csv.writer(file)
    writer.writerow(_columns(predictions.classes))
    for where, label, row in zip(predictions.where, predictions.labels, predictions.probabilities, strict=True):
        writer.writerow([where, label, f"{row.max():.6f}", *(f"{value:.6f}" for value in row)])


def _columns(classes: Sequence[str]) -> list[str]:
    """Of a CSV of predictions, each under a name of its own: a class may be called "label", too."""
    columns = ["path", "label", "confidence"]
    taken = {*columns, *classes}
    for name in classes:
        if name in columns:
            while name in taken:
                name = f"class {name}"
            taken.add(name)
        columns.append(name)
    return columns


def check_file(path: Path) -> None:
    """Worth asking before the work whose result is written there.

    Raises:
        InputError: `path` is a folder or called an image, or lies in a folder that cannot be written to, or is a pipe or device
            that cannot.
    """
    if path.is_dir():
        raise InputError(f"{path}: is a folder; --out is the file to write")
    if path.suffix.lower() in SUFFIXES:
        raise InputError(f"{path}: is called an image, and a table of predictions would take its place; choose another --out")
    if not _is_stream(path):
        check_writable(path.resolve().parent)
    elif not os.access(path, os.W_OK):
        raise InputError(f"{path}: cannot be written to; choose another --out")


def _is_stream(path: Path) -> bool:
    """A pipe, a device, a socket: something that is there and cannot be replaced by a file."""
    return path.exists() and not path.is_file() and not path.is_dir()
