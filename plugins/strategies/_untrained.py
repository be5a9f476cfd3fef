"""A backbone's architecture without what it learnt."""

from __future__ import annotations

from torch import nn

from automl_tl import Backbone


def untrained(backbone: nn.Module, facts: Backbone) -> nn.Module:
    """The architecture of `backbone` with random weights."""
    import timm

    if facts.architecture:
        net: nn.Module = timm.create_model(facts.architecture, num_classes=0, **facts.kwargs)
        return net
    for layer in backbone.modules():
        reset = getattr(layer, "reset_parameters", None)
        if callable(reset):
            reset()
    return backbone
