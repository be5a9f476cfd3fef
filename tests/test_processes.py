"""Training on several processes, as `accelerate launch` and torchrun start them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = """
import json, os, sys
from pathlib import Path
import numpy as np
from sklearn.datasets import load_digits
import automl_tl

digits = load_digits()
images = [np.uint8(image * 15) for image in digits.images[:240]]
outcome = automl_tl.fit(
    (images, digits.target[:240].tolist()), budget="1 trials", out=sys.argv[1], seed=3,
    strategies=["fine-tuning"], backbones=["resnet10t_24.omniglot_a_64"],
)
rank = os.environ.get("RANK", "alone")
winner = outcome.winner
Path(sys.argv[1], f"rank-{rank}.json").write_text(json.dumps([winner.id, winner.validation, len(outcome.trials)]))
"""


FAILING = """
import os
from automl_tl import guard, registry

guard.LEAST_SILENCE = 5.0

class Failing(registry.strategies()["fine-tuning"]):
    def start_epoch(self, model, epoch):
        super().start_epoch(model, epoch)
        if epoch and os.environ["RANK"] in os.environ["FAIL"]:
            raise RuntimeError("out of cheese")

registry.strategies()["fine-tuning"] = Failing
"""


def launched(folder: Path, script: str, **more: str) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The run's folder, and what two processes came to."""
    path, out = folder / "script.py", folder / "run"
    path.write_text(script)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(path), str(out)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", **more}
    return out, subprocess.run(launch, env=environment, capture_output=True, text=True, timeout=400, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("rank", ["0", "1"])
def test_who_fails_alone_ends_and_is_not_waited_for(rank: str, tmp_path: Path) -> None:
    start = time.monotonic()
    _, done = launched(tmp_path, FAILING + SCRIPT, FAIL=rank)
    assert done.returncode == 1
    assert time.monotonic() - start < 200, "the other would wait for half an hour"
    said = "fine-tuning: RuntimeError: out of cheese; only in one of several processes, which cannot go on without each other"
    assert f"[rank{rank}]: automl_tl.errors.TrialError: {said}" in done.stderr


@pytest.mark.slow
def test_a_trial_that_fails_in_all_processes_ends_alone(tmp_path: Path) -> None:
    _, done = launched(tmp_path, FAILING + SCRIPT, FAIL="0,1")
    assert "BudgetError: no model was trained within the budget: every trial failed, the last with: fine-tuning: " in done.stderr


@pytest.mark.slow
def test_two_processes_train_one_model(tmp_path: Path) -> None:
    out, done = launched(tmp_path, SCRIPT)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((out / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert first[1]["accuracy"] > 0.3, "160 digits teach more than chance"
    assert (out / "report.html").exists()
    assert (out / "model" / "model.safetensors").exists()
