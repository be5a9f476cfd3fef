"""Single networks of the hub by name: `hf-hub:OWNER/NAME[@REVISION]`, in the form that timm saves there."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from automl_tl import Backbone, Offer, hookimpl
from automl_tl.cards import check_card, described
from automl_tl.errors import InputError, ZooError
from automl_tl.facts import backbone_of
from automl_tl.home import home, read_json, write_text
from automl_tl.networks import count, first_line, headless
from automl_tl.records import CENTER
from automl_tl.registry import PluginWarning

from ._tags import UNKNOWN, domain_of_words, source_dataset, source_domain

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo
    from torch import nn

PREFIX = "hf-hub:"
UNTAGGED = ("natural objects", "web images")
"""What a network is said to show by the dataset in its name; on the hub nobody tags one with these words."""


class HuggingFaceHub:
    """A network becomes known by its name, once: its config is read and it is counted. Weights come when it is chosen."""

    name = "hub"
    prefix = PREFIX

    def list(self) -> Iterable[Backbone]:
        """A file that is damaged costs only its own network."""
        found = []
        for path in sorted(_folder().glob("*.json")):
            name = f"{PREFIX}{path.stem.replace('--', '/', 1)}"
            try:
                found.append(read_json(path, backbone_of, remedy=f"remove {name} with `automl-tl zoo remove`, and add it again"))
            except (InputError, OSError) as error:
                warnings.warn(f"{name} is left out: {error}", PluginWarning, stacklevel=2)
        return found

    def add(self, name: str) -> Backbone:
        """Read what the hub says of `hf-hub:OWNER/NAME[@REVISION]`; without a revision, main as it is when the weights come.

        Raises:
            ZooError: there is no such repository or revision, it holds no safetensors, or timm cannot build it.
        """
        from ._hub import announced, fetch

        repository, _, revision = name.removeprefix(PREFIX).partition("@")
        digest, size = announced(repository, revision=revision or None)
        path = fetch(repository, file="config.json", revision=revision or None, anew=True)
        backbone = replace(_read_config(path, name), digest=digest, download_bytes=size)
        write_text(_kept(name), json.dumps(asdict(backbone), indent=1))
        return backbone

    def remove(self, name: str) -> None:
        """Forget a network; weights in the hub's cache stay there. Raises ZooError: it was never added."""
        try:
            _kept(name).unlink()
        except FileNotFoundError:
            raise ZooError(f"{name}: was not added; `automl-tl zoo list` names the networks that were") from None

    def search(self, words: str, *, domain: str | None = None, limit: int) -> Iterable[Offer]:
        """What the hub finds among the networks for timm, the most downloaded first.

        Raises:
            ZooError: the hub cannot be asked.
        """
        from huggingface_hub import HfApi, constants, get_session

        from ._hub import PROBE_SECONDS, plainly

        tags = ["timm", "safetensors"]
        if domain is not None and not any(domain.lower() in known for known in UNTAGGED):
            tags.append(domain)
        with plainly("hub search"):
            get_session().head(constants.ENDPOINT, timeout=PROBE_SECONDS)  # the client itself would try for most of a minute
            found = HfApi().list_models(
                search=words or None,
                filter=tags,
                sort="downloads",
                limit=limit,
                expand=["downloads", "safetensors", "tags"],
            )
            return [_offer(info) for info in found]

    def build(self, backbone: Backbone, *, head: bool = False) -> nn.Module:
        """Raises ZooError: the weights cannot be had, are not those that were there at `add`, or not of this network."""
        import timm
        from safetensors import SafetensorError

        from ._hub import fetch

        if head and not backbone.num_classes:
            raise ZooError(f"{backbone.name} has no source head")
        repository, _, revision = backbone.weights.partition("@")
        path = fetch(repository, revision=revision or None, digest=backbone.digest)
        side = backbone.input_size
        facts = {"file": str(path), "num_classes": backbone.num_classes, "input_size": (3, side, side)}
        try:
            net = timm.create_model(
                backbone.architecture,
                pretrained=True,
                pretrained_cfg=facts,  # a file of ours: timm fetches nothing itself, least of all a pickle
                num_classes=backbone.num_classes,
                **backbone.kwargs,
            )
        except (RuntimeError, ValueError, LookupError, TypeError, SafetensorError) as error:
            raise ZooError(f"{backbone.name}: {path} does not hold {backbone.architecture}: {first_line(error)}") from None
        return (net if head else headless(net)).eval()


def _folder() -> Path:
    path = home() / "hub"
    path.mkdir(exist_ok=True)
    return path


def _kept(name: str) -> Path:
    return _folder() / f"{name.removeprefix(PREFIX).replace('/', '--')}.json"


def _read_config(path: Path, name: str) -> Backbone:
    """The facts of a config.json of timm, checked as the card of a stranger is."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        told = {**config, **(config.get("pretrained_cfg") or {})}
        facts: dict[str, Any] = {key: value for key, value in told.items() if value is not None}  # null: timm's own default
        kwargs = dict(config.get("model_args") or {})
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ZooError(f"{name}: its config.json cannot be read: {first_line(error)}") from None
    if not isinstance(config.get("architecture"), str):
        raise ZooError(f"{name}: its config.json names no architecture of timm; only networks in timm's form can be used")
    kwargs.pop("num_classes", None)  # timm repeats it and the channels there
    if (channels := kwargs.pop("in_chans", 3)) != 3:
        raise ZooError(f"{name}: takes images of {channels} channels; only networks for 3 can be used")
    if "global_pool" in facts:
        kwargs.setdefault("global_pool", facts["global_pool"])
    dataset = source_dataset(str(facts.get("tag") or ""))
    domain = domain_of_words(name)
    card = {
        "name": name,
        "build": {"timm": config["architecture"], "kwargs": kwargs},
        "num_classes": config.get("num_classes", facts.get("num_classes")),
        "source_dataset": name.removeprefix(PREFIX).partition("@")[0] if dataset == UNKNOWN else dataset,
        "source_domain": source_domain(dataset) if domain == UNKNOWN else domain,
        "input_size": facts.get("input_size", (3, 224, 224)),
        "mean": facts.get("mean", (0.485, 0.456, 0.406)),
        "std": facts.get("std", (0.229, 0.224, 0.225)),
        "crop_pct": facts.get("crop_pct", 0.875),
        "interpolation": facts.get("interpolation", "bicubic"),
        "crop_mode": facts.get("crop_mode", CENTER),
        "licence": str(facts.get("license") or ""),
    }
    check_card(card, Path(name))
    if facts.get("fixed_input_size"):  # else it would be built for the images of its architecture's usual weights
        kwargs.setdefault("img_size", card["input_size"][1])
    return _counted(card)


def _counted(card: Mapping[str, Any]) -> Backbone:
    architecture, kwargs, side = card["build"]["timm"], card["build"]["kwargs"], card["input_size"][1]
    try:
        counts = count(architecture, kwargs, num_classes=card["num_classes"], input_size=side)
    except ZooError as error:
        raise ZooError(f"{card['name']}: {str(error).removeprefix('build: ')}") from None
    return described(card, counts, zoo=HuggingFaceHub.name, weights=card["name"].removeprefix(PREFIX))


def _offer(info: ModelInfo) -> Offer:
    """Of what the hub lists: its tags say licence, data and domain."""
    tags = [str(tag) for tag in info.tags or ()]
    told = {key: [tag.partition(":")[2] for tag in tags if tag.startswith(f"{key}:")] for key in ("license", "dataset")}
    named = source_dataset(info.id.partition(".")[2])
    domains = (domain_of_words(" ".join((info.id, *tags))), *map(source_domain, (*told["dataset"], named)))
    return Offer(
        name=f"{PREFIX}{info.id}",
        zoo=HuggingFaceHub.name,
        params=info.safetensors.total if info.safetensors else None,
        licence=(told["license"] or [""])[0],
        source_dataset=", ".join(told["dataset"]) or named,
        source_domain=next((domain for domain in domains if domain != UNKNOWN), UNKNOWN),
        downloads=info.downloads,
    )


@hookimpl
def register_backbones() -> list[HuggingFaceHub]:
    return [HuggingFaceHub()]
