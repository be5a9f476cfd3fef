"""What using a network costs, on real networks."""

from __future__ import annotations

import builtins
import sys
import time
from typing import Any

import pytest
import torch
from small import QUICK
from torch import nn

from automl_tl.backbones import build, catalogue
from automl_tl.evaluation.cost import NO_COUNTER, NO_LIBRARY, Speed, energy_of, inference_cost, multiply_adds, time_passes


def test_multiply_adds_by_hand() -> None:
    """3×3 convolution, 3 → 8 channels, on 10×10 (padded): 100·8·27; then 8·100 → 5: 4000. ReLU and sums are not counted."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(800, 5)).eval()
    assert multiply_adds(net, 10) == 100 * 8 * 27 + 4000


def test_those_of_a_network_are_those_of_its_card() -> None:
    backbone = catalogue()[QUICK]
    assert multiply_adds(build(backbone), backbone.input_size) == pytest.approx(backbone.macs, rel=0.05)


def test_a_pass_takes_as_long_as_it_takes() -> None:
    class Slow(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            time.sleep(0.02)
            return images

    speed = time_passes(Slow(), 4, 8, seconds=0.1)
    assert 0.02 <= speed.seconds < 0.06
    assert speed.throughput == pytest.approx(8 / speed.seconds)
    assert Speed(64, 0.5).throughput == 128


def test_the_cost_of_a_real_network() -> None:
    backbone = catalogue()[QUICK]
    cost = inference_cost(build(backbone), backbone.input_size, batches=(1, 16), seconds=0.05)
    one, many = cost.speeds
    assert (one.batch, many.batch) == (1, 16)
    assert 0 < one.seconds < many.seconds < 16 * one.seconds
    assert cost.params == pytest.approx(backbone.params, rel=0.01)
    assert cost.memory_mb > 10
    assert (cost.energy.joules is None) == bool(cost.energy.reason)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="no other system tells a process's peak")
def test_peak_memory_is_that_of_the_passes() -> None:
    """What a pass takes and gives back counts; what was before it does not."""

    class Large(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images + torch.ones(200 * 2**18).sum() * 0

    small = inference_cost(nn.Identity(), 4, batches=(1,), seconds=0.01).memory_mb
    large = inference_cost(Large(), 4, batches=(1,), seconds=0.01).memory_mb
    assert large > small + 150
    assert inference_cost(nn.Identity(), 4, batches=(1,), seconds=0.01).memory_mb < large - 150


def test_energy_is_read_or_a_reason_given() -> None:
    done: list[int] = []
    energy = energy_of(lambda: done.append(1))
    if energy.joules is None:
        assert energy.reason
    else:
        assert energy.joules > 0
        assert done == [1]


def test_without_the_library_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("zeus"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    assert energy_of(lambda: None).reason == NO_LIBRARY


def test_with_the_library_but_no_counter_it_says_so() -> None:
    zeus = pytest.importorskip("zeus.monitor", reason="needs the extra automl_tl[energy], which is not installed")
    monitor = zeus.ZeusMonitor()
    if monitor.gpu_indices or monitor.cpu_indices:
        pytest.skip("this machine has energy counters")
    assert energy_of(lambda: None).reason == NO_COUNTER
