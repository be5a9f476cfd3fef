"""Work that is spread over the cores by threads, as Pillow and LightGBM do theirs without holding Python's lock.

Processes would be no faster, and would ask the caller's script for a main guard.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Work = TypeVar("Work")
Result = TypeVar("Result")
AT_ONCE = 1024
"""Results that wait in memory, at most."""


def spread(function: Callable[[Work], Result], work: Sequence[Work]) -> Iterator[Result]:
    """`map` over as many threads as there are cores, in order."""
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(work), AT_ONCE):
            yield from pool.map(function, work[start : start + AT_ONCE])
