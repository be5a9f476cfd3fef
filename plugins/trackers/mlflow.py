"""Trials in MLflow: wherever `MLFLOW_TRACKING_URI` says, or in the database `mlflow.db` of the run's folder."""

from __future__ import annotations

import os
import warnings
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from automl_tl import Point, Task, Trial, hookimpl
from automl_tl.extras import require

from ._trials import facts_of, title_of

if TYPE_CHECKING:
    from mlflow import MlflowClient

STATUS = {"finished": "FINISHED", "stopped": "SCHEDULED", "failed": "FAILED"}
TRIAL, SEARCH = "automl_tl.trial", "automl_tl.search"


class MLflow:
    """An experiment a task (or what `MLFLOW_EXPERIMENT_NAME` says), a run a trial: its learning curve, parameters and final
    validation scores. A trial that is paused and goes on, also in another start of the same search, goes on in its run.

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
        self.told: dict[str, float] = {}

    def started(self, trial: Trial) -> None:
        with _quiet():
            self.runs[trial.id] = run = self._run(trial)
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

    def epoch(self, trial: Trial, point: Point) -> None:
        run, step = self.runs[trial.id], round(point.epoch)
        with _quiet():
            self.client.log_metric(run, "validation_score", point.score, step=step)
            if point.loss is not None:
                self.client.log_metric(run, "training_loss", point.loss, step=step)
        self.told[trial.id] = point.epoch

    def finished(self, trial: Trial) -> None:
        run = self.runs[trial.id]
        for point in trial.curve:
            if point.epoch > self.told.get(trial.id, -1.0):
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
