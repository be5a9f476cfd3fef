"""What the page shows beyond the records of a search: the winner judged, doubts about labels, what use costs."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from automl_tl import model
from automl_tl.errors import InputError
from automl_tl.evaluation.suspects import Suspect, label_suspects
from automl_tl.images import read_image
from automl_tl.profiling import WHOLE, look_features, look_sample
from automl_tl.records import TEST, TRAIN, VALIDATION, Backbone, Task
from automl_tl.trials import probabilities_on

SURE = 0.7
"""Margin from which on a doubted label is shown."""
SHOWN = 10
SIDE = 112
"""Pixels of a picture on the page."""


@dataclass(frozen=True, eq=False)
class Judged:
    """The winner's predictions on the images it is judged on."""

    split: str
    index: np.ndarray
    """Positions in the task."""
    probabilities: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Seen:
    """An image on the page."""

    picture: str
    """A data URI; empty where the image can no longer be read."""
    where: str
    label: str
    said: str
    confidence: float


@dataclass(frozen=True)
class Doubted:
    """Labels that a classifier on frozen features doubts."""

    count: int
    judged: int
    accuracy: float
    """Of that classifier."""
    shown: tuple[Seen, ...]


def judge_winner(task: Task, trained: model.Model) -> Judged:
    """On the test images, or on the validation images where there are none."""
    split = TEST if len(task.part(TEST)) else VALIDATION
    index = task.part(split)
    return Judged(split, index, probabilities_on(task, trained.backbone, trained.net, index), task.labels[index])


def mistakes(task: Task, judged: Judged) -> list[Seen]:
    """The wrong predictions that the winner was surest of."""
    confidence, said = judged.probabilities.max(axis=1), judged.probabilities.argmax(axis=1)
    wrong = np.flatnonzero(said != judged.labels)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:SHOWN]
    return [_seen(task, int(judged.index[i]), int(said[i]), float(confidence[i])) for i in worst]


def doubts(task: Task, backbone: Backbone, *, seed: int = 0) -> Doubted:
    """Labels of training and validation images that look wrong under the frozen features of `backbone`, which are cached.

    Of a large task, only the training images are judged that it was looked at through. Test labels are not looked into.
    """
    index = np.sort(np.concatenate([task.part(TRAIN), task.part(VALIDATION)]))
    index = index if len(task.labels) <= WHOLE else look_sample(task, seed)
    found = label_suspects(look_features(task, backbone, index).values, task.labels[index], len(task.classes), seed=seed)
    sure: list[Suspect] = [suspect for suspect in found.suspects if suspect.margin >= SURE]
    shown = [_seen(task, int(index[one.position]), one.proposed, one.confidence) for one in sure[:SHOWN]]
    return Doubted(len(sure), found.judged, found.accuracy, tuple(shown))


def _seen(task: Task, position: int, said: int, confidence: float) -> Seen:
    where = str(task.where[position])
    label = task.classes[int(task.labels[position])]
    return Seen(picture(task.images[position], where), where, label, task.classes[said], confidence)


def picture(source: object, where: str) -> str:
    """A small copy as a data URI: JPEG, or PNG where the image is small already."""
    try:
        image = read_image(source, where=where, least=SIDE)
    except InputError:
        return ""
    small = max(image.size) <= SIDE // 2
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if small:
        image.save(buffer, "PNG")
    else:
        image.save(buffer, "JPEG", quality=80)
    return f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(buffer.getvalue()).decode()}"
