"""A backbone's architecture without what it learnt."""

from __future__ import annotations

import torch
from torch import nn

from automl_tl import Backbone
from automl_tl.errors import TrialError


def untrained(backbone: nn.Module, facts: Backbone) -> nn.Module:
    """The architecture of `backbone` with random weights.

    Raises:
        TrialError: a part of it that timm did not build cannot be made anew.
    """
    import timm

    if facts.architecture:
        net: nn.Module = timm.create_model(facts.architecture, num_classes=0, **facts.kwargs)
        return net
    known = {name: parameter.detach().clone() for name, parameter in backbone.named_parameters() if parameter.ndim > 1}
    for layer in backbone.modules():
        for name in ("reset_parameters", "_reset_parameters"):  # the latter is how torch's attention calls it
            if callable(reset := getattr(layer, name, None)):
                reset()
    kept = [name for name, parameter in backbone.named_parameters() if name in known and torch.equal(parameter, known[name])]
    if kept:
        raise TrialError(f"{facts.name}: {kept[0]} keeps what it learnt, as it has no reset_parameters; leave this strategy out")
    return backbone
