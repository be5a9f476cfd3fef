"""The history: what was tried and how it went; ask and add."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path as FilePath
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Body, Path, Query

from automl_tl.errors import HistoryError
from automl_tl.exchange import BACKBONES, PROFILES, TASKS, TRIALS, without_folders, write_facts
from automl_tl.facts import backbone_of, profile_of, task_facts_of, trial_of
from automl_tl.history import open_history
from automl_tl.records import Trial

from .faults import Refused, responses
from .shapes import TASK, Added, NewFacts, Summary, TaskList, TrialPage

router = APIRouter(prefix="/api/history", tags=["history"])
Filter = Annotated[str | None, Query(max_length=200)]
T = TypeVar("T")


@router.get("", response_model=Summary, responses=responses())
def summarise_history() -> Any:
    """How much is known."""
    with open_history() as history:
        return {**history.summary(), "integrity": history.integrity()}


@router.get("/trials", response_model=TrialPage, responses=responses())
def find_trials(
    search: Annotated[str, Query(max_length=200, description="Words of task, backbone, strategy, status or id.")] = "",
    task: Annotated[str | None, Query(max_length=200, description="Name or fingerprint.")] = None,
    backbone: Filter = None,
    strategy: Filter = None,
    status: Literal["finished", "stopped", "failed"] | None = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    offset: Annotated[int, Query(ge=0, lt=2**31)] = 0,
) -> Any:
    """Trials, newest first, a page at a time."""
    with open_history() as history:
        total, items = history.find(
            search, task=task, backbone=backbone, strategy=strategy, status=status, limit=limit, offset=offset
        )
    return {"total": total, "items": list(map(_shown, items))}


@router.get("/trials/{id}", response_model=Trial, responses=responses(404))
def show_trial(id: Annotated[str, Path(description="Of a trial.", max_length=200)]) -> Any:
    """One trial in full, with its learning curve."""
    with open_history() as history:
        try:
            return _shown(history.trial(id))
        except HistoryError:
            raise Refused(404, f"there is no trial {id!r}; GET /api/history/trials names them") from None


def _shown(trial: Trial) -> Trial:
    """Also one that was trained by the command line: what failed there may name folders of the server."""
    return replace(trial, error=without_folders(trial.error))


@router.get("/tasks", response_model=TaskList, responses=responses())
def list_tasks() -> Any:
    """The tasks of the history, by name."""
    with open_history() as history:
        items = sorted(history.tasks().values(), key=lambda task: (task.name, task.fingerprint))
    return {"total": len(items), "items": items}


@router.post("", status_code=201, response_model=Added, responses=responses())
def add_facts(facts: Annotated[NewFacts, Body(openapi_examples={"a task": {"value": {"tasks": [TASK]}}})]) -> Any:
    """Add tasks, backbones, profiles and trials; all of them or, if one is wrong, none. What is known stays as it is."""
    tasks = _checked("tasks", facts.tasks, task_facts_of)
    for kind, rows, parse in (
        ("backbones", facts.backbones, backbone_of),
        ("profiles", facts.profiles, profile_of),
        ("trials", facts.trials, trial_of),
    ):
        _checked(kind, rows, parse)
    with tempfile.TemporaryDirectory() as name, open_history() as history:
        folder = FilePath(name)
        write_facts(
            folder,
            {TASKS: map(asdict, tasks), BACKBONES: facts.backbones, PROFILES: facts.profiles, TRIALS: facts.trials},
        )
        try:
            return history.import_facts(folder)
        except HistoryError as error:
            raise type(error)(str(error).replace(f"{folder}{os.sep}", "")) from None


def _checked(kind: str, rows: Sequence[Mapping[str, Any]], parse: Callable[[Mapping[str, Any]], T]) -> list[T]:
    """Raises HistoryError that names the row."""
    found = []
    for number, row in enumerate(rows):
        try:
            found.append(parse(row))
        except HistoryError as error:
            raise HistoryError(f"{kind}[{number}]: {error}") from None
    return found
