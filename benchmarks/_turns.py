"""Peers timed in turns, A B A B …: whatever else the machine does meanwhile meets all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np


def in_turns(peers: Mapping[str, Callable[[], Any]], rounds: int) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Seconds of each peer in each round, in alternating order, and what each returned last."""
    seconds: dict[str, list[float]] = {name: [] for name in peers}
    returned: dict[str, Any] = {}
    for turn in range(rounds):
        for name in list(peers) if turn % 2 == 0 else list(reversed(peers)):
            start = time.perf_counter()
            returned[name] = peers[name]()
            seconds[name].append(time.perf_counter() - start)
    return seconds, returned


def ratio(name: str, ours: Sequence[float], peer: Sequence[float]) -> dict[str, float]:
    """How many times as long the peer took, round by round: the median as `name`, and its quartiles."""
    low, median, high = np.percentile(np.divide(peer, ours), (25, 50, 75))
    return {name: float(median), f"{name}_q1": float(low), f"{name}_q3": float(high), f"{name}_rounds": float(len(ours))}


def row(what: str, ours: Sequence[float], peer: Sequence[float], figures: Mapping[str, float], name: str) -> tuple[str, ...]:
    """A line of the table: medians in seconds, then the ratio with its quartiles."""
    spread = f"{figures[name]:.3g} ({figures[f'{name}_q1']:.3g}–{figures[f'{name}_q3']:.3g})"
    return what, f"{np.median(ours):.4g}", f"{np.median(peer):.4g}", spread
