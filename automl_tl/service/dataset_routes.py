"""Archives: send, list, look at, delete."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Path, UploadFile

from .faults import Refused, responses
from .jobs import ACTIVE
from .server import Here
from .shapes import DatasetShape

router = APIRouter(prefix="/api/datasets", tags=["datasets"])
Id = Annotated[str, Path(description="Of a dataset.", examples=["9f86d081884c7d65"])]


@router.post("", status_code=201, response_model=DatasetShape, responses=responses(409))
def send_archive(archive: UploadFile, here: Here) -> Any:
    """Send a zip of CLASS/FILE, of train/CLASS/FILE and test/CLASS/FILE, or of files and a manifest (CSV: path,label).

    The same archive again is the same dataset. Only images and manifests are unpacked.
    """
    return asdict(here.datasets.add(archive.file, archive.filename or "archive.zip"))


@router.get("", response_model=list[DatasetShape], responses=responses())
def list_datasets(here: Here) -> Any:
    """The archives that were sent, by name."""
    return [asdict(dataset) for dataset in here.datasets.all()]


@router.get("/{id}", response_model=DatasetShape, responses=responses(404, 409))
def show_dataset(id: Id, here: Here) -> Any:
    """One archive that was sent."""
    return asdict(here.datasets.get(id))


@router.delete("/{id}", status_code=204, responses=responses(404, 409))
def delete_dataset(id: Id, here: Here) -> None:
    """Delete the images; models that were trained on them stay."""
    using = [job.id for job in here.jobs.all() if job.state in ACTIVE and job.request["images"].get("dataset") == id]
    if using:
        raise Refused(409, f"job {using[0]!r} needs it; cancel that first")
    here.datasets.remove(id)
