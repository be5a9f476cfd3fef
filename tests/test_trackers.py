"""What trackers keep is read back from their files."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small import QUICK, digits

from automl_tl import Candidate, Point, Task, Trial, api, fit, registry
from automl_tl.errors import PluginError
from automl_tl.records import trial_id

CANDIDATE = Candidate(QUICK, "fine-tuning", {"rate": 0.002, "epochs": 3, "augmentation": "light", "flip": False})
CURVE = tuple(Point(epoch, float(epoch), 1.0 / epoch, 0.5 + epoch / 10) for epoch in (1, 2, 3))


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOML_TL_HOME", str(tmp_path_factory.mktemp("home")))
        return digits(120)


def trial(task: Task, candidate: Candidate = CANDIDATE) -> Trial:
    return Trial(trial_id(task.fingerprint, candidate, 0), task.fingerprint, candidate, 0, "running")


def tell_of(tracker: Any, task: Task, folder: Path) -> None:
    """A trial paused after its first epoch that goes on in another start, one that reports only in the end, one that fails."""
    probe = trial(task, Candidate(QUICK, "linear-probe"))
    broken = trial(task, Candidate(QUICK, "broken"))
    scores = {"accuracy": 0.75, "log_loss": 0.5}
    tracker.opened(task, math.inf, folder)
    tracker.started(trial(task))
    tracker.epoch(trial(task), CURVE[0])
    tracker.finished(replace(trial(task), status="stopped", curve=CURVE[:1], validation=scores, seconds=1.0))
    tracker.opened(task, math.inf, folder)
    tracker.started(trial(task))
    for point in CURVE[1:]:
        tracker.epoch(trial(task), point)
    final = {"accuracy": 0.8, "log_loss": 0.4}
    tracker.finished(replace(trial(task), status="finished", curve=CURVE, validation=final, seconds=3.0))
    tracker.started(probe)
    tracker.finished(replace(probe, status="finished", curve=CURVE[:1], validation=scores, seconds=1.0))
    tracker.started(broken)
    tracker.finished(replace(broken, status="failed", error="broken: it broke"))


HEAD, HALF = Point(0, 0.0, None, 0.5, note="head alone"), Point(2.5, 2.5, None, 0.75)
ONCE = [(0, 0.5), (1, 0.6), (2, 0.7), (3, 0.75), (4, 0.8)]
"""Steps and scores of `tell_again`; epoch 2.5 has step 3, so epoch 3 has the next."""


def tell_again(tracker: Any, task: Task, folder: Path) -> None:
    """A trial with points that it does not report, which a second start has no time for and a third one goes on with."""
    scores = {"accuracy": 0.75, "log_loss": 0.5}
    paused = replace(trial(task), status="stopped", curve=(HEAD, *CURVE[:2]), validation=scores, seconds=2.0)
    tracker.opened(task, math.inf, folder)
    tracker.started(trial(task))
    for point in CURVE[:2]:
        tracker.epoch(trial(task), point)
    tracker.finished(paused)
    tracker.opened(task, math.inf, folder)
    tracker.started(trial(task))
    tracker.finished(paused)
    tracker.opened(task, math.inf, folder)
    tracker.started(trial(task))
    tracker.epoch(trial(task), CURVE[1])  # as after a kill, when an epoch is trained again
    tracker.finished(replace(paused, curve=(HEAD, *CURVE[:2], HALF), seconds=2.5))
    tracker.started(trial(task))
    tracker.epoch(trial(task), CURVE[2])
    tracker.finished(replace(paused, status="finished", curve=(HEAD, *CURVE), seconds=3.0))


def events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return found


def scalars(found: Any, tag: str) -> list[tuple[int, float]]:
    """Steps and values, by step: event files of one second are read in any order."""
    return sorted((event.step, event.value) for event in found.Scalars(tag))


def test_tensorboard_has_curves_hyperparameters_and_scores(task: Task, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs pip install 'automl_tl[tensorboard]'")
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    tell_of(registry.trackers()["tensorboard"], task, tmp_path)
    tuned, probe, broken = (
        next((tmp_path / "tensorboard").glob(f"{name} on {QUICK} *")) for name in ("fine-tuning", "linear-probe", "broken")
    )
    found = events(tuned)
    np.testing.assert_allclose(scalars(found, "validation/score"), [(1, 0.6), (2, 0.7), (3, 0.8)], rtol=1e-6)
    np.testing.assert_allclose(scalars(found, "training/loss"), [(1, 1), (2, 1 / 2), (3, 1 / 3)], rtol=1e-6)
    assert scalars(found, "final/accuracy")[-1] == (3, pytest.approx(0.8))
    content = found.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    kept = HParamsPluginData.FromString(content).session_start_info.hparams
    assert kept["rate"].number_value == 0.002
    assert kept["strategy"].string_value == "fine-tuning"
    assert kept["augmentation"].string_value == "light"
    assert kept["flip"].bool_value is False
    assert [event.step for event in events(probe).Scalars("validation/score")] == [1]
    assert "final/accuracy" not in events(broken).Tags()["scalars"]
    assert b"it broke" in events(broken).Tensors("trial/text_summary")[0].tensor_proto.string_val[0]


def test_tensorboard_has_each_point_once(task: Task, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs pip install 'automl_tl[tensorboard]'")
    tracker: Any = registry.trackers()["tensorboard"]
    tell_again(tracker, task, tmp_path)
    (folder,) = (tmp_path / "tensorboard").iterdir()
    found = events(folder)
    np.testing.assert_allclose(scalars(found, "validation/score"), ONCE, rtol=1e-6)
    assert [step for step, _ in scalars(found, "seconds")] == [0, 1, 2, 3, 4]
    assert [step for step, _ in scalars(found, "training/loss")] == [1, 2, 4]
    (folder / "told.json").write_text("{")
    tracker.opened(task, math.inf, tmp_path)
    with pytest.raises(PluginError, match=r"told\.json: is damaged: .*; delete it"):
        tracker.started(trial(task))


def test_mlflow_has_each_point_once(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker: Any = registry.trackers()["mlflow"]
    try:
        tracker.check()
    except PluginError as error:
        pytest.skip(str(error))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tell_again(tracker, task, tmp_path)
    client = tracker.client
    (run,) = client.search_runs([client.get_experiment_by_name(f"automl_tl {task.name}").experiment_id])
    curve = client.get_metric_history(run.info.run_id, "validation_score")
    np.testing.assert_allclose(sorted((one.step, one.value) for one in curve), ONCE)
    epochs = client.get_metric_history(run.info.run_id, "epoch")
    assert sorted((one.step, one.value) for one in epochs) == [(0, 0), (1, 1), (2, 2), (3, 2.5), (4, 3)]
    assert sorted(one.step for one in client.get_metric_history(run.info.run_id, "training_loss")) == [1, 2, 4]


@pytest.mark.parametrize("environment", [{}, {"MLFLOW_EXPERIMENT_NAME": "mine"}])
def test_mlflow_has_curves_parameters_and_scores(
    environment: dict[str, str], task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = registry.trackers()["mlflow"]
    try:
        tracker.check()  # type: ignore[attr-defined]
    except PluginError as error:
        pytest.skip(str(error))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    tell_of(tracker, task, tmp_path)
    client = tracker.client  # type: ignore[attr-defined]
    experiment = client.get_experiment_by_name(environment.get("MLFLOW_EXPERIMENT_NAME", f"automl_tl {task.name}"))
    runs = {run.data.params["strategy"]: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"fine-tuning", "linear-probe", "broken"}, "the paused trial went on in its run"
    tuned = runs["fine-tuning"]
    assert tuned.data.params["rate"] == "0.002"
    assert tuned.data.metrics["final_accuracy"] == 0.8
    assert (tuned.info.status, runs["broken"].info.status) == ("FINISHED", "FAILED")
    curve = client.get_metric_history(tuned.info.run_id, "validation_score")
    np.testing.assert_allclose(sorted((one.step, one.value) for one in curve), [(1, 0.6), (2, 0.7), (3, 0.8)])
    assert "it broke" in runs["broken"].data.tags["error"]


@pytest.mark.parametrize(("name", "package"), [("tensorboard", "tensorboard"), ("mlflow", "mlflow")])
def test_a_missing_package_is_said_before_anything_is_done(
    name: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # what Python itself takes for "not there"
    monkeypatch.setattr(api, "read_task", lambda *_, **__: pytest.fail("the images were read first"))
    with pytest.raises(PluginError, match=rf"needs the package {package}.*pip install 'automl_tl\[{name}\]'"):
        fit(tmp_path / "photos", budget="1 trials", out=tmp_path / "run", trackers=[name])
    assert not (tmp_path / "run").exists()


class Stumbling:
    """A tracker whose server goes away after the first trial has begun."""

    name = "stumbling"

    def __init__(self, at: str) -> None:
        self.at = at
        self.heard: list[str] = []

    def __getattr__(self, event: str) -> Any:
        if event not in ("opened", "started", "epoch", "finished"):
            raise AttributeError(event)

        def hear(*_: object) -> None:
            self.heard.append(event)
            if event == self.at:
                raise ConnectionError("the server is gone")

        return hear


@pytest.mark.parametrize("terminal", [False, True])
def test_a_trial_that_goes_on_keeps_its_number_and_says_nothing_twice(
    task: Task, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    console = registry.trackers()["console"]
    tell_of(console, task, tmp_path)
    ended = replace(trial(task), status="stopped", curve=CURVE, validation={"accuracy": 0.8}, seconds=3.0)
    other = trial(task, Candidate(QUICK, "lda"))
    console.opened(task, math.inf, tmp_path)
    for one in (ended, other, ended, ended):
        console.started(trial(task, one.candidate))
        console.finished(replace(ended, id=one.id, candidate=one.candidate))
    lines = capsys.readouterr().err.split("\n")
    said = [line.rpartition("\x1b[2K")[2] for line in lines[-3:]]
    assert said[:2] == [
        f"[1] fine-tuning on {QUICK}: paused: accuracy 0.800 in 3 s (best 0.800)",
        f"[2] lda on {QUICK}: paused: accuracy 0.800 in 3 s (best 0.800)",
    ]
    assert said[2] == "", "nothing is left in the line"


def test_a_later_start_counts_on_from_the_earlier_one(task: Task, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    earlier = [trial(task), trial(task, Candidate(QUICK, "linear-probe"))]
    for number, score in enumerate((0.7, 0.9)):
        ended = replace(earlier[number], status="finished", validation={"accuracy": score}, provenance={"date": str(number)})
        (tmp_path / "trials" / ended.id).mkdir(parents=True)
        (tmp_path / "trials" / ended.id / "trial.json").write_text(json.dumps(asdict(ended)))
    console = registry.trackers()["console"]
    console.opened(task, math.inf, tmp_path)
    for one in (earlier[0], trial(task, Candidate(QUICK, "lda"))):
        console.started(one)
        console.finished(replace(one, status="finished", validation={"accuracy": 0.8}, seconds=3.0))
    assert [line.rpartition("\x1b[2K")[2] for line in capsys.readouterr().err.splitlines()] == [
        f"[1] fine-tuning on {QUICK}: done: accuracy 0.800 in 3 s (best 0.900)",
        f"[3] lda on {QUICK}: done: accuracy 0.800 in 3 s (best 0.900)",
    ]


def test_the_best_is_that_of_models_not_of_epochs(task: Task, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A strategy that looks at other images in the end (AdaBN) may leave a model of another score."""
    console, one = registry.trackers()["console"], trial(task)
    console.opened(task, math.inf, tmp_path)
    console.started(one)
    console.epoch(one, CURVE[0])
    console.finished(replace(one, status="stopped", validation={"accuracy": CURVE[0].score / 2}, seconds=3.0))
    assert f"(best {CURVE[0].score / 2:.3f})" in capsys.readouterr().err


@pytest.mark.parametrize("at", ["opened", pytest.param("started", marks=pytest.mark.slow)])
def test_a_tracker_that_stumbles_does_not_end_a_search(
    at: str, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = Stumbling(at)
    monkeypatch.setattr(registry, "trackers", lambda: {"stumbling": tracker})
    only = {
        "budget": "2 trials",
        "out": tmp_path,
        "strategies": ["linear-probe"],
        "backbones": [QUICK],
        "trackers": ["stumbling"],
    }
    if at == "opened":
        with pytest.raises(PluginError, match="'stumbling' cannot begin: ConnectionError: the server is gone"):
            fit(task, **only)
        return
    with pytest.warns(registry.PluginWarning, match="'stumbling' stumbled at 'started' and is told no more"):
        outcome = fit(task, **only)
    assert outcome.winner.status == "finished"
    assert tracker.heard == ["opened", "started"]


def test_fit_tells_tensorboard(task: Task, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs pip install 'automl_tl[tensorboard]'")
    only = {"budget": "1 trials", "strategies": ["linear-probe"], "backbones": [QUICK]}
    outcome = fit(task, out=tmp_path, trackers=["tensorboard"], **only)
    (folder,) = (tmp_path / "tensorboard").iterdir()
    assert folder.name.endswith(outcome.winner.id[:6])
    final = events(folder).Scalars("final/accuracy")[-1].value
    assert final == pytest.approx(outcome.winner.validation["accuracy"])
