"""Trials in TensorBoard: `tensorboard --logdir RUN/tensorboard`."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from automl_tl import Point, Task, Trial, hookimpl
from automl_tl.errors import PluginError
from automl_tl.extras import require
from automl_tl.home import write_text

from ._trials import facts_of, step_of, title_of

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

TOLD = "told.json"
"""Beside a trial's event files: its epochs that they have, each with its step."""


class TensorBoard:
    """Event files in `RUN/tensorboard`, a folder a trial: its learning curve, hyperparameters and final validation scores.

    A trial that is paused and goes on, also in another start of the same run, goes on in its folder, where told.json lists what
    was told: an epoch is told once. Steps are whole numbers, so that of epoch 2.5 is 3.
    """

    name = "tensorboard"

    def check(self) -> None:
        require("tensorboard", "tensorboard")

    def opened(self, task: Task, seconds: float, folder: Path) -> None:
        self.check()
        self.folder = folder / "tensorboard"

    def started(self, trial: Trial) -> None:
        self.kept = self.folder / title_of(trial) / TOLD
        self.told = _read(self.kept)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of TensorFlow's older names
            from torch.utils.tensorboard import SummaryWriter

            self.writer: SummaryWriter = SummaryWriter(str(self.folder / title_of(trial)))

    def epoch(self, trial: Trial, point: Point) -> None:
        """A point is told once: what was killed trains its last epoch again."""
        if point.epoch in self.told:
            return
        step = step_of(point.epoch, self.told)
        self.writer.add_scalar("validation/score", point.score, step)
        if point.loss is not None:
            self.writer.add_scalar("training/loss", point.loss, step)
        self.writer.add_scalar("seconds", point.seconds, step)
        self.writer.flush()
        self.told[point.epoch] = step
        write_text(self.kept, json.dumps(list(self.told.items())))

    def finished(self, trial: Trial) -> None:
        for point in trial.curve:  # some points are in no report, such as that of a head alone
            self.epoch(trial, point)
        step = self.told[trial.curve[-1].epoch] if trial.curve else 0
        for name, value in trial.validation.items():
            self.writer.add_scalar(f"final/{name}", value, step)
        self.writer.add_text("trial", trial.error or f"{trial.status} after {trial.seconds:.1f} s", step)
        metrics = {f"final/{name}": value for name, value in trial.validation.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.writer.add_hparams(facts_of(trial), metrics, run_name=".", global_step=step)
        self.writer.close()


def _read(path: Path) -> dict[float, int]:
    """Raises PluginError: it is none of ours."""
    if not path.exists():
        return {}
    try:
        return {float(epoch): int(step) for epoch, step in json.loads(path.read_text(encoding="utf-8"))}
    except (ValueError, TypeError) as error:
        raise PluginError(f"{path}: is damaged: {error}; delete it, then points of this trial are told anew") from None


@hookimpl
def register_trackers() -> list[TensorBoard]:
    return [TensorBoard()]
