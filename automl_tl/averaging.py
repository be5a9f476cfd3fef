"""An average of the weights along the way, which is often better than where the way ends (Polyak and Juditsky, 1992)."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def average_into(average: nn.Module, model: nn.Module, *, decay: float, step: int) -> None:
    """average ← d · average + (1 - d) · model for all weights and statistics, with d = min(`decay`, (1 + step) / (10 + step)).

    The smaller d of the first steps (counted from 0) forgets where training began: a short training would otherwise be an
    average over its start.
    """
    share = min(decay, (1 + step) / (10 + step))
    for averaged, current in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if averaged.is_floating_point():
            averaged.lerp_(current, 1 - share)
        else:
            averaged.copy_(current)
