"""A strategy that fails in its second epoch."""

from __future__ import annotations

import automl_tl
from automl_tl.space import Float, Int


class Stumbles(automl_tl.Strategy):
    """Plain fine-tuning up to the first epoch."""

    name = "stumbles"
    space = {"rate": Float(1e-4, 1e-2, 1e-3, log=True), "epochs": Int(2, 4, 3)}

    def start_epoch(self, model: automl_tl.Classifier, epoch: int) -> None:
        if epoch == 1:
            raise RuntimeError("stumbled in the second epoch")


@automl_tl.hookimpl
def register_strategies() -> list[type[automl_tl.Strategy]]:
    return [Stumbles]
