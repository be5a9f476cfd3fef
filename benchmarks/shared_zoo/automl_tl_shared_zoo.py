"""The networks of ../shared/weights, also those that timm does not build, at a size that a CPU can train.

The folder is named by AUTOML_TL_SHARED_WEIGHTS. Its own load.py builds the networks: this plugin is for our benchmarks, where
that code is known; the product's folder zoo runs no code of the folders that it reads. Networks made for more than 96 px are
listed once more, as NAME@96: they are convolutional, and a fifth of the multiply-adds lets a campaign try them on every task.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from automl_tl import Backbone, hookimpl

SMALL = 96
FAMILIES = {"cifar_resnet": "resnet", "torchvision": "squeezenet", "efficientnet": "efficientnet", "mobilenetv1": "mobilenet"}


class Headless(nn.Module):
    """A network of load.py without its last layer: images to pooled features."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.net(images).flatten(1)
        return features


class SharedZoo:
    """The zoo of ../shared/weights."""

    name = "shared"

    def list(self) -> Iterable[Backbone]:
        return [variant for name in _names() for variant in _facts(name)]

    def build(self, backbone: Backbone, *, head: bool = False) -> nn.Module:
        net: nn.Module = _loader().load(backbone.name.split("@")[0])
        return net if head else _headless(net)


def _headless(net: nn.Module) -> nn.Module:
    if hasattr(net, "reset_classifier"):
        net.reset_classifier(0)
        return net
    if net.__class__.__name__ == "SqueezeNet":
        net.classifier = nn.AdaptiveAvgPool2d(1)  # type: ignore[assignment]
    else:
        net.classifier = nn.Identity()  # type: ignore[assignment]
    return Headless(net)


def _folder() -> Path | None:
    named = os.environ.get("AUTOML_TL_SHARED_WEIGHTS")
    return Path(named) if named and Path(named).is_dir() else None


def _names() -> list[str]:
    folder = _folder()
    return sorted(path.stem for path in folder.glob("*.json")) if folder else []


@cache
def _loader() -> ModuleType:
    folder = _folder()
    assert folder is not None
    spec = importlib.util.spec_from_file_location("shared_weights_load", folder / "load.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def _facts(name: str) -> tuple[Backbone, ...]:
    folder = _folder()
    assert folder is not None
    card = json.loads((folder / f"{name}.json").read_text())
    (kind, spec), *_ = card["build"].items()
    net = _headless(_loader().build_network(card["build"], 0 if kind == "timm" else max(card["num_classes"], 1))).eval()
    size = card["input_size"][-1]
    width, macs = _count(net, size)
    validation = card.get("validation") or {}
    backbone = Backbone(
        name=name,
        zoo="shared",
        architecture=spec if kind == "timm" and isinstance(spec, str) else "",
        family=FAMILIES.get(kind, str(spec).split("_")[0]),
        source_dataset=card["source_dataset"],
        source_domain=card["source_domain"],
        input_size=size,
        mean=tuple(card["mean"]),
        std=tuple(card["std"]),
        interpolation=card["interpolation"],
        crop_pct=card["crop_pct"],
        params=sum(p.numel() for p in net.parameters()),
        macs=macs,
        num_features=width,
        num_classes=card["num_classes"],
        source_accuracy=validation.get("top1"),
        licence=card["licence"],
        kwargs=card["build"].get("kwargs", {}) if kind == "timm" else {},
        weights=str(folder / f"{name}.safetensors"),
        crop_mode=card.get("crop_mode", "center"),
    )
    if size <= SMALL:
        return (backbone,)
    small = replace(backbone, name=f"{name}@{SMALL}", input_size=SMALL, macs=_count(net, SMALL)[1], source_accuracy=None)
    return backbone, small


def _count(net: nn.Module, size: int) -> tuple[int, int]:
    """Features, and multiply-adds of one image."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        features = net(torch.zeros(1, 3, size, size))
    return features.shape[1], counter.get_total_flops() // 2


@hookimpl
def register_backbones() -> list[SharedZoo]:
    return [SharedZoo()]
