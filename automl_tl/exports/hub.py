"""A push to the Hugging Face hub: a private repository with the timm folder and its model card."""

from __future__ import annotations

from pathlib import Path

from automl_tl.errors import InputError

WHAT_LEAVES = ("README.md", "config.json", "model.safetensors")


def check_name(repository: str) -> str:
    """`owner/name`, as the hub allows it.

    Raises:
        InputError: it is not.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise InputError(f"--out {repository!r}: {str(error).splitlines()[0]}") from None
    if repository.count("/") != 1:
        raise InputError(f"--out {repository!r}: a repository of the hub is named OWNER/NAME")
    return repository


def push(folder: Path, repository: str) -> str:
    """Upload the files of `folder` into `repository`, which is made, private, if there is none. Its address.

    Raises:
        InputError: not logged in, no right to write there, or no hub.
    """
    import httpx2
    from huggingface_hub import HfApi, constants, is_offline_mode
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if is_offline_mode():
        raise InputError("the hub cannot be reached: HF_HUB_OFFLINE is set; unset it, or see what would leave with --dry-run")
    hub = HfApi(library_name="automl_tl")
    try:
        address = str(hub.create_repo(repository, private=True, exist_ok=True))
        hub.upload_folder(
            repo_id=repository, folder_path=folder, allow_patterns=list(WHAT_LEAVES), commit_message="Model trained by automl_tl"
        )
    except HfHubHTTPError as error:
        raise InputError(f"{repository}: {_reason(error.response.status_code, constants.ENDPOINT)}") from None
    except (httpx2.HTTPError, OfflineModeIsEnabled, OSError) as error:
        raise InputError(
            f"{repository}: the hub at {constants.ENDPOINT} cannot be reached or broke off ({type(error).__name__}); "
            "try again: what has arrived is not sent twice"
        ) from None
    return address


def _reason(status: int, endpoint: str) -> str:
    if status == 401:
        return f"the hub at {endpoint} does not know you; log in with `hf auth login`, or set HF_TOKEN to a token that may write"
    if status in (403, 404):
        return "your token may not write there; choose an OWNER that you belong to, or a token with the right to write"
    return f"the hub at {endpoint} answered {status}; try later"
