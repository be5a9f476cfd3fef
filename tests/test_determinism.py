"""The same seed on the same machine: the same ranking, trials and winner, bit for bit, however many processors decode.

That an interrupted and resumed run gives what an undisturbed one does is shown in test_faults.py and test_loop.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from small import QUICK

SCRIPT = """
import hashlib, json, os, sys
os.sched_setaffinity(0, set(list(os.sched_getaffinity(0))[:{cores}]))
from small import arrays
import automl_tl
images, labels = arrays(160)
told = []
outcome = automl_tl.fit(
    (images, labels), budget="2 trials", out={out!r}, seed=3, backbones=[{quick!r}], strategies=["linear-probe", "fine-tuning"],
    told=lambda task, advice: told.extend(repr((one.candidate, one.score, one.low, one.high)) for one in advice.ranking.items),
)
trials = sorted((trial.id, trial.status, sorted(trial.validation.items())) for trial in outcome.trials)
chances = automl_tl.predict({out!r}, images).probabilities
print(json.dumps([told, trials, outcome.winner.id, hashlib.sha256(chances.tobytes()).hexdigest()]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processors cannot be chosen here")
def test_the_same_seed_gives_the_same_bits_whatever_the_processors(tmp_path: Path) -> None:
    said = []
    for cores in (1, 2):
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
        environment["AUTOML_TL_HOME"] = str(tmp_path / f"home {cores}")
        code = SCRIPT.format(cores=cores, out=str(tmp_path / f"run {cores}"), quick=QUICK)
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout.splitlines()[-1])
    assert said[0] == said[1]
