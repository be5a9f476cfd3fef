"""What the routes share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from .advisers import Advisers
from .datasets import Datasets
from .jobs import Jobs
from .models import Models
from .settings import Settings


@dataclass(frozen=True, eq=False)
class Server:
    """The parts of a running server."""

    settings: Settings
    datasets: Datasets
    jobs: Jobs
    models: Models
    advisers: Advisers

    @classmethod
    def of(cls, settings: Settings) -> Server:
        """Everything that lies in the state folder, as it was left."""
        for packed in settings.state.glob("tmp*.zip"):  # of a download in which a server ended
            packed.unlink(missing_ok=True)
        jobs = Jobs(settings.state / "jobs")
        return cls(settings, Datasets(settings.state / "datasets"), jobs, Models(jobs), Advisers())


def _server(request: Request) -> Server:
    found: Server = request.app.state.server
    return found


Here = Annotated[Server, Depends(_server)]
