"""Images made by formula: the same every time, of as many kinds as they say, and something to learn from."""

from __future__ import annotations

import numpy as np
import pytest
from automl_tl_plugins.formats._dead_leaves import CLASSES, dead_leaves
from automl_tl_plugins.formats._fractals import fractals
from automl_tl_plugins.formats.formula import SOURCES, Formula
from sklearn.linear_model import LogisticRegression

from automl_tl.data import load_task
from automl_tl.errors import InputError


def test_fractals_are_the_same_for_a_seed_and_differ_between_systems() -> None:
    images, labels = fractals(5, 12, side=32, seed=3)
    again, _ = fractals(5, 12, side=32, seed=3)
    np.testing.assert_array_equal(images, again)
    assert images.shape == (60, 32, 32, 3)
    assert images.dtype == np.uint8
    assert np.bincount(labels).tolist() == [12] * 5
    np.testing.assert_array_equal(fractals(2, 12, side=32, seed=3)[0], images[:24])  # more classes leave the first alone
    assert not np.array_equal(fractals(5, 12, side=32, seed=4)[0], images)
    filled = (images.max(axis=3) > 0).mean(axis=(1, 2))
    assert (filled > 0.05).all()
    train = np.arange(60) % 12 < 8
    shapes = (images.max(axis=3) > 0).reshape(60, -1)
    told = LogisticRegression(max_iter=200).fit(shapes[train], labels[train]).score(shapes[~train], labels[~train])
    assert told > 0.8


def test_leaves_differ_as_their_names_say() -> None:
    images, labels = dead_leaves(3, side=64, seed=1)
    np.testing.assert_array_equal(images, dead_leaves(3, side=64, seed=1)[0])
    assert images.shape == (3 * len(CLASSES), 64, 64, 3)
    steps = np.abs(np.diff(images.astype(float), axis=2)).mean(axis=(1, 2, 3))
    edges = {name: steps[labels == label].mean() for label, name in enumerate(CLASSES)}
    for shape in ("disk", "square", "triangle", "bar"):
        assert edges[f"{shape}-small-plain"] > edges[f"{shape}-large-plain"]  # small leaves have more outline
        assert edges[f"{shape}-large-striped"] > 1.5 * edges[f"{shape}-large-plain"]


def test_an_unknown_formula_names_the_known_ones() -> None:
    with pytest.raises(InputError, match="no such formula; known are formula:fractals, formula:dead_leaves"):
        load_task("formula:noise")


@pytest.mark.slow
@pytest.mark.parametrize("name", SOURCES)
def test_every_class_has_its_share_of_test_images(name: str) -> None:
    listing = Formula().open(f"formula:{name}")
    labels, splits = np.array(listing.labels), np.array(listing.splits)
    shares = {label: float((splits[labels == label] == "test").mean()) for label in set(listing.labels)}
    assert all(share == pytest.approx(1 / 6, abs=0.01) for share in shares.values())
