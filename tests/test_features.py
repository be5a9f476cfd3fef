"""Frozen features are those of the plain timm network, computed once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from pictures import lay, lay_drawn, real_images
from safetensors.torch import load_file
from torch import nn

from automl_tl import features
from automl_tl.backbones import build, catalogue
from automl_tl.cards import add_folder, write_network
from automl_tl.data import load_task
from automl_tl.device import autocast, device, precision
from automl_tl.errors import ZooError
from automl_tl.features import extract, source_head, source_statistics
from automl_tl.images import read_image
from automl_tl.inference import prepare
from automl_tl.norms import norm_statistics
from automl_tl.pixels import decode
from automl_tl.profiling import task_features
from automl_tl.records import Backbone, Task

NAMES = [
    "mobilenetv4_small_050.tiny_imagenet_64",
    "resnet10t_24.omniglot_a_64",
    "resnet10t_24.tiny_imagenet_64",
    "resnet10t_40.tiny_imagenet_64",
]
FP32 = NAMES[0]
"""Has depthwise convolutions, which stay in full precision on every CPU."""


@pytest.fixture
def task(shared: Path, tmp_path: Path) -> Task:
    """Forty real photographs of hand signs."""
    return load_task(lay(tmp_path / "signs", real_images(shared / "data" / "sign_digits.zip", "train", 4, 10)))


def plain_timm(backbone: Backbone, images: list[object], *, num_classes: int) -> torch.Tensor:
    """What timm gives, with nothing of ours in between but the weights file: its network, its transform, one image at a time."""
    from timm.data import create_transform

    net = timm.create_model(backbone.architecture, num_classes=backbone.num_classes, **backbone.kwargs)
    net.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in load_file(backbone.weights).items()})
    dtype = precision(net)
    if num_classes == 0:
        net.reset_classifier(0)
    prepare = create_transform(
        (3, backbone.input_size, backbone.input_size),
        interpolation=backbone.interpolation,
        crop_pct=backbone.crop_pct,
        crop_mode=backbone.crop_mode,
        mean=backbone.mean,
        std=backbone.std,
    )
    with torch.inference_mode(), autocast(dtype):
        return torch.cat([net.eval()(prepare(read_image(image))[None]).float() for image in images])


@pytest.mark.parametrize("name", NAMES)
def test_features_are_those_of_plain_timm(task: Task, name: str) -> None:
    backbone = catalogue()[name]
    found = task_features(task, backbone)
    assert found.probabilities is not None
    assert found.values.shape == (40, backbone.num_features)
    assert found.probabilities.shape == (40, backbone.num_classes)
    np.testing.assert_array_equal(found.labels, task.labels)
    chosen = [0, 13, 39]
    images = [task.images[i] for i in chosen]
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if name == FP32 else {"rtol": 0.02, "atol": 0.02}  # bf16: 8 bits of mantissa
    values = plain_timm(backbone, images, num_classes=0).numpy()
    np.testing.assert_allclose(found.values[chosen], values, **tolerance)
    logits = plain_timm(backbone, images, num_classes=backbone.num_classes)
    np.testing.assert_allclose(found.probabilities[chosen], logits.softmax(1).numpy(), rtol=0.05, atol=2e-3)  # kept in fp16


def test_features_of_a_network_that_squashes_its_images_are_kept_apart(task: Task) -> None:
    """Those of plain timm, which is told so, too; and what was kept before there were crop modes is found."""
    backbone, index = catalogue()[FP32], np.array([0, 39])
    centre, squash, border = (replace(backbone, crop_pct=0.8, crop_mode=mode) for mode in ("center", "squash", "border"))
    images = [read_image(image).resize((90, 70)) for image in task.images]
    task = replace(task, images=images, hashes=task.hashes + 1, modified=None)
    found = [task_features(task, one, index=index).values for one in (centre, squash, border)]
    for values, one in zip(found, (centre, squash, border), strict=True):
        np.testing.assert_allclose(
            values, plain_timm(one, [task.images[0], task.images[39]], num_classes=0), rtol=1e-4, atol=1e-4
        )
    assert np.abs(found[0] - found[1]).max() > 0.01 < np.abs(found[1] - found[2]).max()
    b, digest = centre, hashlib.sha256(task.hashes[index].tobytes())
    network = json.dumps([b.architecture, dict(b.kwargs)], sort_keys=True)
    preparation = (b.input_size, b.interpolation, b.crop_pct, b.mean, b.std)
    digest.update(f"{features.VERSION}/{b.zoo}/{b.name}/{b.digest}/{network}/{preparation}/{device().type}".encode())
    assert features.cached_at("features", task, centre, index).stem == digest.hexdigest()[:32]


def test_test_images_never_pass_the_network(task: Task) -> None:
    """Nobody may learn from them before the last evaluation, so nobody pays for their features."""
    task, backbone = load_task((task.images, task.labels), test=0.2), catalogue()[FP32]
    passed: list[int] = []

    def make(head: bool) -> nn.Module:
        net = build(backbone, head=head)
        net.register_forward_pre_hook(lambda _, inputs: passed.append(len(inputs[0])))
        return net

    pixels = decode(task, backbone.input_size, interpolation=backbone.interpolation, crop_pct=backbone.crop_pct)
    found = extract(task, backbone, pixels, make)
    test = task.part("test")
    assert len(test) == 8
    assert sum(passed) == 32
    for rows in (found.values, found.probabilities):
        assert rows is not None
        np.testing.assert_array_equal(np.flatnonzero(np.isnan(rows).any(1)), test)
        assert np.isnan(rows[test]).all()


def test_features_of_a_real_network_without_a_head(shared: Path, task: Task) -> None:
    add_folder(shared / "weights")
    backbone = catalogue()["mobilenetv2_050.mlkit_224"]
    found = task_features(task, backbone, index=np.array([3, 30]))
    assert found.probabilities is None
    expected = plain_timm(backbone, [task.images[3], task.images[30]], num_classes=0).numpy()
    np.testing.assert_allclose(found.values, expected, rtol=1e-4, atol=1e-4)


def test_features_do_not_depend_on_the_batch(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = catalogue()[FP32]
    pixels = decode(task, backbone.input_size, interpolation=backbone.interpolation, crop_pct=backbone.crop_pct)
    whole = extract(task, backbone, pixels, lambda head: build(backbone, head=head))
    monkeypatch.setattr(features, "BATCH", 7)
    other = replace(backbone, digest="counts as another network, so that nothing is found in the cache")
    parts = extract(task, other, pixels, lambda head: build(backbone, head=head))
    np.testing.assert_allclose(parts.values, whole.values, rtol=1e-4, atol=1e-5)
    told: list[tuple[int, int]] = []
    few = extract(
        task,
        other,
        pixels,
        lambda head: build(backbone, head=head),
        index=np.array([5, 2, 31, 0, 7, 8, 9, 10]),
        progress=lambda done, total: told.append((done, total)),
    )
    np.testing.assert_allclose(few.values, whole.values[[5, 2, 31, 0, 7, 8, 9, 10]], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(few.labels, task.labels[[5, 2, 31, 0, 7, 8, 9, 10]])
    assert told == [(7, 8), (8, 8)]


class TwoLayers(nn.Module):
    """A head of two layers: what enters its last one is not what the headless network gives."""

    def __init__(self, head: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.head = nn.Sequential(nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 3)) if head else nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(images))


def test_head_whose_input_is_not_the_features(task: Task) -> None:
    backbone = replace(catalogue()[FP32], name="two layers", num_features=12, num_classes=3, mean=(0, 0, 0), std=(1, 1, 1))
    pixels = decode(task, 64)
    found = extract(task, backbone, pixels, TwoLayers)
    quarters = pixels.array.reshape(40, 2, 32, 2, 32, 3).mean(axis=(2, 4)).transpose(0, 3, 1, 2).reshape(40, 12) / 255
    np.testing.assert_allclose(found.values, quarters, atol=0.01)
    assert found.probabilities is not None
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1, atol=2e-3)


def counting(backbone: Backbone) -> tuple[Callable[[bool], nn.Module], list[bool]]:
    built: list[bool] = []

    def make(head: bool) -> nn.Module:
        built.append(head)
        return build(backbone, head=head)

    return make, built


def test_features_are_computed_once(task: Task, tmp_path: Path) -> None:
    """The second time neither the weights nor the images are touched, also from another copy of the data."""
    backbone = catalogue()[FP32]
    make, built = counting(backbone)
    pixels = decode(task, 64)
    first = extract(task, backbone, pixels, make)
    second = extract(task, backbone, pixels, make)
    assert built == [True]
    np.testing.assert_array_equal(first.values, second.values)
    np.testing.assert_array_equal(first.probabilities, second.probabilities)
    extract(task, backbone, pixels, make, index=np.arange(3))
    extract(task, replace(backbone, mean=(0.5, 0.5, 0.5)), pixels, make)
    assert built == [True] * 3


@pytest.mark.parametrize("kept", ["features", "norms", "pixels"])
def test_what_is_kept_and_damaged_is_computed_anew(task: Task, kept: str, own_home: Path) -> None:
    """As by a disk that was full, or a copy of a home that was cut off."""

    def found() -> list[np.ndarray]:
        pixels, backbone = decode(task, 64), catalogue()[FP32]
        norms = norm_statistics(task, backbone, pixels, lambda: build(backbone), index=np.arange(6))
        assert norms is not None
        values = extract(task, backbone, pixels, lambda head: build(backbone, head=head)).values
        return [np.array(pixels.array), norms.mean, values]

    first = found()
    (path,) = (path for path in (own_home / "cache" / kept).iterdir() if path.suffix != ".lock")
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"x" * 100):
        path.write_bytes(damaged)
        for before, after in zip(first, found(), strict=True):
            np.testing.assert_array_equal(before, after)
        assert path.read_bytes() == whole


def test_two_networks_over_the_same_weights_have_features_of_their_own(task: Task, tmp_path: Path) -> None:
    """Two cards may pool otherwise: the name, the weights and the preparation are the same, the network is not."""
    mean = small_network(tmp_path / "zoo")
    pixels = decode(task, 64)
    most, hidden = replace(mean, kwargs={**mean.kwargs, "global_pool": "max"}), replace(mean, architecture="resnet10t.other")
    found = [extract(task, one, pixels, counting(one)[0], index=np.arange(4)).values for one in (mean, most)]
    assert (found[1] > found[0]).any()
    make, built = counting(mean)
    extract(task, hidden, pixels, make, index=np.arange(4))
    assert built == [True], "nothing is read that another architecture left"


def small_network(folder: Path, architecture: str = "resnet10t", **kwargs: Any) -> Backbone:
    """Untrained, but its batch norms are not the identity."""
    folder.mkdir()
    torch.manual_seed(0)
    kwargs = kwargs or {"channels": [8, 16, 24, 32]}
    net = timm.create_model(architecture, num_classes=3, **kwargs)
    for layer in net.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(layer.bias)
    card = {
        "build": {"timm": architecture, "kwargs": kwargs},
        "num_classes": 3,
        "source_dataset": "s",
        "source_domain": "d",
        "input_size": [3, 64, 64],
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "crop_pct": 1.0,
        "interpolation": "bilinear",
    }
    write_network(folder, "small", net, card)
    add_folder(folder)
    return catalogue()["small"]


@pytest.mark.parametrize(
    ("architecture", "kwargs"),
    [
        ("deit_tiny_distilled_patch16_224", {"img_size": 64, "depth": 1}),  # two heads: the features are the mean of two tokens
        ("levit_128s", {"img_size": 64, "depth": [1, 1, 1]}),  # two heads that begin with a norm each
        (
            "efficientvit_m0",
            {"img_size": 64, "depth": [1, 1, 1]},
        ),  # says that the layer behind the norm is its head
    ],
)
def test_features_are_those_of_the_headless_network_whatever_its_head(
    task: Task, tmp_path: Path, architecture: str, kwargs: dict[str, Any]
) -> None:
    backbone = small_network(tmp_path / "zoo", architecture, **kwargs)
    pixels = decode(task, backbone.input_size)
    chosen = np.array([3, 17, 30])
    found = extract(task, backbone, pixels, lambda head: build(backbone, head=head), index=chosen)
    headless, whole = build(backbone), build(backbone, head=True)
    with torch.inference_mode(), autocast(precision(headless)):
        images = prepare(pixels.array[chosen], backbone)
        np.testing.assert_allclose(found.values, headless(images).float().cpu(), rtol=0.02, atol=0.02)
        said = whole(images).float().softmax(1).cpu()
    np.testing.assert_allclose(found.probabilities, said, rtol=0.05, atol=5e-3)


@pytest.mark.parametrize(
    "name", ["resnet18", "vit_tiny_patch16_224", "convnext_atto", "mobilenetv3_small_050", "mobilenetv2_050"]
)
def test_networks_with_one_linear_head_need_one_pass(name: str) -> None:
    """What enters the head is seen on the way, also where the head has a layer before it."""
    with torch.device("meta"):
        net = timm.create_model(name, num_classes=7)
    backbone = replace(catalogue()[FP32], num_features=net.head_hidden_size, num_classes=7)
    assert source_head(net, backbone) is net.get_classifier()
    assert source_head(net, replace(backbone, num_classes=6)) is None


def test_the_embedded_networks_need_one_pass() -> None:
    for backbone in catalogue(zoo="embedded").values():
        if backbone.num_classes:
            assert source_head(build(backbone, head=True), backbone) is not None, backbone.name


def test_network_of_damaged_weights_is_named(tmp_path: Path, own_home: Path) -> None:
    task = load_task(lay_drawn(tmp_path / "d", {"a": 4, "b": 4}))
    backbone = small_network(tmp_path / "zoo")

    def make(head: bool) -> nn.Module:
        net = build(backbone, head=head)
        with torch.no_grad():
            net.layer4[0].conv1.weight.fill_(float("nan"))
        return net

    with pytest.raises(ZooError, match="small: its features are not finite numbers; its weights are damaged"):
        extract(task, backbone, decode(task, 64), make)
    assert not list((own_home / "cache").rglob("*.safetensors"))  # not kept
    assert np.isfinite(extract(task, backbone, decode(task, 64), lambda head: build(backbone, head=head)).values).all()


def test_what_fp16_cannot_hold_is_computed_in_fp32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on GPUs without bf16: such a network is not damaged."""
    task = load_task(lay_drawn(tmp_path / "d", {"a": 4, "b": 4}))
    backbone = small_network(tmp_path / "zoo")

    def make(head: bool) -> nn.Module:
        net = build(backbone, head=head)
        with torch.no_grad():
            net.layer4[0].bn1.weight.fill_(1e7)
            net.layer4[0].bn2.weight.mul_(1e-3)
        return net

    monkeypatch.setattr(features, "precision", lambda net: torch.float32)
    expected = extract(task, backbone, decode(task, 64), make).values
    monkeypatch.setattr(features, "precision", lambda net: torch.float16)
    other = replace(backbone, digest="counts as another network, so that nothing is found in the cache")
    told: list[tuple[int, int]] = []
    found = extract(task, other, decode(task, 64), make, progress=lambda done, total: told.append((done, total))).values
    np.testing.assert_array_equal(found, expected)
    assert told == [(8, 8), (8, 8)]


def test_interrupted_computation_leaves_nothing(task: Task, own_home: Path) -> None:
    backbone = catalogue()[FP32]

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(task, backbone, decode(task, 64), lambda head: build(backbone, head=head), progress=interrupt)
    assert not list((own_home / "cache").rglob("*.safetensors*"))


def test_statistics_of_a_source_are_its_mean_and_covariance() -> None:
    rng = np.random.default_rng(0)
    for images, size in ((500, 12), (8, 12)):
        values = (rng.normal(size=(images, size)) @ rng.normal(size=(size, size)) + 3).astype(np.float32)
        kept = source_statistics(values, seed=1)
        assert kept.mean is not None
        assert kept.factor is not None
        np.testing.assert_allclose(kept.mean, values.mean(axis=0), rtol=1e-5)
        np.testing.assert_allclose(kept.factor @ kept.factor.T, np.cov(values.T), rtol=1e-3, atol=1e-3)
        assert kept.factor.shape == (size, min(images, size))
        assert len(kept.values) == min(images, features.SAMPLE)
        assert {row.tobytes() for row in kept.values} <= {row.tobytes() for row in values}
        np.testing.assert_array_equal(kept.values, source_statistics(values, seed=1).values)
