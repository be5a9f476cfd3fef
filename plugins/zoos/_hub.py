"""Weights from the hub, through its own client and cache: safetensors only, and no long waits for a hub that is not there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx2
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, is_offline_mode, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from automl_tl.cards import sha256
from automl_tl.errors import ZooError
from automl_tl.networks import first_line

WEIGHTS = "model.safetensors"
PROBE_SECONDS = 5.0
_SHA256 = re.compile("[0-9a-f]{64}")


def cached_repositories() -> set[str]:
    """The repositories (owner/name) whose weights are in the local cache. Other folders may lie there, too, such as copies."""
    found = set()
    for folder in Path(constants.HF_HUB_CACHE).glob("models--*--*"):
        repository = folder.name.removeprefix("models--").replace("--", "/", 1)
        with suppress(HFValidationError):
            if cached(repository) is not None:
                found.add(repository)
    return found


def cached(repository: str, *, file: str = WEIGHTS, revision: str | None = None) -> Path | None:
    found = try_to_load_from_cache(repository, file, revision=revision)
    return Path(found) if isinstance(found, str) else None


def fetch(repository: str, *, file: str = WEIGHTS, revision: str | None = None, digest: str = "", anew: bool = False) -> Path:
    """A file of a repository, at a branch, tag or commit (None: main): from the cache, or downloaded into it. What the cache
    has is not taken where it has another sha256 than `digest`, or where the hub is to be asked `anew` whether it is the newest.

    A download goes on where an earlier one broke off. The client itself would retry for most of a minute where there is no
    hub, so it is asked once, shortly, beforehand.

    Raises:
        ZooError: says plainly what is missing, or that the hub has another file than `digest` says.
    """
    here = None if anew else cached(repository, file=file, revision=revision)
    if here is not None and digest in ("", sha256(here)):
        return here
    with plainly(repository, file):
        facts = get_hf_file_metadata(hf_hub_url(repository, file, revision=revision), timeout=PROBE_SECONDS)
        path = Path(hf_hub_download(repository, file, revision=revision, etag_timeout=PROBE_SECONDS))
    _check(path, facts.etag, repository)
    if digest not in ("", sha256(path)):
        raise ZooError(f"{repository}: {file} changed since it was added; remove the network and add it again")
    return path


def announced(repository: str, *, revision: str | None = None) -> tuple[str, int]:
    """sha256 (empty: not told) and size in bytes of the weights, as the hub tells them before anything is downloaded."""
    with plainly(repository, WEIGHTS):
        facts = get_hf_file_metadata(hf_hub_url(repository, WEIGHTS, revision=revision), timeout=PROBE_SECONDS)
    told = facts.etag or ""
    return told if _SHA256.fullmatch(told) else "", facts.size or 0


@contextmanager
def plainly(repository: str, file: str = "") -> Iterator[None]:
    """The client's errors as ours, in a sentence. Offline it is not even asked."""
    before = "not in the local hub cache, and " if file else ""
    if is_offline_mode():
        raise ZooError(f"{repository}: {before}HF_HUB_OFFLINE is set; unset it to reach the hub")
    try:
        yield
    except GatedRepoError:
        raise ZooError(f"{repository}: is gated; accept its terms on the hub and log in with `hf auth login`") from None
    except RevisionNotFoundError:
        raise ZooError(f"{repository}: the hub at {constants.ENDPOINT} has no such revision of it") from None
    except RepositoryNotFoundError:
        raise ZooError(f"{repository}: the hub at {constants.ENDPOINT} has no such repository, or it is private") from None
    except RemoteEntryNotFoundError:
        why = "other forms of weights (pickle) are refused" if file == WEIGHTS else "so it is no network of timm's form"
        raise ZooError(f"{repository}: has no {file}, and {why}") from None
    except HfHubHTTPError as error:
        raise ZooError(
            f"{repository}: the hub at {constants.ENDPOINT} answered {error.response.status_code}; try later"
        ) from None
    except (httpx2.HTTPError, LocalEntryNotFoundError) as error:
        text = f"{before}the hub at {constants.ENDPOINT} cannot be reached or broke off"
        raise ZooError(f"{repository}: {text} ({type(error).__name__}); try again when it answers") from None
    except HFValidationError as error:
        raise ZooError(f"{repository}: is no name of a repository: {first_line(error)}") from None
    except OSError as error:
        raise ZooError(f"{repository}: cannot be downloaded: {first_line(error)}") from None


def _check(path: Path, etag: str | None, repository: str) -> None:
    """For large files the hub's etag is their sha256, which the client does not compare."""
    if etag and _SHA256.fullmatch(etag) and sha256(path) != etag:
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        raise ZooError(f"{repository}: {path.name} arrived damaged (other sha256 than announced) and was deleted; try again")
