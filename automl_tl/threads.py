"""How many processors there are for us, and work that is spread over them by threads, as Pillow does its own without holding
Python's lock.

Processes would be no faster, and would ask the caller's script for a main guard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Work = TypeVar("Work")
Result = TypeVar("Result")
AT_ONCE = 1024
"""Results that wait in memory, at most."""


def processors() -> int:
    """That this process may use: not more than a container's quota, where `os.cpu_count` is told of all that the machine has.

    `LOKY_MAX_CPU_COUNT` in the environment lowers it, as in scikit-learn.
    """
    from joblib import cpu_count

    return int(cpu_count())


def spread(function: Callable[[Work], Result], work: Sequence[Work]) -> Iterator[Result]:
    """`map` over as many threads as there are processors, in order."""
    with ThreadPoolExecutor(processors()) as pool:
        for start in range(0, len(work), AT_ONCE):
            yield from pool.map(function, work[start : start + AT_ONCE])
