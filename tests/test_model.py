"""A model's folder: the weights and the card that belong to each other, or an honest error."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small import QUICK
from torch import nn
from torch.nn import functional as F

from automl_tl import Backbone, Candidate, Classifier, model, registry
from automl_tl.backbones import build, catalogue
from automl_tl.errors import InputError


def save(folder: Path, mean: tuple[float, float, float]) -> None:
    """A network with a head of its own, and the facts of its backbone."""
    backbone = replace(catalogue()[QUICK], mean=mean)
    net = Classifier(build(backbone), nn.Linear(backbone.num_features, 2))
    model.save(folder, net, backbone, Candidate(QUICK, "linear-probe"), ("a", "b"), {"task": "mine"})


def test_saving_that_is_cut_off_leaves_no_mixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """New weights would run with the mean and the classes of the old card, and nobody could tell."""
    save(tmp_path, (0.1, 0.1, 0.1))

    def cut_off(path: Path, text: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(model, "write_text", cut_off)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, (0.9, 0.9, 0.9))
    with pytest.raises(InputError, match=r"model\.safetensors is not the file that model\.json describes .* run `automl-tl fit`"):
        model.load(tmp_path)
    save(tmp_path, (0.9, 0.9, 0.9))
    loaded = model.load(tmp_path)
    assert (loaded.backbone.mean, loaded.facts) == ((0.9, 0.9, 0.9), {"task": "mine"})


class Patches(nn.Module):
    """A network that timm has not: means of 4×4 patches."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(48))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return F.adaptive_avg_pool2d(images, 4).flatten(1) + self.bias


class Own:
    """A zoo of somebody's plugin."""

    name = "own"

    def __init__(self) -> None:
        facts = catalogue()[QUICK]
        self.backbone = replace(facts, name="patches", zoo="own", architecture="", kwargs={}, num_features=48)
        self.built: list[Backbone] = []

    def list(self) -> list[Backbone]:
        return [self.backbone]

    def build(self, backbone: Backbone, *, head: bool = False) -> nn.Module:
        self.built.append(backbone)
        return Patches()


def test_a_network_that_timm_has_not_is_what_its_zoo_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the card says of it; and without that zoo nobody is asked for it."""
    own = Own()
    net = Classifier(Patches(), nn.Linear(48, 2))
    nn.init.normal_(net.backbone.bias)
    model.save(tmp_path, net, own.backbone, Candidate("patches", "linear-probe"), ("a", "b"), {})
    with pytest.raises(InputError, match=r"model\.json: its network 'patches' is none that timm builds, and no zoo 'own' here"):
        model.load(tmp_path)
    zoos = {**registry.zoos(), "own": own}
    monkeypatch.setattr(registry, "zoos", lambda: zoos)
    card = json.loads((tmp_path / model.CARD).read_text(encoding="utf-8"))
    card["backbone"] |= {"weights": "evil/x", "kwargs": {"file": "evil.pth"}}
    (tmp_path / model.CARD).write_text(json.dumps(card), encoding="utf-8")
    loaded = model.load(tmp_path)
    assert own.built == [own.backbone]
    images = torch.rand(3, 3, 64, 64)
    torch.testing.assert_close(loaded.net(images), net(images))


def test_a_card_from_before_weights_were_named_is_read(tmp_path: Path) -> None:
    save(tmp_path, (0.1, 0.1, 0.1))
    card = json.loads((tmp_path / model.CARD).read_text(encoding="utf-8"))
    assert len(card.pop("sha256")) == 64
    (tmp_path / model.CARD).write_text(json.dumps(card), encoding="utf-8")
    assert model.load(tmp_path).backbone.mean == (0.1, 0.1, 0.1)
    (tmp_path / model.CARD).write_text(json.dumps({**card, "sha256": 3}), encoding="utf-8")
    with pytest.raises(InputError, match="other sha256"):
        model.load(tmp_path)


def test_what_is_packed_is_the_same_whether_it_was_saved_or_not(tmp_path: Path) -> None:
    save(tmp_path, (0.1, 0.1, 0.1))
    loaded = model.load(tmp_path)
    packed = model.pack(loaded)
    assert "sha256" not in json.loads(packed[model.CARD])
    assert model.pack(model.unpack(packed)) == packed
