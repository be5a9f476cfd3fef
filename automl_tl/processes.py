"""Several processes of `accelerate launch`: the first one decides, writes and speaks; the others train along."""

from __future__ import annotations

from typing import Any

import torch
from accelerate.utils import broadcast, broadcast_object_list
from torch import nn

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
