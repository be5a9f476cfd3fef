"""Work on images: ask for it, watch it, end it, go on; and advice on a profile, which is given at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path as FilePath
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Depends, Header, Path, Query, Request
from fastapi.responses import HTMLResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent

from automl_tl import data, registry
from automl_tl.backbones import catalogue
from automl_tl.budget import parse_budget
from automl_tl.facts import profile_of

from . import events
from .datasets import below
from .faults import Refused, responses
from .jobs import Job
from .server import Here, Server
from .shapes import (
    PROFILE,
    Answer,
    FitJob,
    JobPage,
    JobResult,
    JobShape,
    NewJob,
    ProfileJob,
    Question,
    Resumed,
)
from .worker import advice_facts

router = APIRouter(prefix="/api", tags=["jobs"])
Id = Annotated[str, Path(description="Of a job.", examples=["5f3a9c0d12ab"])]
POLL_SECONDS = 0.2
REPORT_POLICY = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:"


@router.post("/recommendations", response_model=Answer, responses=responses(), tags=["advice"])
def recommend_for_profile(
    question: Annotated[Question, Body(openapi_examples={"digits": {"value": {"profile": PROFILE, "top": 5}}})], here: Here
) -> Any:
    """Rank what could be trained, from a profile alone. It is answered at once; a job looks closer, through the images."""
    profile = profile_of(question.profile.model_dump())
    ranking = here.advisers.recommend(profile, zoo=question.zoo, strategies=question.strategies, backbones=question.backbones)
    return advice_facts(profile, ranking, question.top)


_EXAMPLES: Any = {
    "fit on an archive": {"value": {"kind": "fit", "images": {"dataset": "9f86d081884c7d65"}, "budget": "10m"}},
    "advice on a folder": {"value": {"kind": "recommend", "images": {"path": "photos"}, "top": 10}},
    "profile": {"value": {"kind": "profile", "images": {"path": "photos"}}},
}


@router.post("/jobs", status_code=202, response_model=JobShape, responses=responses(404, 409))
def start_job(job: Annotated[NewJob, Body(openapi_examples=_EXAMPLES)], here: Here) -> Any:
    """Queue a profile, advice or a fit. Jobs run one at a time, in the order of asking, and survive a restart of the server."""
    _check_names(job)
    location = _location(here, job.images.model_dump())
    return shown(here, here.jobs.submit(job.kind, job.model_dump(exclude={"kind"}), location))


@router.get("/jobs", response_model=JobPage, responses=responses())
def list_jobs(
    here: Here,
    state: Literal["queued", "running", "cancelling", "finished", "cancelled", "failed"] | None = None,
    kind: Literal["profile", "recommend", "fit"] | None = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    offset: Annotated[int, Query(ge=0, lt=2**31)] = 0,
) -> Any:
    """Jobs, newest first."""
    found = [job for job in here.jobs.all() if state in (None, job.state) and kind in (None, job.kind)]
    return {"total": len(found), "items": [shown(here, job) for job in found[offset : offset + limit]]}


@router.get("/jobs/{id}", response_model=JobResult, responses=responses(404))
def show_job(id: Id, here: Here) -> Any:
    """One job with what came of it."""
    return {**shown(here, here.jobs.get(id)), "result": here.jobs.result(id)}


@router.post("/jobs/{id}/cancel", status_code=202, response_model=JobShape, responses=responses(404, 409))
def cancel_job(id: Id, here: Here) -> Any:
    """Take it out of the queue, or interrupt it. A fit ends with its best model so far."""
    return shown(here, here.jobs.cancel(id))


@router.post("/jobs/{id}/resume", status_code=202, response_model=JobShape, responses=responses(404, 409))
def resume_job(id: Id, here: Here, how: Annotated[Resumed | None, Body(examples=[{"budget": "20m"}])] = None) -> Any:
    """Queue a job that was cancelled or failed; a fit goes on where it stopped, or with a new budget after its end."""
    changes: dict[str, Any] = {}
    if how is not None and how.budget is not None:
        if here.jobs.get(id).kind != "fit":
            raise Refused(422, "budget: only a fit has one")
        parse_budget(how.budget)
        changes["budget"] = how.budget
    _location(here, here.jobs.get(id).request["images"])  # or it would only fail
    return shown(here, here.jobs.resume(id, changes))


@router.delete("/jobs/{id}", status_code=204, responses=responses(404, 409))
def delete_job(id: Id, here: Here) -> None:
    """Delete a job that has ended, with its model and its report. Its trials stay in the history."""
    here.jobs.remove(id)


@router.get("/jobs/{id}/report", response_class=HTMLResponse, responses=responses(404))
def show_report(id: Id, here: Here) -> Any:
    """The report of a fit: one HTML file that needs nothing else."""
    try:
        page = _report(here, here.jobs.get(id)).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise Refused(404, f"job {id!r} has no report, or none yet") from None
    page = page.replace(str(here.jobs.folder / id), id)  # where it lies on the server is not for clients
    return HTMLResponse(page, headers={"Content-Security-Policy": REPORT_POLICY})


def _watched(id: Id, here: Here) -> Job:
    """Asked for before the stream begins: then it is too late for a 404."""
    return here.jobs.get(id)


@router.get("/jobs/{id}/events", response_class=EventSourceResponse, responses=responses(404))
async def watch_job(
    job: Annotated[Job, Depends(_watched)],
    here: Here,
    request: Request,
    last_event_id: Annotated[int, Header(ge=0, lt=2**62, description="Go on after this event.")] = 0,
) -> AsyncIterator[ServerSentEvent]:
    """Everything that happened to a job and that happens, as server-sent events: state, progress, advice, trial, epoch.

    The stream ends when the job has. A client that was cut off sends the id of the last event it saw.
    """
    folder, place = here.jobs.folder / job.id, last_event_id
    while True:
        ended = here.jobs.ended(job.id)  # asked first: the last event is written by the time that this is true
        for event in events.read(folder, place):
            place = event.end
            yield ServerSentEvent(event=event.kind, data=event.facts, id=str(place))
        if ended or "head" in request.scope:
            return
        await asyncio.sleep(POLL_SECONDS)


def shown(here: Server, job: Job) -> dict[str, Any]:
    """A job as clients see it."""
    facts = {name: getattr(job, name) for name in ("id", "kind", "state", "request", "created", "started", "ended", "error")}
    place = FilePath(job.location)
    name = place.stem if place.is_file() else place.name  # a folder's name may have a dot, too
    more = {"name": data.shown(name), "before": here.jobs.place(job), "model": here.models.has(job)}
    return {**facts, **more, "report": _report(here, job).exists()}


def _location(here: Server, images: Mapping[str, str]) -> FilePath:
    """Of the images of a job. Raises Refused where they are not there, or no longer."""
    return below(here.settings.root, images["path"]) if "path" in images else here.datasets.location(images["dataset"])


def _report(here: Server, job: Job) -> FilePath:
    return here.jobs.folder / job.id / "run" / "report.html"  # asks for no job of this id: it may be deleted meanwhile


def _check_names(job: NewJob) -> None:
    """What would only be found wrong when the job's turn has come."""
    backbones = catalogue(zoo=job.zoo)
    if isinstance(job, ProfileJob):
        return
    for name in job.strategies or ():
        registry.lookup("strategy", name, registry.strategies())
    for name in job.backbones or ():
        registry.lookup("backbone", name, backbones)
    if isinstance(job, FitJob):
        parse_budget(job.budget)
