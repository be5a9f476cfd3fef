"""Weights from the hub, through its own client and cache: safetensors only, and no long waits for a hub that is not there."""

from __future__ import annotations

import re
from pathlib import Path

import httpx2
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, is_offline_mode, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
)

from automl_tl.cards import sha256
from automl_tl.errors import ZooError

WEIGHTS = "model.safetensors"
PROBE_SECONDS = 5.0


def cached_repositories() -> set[str]:
    """The repositories (owner/name) whose weights are in the local cache."""
    folders = Path(constants.HF_HUB_CACHE).glob("models--*--*")
    repositories = (folder.name.removeprefix("models--").replace("--", "/", 1) for folder in folders)
    return {repository for repository in repositories if cached(repository) is not None}


def cached(repository: str) -> Path | None:
    found = try_to_load_from_cache(repository, WEIGHTS)
    return Path(found) if isinstance(found, str) else None


def fetch(repository: str) -> Path:
    """The weights of a repository: from the cache, or downloaded into it (going on where an earlier download broke off).

    The client itself would retry for most of a minute where there is no hub, so it is asked once, shortly, beforehand.

    Raises:
        ZooError: says plainly what is missing.
    """
    here = cached(repository)
    if here is not None:
        return here
    if is_offline_mode():
        raise ZooError(f"{repository}: not in the local hub cache, and HF_HUB_OFFLINE is set; unset it to download it once")
    try:
        facts = get_hf_file_metadata(hf_hub_url(repository, WEIGHTS), timeout=PROBE_SECONDS)
        path = Path(hf_hub_download(repository, WEIGHTS, etag_timeout=PROBE_SECONDS))
    except GatedRepoError:
        raise ZooError(f"{repository}: is gated; accept its terms on the hub and log in with `hf auth login`") from None
    except RepositoryNotFoundError:
        raise ZooError(f"{repository}: the hub at {constants.ENDPOINT} has no such repository, or it is private") from None
    except RemoteEntryNotFoundError:
        raise ZooError(f"{repository}: has no {WEIGHTS}, and other forms of weights (pickle) are refused") from None
    except HfHubHTTPError as error:
        raise ZooError(
            f"{repository}: the hub at {constants.ENDPOINT} answered {error.response.status_code}; try later"
        ) from None
    except (httpx2.HTTPError, LocalEntryNotFoundError) as error:
        text = f"not in the local hub cache, and the hub at {constants.ENDPOINT} cannot be reached or broke off"
        raise ZooError(f"{repository}: {text} ({type(error).__name__}); try again when it answers") from None
    except OSError as error:
        raise ZooError(f"{repository}: cannot be downloaded: {str(error).splitlines()[0]}") from None
    _check(path, facts.etag, repository)
    return path


def _check(path: Path, etag: str | None, repository: str) -> None:
    """For large files the hub's etag is their sha256, which the client does not compare."""
    if etag and re.fullmatch("[0-9a-f]{64}", etag) and sha256(path) != etag:
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        raise ZooError(f"{repository}: {WEIGHTS} arrived damaged (other sha256 than announced) and was deleted; try again")
