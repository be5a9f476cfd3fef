"""What happened to a job, as lines of JSON that are only ever added to. Server and worker both write."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EVENTS = "events.jsonl"


@dataclass(frozen=True)
class Event:
    """One line."""

    kind: str
    """state, progress, advice, trial or epoch."""
    facts: dict[str, Any]
    end: int
    """Bytes of the file up to and with this line: where to go on reading."""


def append(folder: Path, kind: str, facts: dict[str, Any]) -> None:
    """Add a line in one write, so that lines of two processes never mix. A line that was cut off by a kill is ended first."""
    line = json.dumps(plain({"event": kind, "time": round(time.time(), 3), **facts})).encode() + b"\n"
    descriptor = os.open(folder / EVENTS, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        os.lseek(descriptor, max(size - 1, 0), os.SEEK_SET)  # for reading; what is written goes to the end in any case
        torn = size > 0 and os.read(descriptor, 1) != b"\n"
        os.write(descriptor, b"\n" + line if torn else line)
    finally:
        os.close(descriptor)


def read(folder: Path, start: int = 0) -> Iterator[Event]:
    """The whole lines after the first `start` bytes."""
    path = folder / EVENTS
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(start)
        for line in file:
            if not line.endswith(b"\n"):
                return
            start += len(line)
            try:
                facts = json.loads(line)
            except ValueError:  # cut off by a kill
                continue
            if isinstance(facts, dict) and "event" in facts:
                yield Event(str(facts.pop("event")), facts, start)


def plain(value: Any) -> Any:
    """What JSON has: records of numpy and paths as texts, and nothing for a loss that is not finite."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
