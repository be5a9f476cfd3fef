"""A trained model on disk: safetensors and JSON, rebuilt without running anybody's code."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from . import checkpoint, heads
from .adapters import Grown
from .backbones import build, catalogue
from .cards import sha256
from .device import chance_put_back, device
from .errors import HistoryError, InputError, PluginError, ZooError
from .facts import backbone_facts, backbone_of
from .home import write_text
from .inference import predict
from .networks import create, first_line
from .records import Backbone, Candidate, Task
from .strategy import Classifier

WEIGHTS, CARD = "model.safetensors", "model.json"
MOST_TASKS = 1000
MOST_BEYOND = 1 << 28
"""Numbers that a network may compute with besides its weights, such as which pixels are in one window."""


@dataclass(frozen=True, eq=False)
class Model:
    """A classifier with all that is needed to use it."""

    net: Classifier
    backbone: Backbone
    candidate: Candidate
    classes: tuple[str, ...]
    facts: Mapping[str, Any]
    """Task, scores, provenance."""

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """n×classes, of uint8 n×size×size×3 images at the backbone's input size."""
        return predict(self.net, images, np.arange(len(images)), self.backbone)


def save(
    folder: Path, net: nn.Module, backbone: Backbone, candidate: Candidate, classes: tuple[str, ...], facts: Mapping[str, Any]
) -> None:
    """Write `net` into `folder`: the weights, and then the card with their sha256. Cut off between the two, it leaves what `load`
    refuses.

    Raises:
        PluginError: the strategy left a network that is not the backbone with a head of a known kind (see `heads`).
    """
    tensors, head = _tensors(net, candidate.strategy)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.save(folder / WEIGHTS, tensors, {"backbone": backbone.name})
    card = {**_card(head, backbone, candidate, classes, facts), "sha256": sha256(folder / WEIGHTS)}
    write_text(folder / CARD, json.dumps(card, indent=1, ensure_ascii=False))


def pack(trained: Model) -> dict[str, Any]:
    """The model as plain values: its card, and its weights as the bytes of a safetensors file."""
    tensors, head = _tensors(trained.net, trained.candidate.strategy)
    card = _card(head, trained.backbone, trained.candidate, trained.classes, trained.facts)
    return {CARD: json.dumps(card), WEIGHTS: checkpoint.pack(tensors)}


def unpack(packed: Mapping[str, Any]) -> Model:
    """What `pack` gave.

    Raises:
        InputError: it is damaged, or of another version.
    """
    try:
        return _rebuild(json.loads(packed[CARD]), checkpoint.unpack(packed[WEIGHTS]), "the packed ")
    except SafetensorError as error:
        raise InputError(f"the packed model is damaged: {error}") from None


def check_storable(net: nn.Module, strategy: str) -> None:
    """Raises PluginError: the strategy left something that `save` cannot keep."""
    _tensors(net, strategy)


def _tensors(net: nn.Module, strategy: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All that is stored of `net`, and what its head is, with the ranks of adapters where it has grown."""
    if not isinstance(net, Classifier):
        raise PluginError(f"strategy {strategy!r} left a {type(net).__name__}; expected an automl_tl.Classifier")
    head = heads.plain(net.head, strategy)
    tensors = checkpoint.prefixed(net.backbone.state_dict(), "backbone") | checkpoint.prefixed(head.state_dict(), "head")
    grown = {"ranks": net.backbone.ranks} if isinstance(net.backbone, Grown) else {}
    return tensors, heads.describe(head) | grown


def _card(
    head: dict[str, Any], backbone: Backbone, candidate: Candidate, classes: tuple[str, ...], facts: Mapping[str, Any]
) -> dict[str, Any]:
    known = {"backbone": backbone_facts(backbone), "candidate": asdict(candidate), "classes": list(classes), "head": head}
    return {**known, **facts}


def model_folder(run: Path) -> Path:
    """The model of a run; a model's own folder is taken, too."""
    return run / "model" if (run / "model").is_dir() else run


def load(folder: Path) -> Model:
    """Read what `save` wrote.

    Raises:
        InputError: there is no model, or its parts do not fit together.
    """
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
        tensors, _ = checkpoint.load(folder / WEIGHTS)
    except FileNotFoundError as error:
        raise InputError(
            f"{folder} holds no trained model ({Path(error.filename).name} is missing); run `automl-tl fit` first"
        ) from None
    except OSError as error:
        raise InputError(f"{folder}: the model there cannot be read: {first_line(error)}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{folder / CARD} is damaged: {error}") from None
    except SafetensorError as error:
        raise InputError(f"{folder / WEIGHTS} is damaged: {error}; copy it anew, or run `automl-tl fit` again") from None
    if isinstance(card, Mapping) and card.get("sha256") not in (None, sha256(folder / WEIGHTS)):  # older cards have none
        raise InputError(
            f"{folder / WEIGHTS} is not the file that {CARD} describes (other sha256): saving was cut off between the two, or "
            "one was replaced; run `automl-tl fit` again"
        )
    return _rebuild(card, tensors, f"{folder}/")


@chance_put_back()  # a network is made with random weights before it is given its own
def _rebuild(card: Any, tensors: Mapping[str, Tensor], where: str) -> Model:
    if not isinstance(card, Mapping):
        raise InputError(f"{where}{CARD} is damaged: it is no JSON object")
    try:
        facts = {name: card[name] for name in card if name not in ("backbone", "candidate", "classes", "head", "sha256")}
        backbone, candidate = backbone_of(card["backbone"]), Candidate(**card["candidate"])
        classes = tuple(card["classes"])
    except KeyError as error:
        raise InputError(f"{where}{CARD} is damaged: it lacks {error}") from None
    except (TypeError, HistoryError) as error:
        raise InputError(f"{where}{CARD} is damaged, or of another version: {error}") from None
    if not all(isinstance(name, str) for name in classes):
        raise InputError(f"{where}{CARD} is damaged: its classes are not all texts")
    told, listed = card.get("head", {"kind": heads.LINEAR}), _listed(backbone, where)
    copied = None if listed is None else copy.deepcopy(listed).to("meta")
    try:
        with torch.device("meta"):  # a card may ask for any size: nothing is made before the weights are seen to be as large
            outline = _classifier(copied, backbone, told, len(classes))
    except (InputError, ZooError, AttributeError) as error:
        raise InputError(f"{where}{CARD} is damaged, or of another version: {error}") from None
    if misfit := _misfit(outline, tensors):
        raise InputError(f"{where}{WEIGHTS} does not fit its card: {misfit}")
    try:
        net = _classifier(listed, backbone, told, len(classes))
        net.load_state_dict(tensors)
    except RuntimeError as error:  # numbers of a kind that torch does not turn into ours
        raise InputError(f"{where}{WEIGHTS} does not fit its card: {first_line(error)}") from None
    return Model(net.to(device()).eval(), backbone, candidate, classes, facts)


def _listed(backbone: Backbone, where: str) -> nn.Module | None:
    """The network of a zoo on this machine, where timm does not build it. The card says its name and no more: what it is, and
    where it comes from, is for the zoo to say.

    Raises:
        InputError: no zoo lists it.
    """
    if backbone.architecture:
        return None
    known = catalogue().get(backbone.name)
    if known is None or known.zoo != backbone.zoo or known.architecture:
        raise InputError(
            f"{where}{CARD}: its network {backbone.name[:80]!r} is none that timm builds, and no zoo {backbone.zoo[:80]!r} here "
            "lists it; install the plugin that has it: loading a model fetches nothing"
        )
    return build(known)


def _classifier(listed: nn.Module | None, backbone: Backbone, told: Mapping[str, Any], classes: int) -> Classifier:
    """An untrained classifier as a card tells it: timm's network, or the one that is `listed`.

    Raises:
        InputError, ZooError: there is no such network or head.
    """
    try:
        head = heads.rebuild(told, backbone.num_features, classes)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"its head cannot be made: {first_line(error)}") from None
    ranks = _ranks(told, head)
    network = create(backbone.architecture, backbone.kwargs, num_classes=0) if listed is None else listed
    return Classifier(network if ranks is None else Grown(network, ranks), head)


def _misfit(outline: Classifier, tensors: Mapping[str, Tensor]) -> str:
    """Why `tensors` are not those of `outline`, or would not be all that it takes; empty: they are."""
    wanted = outline.state_dict()
    for name in sorted(wanted.keys() ^ tensors.keys()):
        return f"it lacks {name}" if name in wanted else f"it has an unexpected {name}"
    for name, tensor in wanted.items():
        if tensor.shape != tensors[name].shape:
            return f"{name} is {tuple(tensors[name].shape)}, not {tuple(tensor.shape)}"
    beyond = sum(buffer.numel() for name, buffer in outline.named_buffers() if name not in wanted)
    return f"the network computes with {beyond:,} numbers more" if beyond > MOST_BEYOND else ""


def _ranks(facts: Mapping[str, Any], head: nn.Module) -> list[int] | None:
    """Of the adapters of a network that has grown; None: it has not.

    Raises:
        InputError: they do not fit the head.
    """
    ranks = facts.get("ranks")
    if ranks is None and not isinstance(head, heads.Tasks):
        return None
    tasks = len(head.classes) if isinstance(head, heads.Tasks) else 0
    if tasks > MOST_TASKS:
        raise InputError(f"a head of {tasks:,} tasks is more than the {MOST_TASKS:,} that a network grows for")
    if not isinstance(ranks, list) or len(ranks) != tasks - 1 or not all(isinstance(r, int) and 1 <= r <= 4096 for r in ranks):
        raise InputError(f"adapters of the ranks {ranks!r} do not fit a head of {tasks} tasks")
    return ranks


def start_of(task: Task, backbone: Backbone) -> nn.Module:
    """The pretrained network; for a task that comes after another, the network that was trained on that.

    Raises:
        InputError: the earlier model is gone, or on another backbone.
    """
    if not task.earlier:
        return build(backbone)
    earlier = load(Path(task.earlier))
    if earlier.backbone.name != backbone.name:
        raise InputError(f"the earlier model is a {earlier.backbone.name}, which a {backbone.name} cannot go on from")
    return earlier.net.backbone


def as_it_starts(task: Task, backbone: Backbone) -> Backbone:
    """As the features of `start_of` are known by: the weights may be those of an earlier model."""
    return replace(backbone, digest=task.fingerprint, num_classes=0) if task.earlier else backbone
