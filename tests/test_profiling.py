"""A task in numbers: by hand where a hand can, on real images where it cannot."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from pictures import lay, lay_drawn, png, real_images
from PIL import Image

from automl_tl import profiling, registry
from automl_tl.backbones import catalogue
from automl_tl.data import load_task
from automl_tl.evaluation.domains import gap
from automl_tl.profiling import (
    appearance,
    count_features,
    describe_source,
    imbalance,
    look_sample,
    profile_task,
    separability,
    task_features,
)
from automl_tl.records import TRAIN, VALIDATION, Features, Profile, Task
from automl_tl.registry import PluginWarning, metrics
from automl_tl.testing import task_for

SMALL = "resnet10t_24.tiny_imagenet_64"


def flat(profile: Profile) -> list[float]:
    """Every number of a profile."""
    nested: list[Mapping[str, float]] = [profile.meta, *profile.distances.values(), *profile.transferability.values()]
    return [value for numbers in nested for value in numbers.values()]


def photographs(shared: Path, folder: Path, archive: str, classes: int, each: int) -> Task:
    return load_task(lay(folder / archive, real_images(shared / "data" / f"{archive}.zip", "train", classes, each)))


def labelled(train: list[int], classes: int, *, held: int = 0) -> Task:
    """A task of labels alone: its first images are for training, `held` more for validation."""
    labels = np.array([*train, *[0] * held], dtype=np.int64)
    splits = {TRAIN: np.arange(len(train)), VALIDATION: np.arange(len(train), len(labels))}
    names = tuple(map(str, range(classes)))
    return Task("t", [None] * len(labels), labels, names, splits, "f", [""] * len(labels), np.zeros(len(labels), np.uint64))


# Meta-features by hand


def test_counts_by_hand() -> None:
    """Six, three and one training images; what is held out does not count."""
    assert count_features(labelled([0] * 6 + [1] * 3 + [2], 3, held=50)) == pytest.approx(
        {
            "images": 10,
            "classes": 3,
            "images_per_class": 10 / 3,
            "smallest_class": 1,
            "imbalance": 6,
            "label_entropy": -(0.6 * math.log(0.6) + 0.3 * math.log(0.3) + 0.1 * math.log(0.1)) / math.log(3),
            "majority": 0.6,
        }
    )
    balanced = count_features(labelled([0, 1, 2, 3] * 5, 4))
    assert (balanced["imbalance"], balanced["majority"]) == (1, 0.25)
    assert balanced["label_entropy"] == pytest.approx(1)


def test_classes_that_only_an_earlier_model_knows_are_no_imbalance() -> None:
    assert imbalance(labelled([1] * 13 + [2] * 13, 3)) == []
    assert imbalance(labelled([1] * 13 + [2] * 14, 3)) == []
    (note,) = imbalance(labelled([1] * 13 + [2] * 2, 3))
    assert "'1' has 13 training images, '2' has 2" in note


def test_counts_of_a_single_class() -> None:
    """A part of a task may be left with one class: numbers, all the same."""
    found = count_features(labelled([0] * 5, 1))
    assert all(map(math.isfinite, found.values()))
    assert (found["label_entropy"], found["majority"]) == (0, 1)


def test_appearance_by_hand(tmp_path: Path) -> None:
    """Half of the images are grey 51 (= 0.2), half are halves of red and black: every number follows."""
    grey = Image.new("RGB", (64, 64), (51, 51, 51))
    halves = Image.new("RGB", (64, 64), (255, 0, 0))
    halves.paste((0, 0, 0), (32, 0, 64, 64))
    task = load_task(lay(tmp_path / "d", {"grey": [png(grey)] * 4, "halves": [png(halves)] * 4}), validation=0.0)
    found = appearance(task, catalogue()[SMALL], task.part(TRAIN))
    third = 1 / 3
    assert found == pytest.approx(
        {
            "brightness": (0.2 + third / 2) / 2,
            "contrast": (0 + third / 2) / 2,
            "colourfulness": (0 + 0.5) / 2,
            "grey_share": 0.5,
            "pixel_entropy": 0.5 * 1 + 2 * 0.25 * 2,  # half of the pixels in one bin, a quarter in each of two
            "edges": third / 63 / 2,  # one step of a third among 63 neighbours, in half of the images
            "variety": float(np.std([[[0.2] * 3] * 2, [[1, 0, 0], [0, 0, 0]]], axis=0).mean()),
            "side": 64,
            "aspect": 1,
        },
        abs=1e-6,
    )


def test_appearance_is_that_of_all_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample is sorted, and the images of a class lie together: its beginning is its first classes alone."""
    monkeypatch.setattr(profiling, "LOOK", 10)
    shades = {name: [png(Image.new("RGB", (20, 20), (grey,) * 3))] * 20 for name, grey in (("black", 0), ("white", 255))}
    task = load_task(lay(tmp_path / "d", shades), validation=0.0)
    assert appearance(task, catalogue()[SMALL], task.part(TRAIN))["brightness"] == pytest.approx(0.5)


def test_size_is_that_of_the_stored_images(tmp_path: Path) -> None:
    shapes = {"wide": [(80, 20)] * 5, "tall": [(20, 80)] * 5}
    rng = np.random.default_rng(0)
    images = {
        label: [png(Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8))) for w, h in sizes]
        for label, sizes in shapes.items()
    }
    task = load_task(lay(tmp_path / "d", images))
    found = appearance(task, catalogue()[SMALL], task.part(TRAIN))
    assert (found["side"], found["aspect"]) == (40, 4)


def test_separability_by_hand() -> None:
    """Classes at ±3 on one axis, each image a step of ±1 off on another: 9 of 10 parts of the variance lie between."""
    values = np.array([[3.0, 1.0], [3.0, -1.0], [-3.0, 1.0], [-3.0, -1.0]])
    found = separability(Features(values, np.array([0, 0, 1, 1])))
    assert found == pytest.approx({"between_share": 0.9, "effective_dimension": (36 + 4) ** 2 / (36**2 + 4**2)})
    assert separability(Features(values, np.array([0, 1, 0, 1])))["between_share"] == pytest.approx(0.1)
    wide = np.concatenate([values, np.zeros((4, 20))], axis=1)  # more dimensions than images: the other route
    assert separability(Features(wide, np.array([0, 0, 1, 1]))) == pytest.approx(found)


@pytest.mark.parametrize("values", [np.zeros((5, 3)), np.ones((1, 3)), np.eye(3)], ids=["constant", "one image", "one each"])
def test_separability_of_odd_features_is_finite(values: np.ndarray) -> None:
    found = separability(Features(values, np.arange(len(values)) % 3))
    assert all(map(math.isfinite, found.values()))


# The look


def test_look_is_stratified_seeded_and_of_training_images_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling, "LOOK", 100)
    task = labelled([0] * 700 + [1] * 290 + [2] * 10 + [3], 4, held=300)
    sample = look_sample(task, 0)
    assert np.bincount(task.labels[sample]).tolist() == [70, 29, 2, 1]
    assert sample.max() < 1001
    assert len(np.unique(sample)) == len(sample)
    np.testing.assert_array_equal(sample, look_sample(task, 0))
    assert not np.array_equal(sample, look_sample(task, 1))
    np.testing.assert_array_equal(look_sample(labelled([0, 1] * 50, 2), 0), np.arange(100))


def test_held_out_test_images_are_never_looked_at(shared: Path, tmp_path: Path) -> None:
    """A task whose test images are others has the same profile."""
    profiles = []
    for turn in range(2):
        root = tmp_path / f"signs{turn}"
        images = real_images(shared / "data" / "sign_digits.zip", "train", 3, 30)
        lay(root / "train", {label: some[:16] for label, some in images.items()})
        lay(root / "val", {label: some[16:20] for label, some in images.items()})
        lay(root / "test", {label: some[20 + turn * 5 : 25 + turn * 5] for label, some in images.items()})
        profiles.append(profile_task(load_task(root), catalogue(), look=(SMALL,)))
    assert profiles[0].fingerprint != profiles[1].fingerprint
    assert flat(profiles[0]) == pytest.approx(flat(profiles[1]), rel=1e-6)


def test_large_tasks_are_looked_at_through_a_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than `WHOLE` images: only the looked-at ones are decoded and get features, and they are the same."""
    task = load_task(lay_drawn(tmp_path / "d", {"a": 30, "b": 30}))
    backbones = catalogue()
    whole = profile_task(task, backbones, look=(SMALL,))
    monkeypatch.setattr(profiling, "WHOLE", 10)
    assert flat(profile_task(task, backbones, look=(SMALL,))) == pytest.approx(flat(whole), rel=1e-6)
    monkeypatch.setattr(profiling, "LOOK", 20)
    sampled = profile_task(task, backbones, look=(SMALL,))
    assert sampled.meta["images"] == whole.meta["images"] == 48
    assert flat(sampled) != pytest.approx(flat(whole), rel=1e-6)
    assert flat(sampled) == flat(profile_task(task, backbones, look=(SMALL,)))
    decoded: list[int] = []
    decode = profiling.pixels_of
    monkeypatch.setattr(profiling, "pixels_of", lambda part, *_, **__: decoded.append(len(part.labels)) or decode(part, *_, **__))
    profile_task(task, backbones, look=(SMALL,), seed=1)
    assert set(decoded) == {20}


class Broken:
    """A distance of a third party."""

    kind = "distance"

    def score(self, target: Features, source: Features | None) -> float:
        raise KeyError("layer")


def test_a_distance_that_fails_is_named_and_ends_no_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    task = task_for(frozenset({"target"}))
    known = metrics
    monkeypatch.setattr(registry, "metrics", lambda kind: known(kind) | ({"broken": Broken()} if kind == "distance" else {}))
    found = profile_task(task, catalogue())
    assert {f"gap_{name}" for name in known("distance")} <= found.meta.keys()
    assert found.warnings.count("metric 'broken' failed: KeyError: 'layer'") == 1
    values = np.random.default_rng(0).normal(size=(20, 4))
    with pytest.warns(PluginWarning, match="metric 'broken' failed: KeyError: 'layer'"):
        apart = gap(Features(values), Features(values + 1))
    assert set(apart) == set(known("distance"))


# Real images


@pytest.fixture(scope="module")
def profiles(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Profile]:
    """Of 300 images each of three sources whose statistics the embedded zoo holds, and of one that it does not know."""
    sets = {"tiny_imagenet_train_0": (100, 3), "omniglot_a": (30, 10), "cifar10": (10, 30), "smiles": (2, 150)}
    found = {}
    with pytest.MonkeyPatch.context() as patch:  # the home of each test is not there yet
        patch.setenv("AUTOML_TL_HOME", str(tmp_path_factory.mktemp("home")))
        for name, (classes, each) in sets.items():
            task = photographs(shared, tmp_path_factory.mktemp(name), name, classes, each)
            found[name] = profile_task(task, catalogue(), look=(SMALL, "resnet10t_24.omniglot_a_64"))
    return found


@pytest.mark.parametrize(
    ("name", "source"), [("tiny_imagenet_train_0", "tiny_imagenet"), ("omniglot_a", "omniglot_a"), ("cifar10", "cifar10")]
)
@pytest.mark.parametrize("metric", ["frechet", "mmd2", "coral"])
def test_images_are_nearest_to_their_own_source(profiles: dict[str, Profile], name: str, source: str, metric: str) -> None:
    distances = {other: scores[metric] for other, scores in profiles[name].distances.items()}
    assert min(distances, key=distances.__getitem__) == source


def test_a_profile_is_complete_and_finite(profiles: dict[str, Profile]) -> None:
    for profile in profiles.values():
        assert len(profile.meta) == 18
        assert all(map(math.isfinite, flat(profile)))
        assert profile.seconds > 0
        assert set(profile.transferability) == {SMALL, "resnet10t_24.omniglot_a_64"}
        for scores in profile.transferability.values():
            assert set(scores) == set(metrics("transferability")) | set(metrics("familiarity"))


def test_meta_features_see_what_a_person_sees(profiles: dict[str, Profile]) -> None:
    meta = {name: profile.meta for name, profile in profiles.items()}
    assert meta["omniglot_a"]["grey_share"] == meta["smiles"]["grey_share"] == 1
    assert meta["cifar10"]["grey_share"] < 0.1
    assert meta["omniglot_a"]["pixel_entropy"] < 3 < meta["cifar10"]["pixel_entropy"]
    assert meta["omniglot_a"]["brightness"] > meta["cifar10"]["brightness"]
    assert [meta[name]["side"] for name in ("cifar10", "tiny_imagenet_train_0", "smiles")] == [32, 64, 64]


def test_the_network_of_the_own_source_transfers_best(profiles: dict[str, Profile]) -> None:
    for metric in ("logme", "knn", "linear-probe"):
        characters = {name: scores[metric] for name, scores in profiles["omniglot_a"].transferability.items()}
        objects = {name: scores[metric] for name, scores in profiles["tiny_imagenet_train_0"].transferability.items()}
        assert max(characters, key=characters.__getitem__) == "resnet10t_24.omniglot_a_64"
        assert max(objects, key=objects.__getitem__) == SMALL


def test_the_same_images_give_the_same_profile(shared: Path, tmp_path: Path, own_home: Path) -> None:
    task = photographs(shared, tmp_path, "sign_digits", 4, 12)
    first = profile_task(task, catalogue(), look=(SMALL,))
    again = profile_task(task, catalogue(), look=(SMALL,))  # from the caches
    assert (first.meta, first.distances, first.transferability) == (again.meta, again.distances, again.transferability)


# Odd tasks


@pytest.mark.parametrize("counts", [{"a": 2, "b": 2}, {"a": 30, "b": 2}, {f"c{i}": 2 for i in range(30)}], ids=len)
def test_small_and_imbalanced_tasks_have_a_profile(tmp_path: Path, counts: dict[str, int]) -> None:
    """Down to one training image a class: what cannot be measured is left out with a reason, the rest is finite."""
    task = load_task(lay_drawn(tmp_path / "d", counts))
    profile = profile_task(task, catalogue(), look=(SMALL,))
    assert len(profile.meta) == 18
    assert all(map(math.isfinite, flat(profile)))
    left_out = set(metrics("transferability")) - set(profile.transferability[SMALL])
    assert all(any(name in warning for warning in profile.warnings) for name in left_out)


def test_images_that_are_all_alike_have_a_profile(tmp_path: Path) -> None:
    plain = [png(Image.new("RGB", (20, 20), (value, value, value))) for value in (0, 0, 255, 255)]
    task = load_task(lay(tmp_path / "d", {"black": plain[:2] * 3, "white": plain[2:] * 3}), validation=0.0)
    profile = profile_task(task, catalogue(), look=(SMALL,))
    assert all(map(math.isfinite, flat(profile)))
    assert any("near-duplicates" in warning for warning in profile.warnings)


def test_what_is_told_on_the_way(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    task = load_task(lay_drawn(tmp_path / "d", {"a": 5, "b": 5}))
    profile_task(task, catalogue(), look=(SMALL,), progress=lambda what, done, total: told.append((what, done, total)))
    assert ("decoding to 64 px", 10, 10) in told
    assert (f"features of {SMALL}", 10, 10) in told


def test_statistics_of_a_source_are_at_no_distance_from_its_images(shared: Path, tmp_path: Path) -> None:
    from automl_tl_plugins.metrics.frechet import Frechet

    task = photographs(shared, tmp_path, "sign_digits", 5, 40)
    encoder = catalogue()[SMALL]
    source = describe_source(task, encoder)
    own = task_features(task, encoder, index=task.part(TRAIN))
    other = photographs(shared, tmp_path, "traffic_signs", 5, 40)
    assert Frechet().score(own, source) < 0.01 * Frechet().score(task_features(other, encoder, index=other.part(TRAIN)), source)
    assert len(describe_source(task, encoder, most=50).values) == 50
