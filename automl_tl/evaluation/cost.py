"""What using a network costs on this machine: measured, not looked up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from automl_tl.device import channels_last, device, memory_mb, reset_memory

BATCHES = (1, 64)
FEWEST, MOST = 3, 200
"""Timed passes; fewer where they take longer than `PATIENCE` together."""
PATIENCE = 2.0
NO_LIBRARY = "the library Zeus is not installed (pip install 'automl_tl[energy]')"
NO_COUNTER = "this machine lets no energy counter be read"


@dataclass(frozen=True)
class Speed:
    """Forward passes of one batch size."""

    batch: int
    seconds: float
    """Of a pass: a tenth of all passes were faster, for what else the machine was doing should not count."""

    @property
    def throughput(self) -> float:
        """Images a second."""
        return self.batch / self.seconds


@dataclass(frozen=True)
class Energy:
    """What a machine's own counters said; without any there is a reason in the place of a figure."""

    joules: float | None
    """Of every processor that has a counter, the machine's other work included."""
    reason: str = ""


@dataclass(frozen=True)
class InferenceCost:
    """Of one network, at one input size."""

    speeds: tuple[Speed, ...]
    macs: int
    """Multiply-adds of one image, counted in a forward pass."""
    params: int
    memory_mb: float
    """Peak memory: of the GPU, or of the whole process."""
    energy: Energy
    """Of one image, in the largest batch."""

    def in_words(self, disk: int) -> list[tuple[str, str]]:
        """A row a figure. `disk`: bytes of the weights' file."""
        rows = []
        for speed in self.speeds:
            words = "one image" if speed.batch == 1 else f"a batch of {speed.batch}"
            rows.append((words, f"{brief(1000 * speed.seconds)} ms, {brief(speed.throughput)} images a second"))
        joules = self.energy.joules
        return [
            *rows,
            ("multiply-adds of an image", f"{self.macs / 1e6:.4g} million"),
            ("parameters", f"{self.params / 1e6:.3g} million"),
            ("peak memory", f"{self.memory_mb:.0f} MB"),
            ("on disk", f"{disk / 1e6:.1f} MB"),
            ("energy of an image", f"not measurable: {self.energy.reason}" if joules is None else f"{1000 * joules:.3g} mJ"),
        ]


def brief(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def inference_cost(net: nn.Module, size: int, *, batches: tuple[int, ...] = BATCHES, seconds: float = 0.3) -> InferenceCost:
    """Time `net` on `size`×`size` images for about `seconds` a batch size, on the device and in the threads of this process."""
    net = channels_last(net.eval())
    reset_memory()
    speeds = tuple(time_passes(net, size, batch, seconds=seconds) for batch in batches)
    largest = max(batches)
    images = _images(largest, size)
    passes = max(1, int(seconds / speeds[batches.index(largest)].seconds))
    spent = energy_of(lambda: [_finished(net, images) for _ in range(passes)])
    joules = None if spent.joules is None else spent.joules / (passes * largest)
    params = sum(parameter.numel() for parameter in net.parameters())
    return InferenceCost(speeds, multiply_adds(net, size), params, memory_mb(), Energy(joules, spent.reason))


def time_passes(net: nn.Module, size: int, batch: int, *, seconds: float = 0.3) -> Speed:
    """Time of a forward pass, in evaluation mode and single precision, on the device of this process; one pass to warm up is not
    counted."""
    net = channels_last(net.eval())
    images = _images(batch, size)
    taken: list[float] = []
    _finished(net, images)
    until = time.perf_counter() + seconds
    while not taken or (sum(taken) < PATIENCE and len(taken) < (MOST if time.perf_counter() < until else FEWEST)):
        start = time.perf_counter()
        _finished(net, images)
        taken.append(time.perf_counter() - start)
    return Speed(batch, float(np.quantile(taken, 0.1)))


@torch.inference_mode()
def multiply_adds(net: nn.Module, size: int) -> int:
    """Of the convolutions and matrix products of one image, as PyTorch counts them (it counts two operations each)."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        net(_images(1, size))
    return int(counter.get_total_flops() // 2)


def energy_of(work: Callable[[], object]) -> Energy:
    """What the machine's counters (NVML, RAPL) say that `work` took.

    Nothing is estimated from a data sheet: where no counter can be read, `work` is not done and there is no figure.
    """
    with _quiet_zeus():
        try:
            from zeus.monitor import ZeusMonitor
        except ImportError:
            return Energy(None, NO_LIBRARY)
        monitor = ZeusMonitor()
    if not (monitor.gpu_indices or monitor.cpu_indices):
        return Energy(None, NO_COUNTER)
    monitor.begin_window("work")
    work()
    found = monitor.end_window("work")
    parts = [found.gpu_energy, found.cpu_energy, found.dram_energy]
    joules = sum(value for part in parts if part for value in part.values())
    return Energy(float(joules)) if joules > 0 else Energy(None, "the counters did not move in so short a time")


@contextmanager
def _quiet_zeus() -> Iterator[None]:
    """Zeus tells of each kind of counter that it does not find; the reason in `Energy` is enough."""
    import logging

    logger = logging.getLogger("zeus")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def _images(batch: int, size: int) -> torch.Tensor:
    images = torch.zeros(batch, 3, size, size, device=device())
    return images.contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def _finished(net: nn.Module, images: torch.Tensor) -> None:
    net(images)
    if images.device.type != "cpu":
        torch.accelerator.synchronize()
