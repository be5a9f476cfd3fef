"""Trained models: list, predict, download."""

from __future__ import annotations

import tempfile
from pathlib import Path as FilePath
from typing import Annotated, Any

from fastapi import APIRouter, Path, UploadFile
from fastapi.responses import FileResponse
from starlette.background import BackgroundTask

from .faults import Refused, responses
from .server import Here
from .shapes import ModelCard, PredictionsShape

router = APIRouter(prefix="/api/models", tags=["models"])
Id = Annotated[str, Path(description="Of the fit that trained it.", examples=["5f3a9c0d12ab"])]
MOST_IMAGES = 256


@router.get("", response_model=list[ModelCard], responses=responses())
def list_models(here: Here) -> Any:
    """The models of all fits, newest first."""
    return here.models.all()


@router.get("/{id}", response_model=ModelCard, responses=responses(404, 409))
def show_model(id: Id, here: Here) -> Any:
    """Classes, scores and origin of one model."""
    return here.models.card(id)


@router.post("/{id}/predictions", response_model=PredictionsShape, responses=responses(404, 409))
def predict(id: Id, images: list[UploadFile], here: Here) -> Any:
    """Classify images, up to 256 at once: the field `images` once for each file."""
    if len(images) > MOST_IMAGES:
        raise Refused(422, f"{len(images)} images are too many; send up to {MOST_IMAGES} at once")
    names = [image.filename or f"image {number}" for number, image in enumerate(images)]
    found = here.models.predict(id, [image.file.read() for image in images], names)
    rows = zip(names, found.labels, found.probabilities.tolist(), strict=True)
    predictions = [{"name": name, "label": label, "confidence": max(row), "probabilities": row} for name, label, row in rows]
    return {"classes": found.classes, "predictions": predictions}


@router.get("/{id}/archive", response_class=FileResponse, responses={200: {"content": {"application/zip": {}}}, **responses(404)})
def download_model(id: Id, here: Here) -> Any:
    """A zip of the weights (safetensors) and the card (JSON); unpacked, `automl-tl predict` takes it."""
    here.models.folder(id)
    with tempfile.NamedTemporaryFile(suffix=".zip", dir=here.settings.state, delete=False) as file:
        path = FilePath(file.name)
        try:
            here.models.pack(id, file)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
    return FileResponse(path, filename=f"model-{id}.zip", background=BackgroundTask(path.unlink, missing_ok=True))
