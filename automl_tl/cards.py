"""Networks on disk: a card (JSON) beside a safetensors file of the same name.

A card says how timm builds the network and how its images were prepared; nothing in a folder of networks is ever executed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import registry
from .backbones import offered
from .errors import HistoryError, ZooError
from .facts import LARGEST_CROP, MOST_CROPPED, backbone_facts, backbone_of, crop_fits, fault_as_json, is_number, is_whole
from .home import cache, home, whole, write_text
from .networks import RESERVED, Counts, count, create, family, first_line, headless
from .records import CENTER, CROP_MODES, INTERPOLATIONS, LARGEST_SIDE, Backbone

if TYPE_CHECKING:
    from filelock import FileLock
    from torch import Tensor, nn


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_triple(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 3 and all(map(is_number, value))


def _is_square(value: Any) -> bool:
    return _is_triple(value) and all(map(is_whole, value)) and value[0] == 3 and 0 < value[1] == value[2] <= LARGEST_SIDE


_NEEDED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "name": (_is_text, "text"),
    "build": (lambda value: isinstance(value, dict) and bool(value), 'an object such as {"timm": "resnet10t", "kwargs": {}}'),
    "num_classes": (is_whole, "a whole number (0: no source head)"),
    "source_dataset": (_is_text, "text"),
    "source_domain": (_is_text, "text"),
    "input_size": (_is_square, f"[3, SIDE, SIDE] with a side up to {LARGEST_SIDE}"),
    "mean": (_is_triple, "three numbers"),
    "std": (lambda value: _is_triple(value) and all(part > 0 for part in value), "three numbers above 0"),
    "crop_pct": (crop_fits, f"a number from {MOST_CROPPED} to {LARGEST_CROP}"),
    "interpolation": (lambda value: value in INTERPOLATIONS, f"one of {', '.join(INTERPOLATIONS)}"),
}
_OPTIONAL: dict[str, tuple[Callable[[Any], bool], str]] = {
    "licence": (lambda value: isinstance(value, str), "text"),
    "family": (_is_text, "text"),
    "crop_mode": (lambda value: _is_text(value) and value in CROP_MODES, f"one of {', '.join(CROP_MODES)}"),
    "backbone_params": (is_whole, "a whole number"),
    "macs": (is_whole, "a whole number"),
    "num_features": (is_whole, "a whole number"),
    "source_accuracy": (lambda value: is_number(value) and 0 <= value <= 1, "a number from 0 to 1"),
    "sha256": (lambda value: isinstance(value, str) and bool(re.fullmatch("[0-9a-f]{64}", value)), "64 hexadecimal digits"),
}


def read_card(path: Path, *, zoo: str) -> Backbone:
    """The facts of a card. What it does not say about size is counted, once on this machine.

    Raises:
        ZooError: names the card and what is wrong with it.
    """
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ZooError(f"{path}: cannot be read as a card: {error}") from None
    check_card(card, path)
    if card["name"] != path.stem:
        raise ZooError(f"{path}: name: says {card['name']!r}, but the file is called {path.stem!r}; make them the same")
    weights = path.with_name(f"{path.stem}.safetensors")
    if not weights.is_file():
        raise ZooError(f"{path}: its weights are missing: there is no {weights.name} beside it")
    try:
        counts, digest = _measured(card, weights)
    except ZooError as error:
        raise ZooError(f"{path}: {error}") from None
    backbone = described(card, counts, zoo=zoo, weights=str(weights), digest=digest)
    try:
        backbone_of(backbone_facts(backbone))  # what the history would not take is refused here, where its file can be named
    except (HistoryError, RecursionError) as error:
        raise ZooError(f"{path}: {error}") from None
    return backbone


def described(card: Mapping[str, Any], counts: Counts, *, zoo: str, weights: str = "", digest: str = "") -> Backbone:
    """The facts of a card that `check_card` passed."""
    architecture = card["build"]["timm"]
    return Backbone(
        name=card["name"],
        zoo=zoo,
        architecture=architecture,
        family=card.get("family") or family(architecture),
        source_dataset=card["source_dataset"],
        source_domain=card["source_domain"],
        input_size=card["input_size"][1],
        mean=tuple(card["mean"]),
        std=tuple(card["std"]),
        interpolation=card["interpolation"],
        crop_pct=card["crop_pct"],
        params=counts.params,
        macs=counts.macs,
        num_features=counts.num_features,
        num_classes=card["num_classes"],
        source_accuracy=card.get("source_accuracy"),
        licence=card.get("licence", ""),
        kwargs=card["build"].get("kwargs", {}),
        weights=weights,
        digest=digest,
        crop_mode=card.get("crop_mode", CENTER),
    )


def check_card(card: Any, path: Path) -> None:
    """Raises ZooError for the first field that is missing or wrong."""
    if not isinstance(card, dict):
        raise ZooError(f"{path}: a card is a JSON object, but this is {type(card).__name__}")
    for name, (fits, wanted) in (_NEEDED | _OPTIONAL).items():
        if name not in card:
            if name in _NEEDED:
                raise ZooError(f"{path}: {name}: missing; expected {wanted}")
        elif not fits(card[name]):
            raise ZooError(f"{path}: {name}: expected {wanted}, but got {json.dumps(card[name])[:80]}")
        elif fault := fault_as_json(card[name]):
            raise ZooError(f"{path}: {name}: JSON cannot hold it: {fault}")
    build, kwargs = card["build"], card["build"].get("kwargs", {})
    if "timm" not in build:
        raise ZooError(f'{path}: build: {json.dumps(next(iter(build)))} is not known; only "timm", with a public timm name, is')
    if not isinstance(build["timm"], str) or not re.fullmatch(r"\w+", build["timm"]):
        raise ZooError(f"{path}: build: expected a plain timm name, but got {json.dumps(build['timm'])[:80]}")
    if not isinstance(kwargs, dict):
        raise ZooError(f"{path}: build: kwargs: expected an object, but got {json.dumps(kwargs)[:80]}")
    for name in filter(RESERVED.fullmatch, kwargs):
        raise ZooError(f"{path}: build: kwargs: {name!r} is not for a card to say; remove it")


def _measured(card: Mapping[str, Any], weights: Path) -> tuple[Counts, str]:
    """Counts and sha256: from the card itself, or else measured, once for each state of the weights file."""
    if {"backbone_params", "macs", "num_features", "sha256"} <= card.keys():
        return Counts(card["backbone_params"], card["macs"], card["num_features"]), card["sha256"]
    state = weights.stat()
    text = json.dumps([card["build"], card["num_classes"], card["input_size"], str(weights), state.st_size, state.st_mtime_ns])
    kept = cache() / "cards" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"
    try:
        facts = json.loads(kept.read_text(encoding="utf-8"))
        counts, digest = Counts(**facts["counts"]), facts["sha256"]
    except (OSError, ValueError, LookupError, TypeError):  # not measured yet, or damaged
        counts, digest = _count(card), sha256(weights)
        kept.parent.mkdir(exist_ok=True)
        write_text(kept, json.dumps({"counts": asdict(counts), "sha256": digest}))
    return counts, card.get("sha256", digest)


def _count(card: Mapping[str, Any]) -> Counts:
    build = card["build"]
    size, classes = card["input_size"][1], card["num_classes"]
    return count(build["timm"], build.get("kwargs", {}), num_classes=classes, input_size=size)


def build(backbone: Backbone, *, head: bool = False) -> nn.Module:
    """The network of a card with its weights, headless or with its source head; in evaluation mode.

    Raises:
        ZooError: the weights are not here, do not belong to this network, or are damaged.
    """
    if not backbone.weights:  # as it is known from a model or a history
        raise ZooError(f"{backbone.name}: its weights are not at hand; add the folder that has them with `automl-tl zoo add`")
    if head and not backbone.num_classes:
        raise ZooError(f"{backbone.name} has no source head")
    net = create(backbone.architecture, backbone.kwargs, num_classes=backbone.num_classes)
    load_weights(net, Path(backbone.weights), digest=backbone.digest)
    return (net if head else headless(net)).eval()


def load_weights(net: nn.Module, path: Path, *, digest: str = "") -> None:
    """Fill every parameter and buffer of `net` from a safetensors file, in full precision.

    Raises:
        ZooError: no safetensors file, another sha256 than `digest`, or other names or shapes than those of `net`.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if digest and sha256(path) != digest:
        raise ZooError(f"{path}: is not the file that its card describes (other sha256); fetch it again")
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ZooError(f"{path}: is no whole safetensors file: {first_line(error)}; fetch it again") from None
    wanted = net.state_dict()
    for name in sorted(wanted.keys() ^ tensors.keys()):
        verb = "lacks" if name in wanted else "has an unexpected"
        raise ZooError(f"{path}: {verb} {name!r}; these weights belong to another network than the card says")
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape:
            shapes = f"{tuple(tensor.shape)}, and the network that its card describes {tuple(wanted[name].shape)}"
            raise ZooError(f"{path}: {name!r} has the shape {shapes}")
    net.load_state_dict({name: _full(tensor) for name, tensor in tensors.items()})


def write_network(folder: Path, name: str, net: nn.Module, card: Mapping[str, Any]) -> Path:
    """Write a trained network, source head included, as NAME.safetensors and then NAME.json, whose path is returned.

    Matrices are kept in fp16, vectors (norms, biases) in fp32. `card` needs what `read_card` needs; the name, the sha256 and
    all that can be counted are added.

    Raises:
        ZooError: the card is not complete, does not describe `net`, or a weight is beyond fp16.
    """
    import torch

    from .checkpoint import write_tensors

    path = folder / f"{name}.json"
    facts: dict[str, Any] = json.loads(json.dumps({**card, "name": name}))
    check_card(facts, path)
    counts = _count(facts)
    tensors = {key: _small(tensor.detach().cpu()).contiguous() for key, tensor in net.state_dict().items()}
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ZooError(f"{path}: {key!r} holds numbers that fp16 cannot; the training went wrong")
    weights = folder / f"{name}.safetensors"
    build = facts["build"]
    with whole(weights) as partial:
        write_tensors(partial, tensors)
        load_weights(create(build["timm"], build.get("kwargs", {}), num_classes=facts["num_classes"]), partial)
        facts |= {
            "family": facts.get("family") or family(build["timm"]),
            "params": sum(parameter.numel() for parameter in net.parameters()),
            "backbone_params": counts.params,
            "macs": counts.macs,
            "num_features": counts.num_features,
            "sha256": sha256(partial),
        }
    write_text(path, json.dumps(facts, indent=1) + "\n")
    return path


def sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ZooError(f"{path}: cannot be read: {error.strerror}") from None


def _small(tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    return tensor.half() if tensor.ndim > 1 else tensor.float()


def _full(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


@dataclass(frozen=True)
class Folder:
    """What lies in a folder of networks."""

    path: Path
    backbones: tuple[Backbone, ...]
    skipped: Mapping[str, str]
    """Name of a card that cannot be used → why."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(backbone.name for backbone in self.backbones)


def read_folder(path: Path, *, zoo: str) -> Folder:
    """Every card of a folder; those that cannot be used are named, and do not stand in the way of the others."""
    backbones, skipped = [], {}
    for card in sorted(path.glob("*.json")):
        try:
            backbones.append(read_card(card, zoo=zoo))
        except ZooError as error:
            skipped[card.stem] = str(error).removeprefix(f"{card}: ")
    return Folder(path, tuple(backbones), skipped)


def folders() -> tuple[Path, ...]:
    """The folders of networks that the user added."""
    path = home() / "zoos.json"
    try:
        return tuple(map(Path, json.loads(path.read_text(encoding="utf-8")))) if path.exists() else ()
    except (ValueError, TypeError) as error:
        raise ZooError(f"{path}: expected a JSON list of folders: {error}; delete it and add the folders anew") from None


def add_folder(folder: Path) -> Folder:
    """Remember a folder of networks, which stays where it is. Adding it again changes nothing.

    Raises:
        ZooError: no card in it can be used, or a name is already taken by another folder or another zoo.
    """
    folder = folder.expanduser().resolve()
    if not folder.is_dir():
        raise ZooError(f"{folder}: is not a folder")
    found = read_folder(folder, zoo="folder")
    if not found.backbones:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in found.skipped.items()) or "there is no card (NAME.json) in it"
        raise ZooError(f"{folder}: holds no network that can be used: {reasons}")
    taken = _taken()
    for name in found.names:
        if name in taken:
            files = f"{name}.json, {name}.safetensors and `name` in the card"
            raise ZooError(f"{folder}: {name!r} is the name of a network of the zoo {taken[name]!r}; rename it: {files}")
    with _changing():
        others = [other for other in folders() if other != folder]
        for other in others:
            for name in found.names:
                if (other / f"{name}.json").exists():
                    raise ZooError(f"{name}: is both in {folder} and in {other}, which was added before; rename or remove one")
        _remember([*others, folder])
    return found


def _taken() -> dict[str, str]:
    """Names of the networks that are at hand without any added folder → their zoo."""
    taken: dict[str, str] = {}
    for zoo in registry.zoos().values():
        if zoo.name != "folder":
            taken |= {backbone.name: zoo.name for backbone in offered(zoo)}
    return taken


def remove_folder(folder: Path) -> None:
    """Forget a folder; nothing in it is touched.

    Raises:
        ZooError: it was never added.
    """
    folder = folder.expanduser().resolve()
    with _changing():
        known = folders()
        if folder not in known:
            raise ZooError(f"{folder}: was not added; added are: {', '.join(map(str, known)) or 'none'}")
        _remember([other for other in known if other != folder])


def _changing() -> FileLock:
    """Held from the reading to the writing of the list: two that add a folder at once would forget one."""
    from filelock import FileLock

    return FileLock(home() / "zoos.lock")


def _remember(paths: list[Path]) -> None:
    write_text(home() / "zoos.json", json.dumps(sorted(map(str, paths)), indent=1) + "\n")
