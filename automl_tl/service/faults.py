"""What went wrong, as JSON: whose move it is by the status, and what to do in the message. Never a traceback."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.routing import Match

from automl_tl.errors import AutomlError, HistoryUnusable, no_room
from automl_tl.home import home

log = logging.getLogger("automl_tl.service")
ALWAYS = (400, 401, 413, 422, 429, 503)
"""What any operation may answer with."""
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
MOST_NAMED = 5
"""Of the wrong fields of a request."""


class Fault(BaseModel):
    """Why a request was not done."""

    status: int = Field(examples=[422])
    error: str = Field(examples=["unprocessable content"])
    message: str = Field(examples=["cannot read the budget 'soon'; write it like 90s, 10m, 1h, '5 trials' or '60 epochs'"])


class Refused(HTTPException):
    """A request that is not done. As FastAPI's own it also passes through the reading of a body."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, message, dict(headers or {}))


class _Plain(JSONResponse):
    """ASCII only: messages repeat what was sent, and that need not be valid Unicode."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content).encode("ascii")


def answer(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The response to a request that is not done."""
    facts = {"status": status, "error": HTTPStatus(status).phrase.lower(), "message": message}
    return _Plain(facts, status, headers=dict(headers or {}))


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For the description of an operation: the faults it may answer with, besides those that any may."""
    return {status: {"model": Fault, "description": HTTPStatus(status).phrase} for status in (*ALWAYS, *statuses)}


def handle_faults(app: FastAPI) -> None:
    """Every error that can leave a route becomes a `Fault`."""
    kept = home()

    @app.exception_handler(Refused)
    def refused(_: Request, error: Refused) -> JSONResponse:
        return answer(error.status_code, error.detail, error.headers)

    @app.exception_handler(AutomlError)
    def unusable(_: Request, error: AutomlError) -> JSONResponse:
        message = str(error).replace(str(kept), kept.name)  # where it lies on the server is nobody's business
        if not isinstance(error, HistoryUnusable):
            return answer(422, message)
        log.error("%s", error)
        return answer(503, message)

    @app.exception_handler(OSError)
    def full(_: Request, error: OSError) -> JSONResponse:
        if not no_room(error):
            raise error  # to `ours`
        log.error("%s", error)
        return answer(503, "the server's disk is full; somebody has to make room there")

    @app.exception_handler(RequestValidationError)
    def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        found = error.errors()
        broken = any(one["type"] == "json_invalid" for one in found)
        return answer(400 if broken else 422, _in_words(found))

    @app.exception_handler(HTTPException)
    def http(request: Request, error: HTTPException) -> JSONResponse:
        if no_room(error.__cause__):  # of a body that was not taken in
            return full(request, error.__cause__)
        words = {404: f"there is nothing at {request.url.path}", 405: f"{request.url.path} has no {request.method}"}
        headers = {"Allow": ", ".join(_allowed(request))} if error.status_code == 405 else error.headers
        return answer(error.status_code, words.get(error.status_code, str(error.detail)), headers)

    @app.exception_handler(Exception)
    def ours(request: Request, error: Exception) -> JSONResponse:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return answer(500, f"internal error: {type(error).__name__}; the server's log says more. Please report it")


def _allowed(request: Request) -> list[str]:
    """The methods of its path. Starlette names those of the first route alone, and each of our methods is a route."""
    scopes = {method: {**request.scope, "method": method} for method in METHODS}
    found = [one for one in METHODS if any(route.matches(scopes[one])[0] == Match.FULL for route in request.app.routes)]
    return found + (["HEAD"] if "GET" in found else [])  # see `gate`


def _in_words(found: Sequence[Any]) -> str:
    """ "budget: Field required", of the first wrong fields."""
    lines = []
    for one in found[:MOST_NAMED]:
        place = ".".join(str(part) for part in one["loc"][1:])
        cause = one.get("ctx", {}).get("error")
        lines.append(f"{place or one['loc'][0]}: {one['msg']}" + (f" ({cause})" if isinstance(cause, str) else ""))
    more = len(found) - MOST_NAMED
    return "; ".join(lines) + (f"; and {more} more" if more > 0 else "")
