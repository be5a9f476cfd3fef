"""Images on their way to the device, and what it makes of them on its way back: a GPU should wait for neither."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from .device import device, out_of_memory, release_memory

Made = TypeVar("Made")
AHEAD = 3
"""Batches that may wait for a GPU."""


def sent(tensor: Tensor, to: torch.device) -> Tensor:
    """`tensor` on the device `to`. A GPU fetches it when it gets there; what it computes before need not end first."""
    return tensor.pin_memory().to(to, non_blocking=True) if to.type == "cuda" else tensor.to(to)


def fetched(images: np.ndarray, parts: Iterable[np.ndarray]) -> Iterator[Tensor]:
    """Of uint8 `images` (N×H×W×3, perhaps on disk) those at each of `parts`, on the device, n×3×H×W."""
    cuda = device().type == "cuda"
    for part in parts:
        if cuda:
            held = torch.empty((len(part), *images.shape[1:]), dtype=torch.uint8, pin_memory=True)
            np.take(images, part, axis=0, out=held.numpy(), mode="clip")  # the other mode gathers into a buffer first
        else:
            held = torch.from_numpy(images[part])
        yield held.to(device(), non_blocking=cuda).permute(0, 3, 1, 2)


def ahead(batches: Iterator[Made], tensors: Callable[[Made], Iterable[Tensor]]) -> Iterator[Made]:
    """The same batches. For a GPU a thread makes the next ones, beside what is computed on this one: `tensors` names what of a
    batch lies on the GPU."""
    if device().type != "cuda":
        yield from batches
        return
    making = _making()

    def make() -> tuple[Made, torch.cuda.Event] | None:
        with torch.cuda.stream(making):
            batch = next(batches, None)
            return None if batch is None else (batch, making.record_event())

    with ThreadPoolExecutor(1) as thread:
        waiting = deque(thread.submit(make) for _ in range(AHEAD))
        while (made := waiting.popleft().result()) is not None:
            waiting.append(thread.submit(make))
            batch, event = made
            computing = torch.cuda.current_stream()
            computing.wait_event(event)
            for tensor in tensors(batch):
                tensor.record_stream(computing)  # or its memory would be used anew while it is computed on
            yield batch


@cache
def _making() -> torch.cuda.Stream:
    """The GPU's queue for batches, beside that of its computing."""
    return torch.cuda.Stream(device())  # type: ignore[no-untyped-call]


def in_batches(
    images: np.ndarray, index: np.ndarray, size: int, run: Callable[[Tensor], tuple[Tensor, ...]]
) -> list[tuple[Tensor, ...]]:
    """What `run` makes of the `images` at parts of `index` of `size`, as `fetched` gives them, on the CPU; of half the size from
    where memory does not suffice."""
    found: list[tuple[Tensor, ...]] = []
    waiting: deque[Callable[[], tuple[Tensor, ...]]] = deque()
    start = 0
    while start < len(index):
        parts = (index[at : at + size] for at in range(start, len(index), size))
        for batch in ahead(fetched(images, parts), lambda batch: (batch,)):
            try:
                waiting.append(_coming_back(run(batch)))
            except (RuntimeError, MemoryError) as error:
                if size == 1 or not out_of_memory(error):
                    raise
                break
            start += len(batch)
            if len(waiting) > 1:  # the GPU has the next batch to work on by now
                found.append(waiting.popleft()())
        else:
            break
        del batch
        size //= 2
        release_memory()  # only here has the error, and what its traceback held, gone
    return [*found, *(result() for result in waiting)]


def _coming_back(results: tuple[Tensor, ...]) -> Callable[[], tuple[Tensor, ...]]:
    """Begins to copy `results` to the CPU; the function waits until they are there."""
    if device().type != "cuda":
        return lambda: tuple(result.cpu() for result in results)
    copies = tuple(result.to("cpu", non_blocking=True) for result in results)
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    copied.record()

    def wait() -> tuple[Tensor, ...]:
        copied.synchronize()
        # Out of the memory that the GPU may write to, which is scarce. Not by torch: it would wake as many threads as there are
        # cores, and what they wait for then keeps the GPU waiting.
        return tuple(torch.from_numpy(copy.numpy().copy()) for copy in copies)

    return wait
