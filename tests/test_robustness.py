"""Corruptions on real photographs: they do what their names say, more so with each severity, and the same every time."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import real_images
from small import QUICK
from torch import nn

from automl_tl import Classifier
from automl_tl.backbones import catalogue
from automl_tl.errors import InputError
from automl_tl.evaluation.adversaries import judge_robust
from automl_tl.evaluation.robustness import CORRUPTIONS, SEVERITIES, Robustness, corrupt, robustness
from automl_tl.heads import Neighbours
from automl_tl.images import read_image, square


@pytest.fixture(scope="module")
def photographs(shared: Path) -> np.ndarray:
    found = real_images(shared / "data" / "rsscn7.zip", "train", 4, 2)
    images = [read_image(image) for some in found.values() for image in some]
    return np.stack([square(image, 64, interpolation="bicubic", crop_pct=1.0) for image in images])


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_severity_moves_the_image_further(photographs: np.ndarray, name: str) -> None:
    before = photographs.copy()
    away = [np.abs(corrupt(photographs, name, s).astype(float) - photographs).mean() for s in SEVERITIES]
    assert away[0] > 0.5
    assert all(nearer <= further + 1e-9 for nearer, further in pairwise(away)), away
    assert away[-1] > 1.2 * away[0]
    np.testing.assert_array_equal(photographs, before)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("shape", [(1, 1), (8, 8), (5, 33)])
def test_odd_sizes_and_flat_images(name: str, shape: tuple[int, int]) -> None:
    for value in (0, 255):
        images = np.full((2, *shape, 3), value, dtype=np.uint8)
        found = corrupt(images, name, 5)
        assert found.shape == images.shape
        assert found.dtype == np.uint8


def test_an_image_is_corrupted_the_same_wherever_its_neighbours_come_from(photographs: np.ndarray) -> None:
    for name in CORRUPTIONS:
        whole = corrupt(photographs, name, 3, seed=4)
        np.testing.assert_array_equal(whole[:2], corrupt(photographs[:2], name, 3, seed=4))
    noisy = corrupt(photographs, "gaussian noise", 3, seed=4)
    assert not np.array_equal(noisy, corrupt(photographs, "gaussian noise", 3, seed=5))


def test_noise_light_and_contrast_by_hand() -> None:
    grey = np.full((1, 200, 200, 3), 128, dtype=np.uint8)
    assert corrupt(grey, "gaussian noise", 1).std() == pytest.approx(0.08 * 255, rel=0.02)
    assert corrupt(grey, "brightness", 1).mean() == pytest.approx(128 + 0.1 * 255, abs=1)
    hit = corrupt(grey, "impulse noise", 5) != 128
    assert hit.mean() == pytest.approx(0.27, abs=0.01)
    halves = np.zeros((1, 10, 10, 3), dtype=np.uint8)
    halves[:, 5:] = 200
    flat = corrupt(halves, "contrast", 1)
    assert int(flat.max()) - int(flat.min()) == pytest.approx(0.4 * 200, abs=1)
    photons = 60 * 128 / 255
    assert corrupt(grey, "shot noise", 1).std() == pytest.approx(np.sqrt(photons) / 60 * 255, rel=0.02)


def test_a_blur_keeps_the_light_and_spreads_a_point() -> None:
    point = np.zeros((1, 101, 101, 3), dtype=np.uint8)
    point[0, 50, 50] = 255
    for name, pixels in (("defocus blur", np.pi * 4.5**2), ("motion blur", 0.134 * 101)):
        spread = corrupt(point, name, 5)[0, :, :, 0] > 0
        assert pixels * 0.6 < spread.sum() < pixels * 1.6, name


def test_accuracy_under_corruption_by_hand() -> None:
    """A classifier of bright and dark: light added moves the dark ones over, noise of no mean does not."""
    images = np.stack([np.full((16, 16, 3), value, dtype=np.uint8) for value in (60, 80, 110, 140, 200)])
    labels = np.array([0, 0, 0, 1, 1])

    def bright(seen: np.ndarray) -> np.ndarray:
        light = seen.mean(axis=(1, 2, 3)) / 255
        return np.stack([1 - light, light], axis=1)

    found = robustness(bright, images, labels)
    assert (found.clean, found.images) == (1.0, 5)
    assert found.accuracy["brightness"] == (0.8, 0.6, 0.4, 0.4, 0.4)  # 110 + 25.5 passes 127.5; 80 with 51; 60 with 76.5
    assert found.accuracy["pixelation"] == (1.0,) * 5
    assert set(found.accuracy) == set(CORRUPTIONS)


def test_votes_cannot_be_attacked() -> None:
    net = Classifier(nn.Flatten(), Neighbours(torch.rand(4, 192), torch.arange(4) % 2, 2, k=1, cosine=False))
    images, backbone = np.zeros((2, 8, 8, 3), dtype=np.uint8), catalogue()[QUICK]
    with pytest.raises(InputError, match=r"votes of neighbours, which have no gradient.*with another --strategy"):
        judge_robust(net, images, np.array([0, 1]), backbone, epsilon=8 / 255)


def test_means_by_hand() -> None:
    found = Robustness(0.8, 10, {"a": (0.8, 0.6), "b": (0.4, 0.2)})
    assert found.mean == pytest.approx(0.5)
    assert found.mean / found.clean == pytest.approx(0.625)
