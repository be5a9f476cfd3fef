"""Every pretrained tag of the installed timm. Facts are known offline; weights come from the hub when a network is chosen."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from automl_tl import Backbone, hookimpl
from automl_tl.errors import ZooError
from automl_tl.home import cache, write_text
from automl_tl.networks import family, first_line, headless

from ._tags import source_dataset, source_domain

if TYPE_CHECKING:
    from torch import nn

    from ._timm_counts import Counted, Key


class TimmHub:
    name = "timm"
    on_request = True

    def list(self) -> Iterable[Backbone]:
        """From the catalogue, which is built at the first call."""
        try:
            return self._parse(json.loads(_kept().read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, LookupError, AttributeError):  # not built yet, damaged, or of another form
            return self._parse(self.build_catalogue())

    def cached(self) -> Iterable[Backbone]:
        """Those whose weights are in the local hub cache."""
        from ._hub import cached_repositories

        here = cached_repositories()
        return [backbone for backbone in self.list() if backbone.weights in here] if here else []

    def build(self, backbone: Backbone, *, head: bool = False) -> nn.Module:
        """Raises ZooError: the weights cannot be had, or are not those of this network."""
        import timm
        from safetensors import SafetensorError

        from ._hub import fetch

        if head and not backbone.num_classes:
            raise ZooError(f"{backbone.name} has no source head")
        path = fetch(backbone.weights)
        # a file of ours: timm fetches nothing itself, least of all a pickle, nor takes it for the kind that its authors published
        overlay = {"file": str(path), "custom_load": False}
        try:
            net = timm.create_model(
                backbone.name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=backbone.num_classes
            )
        except (RuntimeError, ValueError, LookupError, SafetensorError) as error:
            raise ZooError(f"{backbone.weights}: {path} does not hold {backbone.name}: {first_line(error)}") from None
        return (net if head else headless(net)).eval()

    def build_catalogue(self) -> dict[str, Any]:
        """Read timm's own metadata, count what the shipped counts do not know, and keep both in the cache.

        Seconds, most of them for importing timm; half a second more for each network of a timm newer than the counts.
        """
        from ._timm_counts import SHIPPED, complete, read

        counted = read(SHIPPED)
        complete(counted)
        catalogue = _read_timm(counted)
        write_text(_kept(), json.dumps(catalogue))
        return catalogue

    def _parse(self, catalogue: Mapping[str, Any]) -> Iterable[Backbone]:
        return [_backbone(facts, zoo=self.name) for facts in catalogue["networks"]]


def _kept() -> Path:
    """Named by what it is built from: another timm, or corrected counts, make another catalogue."""
    from ._timm_counts import SHIPPED

    return cache() / f"timm-{version('timm')}-{hashlib.sha256(SHIPPED.read_bytes()).hexdigest()[:12]}.json"


def _read_timm(counted: Mapping[Key, Counted]) -> dict[str, Any]:
    """Without the tags whose weights are not on the hub, that take no squares, or that cannot be backbones (see the counts)."""
    from ._timm_counts import Key, pretrained

    networks = []
    for tag, facts in pretrained():
        _, height, width = facts.input_size
        if facts.hf_hub_id is None or height != width:
            continue
        if (counts := counted[Key(facts.architecture, height)].counts) is not None:
            network = {
                "tag": tag,
                "repository": facts.hf_hub_id,
                "input_size": height,
                "mean": facts.mean,
                "std": facts.std,
                "interpolation": facts.interpolation,
                "crop_pct": facts.crop_pct,
                "crop_mode": facts.crop_mode,
                "num_classes": facts.num_classes,
                "licence": facts.license or "",
                "params": counts.params,
                "macs": counts.macs,
                "num_features": counts.num_features,
            }
            networks.append(network)
    return {"networks": networks}


def _backbone(facts: dict[str, Any], *, zoo: str) -> Backbone:
    architecture, _, tag = facts["tag"].partition(".")
    dataset = source_dataset(tag)
    return Backbone(
        name=facts["tag"],
        zoo=zoo,
        architecture=architecture,
        family=family(architecture),
        source_dataset=dataset,
        source_domain=source_domain(dataset),
        input_size=facts["input_size"],
        mean=tuple(facts["mean"]),
        std=tuple(facts["std"]),
        interpolation=facts["interpolation"],
        crop_pct=facts["crop_pct"],
        params=facts["params"],
        macs=facts["macs"],
        num_features=facts["num_features"],
        num_classes=facts["num_classes"],
        licence=facts["licence"],
        weights=facts["repository"],
        download_bytes=facts["params"] * 4,
        crop_mode=facts["crop_mode"],
    )


@hookimpl
def register_backbones() -> list[TimmHub]:
    return [TimmHub()]
