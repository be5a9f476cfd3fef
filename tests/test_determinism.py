"""The same seed, the same answer, to the last bit: whoever decodes the images, and whether or not the search was interrupted."""

from __future__ import annotations

import contextlib
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import lay, real_images
from small import QUICK, TINY, digits

from automl_tl import Outcome, Point, Task, Trial, fit, load_task, predict
from automl_tl.pixels import decode
from automl_tl.records import TEST


class Interrupting:
    """A tracker that presses Ctrl-C when so many epochs have ended."""

    name = "interrupting"

    def __init__(self, after: int) -> None:
        self.left = after

    def opened(self, task: Task, seconds: float, folder: Path) -> None: ...

    def started(self, trial: Trial) -> None: ...

    def epoch(self, trial: Trial, point: Point) -> None:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt

    def finished(self, trial: Trial) -> None: ...


def decided(outcome: Outcome, out: Path, images: list[Any]) -> dict[str, Any]:
    """All that an answer is made of, but what the clock says."""
    trials = {
        trial.id: (trial.status, [(p.epoch, p.loss, p.score) for p in trial.curve], dict(trial.validation), trial.error)
        for trial in outcome.trials
    }
    ranked = [(item.candidate.id, item.score, item.low, item.high, item.reasons) for item in outcome.ranking.items]
    profile = {name: value for name, value in asdict(outcome.profile).items() if name != "seconds"}
    found: dict[str, Any] = {"ranking": ranked, "trials": trials, "order": list(trials), "profile": profile}
    found |= {"winner": outcome.winner.id, "test": dict(outcome.winner.test)}
    return found | {
        "probabilities": predict(out, images).probabilities.tobytes(),
        "weights": (out / "model" / "model.safetensors").read_bytes(),
    }


def interrupted(task: Task, out: Path, after: int, **chosen: Any) -> None:
    """Before a model was kept, Ctrl-C goes through; later the search ends with the best so far."""
    with contextlib.suppress(KeyboardInterrupt):
        assert fit(task, out=out, trackers=[Interrupting(after)], **chosen).interrupted


def check_the_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert one[name] == other[name], f"the {name} differ"


@pytest.mark.usefixtures("used_home")
def test_the_same_seed_gives_the_same_answer_to_the_last_bit(tmp_path: Path) -> None:
    """In one home: by the second time the first run is in the history, but advice does not rest on the task's own trials."""
    task = digits(120)
    images = [task.images[i] for i in task.part(TEST)[:20]]
    chosen: dict[str, Any] = {"budget": "3 trials + 6 epochs", "backbones": [TINY, QUICK], "seed": 3}
    whole = decided(fit(task, out=tmp_path / "one", **chosen), tmp_path / "one", images)
    assert sum(len(curve) for _, curve, *_ in whole["trials"].values()) > 3, "there is something to interrupt"
    interrupted(task, tmp_path / "another", 3, **chosen)
    check_the_same(whole, decided(fit(task, out=tmp_path / "another", **chosen), tmp_path / "another", images))


@pytest.mark.slow
def test_so_it_does_on_photographs_in_files(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In homes of their own: one run decodes on one core; the other on all, and is interrupted twice on the way."""
    place = lay(tmp_path / "signs", real_images(shared / "data" / "sign_digits.zip", "train", 10, 24))
    chosen: dict[str, Any] = {"budget": "8 trials + 24 epochs", "backbones": [TINY, QUICK], "seed": 3}
    found, cores = [], os.sched_getaffinity(0)
    for name, those, stops in (("one", {min(cores)}, []), ("another", cores, [4, 9])):
        monkeypatch.setenv("AUTOML_TL_HOME", str(tmp_path / f"home of {name}"))
        os.sched_setaffinity(0, those)
        try:
            task, out = load_task(place, test=0.25, seed=3), tmp_path / name
            for after in stops:
                interrupted(task, out, after, **chosen)
            images = [task.images[i] for i in task.part(TEST)[:20]]
            found.append(decided(fit(task, out=out, **chosen), out, images) | {"fingerprint": task.fingerprint})
        finally:
            os.sched_setaffinity(0, cores)
    check_the_same(*found)
    other = fit(task, out=tmp_path / "other seed", **{**chosen, "seed": 4, "budget": "1 trials + 1 epochs"})
    assert {trial.id for trial in other.trials}.isdisjoint(found[0]["trials"]), "the seed matters"


def test_pixels_do_not_depend_on_who_decodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cores, found = os.sched_getaffinity(0), []
    for number, those in enumerate([{min(cores)}, cores]):
        monkeypatch.setenv("AUTOML_TL_HOME", str(tmp_path / str(number)))
        os.sched_setaffinity(0, those)
        try:
            found.append(np.array(decode(digits(60), 24).array))
        finally:
            os.sched_setaffinity(0, cores)
    np.testing.assert_array_equal(*found)
