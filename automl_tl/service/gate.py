"""Before any route: who may come in, how often, and how much they may bring."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass, field

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .faults import Refused, answer
from .settings import BODY_BYTES, Settings

OPEN = ("/api/health", "/api/openapi.json")
"""Beside the page: what says nothing of anybody's work."""
UPLOADS = ("/api/datasets",)
WRONG_TOKENS_PER_MINUTE = 20
MOST_ADDRESSES = 10_000
DRAINED = 64 * 2**20
"""Of a body that is too large, so much is read and thrown away: a client that is still writing would miss the answer."""


@dataclass
class Allowance:
    """A token bucket for each address: `per_minute` at once, and as many again each minute."""

    per_minute: int
    left: OrderedDict[str, tuple[float, float]] = field(default_factory=OrderedDict)
    """Address → (what was left, when)."""

    def seconds_to_wait(self, address: str) -> float:
        """Takes one from the allowance and returns 0, or says how long it takes until there is one."""
        now, rate = time.monotonic(), self.per_minute / 60
        amount, since = self.left.pop(address, (float(self.per_minute), now))
        amount = min(amount + (now - since) * rate, float(self.per_minute))
        wait = max(1 - amount, 0.0) / rate
        self.left[address] = (amount if wait else amount - 1, now)
        if len(self.left) > MOST_ADDRESSES:
            self.left.popitem(last=False)
        return wait


class Gate:
    """ASGI middleware: token, rate and size of every request, checked before its body is read."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app, self.settings = app, settings
        self.requests = Allowance(settings.requests_per_minute)
        self.wrong_tokens = Allowance(WRONG_TOKENS_PER_MINUTE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if scope["method"] == "HEAD":
            scope = {**scope, "method": "GET", "head": True}  # whose headers it asks for; uvicorn knows to send no body
        headers = Headers(scope=scope)
        most = self.settings.upload_bytes if scope["path"] in UPLOADS else BODY_BYTES
        try:
            self._admit(scope, headers)
            if _announced(headers) > most:
                raise _too_large(most)
        except Refused as refused:
            await _drain(receive, _announced(headers))
            await answer(refused.status_code, refused.detail, refused.headers)(scope, receive, send)
            return
        taken = 0

        async def metered() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > most:
                raise _too_large(most)
            return message

        await self.app(scope, metered, send)

    def _admit(self, scope: Scope, headers: Headers) -> None:
        address = scope["client"][0] if scope.get("client") else ""
        if (wait := self.requests.seconds_to_wait(address)) > 0:
            raise _too_often(f"more than {self.settings.requests_per_minute} requests a minute", wait)
        if not scope["path"].startswith("/api/") or scope["path"] in OPEN:
            return
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and secrets.compare_digest(token.strip().encode(), self.settings.token.encode()):
            return  # whoever else guesses from this address, such as that of a proxy
        if token and (wait := self.wrong_tokens.seconds_to_wait(address)) > 0:
            raise _too_often("too many wrong tokens", wait)
        raise Refused(401, "send the token that the server printed: Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"})


def _announced(headers: Headers) -> int:
    length = headers.get("content-length", "")
    return int(length) if length.isascii() and length.isdigit() else 0


async def _drain(receive: Receive, announced: int) -> None:
    left = min(announced, DRAINED)
    while left > 0:
        message = await receive()
        left -= len(message.get("body", b""))
        if message["type"] == "http.disconnect" or not message.get("more_body"):
            return


def _too_large(most: int) -> Refused:
    return Refused(413, f"the request is larger than the {most:,} bytes that are accepted", {"Connection": "close"})


def _too_often(why: str, wait: float) -> Refused:
    return Refused(429, f"{why}; wait {wait:.0f} s", {"Retry-After": str(max(1, round(wait)))})
