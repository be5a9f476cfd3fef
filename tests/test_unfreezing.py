"""How many layers to unfreeze: every depth is what it says, and what it forgets is measured, on real images."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import timm
import torch
from automl_tl_plugins.formats._fractals import fractals
from automl_tl_plugins.formats.formula import SEED
from small import QUICK, digits
from torch import nn

from automl_tl import Backbone, Task, unfreezing
from automl_tl.api import study_unfreezing
from automl_tl.backbones import build, catalogue
from automl_tl.cards import add_folder, write_network
from automl_tl.errors import InputError, PluginError
from automl_tl.layers import layer_groups
from automl_tl.report.unfreezing import TOP, check_free, conclusion, draw, report_study
from automl_tl.unfreezing import Study, _Before

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOML_TL_HOME", str(tmp_path_factory.mktemp("home")))
        return study_unfreezing(digits(120), backbone=QUICK, epochs=2)


def test_every_depth_is_trained_once(study: Study) -> None:
    net = build(catalogue()[QUICK])
    sizes = [sum(parameter.numel() for parameter in group) for group in layer_groups(net)]
    head = 10 * (catalogue()[QUICK].num_features + 1)
    assert [depth.groups for depth in study.depths] == list(range(len(sizes) + 1))
    assert [depth.parameters for depth in study.depths] == [head + sum(sizes[len(sizes) - n :]) for n in range(len(sizes) + 1)]
    assert all(0 <= depth.score <= 1 and depth.seconds > 0 for depth in study.depths)


def test_all_depths_begin_with_one_head_that_was_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the head alone, at depth 0, would have had half of the training of all others."""
    train, begun = unfreezing._train, list[tuple[int, nn.Linear | None]]()

    def watched(task: Task, backbone: Backbone, judge: _Before, groups: int, head: nn.Linear | None, *how: int) -> Any:
        begun.append((groups, head))
        return train(task, backbone, judge, groups, head, *how)

    monkeypatch.setattr(unfreezing, "_train", watched)
    study = study_unfreezing(digits(60), backbone=QUICK, epochs=2)
    (first, *others) = begun
    assert first == (0, None)
    assert [groups for groups, _ in others] == [depth.groups for depth in study.depths]
    assert len({id(head) for _, head in others}) == 1
    assert others[0][1] is not None


def test_the_head_alone_forgets_nothing_and_all_layers_forget_most(study: Study) -> None:
    assert (study.depths[0].drift, study.depths[0].changed) == (0.0, 0.0)
    assert all(depth.drift > 0 for depth in study.depths[1:])
    assert study.depths[-1].changed is not None
    assert study.depths[-1].changed > 0
    assert "for want of images of the source" in study.judged_on


def test_forgetting_is_measured_on_source_images_where_there_are_some() -> None:
    backbone = catalogue()[QUICK]
    images = torch.randint(0, 256, (40, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy()
    judge = _Before(backbone, images)
    assert judge.compare(build(backbone)) == (0.0, 0.0, None)
    other = build(backbone)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * parameter.abs().mean())
    drift, changed, _ = judge.compare(other)
    assert drift > 0.1
    assert changed is not None
    assert changed > 0.1


def test_labels_of_the_source_judge_its_head() -> None:
    """Fractals need no download: pretrained on them, the head knows most of them, and fewer once the layers moved."""
    backbone = catalogue()["convnext_24.fractals_64"]
    images, labels = fractals(backbone.num_classes, 2, side=64, seed=SEED)
    judge = _Before(backbone, images, labels)
    _, changed, right = judge.compare(build(backbone))
    assert changed == 0
    assert right == pytest.approx(backbone.source_accuracy, abs=0.15)
    other = build(backbone)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * parameter.abs().mean())
    assert (worse := judge.compare(other)[2]) is not None
    assert worse < right - 0.1
    assert _Before(backbone, images, np.roll(labels, 2)).compare(other)[2] is None, "labels in another order are no judge"
    half = np.arange(len(labels)) % 2 == 0
    some = _Before(backbone, images, np.where(half, labels, -1)).compare(other)
    labelled = _Before(backbone, images[half], labels[half]).compare(other)
    assert some[2] == labelled[2], "images without a label are not called wrongly"
    assert _Before(backbone, images, np.full_like(labels, -1)).compare(other)[2] is None


def test_a_network_of_two_heads_has_no_single_judge(tmp_path: Path) -> None:
    """The mean of two tokens, which is what its features are, is not what either head was trained on."""
    kwargs = {"depth": 1, "img_size": 64, "embed_dim": 48}
    card = {
        "build": {"timm": "deit_tiny_distilled_patch16_224", "kwargs": kwargs},
        "num_classes": 3,
        "source_dataset": "s",
        "source_domain": "d",
        "input_size": [3, 64, 64],
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "crop_pct": 1.0,
        "interpolation": "bilinear",
    }
    write_network(tmp_path, "distilled", timm.create_model("deit_tiny_distilled_patch16_224", num_classes=3, **kwargs), card)
    add_folder(tmp_path)
    backbone = catalogue()["distilled"]
    judge = _Before(backbone, np.zeros((2, 64, 64, 3), dtype=np.uint8) + np.uint8([[[[0]]], [[[200]]]]))
    assert judge.compare(build(backbone)) == (0.0, None, None)


def test_enough_is_the_shallowest_depth_within_a_standard_error(study: Study) -> None:
    best = max(depth.score for depth in study.depths)
    limit = best - (best * (1 - best) / study.images) ** 0.5
    assert study.depths[study.enough].score >= limit
    assert all(depth.score < limit for depth in study.depths[: study.enough])
    assert "enough" in conclusion(study)


def test_the_page_stands_alone(study: Study, tmp_path: Path) -> None:
    page = report_study(study, tmp_path / "out").read_text(encoding="utf-8")
    assert conclusion(study) in page
    assert page.count("<tr") == len(study.depths) + 1
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
    picture = ElementTree.parse(tmp_path / "out" / "unfreezing.svg").getroot()
    circles = picture.findall(".//{http://www.w3.org/2000/svg}circle")
    assert len(circles) == 4 * len(study.depths), "accuracy, forgetting, drift, seconds"
    facts = json.loads((tmp_path / "out" / "unfreezing.json").read_text(encoding="utf-8"))
    assert facts["enough"] == study.enough
    assert [depth["score"] for depth in facts["depths"]] == [depth.score for depth in study.depths]


def test_all_right_stands_at_the_top(study: Study) -> None:
    depths = tuple(replace(depth, score=1.0) for depth in study.depths)
    picture = ElementTree.fromstring(str(draw(replace(study, depths=depths))))
    circles = picture.findall(".//{http://www.w3.org/2000/svg}circle")[: len(depths)]
    assert {float(circle.attrib["cy"]) for circle in circles} == {float(TOP)}


def test_one_group_is_one(study: Study) -> None:
    depths = tuple(replace(depth, score=0.9 if depth.groups == 1 else 0.1) for depth in study.depths)
    said = conclusion(replace(study, depths=depths))
    assert said.startswith(f"1 of {len(study.groups)} groups of layers is enough")
    assert "(0.900, 1 group)" in said


def test_on_a_phone_names_are_read_in_lines(study: Study, tmp_path: Path) -> None:
    """Not one letter below the other, and the picture scrolls where it would be too small to read."""
    if not CHROMIUM:
        pytest.skip("needs Chromium (a Debian package: chromium), which is not here")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 375, "height": 740})
        page.goto(report_study(study, tmp_path).resolve().as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= 375
        assert page.evaluate("document.querySelector('tbody tr:last-child').clientHeight") < 80
        assert page.evaluate("document.querySelector('svg').getBoundingClientRect().width") >= 480
        browser.close()


def test_a_folder_of_something_else_is_refused(study: Study, tmp_path: Path) -> None:
    report_study(study, tmp_path)
    check_free(tmp_path, digits(120))
    with pytest.raises(InputError, match="holds the study of other images; choose another --out or delete it"):
        check_free(tmp_path, digits(100))
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(InputError, match=r"holds something else \(run.json\); choose another --out"):
        check_free(tmp_path, digits(120))


def test_wrong_requests_are_named() -> None:
    with pytest.raises(PluginError, match="unknown backbone 'resnet51'"):
        study_unfreezing(digits(120), backbone="resnet51")
    with pytest.raises(InputError, match="at least 2 epochs"):
        study_unfreezing(digits(120), backbone=QUICK, epochs=1)
