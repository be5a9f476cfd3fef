"""Several processes of `accelerate launch`: the first one decides, writes and speaks; the others train along."""

from __future__ import annotations

import math
import os
import time
from typing import Any

import torch
from accelerate.utils import broadcast, broadcast_object_list
from torch import nn

from . import guard
from .device import accelerator, device


def alone() -> bool:
    """Whether there is no other process."""
    return bool(accelerator().num_processes == 1)


def leads() -> bool:
    """Whether this is the process that decides; true of a process that is alone."""
    return bool(accelerator().is_main_process)


def tell(order: Any) -> None:
    """Send `order` to all that `hear`."""
    if not alone():
        broadcast_object_list([order])


def hear() -> Any:
    """What the first process tells next."""
    heard = [None]
    broadcast_object_list(heard)
    return heard[0]


def agreed(*values: float) -> list[float]:
    """The first process's values, in every process."""
    if alone():
        return list(values)
    shared: list[float] = broadcast(torch.tensor(values, dtype=torch.float64, device=device())).tolist()
    return shared


def all_failed(trial: str) -> bool:
    """Whether a trial fails in the other processes, too, as it does in this one; they have `guard.LEAST_SILENCE` seconds for it.

    One that did not fail waits for numbers of this one, and would for half an hour. It cannot be asked; but those that failed can
    count themselves where all have met.
    """
    if alone():
        return True
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # not in every build of torch

    where, everyone = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])), accelerator().num_processes
    store, until = TCPStore(*where, is_master=False), time.monotonic() + guard.LEAST_SILENCE
    failed = store.add(trial, 1)
    expected = math.ceil(failed / everyone) * everyone  # it may have failed before
    while failed < expected and time.monotonic() < until:
        time.sleep(0.1)
        failed = store.add(trial, 0)
    return bool(failed >= expected)


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """The mean gradient of all processes, whatever shape the strategy's loss has."""
    if alone():
        return
    for parameter in parameters:
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        parameter.grad = accelerator().reduce(gradient, reduction="mean")


def average_statistics(model: nn.Module) -> None:
    """The mean of what batch norm has seen in each process; weights are the same everywhere already."""
    if alone():
        return
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.copy_(accelerator().reduce(buffer, reduction="mean"))
