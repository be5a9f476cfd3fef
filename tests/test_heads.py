"""Heads that a saved model may have, and what is said of others."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from small import QUICK
from torch import nn

from automl_tl import Candidate, Classifier, heads, model
from automl_tl.backbones import build, catalogue
from automl_tl.errors import InputError, PluginError
from automl_tl.evaluation.calibration import cooled
from automl_tl.exports import onnx_file, torch_program
from automl_tl.heads import Neighbours, describe, plain, rebuild


def neighbours(k: int = 3, *, cosine: bool = False) -> Neighbours:
    features = torch.tensor([[0.0, 0], [0, 1], [5, 5], [5, 6], [6, 5]]).half()
    return Neighbours(features, torch.tensor([0, 0, 1, 1, 1]), 2, k=k, cosine=cosine)


def test_votes_by_hand() -> None:
    probabilities = neighbours()(torch.tensor([[0.2, 0.2], [5.0, 5.4]])).softmax(1)
    assert probabilities.tolist()[0] == pytest.approx([2.5 / 4, 1.5 / 4])
    assert probabilities.tolist()[1] == pytest.approx([0.5 / 4, 3.5 / 4])


def test_nearness_is_not_lost_to_rounding() -> None:
    """Far from the origin, float32 cannot tell |f|² - 2 f·g + |g|² apart; bf16 could not even tell the features."""
    far = torch.tensor([[1000.0, 0.0], [1000.5, 0.0]]).half()
    head = Neighbours(far, torch.tensor([0, 1]), 2, k=1, cosine=False)
    with torch.autocast("cpu", torch.bfloat16):
        assert head(torch.tensor([[1000.1, 0.0], [1000.4, 0.0]])).argmax(1).tolist() == [0, 1]


def test_votes_in_blocks_are_those_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    stored, asked = torch.randn(30, 4, generator=generator).half(), torch.randn(17, 4, generator=generator)
    head = Neighbours(stored, torch.arange(30) % 7, 7, k=9, cosine=True)
    whole = head(asked)
    monkeypatch.setattr(heads, "BLOCK", (30 + 9 * 7) * 5)
    assert torch.equal(head(asked), whole)
    monkeypatch.setattr(heads, "BLOCK", 1)
    assert torch.equal(head(asked), whole)
    assert head(asked[:0]).shape == (0, 7)


class Apple(torch.Tensor):
    """As on Apple's GPUs, which have no float64."""

    device = torch.device("mps")  # type: ignore[misc]

    def double(self) -> torch.Tensor:
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")

    def cpu(self) -> torch.Tensor:  # type: ignore[override]
        return self.as_subclass(torch.Tensor)


@pytest.mark.parametrize("cosine", [False, True])
def test_votes_are_the_same_on_a_device_without_float64(cosine: bool) -> None:
    head, asked = neighbours(cosine=cosine), torch.tensor([[0.2, 0.2], [5.0, 5.4]])
    expected = head(asked)
    head.features = head.features.as_subclass(Apple)
    assert torch.equal(head(asked.as_subclass(Apple)).as_subclass(torch.Tensor), expected)


@pytest.mark.parametrize("form", [torch_program, onnx_file])
def test_votes_are_exported_with_their_temperature(tmp_path: Path, form: ModuleType) -> None:
    if form is onnx_file:
        for package in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(package, reason="needs pip install 'automl_tl[onnx]'")
    backbone = catalogue()[QUICK]
    stored = torch.randn(20, backbone.num_features, generator=torch.Generator().manual_seed(0)).half()
    net = Classifier(build(backbone), Neighbours(stored, torch.arange(20) % 4, 4, k=7, cosine=True))
    trained = model.Model(net, backbone, Candidate(QUICK, "somebody's"), ("a", "b", "c", "d"), {})
    images = np.random.default_rng(0).integers(0, 256, (9, backbone.input_size, backbone.input_size, 3), dtype=np.uint8)
    before = trained.probabilities(images)
    heads.cool(net.head, 2.0)
    np.testing.assert_allclose(trained.probabilities(images), cooled(before, 2.0), atol=1e-6)
    model.save(tmp_path, net, backbone, trained.candidate, trained.classes, {})
    np.testing.assert_array_equal(model.load(tmp_path).probabilities(images), trained.probabilities(images))
    form.write(tmp_path, trained)
    np.testing.assert_allclose(form.read(tmp_path / form.FILE).probabilities(images), cooled(before, 2.0), atol=1e-5)


@pytest.mark.parametrize("cosine", [False, True])
def test_a_model_of_neighbours_is_saved_and_read_back(tmp_path: Path, cosine: bool) -> None:
    backbone = catalogue()[QUICK]
    stored = torch.randn(20, backbone.num_features, generator=torch.Generator().manual_seed(0)).half()
    head = Neighbours(stored, torch.arange(20) % 4, 4, k=3, cosine=cosine)
    net = Classifier(build(backbone), head)
    candidate = Candidate(QUICK, "somebody's")
    model.save(tmp_path, net, backbone, candidate, ("a", "b", "c", "d"), {})
    loaded = model.load(tmp_path)
    size = backbone.input_size
    images = np.random.default_rng(0).integers(0, 256, (8, size, size, 3), dtype=np.uint8)
    expected = model.Model(net, backbone, candidate, loaded.classes, {}).probabilities(images)
    np.testing.assert_array_equal(loaded.probabilities(images), expected)
    assert "head" not in loaded.facts


def test_a_card_from_before_there_were_kinds_is_linear(tmp_path: Path) -> None:
    backbone = catalogue()[QUICK]
    net = Classifier(build(backbone), nn.Linear(backbone.num_features, 2))
    model.save(tmp_path, net, backbone, Candidate(QUICK, "somebody's"), ("a", "b"), {})
    card = json.loads((tmp_path / model.CARD).read_text(encoding="utf-8"))
    assert card.pop("head") == {"kind": "linear"}
    (tmp_path / model.CARD).write_text(json.dumps(card), encoding="utf-8")
    assert isinstance(model.load(tmp_path).net.head, nn.Linear)
    (tmp_path / model.CARD).write_text(json.dumps({**card, "head": {"kind": "forest"}}), encoding="utf-8")
    with pytest.raises(InputError, match=r"model\.json is damaged, or of another version: its head is of the kind 'forest'"):
        model.load(tmp_path)


@pytest.mark.parametrize("facts", [{}, {"stored": 5}, {"stored": 5, "k": 9}, {"stored": "5", "k": 1}])
def test_a_head_that_cannot_be_is_refused(facts: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="neighbours of"):
        rebuild({"kind": "neighbours", **facts}, 2, 2)


@pytest.mark.parametrize("temperature", [0, -1.0, float("inf"), float("nan"), "2", None])
def test_a_head_with_no_temperature_is_refused(temperature: object) -> None:
    with pytest.raises(InputError, match="its head divides logits by"):
        rebuild({"kind": "neighbours", "stored": 5, "k": 1, "temperature": temperature}, 2, 2)


def test_dropout_is_left_out_and_anything_else_is_refused() -> None:
    linear = nn.Linear(2, 2)
    assert plain(nn.Sequential(nn.Dropout(0.5), linear), "mine") is linear
    told = {"kind": "neighbours", "stored": 5, "k": 3, "cosine": True, "temperature": 1.0}
    assert describe(plain(neighbours(cosine=True), "mine")) == told
    with pytest.raises(PluginError, match="strategy 'mine' left a head that is not linear"):
        plain(nn.Sequential(linear, nn.ReLU(), linear), "mine")
