"""As many threads as there are processors for us, which may be fewer than the machine has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from automl_tl.threads import processors, spread

SETTLED = """
import torch
from automl_tl.device import device
device()
print(torch.get_num_threads())
"""


def test_a_quota_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= processors() <= (os.cpu_count() or 1)
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")
    assert processors() == 1
    assert list(spread(str, range(3000))) == [str(number) for number in range(3000)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="where a GPU computes the processor's threads are few anyway")
@pytest.mark.parametrize(("threads", "quota", "settled"), [("2", "1", 1), ("2", "2", 2), ("1", "2", 1)])
def test_torch_computes_with_no_more_threads_than_that(tmp_path: Path, threads: str, quota: str, settled: int) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "LOKY_MAX_CPU_COUNT": quota, "AUTOML_TL_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", SETTLED], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) == min(settled, processors())
