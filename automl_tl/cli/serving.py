"""The service: `serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from automl_tl.errors import InputError

from .console import say


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on; by default only this machine reaches it.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8765,
    root: Annotated[Path | None, typer.Option(help="Folder whose images requests may name by their path.")] = None,
    state: Annotated[Path | None, typer.Option(help="Folder of jobs, uploads and models; by default in the user's home.")] = None,
    token: Annotated[
        str | None, typer.Option(envvar="AUTOML_TL_TOKEN", help="Access token; by default a new one, which is printed.")
    ] = None,
    upload_mb: Annotated[int, typer.Option(min=1, help="Largest archive that is accepted, in MB.")] = 1024,
    requests_per_minute: Annotated[int, typer.Option(min=1, help="Limit for each client address.")] = 1200,
) -> None:
    """Profile, recommend, fit and predict over HTTP, with a web page."""
    from automl_tl.home import home

    try:
        from automl_tl.service.app import serve as run
        from automl_tl.service.settings import Settings, new_token
    except ModuleNotFoundError as error:
        raise InputError(f"serving needs {error.name}: pip install 'automl_tl[http]'") from None
    settings = Settings(
        state or home() / "serve",
        token=new_token() if token is None else token,
        root=root,
        upload_bytes=upload_mb * 2**20,
        requests_per_minute=requests_per_minute,
    )
    run(settings, host=host, port=port, say=say)
