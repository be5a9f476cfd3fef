"""Histories on the hub: a dataset repository with the four files of `exchange`, which grows with every push.

What leaves the machine is numbers, and names of what is public: no image, no name of a file or a class, no free text, unless
asked. `leaving` says exactly what.
"""

from __future__ import annotations

import csv
import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import HistoryError
from .exchange import FILES, KINDS, TASKS
from .history import History, open_database

PROBE_SECONDS = 5.0
_NAMED = {"meta", "distances", "transferability", "hyperparameters", "validation", "test", "kwargs", "versions"}
"""Objects whose keys are texts of their own."""


@dataclass(frozen=True)
class Leaving:
    """What a push sends."""

    facts: Mapping[str, int]
    """File → facts in it."""
    size: Mapping[str, int]
    """File → bytes."""
    sha256: Mapping[str, str]
    texts: Mapping[str, tuple[str, ...]]
    """Field → every text in it; all else is numbers."""
    left_out: Mapping[str, int]
    """What stays here, as it is of networks that may be somebody's own → how much of it."""


def leaving(history: History, *, names: bool = False) -> Leaving:
    """What a push would send, read from the very files; nothing is sent."""
    with tempfile.TemporaryDirectory() as name:
        counts = history.export(Path(name), names=names)
        return _read_leaving(Path(name), {kind: count for kind, count in counts.items() if kind not in KINDS})


def push(history: History, repository: str, *, names: bool = False) -> dict[str, int]:
    """Add this history to a repository, which is made (private) if there is none; how many facts were new there, and how many
    were left out.

    What is there already stays, and a push on top of somebody else's loses nothing: it is refused if they came in between.

    Raises:
        HistoryError: says plainly what is missing.
    """
    from huggingface_hub import CommitOperationAdd, create_commit, create_repo

    with tempfile.TemporaryDirectory() as name, _plainly(repository):
        folder = Path(name)
        ours = history.export(folder / "ours", names=names)
        left_out = {kind: count for kind, count in ours.items() if kind not in KINDS}
        head = _head(repository)
        if head is None and any(ours[kind] for kind in KINDS):
            # before anything is merged: somebody may make it and push at this very moment, which only its head tells
            create_repo(repository, repo_type="dataset", private=True, exist_ok=True)
            head = _head(repository)
        with open_database(folder / "union.db") as union:
            if head is not None and (there := _download(repository, head)) is not None:
                union.import_facts(there)
            new = union.import_facts(folder / "ours")
            if not any(new.values()):
                return new | left_out
            union.export(folder / "union", names=True)
        files = [CommitOperationAdd(name, folder / "union" / name) for name in FILES]
        message = f"automl-tl history push: {new['trials']} trials"
        create_commit(repository, files, commit_message=message, repo_type="dataset", parent_commit=head)
        return new | left_out


def pull(history: History, repository: str) -> dict[str, int]:
    """Add what a repository holds; how many facts were new here.

    Raises:
        HistoryError: says plainly what is missing; nothing was added.
    """
    with _plainly(repository):
        head = _head(repository)
        folder = None if head is None else _download(repository, head)
    if folder is None:
        raise HistoryError(f"{repository}: there is no such dataset on the hub, it is private, or it has no {TASKS}")
    return history.import_facts(folder)


def _head(repository: str) -> str | None:
    """The newest commit; None where there is no such repository."""
    from huggingface_hub import repo_info
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return repo_info(repository, repo_type="dataset", timeout=PROBE_SECONDS).sha
    except RepositoryNotFoundError as error:
        if error.response.status_code == 401:
            raise HistoryError(f"{repository}: the hub does not know you; log in with `hf auth login`") from None
        return None


def _download(repository: str, commit: str) -> Path | None:
    """The folder with the files of that commit, in the client's cache; None where there is no history in it."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    folder = None
    for name in FILES:
        try:
            path = hf_hub_download(repository, name, repo_type="dataset", revision=commit, etag_timeout=PROBE_SECONDS)
        except RemoteEntryNotFoundError:
            if name == TASKS:
                return None
            continue
        folder = Path(path).parent
    return folder


@contextmanager
def _plainly(repository: str) -> Iterator[None]:
    """The client's errors in the words of the person's next step."""
    import httpx2
    from huggingface_hub import constants, is_offline_mode
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    if is_offline_mode():
        raise HistoryError(f"{repository}: HF_HUB_OFFLINE is set; unset it to reach the hub")
    try:
        yield
    except HFValidationError:
        raise HistoryError(f"{repository!r} is no name of a repository; give OWNER/NAME") from None
    except HfHubHTTPError as error:
        status, hub = error.response.status_code, constants.ENDPOINT
        said = {
            401: "the hub does not know you; log in with `hf auth login`",
            403: "you may not write there; is the name right, does your token have the right to write?",
            409: "somebody else was writing there; push again",
            412: "somebody else pushed in between; push again",
        }
        raise HistoryError(f"{repository}: {said.get(status, f'the hub at {hub} answered {status}; try later')}") from None
    except (httpx2.HTTPError, LocalEntryNotFoundError) as error:
        text = f"the hub at {constants.ENDPOINT} cannot be reached or broke off ({type(error).__name__})"
        raise HistoryError(f"{repository}: {text}; try again when it answers") from None


def _read_leaving(folder: Path, left_out: Mapping[str, int]) -> Leaving:
    texts: dict[str, set[str]] = {}
    counts, sizes, hashes = {}, {}, {}
    for name in FILES:
        content = (folder / name).read_bytes()
        sizes[name], hashes[name] = len(content), hashlib.sha256(content).hexdigest()
        counts[name] = 0
        for row in _rows(folder / name):
            counts[name] += 1
            _collect(row, name.partition(".")[0], texts)
    told = {field: tuple(sorted(found - {""})) for field, found in texts.items() if found - {""}}
    return Leaving(counts, sizes, hashes, told, left_out)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(newline="", encoding="utf-8") as file:
        if path.name != TASKS:
            yield from map(json.loads, file)
            return
        for row in csv.DictReader(file):
            yield {name: text for name, text in row.items() if name in ("fingerprint", "name", "source_dataset", "objective")}


def _collect(value: Any, field: str, texts: dict[str, set[str]]) -> None:
    """Every text in `value`, by the field it is in."""
    if isinstance(value, str):
        texts.setdefault(field, set()).add(value)
    elif isinstance(value, list):
        for item in value:
            _collect(item, field, texts)
    elif isinstance(value, dict):
        named = field.rpartition(".")[2] in _NAMED
        for key, item in value.items():
            if named:
                texts.setdefault(f"{field} names", set()).add(key)
            _collect(item, field if named else f"{field}.{key}", texts)
