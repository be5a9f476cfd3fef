"""Trials in MLflow: wherever `MLFLOW_TRACKING_URI` says, or in the database `mlflow.db` of the run's folder."""

from __future__ import annotations

import os
import time
import warnings
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from automl_tl import Point, Task, Trial, hookimpl
from automl_tl.extras import require

from ._trials import facts_of, step_of, title_of

if TYPE_CHECKING:
    from mlflow import MlflowClient

STATUS = {"finished": "FINISHED", "stopped": "SCHEDULED", "failed": "FAILED"}
TRIAL, SEARCH = "automl_tl.trial", "automl_tl.search"
EPOCH, SCORE, LOSS = "epoch", "validation_score", "training_loss"


class MLflow:
    """An experiment a task (or what `MLFLOW_EXPERIMENT_NAME` says), a run a trial: its learning curve, parameters and final
    validation scores. A trial that is paused and goes on, also in another start of the same search, goes on in its run, which
    says what it was told: an epoch is told once. Steps are whole numbers; `epoch` has the epoch of each.

    It speaks through a client of its own, so a run that the caller has begun with MLflow is left alone.
    """

    name = "mlflow"
    client: MlflowClient

    def check(self) -> None:
        with _quiet():
            require("mlflow", "mlflow")

    def opened(self, task: Task, seconds: float, folder: Path) -> None:
        self.check()
        place = (folder / "mlflow.db").absolute()
        with _quiet():
            from mlflow import MlflowClient

            self.client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{place}")
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or f"automl_tl {task.name}"
            known = self.client.get_experiment_by_name(name)
            self.experiment: str = known.experiment_id if known is not None else self.client.create_experiment(name)
        self.search = str(folder.absolute())
        self.runs: dict[str, str] = {}
        self.told: dict[str, dict[float, int]] = {}  # by trial: the step of each epoch

    def started(self, trial: Trial) -> None:
        with _quiet():
            self.runs[trial.id] = run = self._run(trial)
            if trial.id not in self.told:
                self.told[trial.id] = self._told(run)
            self.client.update_run(run, status="RUNNING")

    def _run(self, trial: Trial) -> str:
        """Of this trial of this search: an earlier one, or a new one."""
        if trial.id in self.runs:
            return self.runs[trial.id]
        wanted = f"tags.`{TRIAL}` = '{trial.id}'"
        for run in self.client.search_runs([self.experiment], wanted):
            if run.data.tags.get(SEARCH) == self.search:
                return str(run.info.run_id)
        tags = {TRIAL: trial.id, SEARCH: self.search, "automl_tl.task": trial.task}
        created: str = self.client.create_run(self.experiment, run_name=title_of(trial), tags=tags).info.run_id
        for name, value in facts_of(trial).items():
            self.client.log_param(created, name, value)
        return created

    def _told(self, run: str) -> dict[float, int]:
        """Epochs that a run has from earlier starts, with their steps; runs of older versions have only whole ones."""
        epochs = {one.step: one.value for one in self.client.get_metric_history(run, EPOCH)}
        steps = {one.step for one in self.client.get_metric_history(run, SCORE)}
        return {epochs.get(step, float(step)): step for step in sorted(steps)}

    def epoch(self, trial: Trial, point: Point) -> None:
        """A point is told once: what was killed trains its last epoch again."""
        told = self.told[trial.id]
        if point.epoch in told:
            return
        step, now = step_of(point.epoch, told), int(time.time() * 1000)
        values = {EPOCH: float(point.epoch), SCORE: point.score, LOSS: point.loss}
        with _quiet():
            from mlflow.entities import Metric

            metrics = [Metric(name, value, now, step) for name, value in values.items() if value is not None]
            self.client.log_batch(self.runs[trial.id], metrics=metrics)  # all or none, as the next start asks for them
        told[point.epoch] = step

    def finished(self, trial: Trial) -> None:
        run = self.runs[trial.id]
        for point in trial.curve:  # some points are in no report, such as that of a head alone
            self.epoch(trial, point)
        with _quiet():
            for name, value in trial.validation.items():
                self.client.log_metric(run, f"final_{name}", value)
            self.client.log_metric(run, "seconds", trial.seconds)
            if trial.error:
                self.client.set_tag(run, "error", trial.error[:5000])
            self.client.set_terminated(run, STATUS[trial.status])


def _quiet() -> AbstractContextManager[object]:
    """MLflow's imports and its database warn of what they are built on."""
    return warnings.catch_warnings(action="ignore")


@hookimpl
def register_trackers() -> list[MLflow]:
    return [MLflow()]
