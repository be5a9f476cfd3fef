"""The server as one ASGI application, and as a process."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from importlib.metadata import version
from importlib.resources import files
from typing import Any
from urllib.parse import quote

import uvicorn
from fastapi import FastAPI
from fastapi.responses import Response
from fastapi.routing import APIRoute
from filelock import FileLock, Timeout

from automl_tl.errors import InputError

from . import dataset_routes, history_routes, job_routes, model_routes
from .faults import handle_faults
from .gate import OPEN, Gate
from .server import Server
from .settings import Settings
from .shapes import Health

DESCRIPTION = """
Which pretrained backbone, which transfer strategy, which hyperparameters: answered from experience, over HTTP.

Every operation but this description and `/api/health` wants the token that the server printed:
`Authorization: Bearer TOKEN`. What goes wrong is said in JSON, with what to do about it.
"""
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; connect-src 'self'; "
    "frame-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Of the page: nothing from elsewhere. Inline styles are the report's, which is shown in a frame without scripts."""
PARTS = {"/": ("page.html", "text/html"), "/page.css": ("page.css", "text/css"), "/page.js": ("page.js", "text/javascript")}
KEEP_ALIVE = 75
"""Seconds that an idle connection stays open: longer than a client's pause, or its next request meets a closed one."""
LAST_WORDS = 2
"""Seconds for open requests when the server ends; those who watch a job would stay for ever."""


def build_app(settings: Settings) -> FastAPI:
    """The application; what lies in the state folder goes on when it starts."""
    server = Server.of(settings)

    @contextlib.asynccontextmanager
    async def alive(app: FastAPI) -> AsyncIterator[None]:
        app.state.server = server
        server.jobs.start()
        server.advisers.warm()
        try:
            yield
        finally:
            server.jobs.stop()

    app = FastAPI(
        title="automl_tl",
        version=version("automl_tl"),
        description=DESCRIPTION,
        openapi_url="/api/openapi.json",
        docs_url=None,  # they load scripts from elsewhere
        redoc_url=None,
        lifespan=alive,
        generate_unique_id_function=_operation,
    )
    app.add_middleware(Gate, settings=settings)
    handle_faults(app)
    for routes in (dataset_routes, job_routes, model_routes, history_routes):
        app.include_router(routes.router)
    app.add_api_route("/api/health", _health, response_model=Health, tags=["server"])
    for path in PARTS:
        app.add_api_route(path, _part(path), include_in_schema=False)
    app.openapi = lambda: _description(app)  # type: ignore[method-assign]
    return app


def serve(settings: Settings, *, host: str, port: int, say: Callable[[str], None]) -> None:
    """Serve until interrupted. One server at a time works on a state folder.

    Raises:
        InputError: the settings are wrong, another server has the state folder, or the address cannot be listened on.
        RuntimeError: the application does not start.
    """
    settings = settings.checked()
    lock = FileLock(settings.state / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(f"{settings.state}: another server works there; end it, or choose another --state") from None
    try:
        with _listening(host, port) as listener:
            config = uvicorn.Config(
                build_app(settings),
                log_level="warning",
                timeout_graceful_shutdown=LAST_WORDS,
                timeout_keep_alive=KEEP_ALIVE,
                server_header=False,
                proxy_headers=False,  # or who is on this machine writes any address into them, and has a new allowance with each
            )
            _say_where(settings, host, port, say)
            with contextlib.suppress(KeyboardInterrupt):
                uvicorn.Server(config).run(sockets=[listener])
    except SystemExit as end:  # uvicorn's way to say it, after its log has said why
        raise RuntimeError("the server could not start") from end
    finally:
        lock.release()


def _listening(host: str, port: int) -> socket.socket:
    """Before anything is said of the address: a link to somebody else's server would give them the token."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, UnicodeError) as error:
        why = error.strerror.partition(" (")[0] if isinstance(error, OSError) and error.strerror else error
        raise InputError(f"port {port} of {host}: cannot be listened on: {why}; choose another --port or --host") from None


def _say_where(settings: Settings, host: str, port: int, say: Callable[[str], None]) -> None:
    shown = f"[{host}]" if ":" in host else host
    say(f"automl_tl serves http://{shown}:{port}/#token={quote(settings.token, safe='')}")  # as the page reads it
    say(f"token: {settings.token}   state: {settings.state}   images below: {settings.root or 'no folder (--root)'}")
    if host not in ("127.0.0.1", "::1", "localhost"):
        say("note: others can reach this address, and the connection is not encrypted; put a proxy with TLS in front of it")


def _operation(route: APIRoute) -> str:
    return route.name.strip("_")


def _health() -> Health:
    """That the server is there."""
    return Health(version=version("automl_tl"))


def _part(path: str) -> Any:
    name, kind = PARTS[path]

    def part() -> Response:
        text = files("automl_tl.service").joinpath(name).read_text(encoding="utf-8")
        headers = {
            "Content-Security-Policy": PAGE_POLICY,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-cache",
        }
        return Response(text, media_type=kind, headers=headers)

    return part


def _description(app: FastAPI) -> dict[str, Any]:
    """OpenAPI, with the token where one is wanted, and faults as JSON also where the rest is not."""
    if app.openapi_schema is None:
        schema = FastAPI.openapi(app)
        schema["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        for path, operations in schema["paths"].items():
            for operation in operations.values():
                operation["security"] = [] if path in OPEN else [{"token": []}]
                for status, told in operation["responses"].items():
                    if status >= "400":
                        told["content"] = {"application/json": next(iter(told["content"].values()))}
    return app.openapi_schema or {}
