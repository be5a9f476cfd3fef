"""Exports as the command line makes them, in a process that has predicted nothing yet; beside what killed ones left; and of
networks that see more than there is of an image."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from small import QUICK, arrays
from torch import Tensor, nn

import automl_tl
from automl_tl import Candidate, Classifier, augment, exports, model
from automl_tl.backbones import build, catalogue
from automl_tl.errors import InputError
from automl_tl.exports import graph, onnx_file, torch_program
from automl_tl.exports.predictor import open_predictor

HAVE_ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
needs_onnx = pytest.mark.skipif(not HAVE_ONNX, reason="needs pip install 'automl_tl[onnx]'")
GRAPHS = ("torch", pytest.param("onnx", marks=needs_onnx))
AGREES = 1e-5
IMAGES = [np.kron(image, np.ones((5, 7), dtype=np.uint8)) for image in arrays(6)[0]]


def write_run(folder: Path, *, crop_pct: float = 1.0, crop_mode: str = "center") -> Path:
    """A model's folder: a real network with a random head, none of whose classes is sure."""
    backbone = replace(catalogue()[QUICK], crop_pct=crop_pct, crop_mode=crop_mode)
    torch.manual_seed(0)
    net = Classifier(build(backbone), nn.Linear(backbone.num_features, 3))
    with torch.no_grad():
        net.head.weight.mul_(0.2)
    model.save(folder, net, backbone, Candidate(QUICK, "linear-probe"), ("a", "b", "c"), {})
    return folder


COMMANDS = """
import json, sys
from automl_tl.cli import app
for words in json.loads(sys.argv[1]):
    app(words, standalone_mode=False)
"""


@pytest.mark.slow
def test_the_command_line_exports_what_predicts_the_same_and_predicts_afterwards(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    photos = tmp_path / "photos"
    photos.mkdir()
    for number, image in enumerate(IMAGES):
        Image.fromarray(image).save(photos / f"{number}.png")
    forms = ("torch", "onnx") if HAVE_ONNX else ("torch",)
    predictors = [run, *(run / "exports" / form for form in forms)]
    lines = [["export", str(run), "--to", form] for form in forms]
    lines += [["predict", str(path), str(photos), "--json"] for path in predictors]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", COMMANDS, json.dumps(lines)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    expected = automl_tl.predict(run, photos).probabilities.max(axis=1)
    assert expected.max() < 0.99
    decoder, rest, found = json.JSONDecoder(), done.stdout[done.stdout.index("[\n") :], []
    while rest.strip():
        rows, end = decoder.raw_decode(rest)
        found.append([row["confidence"] for row in rows])
        rest = rest[end:].lstrip()
    assert found == [pytest.approx(expected, abs=AGREES)] * len(predictors)


@pytest.mark.parametrize("form", GRAPHS)
def test_a_graph_does_not_need_what_an_earlier_prediction_kept(form: str, tmp_path: Path) -> None:
    trained = model.load(write_run(tmp_path / "run"))
    probes = graph.probes(trained.backbone.input_size)
    expected = trained.probabilities(probes)
    augment._kept.cache_clear()
    write = torch_program.write if form == "torch" else onnx_file.write
    assert write(tmp_path, model.load(tmp_path / "run")) <= AGREES
    assert augment._kept.cache_info().currsize == 0
    np.testing.assert_array_equal(model.load(tmp_path / "run").probabilities(probes), expected)
    np.testing.assert_allclose(open_predictor(tmp_path).probabilities(probes), expected, atol=AGREES)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_nothing_of_a_trace_is_kept(dtype: torch.dtype) -> None:
    mean, std = (0.123, 0.2, 0.3), (0.5, 0.25, 0.125)

    class Normalise(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return augment.normalise(images.permute(0, 3, 1, 2), mean, std)

    augment._kept.cache_clear()
    images = torch.arange(2 * 4 * 4 * 3, dtype=dtype).reshape(2, 4, 4, 3)
    program = torch.export.export(Normalise(), (images,))
    assert augment._kept.cache_info().currsize == 0
    found = augment.normalise(images.permute(0, 3, 1, 2), mean, std)
    assert (type(found), augment._kept.cache_info().currsize) == (Tensor, 2)
    torch.testing.assert_close(program.module()(images), found, rtol=0, atol=0)
    torch.testing.assert_close(found[1, 2, 3, 3], torch.tensor((95 / 255 - 0.3) / 0.125))


def test_what_a_killed_export_left_is_in_nobodys_way(tmp_path: Path) -> None:
    """Another export may be at work in a folder that is new; one that is a day old is removed."""
    run, out = write_run(tmp_path / "run"), tmp_path / "out"
    old, new = out / ".export-old.partial", out / ".export-new.partial"
    for left in (old, new):
        left.mkdir(parents=True)
        (left / "model.safetensors").write_text("half")
    os.utime(old, (0, 0))
    exported = automl_tl.export(run, to="timm", out=out)
    assert {path.name for path in out.iterdir()} == {*exported.files, new.name}
    assert automl_tl.export(run, to="timm", out=out).files.keys() == exported.files.keys()
    assert (new / "model.safetensors").read_text() == "half"


def test_an_export_killed_over_an_older_one_lacks_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It never has one file of each, which might fit together and mean something else."""
    run, out = write_run(tmp_path / "run"), tmp_path / "out"
    automl_tl.export(run, to="timm", out=out)
    replaced = os.replace

    def killed(source: Path, target: Path) -> None:
        if Path(target) == out / "model.safetensors":
            raise KeyboardInterrupt
        replaced(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(exports.os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            automl_tl.export(run, to="timm", out=out)
    with pytest.raises(InputError, match="its weights are missing"):
        automl_tl.predict(out, IMAGES)
    automl_tl.export(run, to="timm", out=out)
    assert automl_tl.predict(out, IMAGES).labels == automl_tl.predict(run, IMAGES).labels


@pytest.mark.parametrize("form", ["timm", *GRAPHS])
def test_a_network_that_sees_more_than_there_is_can_be_read_back(form: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", crop_pct=1.15)  # timm's volo_d5_512
    found = automl_tl.predict(automl_tl.export(run, to=form).where, IMAGES)
    np.testing.assert_allclose(found.probabilities, automl_tl.predict(run, IMAGES).probabilities, atol=AGREES)


@pytest.mark.parametrize("crop_mode", ["squash", "border"])
@pytest.mark.parametrize("form", ["timm", *GRAPHS])
def test_every_form_fits_images_into_the_square_as_the_run_does(form: str, crop_mode: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", crop_pct=0.9, crop_mode=crop_mode)
    exported = automl_tl.export(run, to=form).where
    expected = automl_tl.predict(run, IMAGES).probabilities
    np.testing.assert_allclose(automl_tl.predict(exported, IMAGES).probabilities, expected, atol=AGREES)
    centre = automl_tl.predict(write_run(tmp_path / "centre", crop_pct=0.9), IMAGES).probabilities
    assert np.abs(expected - centre).max() > 100 * AGREES


@pytest.mark.parametrize(
    ("crop_mode", "resized", "seen"),
    [
        ("center", "shorter side to 71 pixels", "pixels of the centre: what is finer, or at the rim, it does not see."),
        ("squash", "both sides to 71 pixels", "pixels: what is finer, or at the rim, it does not see."),
        ("border", "longer side to 71 pixels", "pixels: what is finer, or at the rim, it does not see."),
    ],
)
def test_timm_alone_fits_images_into_the_square_as_the_run_does(crop_mode: str, resized: str, seen: str, tmp_path: Path) -> None:
    """And the card says how."""
    folder = Path(automl_tl.export(write_run(tmp_path / "run", crop_pct=0.9, crop_mode=crop_mode), to="timm").where)
    net = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    prepare = timm.data.create_transform(**timm.data.resolve_model_data_config(net), is_training=False)
    with torch.inference_mode():
        found = net(torch.stack([prepare(Image.fromarray(image).convert("RGB")) for image in IMAGES])).softmax(1)
    np.testing.assert_allclose(found, automl_tl.predict(tmp_path / "run", IMAGES).probabilities, atol=AGREES)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert f"resized ({resized}, " in card
    assert f"It sees 64×64 {seen}" in card
    assert ("(with RGB [124, 116, 104] around it) and\nnormalised" in card) == (crop_mode == "border")


def test_exports_of_before_there_were_crop_modes_take_the_centre(tmp_path: Path) -> None:
    facts = graph.facts_of(model.load(write_run(tmp_path / "run")), "torch.export")
    for name in ("crop_mode", "fill"):
        del facts["preparation"][name]
    graph.write_facts(tmp_path / "model.pt2", facts)
    found = graph.predictor(tmp_path / "model.pt2", lambda images: images)
    assert (found.crop_mode, found.fill) == ("center", (0, 0, 0))
    folder = Path(automl_tl.export(tmp_path / "run", to="timm").where)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    del config["pretrained_cfg"]["crop_mode"]
    (folder / "config.json").write_text(json.dumps(config))
    assert open_predictor(folder).crop_mode == "center"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("crop_pct", 2.5),
        ("crop_pct", 0.01),
        ("crop_pct", "nan"),
        ("input_size", 1e999),
        ("input_size", 10**6),
        ("input_size", 0),
        ("crop_mode", "stretch"),
        ("crop_mode", []),
        ("fill", [0, 0, 256]),
        ("fill", [0, 0]),
        ("fill", 3),
    ],
)
def test_images_that_cannot_be_prepared_are_refused(name: str, value: object, tmp_path: Path) -> None:
    facts = graph.facts_of(model.load(write_run(tmp_path)), "torch.export")
    facts["preparation"][name] = value
    file = tmp_path / "model.pt2"
    graph.write_facts(file, facts)
    with pytest.raises(InputError, match=r"model\.pt2\.json: .*export the run again"):
        graph.predictor(file, lambda images: images)
