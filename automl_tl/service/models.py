"""The models that fits left, ready to predict."""

from __future__ import annotations

import logging
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from automl_tl import model
from automl_tl.errors import AutomlError, InputError
from automl_tl.exports.predictor import of_model
from automl_tl.home import read_json
from automl_tl.predictions import Predictions

from .faults import Refused
from .jobs import Job, Jobs

log = logging.getLogger("automl_tl.service")
KEPT = 4
"""Models that stay in memory."""


class Models:
    """A model for each fit that has one; it is named as its job is."""

    def __init__(self, jobs: Jobs) -> None:
        self.jobs = jobs
        self._loaded: OrderedDict[str, tuple[int, model.Model]] = OrderedDict()
        self._lock = threading.Lock()
        """One prediction at a time: two at once on one device are no faster."""

    def has(self, job: Job) -> bool:
        """Whether it has left a model, whole."""
        return all((_place(self.jobs, job) / name).exists() for name in (model.CARD, model.WEIGHTS))

    def folder(self, id: str) -> Path:
        """Raises Refused (404) where there is none (yet)."""
        job = self.jobs.get(id)
        if not self.has(job):
            raise Refused(404, f"job {id!r} has no model, or none yet; GET /api/models names those there are")
        return _place(self.jobs, job)

    def card(self, id: str) -> dict[str, Any]:
        """What is known of a model. Raises Refused: 404 where there is none, 409 where it is damaged."""
        path = self.folder(id) / model.CARD
        try:
            return {"id": id, **read_json(path, lambda facts: {name: facts.get(name) for name in _TOLD}, remedy="")}
        except InputError as error:
            raise _damaged(id, error) from None

    def all(self) -> list[dict[str, Any]]:
        """Of the newest job first."""
        found = []
        for job in filter(self.has, self.jobs.all()):
            with suppress(Refused, OSError):  # deleted since, or damaged: the others are told of
                found.append(self.card(job.id))
        return found

    def predict(self, id: str, images: Sequence[bytes], names: Sequence[str]) -> Predictions:
        """Classify encoded images.

        Raises:
            InputError: one cannot be read; it is named.
            Refused: 404 where there is no model, 409 where it is damaged.
        """
        with self._lock:
            folder = self.folder(id)  # not before it is this one's turn: until then it may be deleted
            try:
                trained = self._load(id, folder)
            except AutomlError as error:
                raise _damaged(id, error) from None
            pixels = of_model(trained).decode(images, names)
            return Predictions(tuple(names), trained.classes, trained.probabilities(pixels))

    def pack(self, id: str, target: IO[bytes]) -> None:
        """Write a zip of the weights and the card, which `automl-tl predict` takes once it is unpacked."""
        folder = self.folder(id)
        with zipfile.ZipFile(target, "w") as file:
            for name in (model.CARD, model.WEIGHTS):
                file.write(folder / name, f"model/{name}")

    def _load(self, id: str, folder: Path) -> model.Model:
        changed = (folder / model.WEIGHTS).stat().st_mtime_ns
        if id not in self._loaded or self._loaded[id][0] != changed:
            self._loaded[id] = changed, model.load(folder)
        self._loaded.move_to_end(id)
        while len(self._loaded) > KEPT:
            self._loaded.popitem(last=False)
        return self._loaded[id][1]


_TOLD = ("task", "fingerprint", "classes", "backbone", "candidate", "validation", "test")


def _damaged(id: str, error: AutomlError) -> Refused:
    """What is wrong names places of the server, so that only its log has it."""
    log.error("the model of job %s cannot be used: %s", id, error)
    return Refused(409, f"the model of job {id!r} is damaged on the server; resume the job with a larger budget, or train anew")


def _place(jobs: Jobs, job: Job) -> Path:
    return jobs.folder / job.id / "run" / "model"
