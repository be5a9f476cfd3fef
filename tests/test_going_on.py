"""The same folder again: what was advised, what was spent, what a larger budget may look at."""

from __future__ import annotations

import errno
import json
import os
import resource
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from small import QUICK, TINY, digits

from automl_tl import Candidate, Outcome, Profile, Ranked, Ranking, Trial, checkpoint, crowning, fit, loop
from automl_tl.advice import KEPT, Advice, advice_of, changes, keep_advice
from automl_tl.backbones import catalogue
from automl_tl.crowning import notes_on
from automl_tl.errors import InputError, no_room
from automl_tl.history import open_history
from automl_tl.objectives import RETENTION, ROBUSTNESS
from automl_tl.progress import read_trials
from automl_tl.records import KEPT_TEST, KEPT_UNTESTED

pytestmark = pytest.mark.usefixtures("used_home")


@pytest.mark.slow
def test_a_finished_run_costs_nothing_again_and_a_larger_budget_looks_at_more_networks(tmp_path: Path) -> None:
    def run(budget: str) -> tuple[float, set[str]]:
        outcome = fit(digits(), budget=budget, out=tmp_path / "run", strategies=["nearest-mean"])
        return outcome.seconds, set(outcome.profile.transferability)

    first, few = run("30s + 1 trials")
    again, same = run("30s + 1 trials")
    assert again == first
    assert same == few
    assert len(few) == 3
    _, more = run("10m + 2 trials")
    assert len(more) == 6
    assert len(list((tmp_path / "run" / "trials").glob("*/trial.json"))) == 2, "what was trained is not trained again"


def test_a_budget_that_is_used_up_is_told_of(tmp_path: Path) -> None:
    def notes(budget: str) -> str:
        only = {"strategies": ["nearest-mean"], "backbones": [TINY]}
        return " / ".join(fit(digits(), budget=budget, out=tmp_path / "run", **only).notes)

    assert "used up" not in notes("10m + 1 trials")
    assert "the budget of 1 trial is used up (" in notes("10m + 1 trials")
    (tmp_path / "run" / "spent.json").write_text('{"seconds": 50.0}')
    said = "the budget of 10 s is used up (50 s spent); nothing more was trained; give more to go on"
    assert said in notes("10s + 5 trials")


def test_the_order_in_which_names_are_given_makes_no_other_run(tmp_path: Path) -> None:
    """`run.json` as runs before 2026-11-28 wrote it, in the order of the command; and a whole run, whose second start is free."""
    before = {"fingerprint": "f", "seed": 0, "zoo": None, "strategies": ["lda", "knn"], "backbones": [], "remember": []}
    (tmp_path / "run.json").write_text(json.dumps(before))
    assert changes(tmp_path, {**before, "strategies": ["knn", "lda"]}) == []
    assert changes(tmp_path, {**before, "strategies": ["knn"]}) == ["strategies"]
    (tmp_path / "run.json").write_text(json.dumps({**before, "strategies": ["lda", {}]}))
    with pytest.raises(InputError, match=r"run\.json: is damaged: .*; choose another --out or delete it"):
        changes(tmp_path, before)
    out = tmp_path / "run"
    first, second = (
        fit(digits(), budget="10m + 1 trials", out=out, strategies=names, backbones=[TINY])
        for names in (["nearest-mean", "knn"], ["knn", "nearest-mean", "knn"])
    )
    assert (first.winner.id, first.seconds) == (second.winner.id, second.seconds)


def test_an_advice_that_outlasts_the_budget_is_told_of(tmp_path: Path) -> None:
    outcome = fit(digits(), budget="1s + 1 trials", out=tmp_path / "run", strategies=["nearest-mean"], backbones=[TINY])
    assert any("the advice took" in note for note in outcome.notes)
    assert "The advice took" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_the_best_probe_of_each_network_is_kept_however_far_down_it_is(tmp_path: Path) -> None:
    def ranked(strategy: str, backbone: str, number: int, **values: float) -> Ranked:
        return Ranked(Candidate(backbone, strategy, {**values, "number": number}), 0.9, 0.8, 1.0, 1.0, 1.0)

    trained = [ranked("fine-tuning", QUICK, number, epochs=6) for number in range(KEPT)]
    probes = [ranked("lda", name, number) for number, name in enumerate((TINY, TINY, QUICK))]
    profile = Profile("t", "f", {}, {}, {})
    advice = Advice(profile, Ranking((*trained, *probes), "a test", 2), {name: catalogue()[name] for name in (QUICK, TINY)})
    kept = keep_advice(tmp_path, {}, advice, 3)
    assert list(kept.ranking.items) == [*trained, probes[0], probes[2]]
    read, looks = advice_of(tmp_path)
    assert [item.candidate for item in read.ranking.items] == [item.candidate for item in kept.ranking.items]
    assert looks == 3


def test_a_new_advice_keeps_the_networks_of_the_trials(tmp_path: Path) -> None:
    """They may be gone from the zoo since; of others that were only ranked nothing is kept."""

    def advice(ranked: str, at_hand: Sequence[str]) -> Advice:
        item = Ranked(Candidate(ranked, "lda"), 0.9, 0.8, 1.0, 1.0, 1.0)
        return Advice(Profile("t", "f", {}, {}, {}), Ranking((item,), "a test", 2), {name: catalogue()[name] for name in at_hand})

    keep_advice(tmp_path, {}, advice(TINY, [TINY, QUICK]), 3)
    trial = Trial("0123", "f", Candidate(TINY, "lda"), 0, "finished", validation={"accuracy": 0.9})
    (tmp_path / "trials" / trial.id).mkdir(parents=True)
    (tmp_path / "trials" / trial.id / "trial.json").write_text(json.dumps(asdict(trial)))
    for ranked, at_hand in ((QUICK, [QUICK]), (QUICK, [TINY, QUICK])):
        kept = keep_advice(tmp_path, {}, advice(ranked, at_hand), 6)
        assert kept.backbones[TINY] == catalogue()[TINY]
        assert advice_of(tmp_path)[0].backbones == {name: catalogue()[name] for name in (TINY, QUICK)}
    (tmp_path / "trials" / trial.id / "trial.json").unlink()
    keep_advice(tmp_path, {}, advice(QUICK, [TINY, QUICK]), 6)
    assert set(advice_of(tmp_path)[0].backbones) == {QUICK}


@pytest.mark.parametrize("changed", [pytest.param("strategy", marks=pytest.mark.slow), "hyperparameters"])
def test_what_a_plan_has_of_a_plugin_that_is_gone_or_has_changed_is_not_tried(changed: str, tmp_path: Path) -> None:
    """It failed, trial by trial, and stayed failed once the plugin was back."""
    task, chosen = digits(60), {"strategies": ["nearest-mean", "lda"], "backbones": [QUICK], "out": tmp_path}
    fit(task, budget="1 trials", **chosen)
    path = tmp_path / "advice.json"
    advice = json.loads(path.read_text(encoding="utf-8"))
    for item in advice["ranking"]["items"]:
        item["candidate"][changed] = {"strategy": "gone", "hyperparameters": {"gone": 1}}[changed]
    path.write_text(json.dumps(advice), encoding="utf-8")
    assert [trial.error for trial in fit(task, budget="2 trials", **chosen).trials] == ["", ""]


def test_a_full_disk_costs_no_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is to blame for it; with room again the same call goes on, and comes to what it would have come to."""

    def run() -> Outcome:
        return fit(digits(), budget="2 epochs", out=tmp_path / "run", strategies=["fine-tuning"], backbones=[TINY])

    def full(path: Path, *_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "write_tensors", full)
        patched.setattr(loop, "SAVING", 1e-9)
        with pytest.raises(OSError, match="No space left on device"):
            run()
    assert all(trial.status != "failed" for trial in read_trials(tmp_path / "run"))
    with open_history() as history:
        assert not history.find(status="failed", strategy="fine-tuning")[0]
    outcome = run()
    assert all(trial.status != "failed" for trial in outcome.trials)


def test_what_safetensors_says_of_a_full_disk_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """First a file that may not become so large, for real; then the words that came of a tmpfs of 64 kB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, before[1]))
    try:
        with pytest.raises(OSError, match=r"large\.safetensors") as large:
            checkpoint.write_tensors(tmp_path / "large.safetensors", {"a": torch.zeros(10**5)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert large.value.errno == errno.EFBIG

    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match=r"a\.safetensors") as left:
        checkpoint.write_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(1)})
    assert no_room(left.value)


def test_images_that_cannot_be_decoded_anew_cost_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the cache was deleted and the disk is fuller than before: it is not the winner's fault."""

    def run() -> Outcome:
        return fit(digits(), budget="1 trials", out=tmp_path / "run", strategies=["nearest-mean"], backbones=[TINY])

    def none_left(*_: Any, **__: Any) -> None:
        raise InputError("decoded images need 9 MB, but 1 are free")

    first = run()
    with monkeypatch.context() as patched:
        patched.setattr(crowning, "pixels_of", none_left)
        with pytest.raises(InputError, match="decoded images need 9 MB"):
            run()
    assert run().winner == first.winner


def test_what_no_test_image_told_is_said() -> None:
    trial = Trial("0123", "f", Candidate(TINY, "lda"), 0, "finished", validation={"accuracy": 0.9})
    hard = replace(digits(), objective=ROBUSTNESS, epsilon=8 / 255)
    (note,) = notes_on(hard, trial)
    assert "--robust 0.0314` judges it by stronger ones" in note
    assert not notes_on(hard, replace(trial, test={"accuracy": 0.8}))
    later, tested = replace(digits(), objective=RETENTION), replace(trial, test={"accuracy": 0.8, "kept": 0.7, "new": 0.9})
    assert notes_on(later, tested) == (KEPT_UNTESTED,)
    assert not notes_on(replace(later, splits={**later.splits, KEPT_TEST: np.arange(2)}), tested)
