"""Training on several processes, as `accelerate launch` and torchrun start them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
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


@pytest.mark.slow
def test_two_processes_train_one_model(tmp_path: Path) -> None:
    script, out = tmp_path / "script.py", tmp_path / "run"
    script.write_text(SCRIPT)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script), str(out)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(launch, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((out / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert first[1]["accuracy"] > 0.3, "160 digits teach more than chance"
    assert (out / "report.html").exists()
    assert (out / "model" / "model.safetensors").exists()
