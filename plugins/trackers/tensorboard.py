"""Trials in TensorBoard: `tensorboard --logdir RUN/tensorboard`."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from automl_tl import Point, Task, Trial, hookimpl
from automl_tl.extras import require

from ._trials import facts_of, title_of

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoard:
    """Event files in `RUN/tensorboard`, a folder a trial: its learning curve, hyperparameters and final validation scores.

    A trial that is paused and goes on, also in another start of the same run, goes on in its folder.
    """

    name = "tensorboard"

    def check(self) -> None:
        require("tensorboard", "tensorboard")

    def opened(self, task: Task, seconds: float, folder: Path) -> None:
        self.check()
        self.folder = folder / "tensorboard"
        self.told: dict[str, float] = {}

    def started(self, trial: Trial) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of TensorFlow's older names
            from torch.utils.tensorboard import SummaryWriter

            self.writer: SummaryWriter = SummaryWriter(str(self.folder / title_of(trial)))

    def epoch(self, trial: Trial, point: Point) -> None:
        step = round(point.epoch)
        self.writer.add_scalar("validation/score", point.score, step)
        if point.loss is not None:
            self.writer.add_scalar("training/loss", point.loss, step)
        self.writer.add_scalar("seconds", point.seconds, step)
        self.writer.flush()
        self.told[trial.id] = point.epoch

    def finished(self, trial: Trial) -> None:
        for point in trial.curve:
            if point.epoch > self.told.get(trial.id, -1.0):
                self.epoch(trial, point)
        step = round(trial.curve[-1].epoch) if trial.curve else 0
        for name, value in trial.validation.items():
            self.writer.add_scalar(f"final/{name}", value, step)
        self.writer.add_text("trial", trial.error or f"{trial.status} after {trial.seconds:.1f} s", step)
        metrics = {f"final/{name}": value for name, value in trial.validation.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.writer.add_hparams(facts_of(trial), metrics, run_name=".", global_step=step)
        self.writer.close()


@hookimpl
def register_trackers() -> list[TensorBoard]:
    return [TensorBoard()]
