"""A folder that timm loads: `timm.create_model("local-dir:FOLDER", pretrained=True)`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from automl_tl import heads
from automl_tl.cards import check_card, described
from automl_tl.checkpoint import write_tensors
from automl_tl.device import chance_put_back, device
from automl_tl.errors import InputError
from automl_tl.home import write_text
from automl_tl.inference import predict, prepare
from automl_tl.model import WEIGHTS, Model
from automl_tl.networks import Counts, create
from automl_tl.records import CENTER

from .graph import probes
from .predictor import Predictor, predictor_of

CONFIG = "config.json"
OTHER = "use --to onnx or --to torch, which take any network"
TOLERANCE = 1e-4
"""Of a logit, relative to the largest."""


def write(folder: Path, trained: Model) -> float:
    """`config.json` and `model.safetensors` into `folder`; the largest difference of a probability that was found.

    Raises:
        InputError: timm has no place for the network or for its head.
    """
    b = trained.backbone
    net = whole_network(trained)
    difference = _compare(trained, net)
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in net.state_dict().items()}
    write_tensors(folder / WEIGHTS, tensors, {"format": "pt"})
    own: dict[str, Any] = getattr(net, "pretrained_cfg", None) or {}
    size = (3, b.input_size, b.input_size)
    config = {
        "architecture": b.architecture,
        "num_classes": len(trained.classes),
        "num_features": b.num_features,
        "label_names": list(trained.classes),
        "model_args": dict(b.kwargs),
        "pretrained_cfg": {
            "tag": "automl_tl",
            "custom_load": False,
            "input_size": size,
            "fixed_input_size": bool(own.get("fixed_input_size", False)),
            "interpolation": b.interpolation,
            "crop_pct": b.crop_pct,
            "crop_mode": b.crop_mode,
            "mean": list(b.mean),
            "std": list(b.std),
            "num_classes": len(trained.classes),
            "pool_size": None,
            "first_conv": own.get("first_conv"),
            "classifier": own.get("classifier"),
            "license": b.licence or "unknown",
        },
    }
    write_text(folder / CONFIG, json.dumps(config, indent=1, ensure_ascii=False))
    return difference


def whole_network(trained: Model) -> nn.Module:
    """The architecture as timm makes it for so many classes, with the trained weights, our head as its own classifier.

    Raises:
        InputError: it is not one of timm's, or between its features and its classifier lie layers that a headless network has
            not, so that our head does not fit.
    """
    b, name = trained.backbone, trained.backbone.architecture
    if not name:
        raise InputError(f"{b.name} is not built by timm, so that no timm folder can hold it; {OTHER}")
    head = trained.net.head
    if not isinstance(head, nn.Linear):
        kind = heads.describe(head)["kind"]
        raise InputError(f"{trained.candidate.strategy} left a head of the kind {kind!r}, which timm has not; {OTHER}")
    net = create(name, b.kwargs, num_classes=len(trained.classes)).to(device()).eval()
    found = net.get_classifier() if hasattr(net, "get_classifier") else None  # type: ignore[operator]
    layers: list[Any] = list(found) if isinstance(found, (tuple, list)) else [found]
    for layer in layers:
        if not _takes_a_matrix(layer, b.num_features):
            raise InputError(f"{name}: timm's classifier is a {type(layer).__name__}, which a linear head does not fit; {OTHER}")
    of_head = [parameter for layer in layers for parameter in layer.parameters()]
    own = {key for key, parameter in net.named_parameters() if any(parameter is one for one in of_head)}
    missing, unknown = net.load_state_dict(trained.net.backbone.state_dict(), strict=False)
    if unknown or set(missing) != own:
        more = ", ".join(sorted((set(missing) - own) | set(unknown))[:3])
        text = f"{name}: with classes, timm's network has other layers than without ({more} …)"
        raise InputError(f"{text}, so our head has no place; {OTHER}")
    with torch.no_grad():
        for layer in layers:
            layer.weight.copy_(head.weight.reshape(layer.weight.shape))
            layer.bias.copy_(head.bias)
    return net


def _takes_a_matrix(layer: Any, features: int) -> bool:
    """A linear layer, or a 1×1 convolution, which is one."""
    if isinstance(layer, nn.Linear):
        return layer.in_features == features and layer.bias is not None
    pointwise = isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and layer.groups == 1
    return pointwise and layer.in_channels == features and layer.bias is not None


def _compare(trained: Model, net: nn.Module) -> float:
    """Largest difference of a probability on probe images.

    Raises:
        InputError: the logits are not the same, so timm computes something between features and classifier.
    """
    images = prepare(probes(trained.backbone.input_size), trained.backbone)
    with torch.inference_mode():
        ours, theirs = trained.net(images).float(), net(images).float()
    apart = float((ours - theirs).abs().max())
    if not apart <= TOLERANCE * max(1.0, float(ours.abs().max())):
        text = f"timm's own head computes something between features and classifier (logits differ by {apart:.2g})"
        raise InputError(f"{trained.backbone.architecture}: {text}, so our head does not fit; {OTHER}")
    return float((ours.softmax(1) - theirs.softmax(1)).abs().max())


@chance_put_back()
def read(folder: Path) -> Predictor:
    """Raises InputError: the folder is damaged, or does not say what its classes are called."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        card = _card(config)
    except FileNotFoundError:
        raise InputError(f"{folder}: holds no {CONFIG}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder / CONFIG}: is damaged: {type(error).__name__}: {error}") from None
    check_card(card, folder / CONFIG)
    facts = described(card, Counts(0, 0, 0), zoo="")  # as much as prediction asks for
    classes = config.get("label_names")
    if not isinstance(classes, list) or len(classes) != facts.num_classes:
        raise InputError(f"{folder / CONFIG}: label_names: expected a list of the {facts.num_classes} classes")
    net = create(facts.architecture, facts.kwargs, num_classes=facts.num_classes)
    try:
        net.load_state_dict(load_file(folder / WEIGHTS))
    except FileNotFoundError:
        raise InputError(f"{folder}: its weights are missing: there is no {WEIGHTS}") from None
    except (SafetensorError, RuntimeError) as error:
        raise InputError(f"{folder / WEIGHTS}: does not hold this network: {str(error).splitlines()[0]}") from None
    net = net.to(device()).eval()

    def probabilities(images: np.ndarray) -> np.ndarray:
        return predict(net, images, np.arange(len(images)), facts)

    return predictor_of(facts, tuple(map(str, classes)), probabilities)


def _card(config: dict[str, Any]) -> dict[str, Any]:
    """A timm config in the words of a card, which knows what may stand there."""
    own = config["pretrained_cfg"]
    return {
        "name": config["architecture"],
        "build": {"timm": config["architecture"], "kwargs": config.get("model_args", {})},
        "num_classes": config["num_classes"],
        "source_dataset": "unknown",
        "source_domain": "unknown",
        **{name: own[name] for name in ("input_size", "mean", "std", "crop_pct", "interpolation")},
        "crop_mode": own.get("crop_mode") or CENTER,
    }
