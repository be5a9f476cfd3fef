"""What a person decides about a server."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from pathlib import Path

from automl_tl.errors import InputError

SHORTEST_TOKEN = 16
BODY_BYTES = 32 * 2**20
"""Of a request that is no upload."""


@dataclass(frozen=True)
class Settings:
    """A server. `checked` says what is wrong with one."""

    state: Path
    """Folder of its jobs, uploads and models."""
    token: str = field(repr=False)
    root: Path | None = None
    """Server-side images are below it; None: there are none."""
    upload_bytes: int = 2**30
    requests_per_minute: int = 1200
    """Of one address."""

    def checked(self) -> Settings:
        """These settings, with whole paths.

        Raises:
            InputError: a weak token, a root that is no folder, a state that cannot be written, or a limit below 1.
        """
        if len(self.token) < SHORTEST_TOKEN or not self.token.isascii() or not self.token.isprintable() or " " in self.token:
            raise InputError(f"the token is too weak: give at least {SHORTEST_TOKEN} printable ASCII letters without a space")
        if self.root is not None and not self.root.is_dir():
            raise InputError(f"{self.root}: is no folder; --root is the folder whose images the server may read")
        if self.upload_bytes < 1 or self.requests_per_minute < 1:
            raise InputError("limits are whole numbers above 0")
        try:
            self.state.mkdir(parents=True, exist_ok=True)
            (self.state / ".writable").touch()
        except OSError as error:
            raise InputError(f"{self.state}: cannot be written to: {error.strerror}; choose another --state") from None
        root = None if self.root is None else self.root.resolve()
        return Settings(self.state.resolve(), self.token, root, self.upload_bytes, self.requests_per_minute)


def new_token() -> str:
    """192 random bits."""
    return secrets.token_urlsafe(24)
