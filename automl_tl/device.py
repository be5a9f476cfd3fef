"""Where training happens and in which precision, and how much memory it takes."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import torch
from torch import nn

from .threads import processors

if TYPE_CHECKING:
    from accelerate import Accelerator

NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "bad_alloc", "alloc_failed")
"""What says so among plain RuntimeErrors: torch's allocators for processors, Apple's devices, cuBLAS, oneDNN."""
STATUS, FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
"""Where Linux tells the most memory that a process had (VmHWM), and forgets it where a 5 is written (proc(5))."""
FEEDING = 4
"""Threads of the processor within an operation, where a GPU computes. With as many as there are cores they get in the way of what
feeds it: on sixteen, ViT-S gave its features of 13,000 images a second, not of 17,000."""


@cache
def accelerator() -> Accelerator:
    """The process's one Accelerator: CPU, CUDA, or one of several processes of `accelerate launch`.

    Whoever asks for it first settles how many threads torch computes with on the processor: it would take as many as the machine
    has cores, also in a container that may use two of them, where they wait for one another at every operation.
    """
    from accelerate import Accelerator

    chosen = Accelerator(mixed_precision="no")
    most = FEEDING if chosen.device.type == "cuda" else processors()
    if most < torch.get_num_threads():
        torch.set_num_threads(most)
    return chosen


def device() -> torch.device:
    """The device of this process."""
    chosen: torch.device = accelerator().device
    return chosen


def precision(net: nn.Module) -> torch.dtype:
    """The number format that `net` is fastest in on this device, by facts alone, so that it never changes between runs.

    CUDA: bf16 where the hardware has it, else fp16. CPU: bf16 where the processor multiplies it (AMX tiles, or AVX-512's own
    instructions: an embedded ResNet trains 1.7 times as fast on an AMD EPYC), but fp32 for networks with depthwise convolutions,
    which oneDNN runs slower in bf16 (MobileNetV4: 363 against 658 images a second).
    """
    if device().type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if multiplies_bf16() and not _has_depthwise(net) else torch.float32


@cache
def multiplies_bf16() -> bool:
    """Whether this device is a processor with instructions for it."""
    return device().type == "cpu" and not _cpu_flags().isdisjoint(("amx_bf16", "avx512_bf16"))


def _cpu_flags() -> frozenset[str]:
    """What Linux says of the processor; nothing is known elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())


def _has_depthwise(net: nn.Module) -> bool:
    return any(isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels > 1 for layer in net.modules())


def autocast(dtype: torch.dtype) -> AbstractContextManager[object]:
    """Run a forward pass in `dtype`."""
    return torch.autocast(device().type, dtype, enabled=dtype != torch.float32)


def memory_mb() -> float:
    """Peak memory in MB since the last `reset_memory`: of the GPU, or of the process, where only Linux tells its peak; elsewhere
    it is what the process has now."""
    if device().type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    now = float(psutil.Process().memory_info().rss) / 2**20
    return max(now, _peak_mb()) if os.access(FORGET, os.W_OK) else now


def reset_memory() -> None:
    if device().type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif os.access(FORGET, os.W_OK):
        with suppress(OSError):  # a container may keep it from being written
            FORGET.write_text("5")


def _peak_mb() -> float:
    """Of the process, as Linux tells it."""
    lines = STATUS.read_text(encoding="utf-8").splitlines()
    return max((float(line.split()[1]) / 2**10 for line in lines if line.startswith("VmHWM:")), default=0.0)


@contextmanager
def settled() -> Iterator[None]:
    """What is there when the block begins stays to its end, and `release_memory` need not look through it.

    Libraries and a ranking are half a million objects: a quarter of a second for each trial.
    """
    outermost = gc.get_freeze_count() == 0
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        if outermost:
            gc.unfreeze()


def release_memory() -> None:
    """Give back what nothing refers to any more, also what only refers to itself, as hooks and their modules do."""
    gc.collect()
    if device().type == "cuda":
        torch.cuda.empty_cache()


@contextmanager
def chance_put_back() -> Iterator[None]:
    """What is seeded and drawn inside is not seen outside: torch's generator belongs to the whole program that called us."""
    here = device()
    with torch.random.fork_rng([here] if here.type == "cuda" else []):
        yield


def out_of_memory(error: BaseException) -> bool:
    """Whether it says that there is no memory left, of the device or of the machine: torch has an error of its own for the first
    only."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in NO_MEMORY)


def hardware() -> str:
    """The device in words, for provenance."""
    if device().type == "cuda":
        return torch.cuda.get_device_name()
    return f"CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def channels_last(net: nn.Module) -> nn.Module:
    """`net` on this process's device, in the memory layout that convolutions are fastest in."""
    net.to(device())
    net.to(memory_format=torch.channels_last)
    return net
