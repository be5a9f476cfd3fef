"""Splits: stratified, seeded, and nothing on both sides."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from pictures import drawn, lay, lay_drawn, png, real_images
from PIL import Image

from automl_tl import splitting
from automl_tl.data import load_task
from automl_tl.errors import InputError
from automl_tl.images import read_image
from automl_tl.records import TEST, TRAIN, VALIDATION, Task
from automl_tl.splitting import near_duplicates


def counts(task: Task, split: str) -> list[int]:
    return np.bincount(task.labels[task.part(split)], minlength=len(task.classes)).tolist()


def saved(image: Image.Image, format: str, *, quality: int = 75) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, quality=quality)
    return buffer.getvalue()


def same_split(one: Task, other: Task) -> bool:
    return one.splits.keys() == other.splits.keys() and all(
        np.array_equal(one.splits[name], other.splits[name]) for name in one.splits
    )


def test_split_is_stratified_seeded_and_complete(signs: Path) -> None:
    task = load_task(signs)
    assert task.classes == tuple("0123456789")
    assert counts(task, VALIDATION) == [6] * 10
    assert counts(task, TRAIN) == [24] * 10
    assert sorted(np.concatenate(list(task.splits.values()))) == list(range(300))
    assert same_split(task, load_task(signs))
    assert task.fingerprint == load_task(signs).fingerprint
    other = load_task(signs, seed=1)
    assert not same_split(task, other)
    assert task.fingerprint != other.fingerprint
    assert counts(other, VALIDATION) == [6] * 10


def test_shares_of_each_class(tmp_path: Path) -> None:
    """Each class gives its own share; a class of two gives one to each side, and one of three suffices for three sides."""
    folder = lay_drawn(tmp_path / "few", {"many": 40, "some": 10, "two": 2})
    task = load_task(folder)
    assert counts(task, VALIDATION) == [8, 2, 1]
    assert counts(task, TRAIN) == [32, 8, 1]
    assert TEST not in task.splits
    with pytest.raises(InputError, match=r"few: class 'two' has 1 training image"):
        load_task(folder, test=0.3)
    lay_drawn(folder, {"two": 1}, start=90)
    task = load_task(folder, test=0.3)
    assert [counts(task, split) for split in (TEST, VALIDATION, TRAIN)] == [[12, 3, 1], [6, 1, 1], [22, 6, 1]]


def test_given_splits_are_kept(shared: Path, tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        part = "test" if split == "test" else "train"
        images = real_images(shared / "data" / "sign_digits.zip", part, 3, 12)
        chosen = {"train": slice(0, 8), "val": slice(8, 12), "test": slice(0, 5)}[split]
        lay(tmp_path / "given" / split, {label: some[chosen] for label, some in images.items()})
    task = load_task(tmp_path / "given")
    assert [counts(task, split) for split in (TRAIN, VALIDATION, TEST)] == [[8] * 3, [4] * 3, [5] * 3]
    for split, folder in ((TRAIN, "train"), (VALIDATION, "val"), (TEST, "test")):
        assert {task.where[i].split("/")[0] for i in task.part(split)} == {folder}
    assert same_split(task, load_task(tmp_path / "given", seed=5))


def test_validation_comes_out_of_training_beside_a_test_split(tmp_path: Path) -> None:
    lay_drawn(tmp_path / "half" / "train", {"a": 20, "b": 20})
    lay_drawn(tmp_path / "half" / "test", {"a": 7, "b": 5}, start=100)
    task = load_task(tmp_path / "half")
    assert [counts(task, split) for split in (TRAIN, VALIDATION, TEST)] == [[16, 16], [4, 4], [7, 5]]
    assert all(task.where[i].startswith("test/") for i in task.part(TEST))


@pytest.mark.parametrize("seed", range(5))
def test_a_group_never_straddles(tmp_path: Path, seed: int) -> None:
    """Twelve patients of one to nine images each, some with images of both classes."""
    rng = np.random.default_rng(seed)
    patients = np.repeat(np.arange(12), rng.integers(1, 10, 12))
    lay_drawn(tmp_path / "x", {"all": len(patients)})
    rows = [f"x/all/{i:03}.png,{'ab'[rng.integers(2)]},patient {patient}" for i, patient in enumerate(patients)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,group", *rows]))
    task = load_task(tmp_path / "list.csv", seed=seed, validation=0.3)
    held = {patients[i] for i in task.part(VALIDATION)}
    trained = {patients[i] for i in task.part(TRAIN)}
    assert held
    assert not held & trained
    assert len(task.part(VALIDATION)) + len(task.part(TRAIN)) == len(patients)
    alone = len(patients) - len(set(patients))
    assert task.warnings == (f"{alone} images are of one group with others; they stay in one split",)


def test_a_group_that_straddles_given_splits_leaves_training(tmp_path: Path) -> None:
    lay_drawn(tmp_path / "x", {"all": 8})
    splits = ["train"] * 6 + ["test"] * 2
    groups = ["p", "p", "q", "q", "r", "r", "p", "s"]
    rows = [f"x/all/{i:03}.png,{'ab'[i % 2]},{splits[i]},{groups[i]}" for i in range(8)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,split,group", *rows]))
    task = load_task(tmp_path / "list.csv", validation=0.0)
    assert [Path(task.images[i]).name for i in task.part(TRAIN)] == ["002.png", "003.png", "004.png", "005.png"]
    assert len(task.part(TEST)) == 2
    assert task.warnings == ("2 train images are of one group with test images; they were left out",)


@pytest.mark.parametrize("seed", range(4))
def test_one_large_group_trains(seed: int) -> None:
    """Six of seven images are of one person: the others validate, or nothing would be left to learn from."""
    labels, groups = np.repeat(np.arange(5), 35), np.arange(175)
    groups[groups % 7 > 0] = 1
    held = splitting._hold_out(np.arange(175), labels, groups, 0.2, np.random.default_rng(seed))
    assert len(held) == 25
    assert 1 not in groups[held]
    two = np.repeat([0, 1], [30, 5])
    assert two[splitting._hold_out(np.arange(35), np.zeros(35, int), two, 0.05, np.random.default_rng(seed))].tolist() == [1] * 5


@pytest.mark.parametrize("seed", range(6))
def test_a_large_group_stays_where_a_smaller_one_can_go(seed: int) -> None:
    """Also where the smaller one has fewer images than are wanted: half of the class would validate."""
    groups = np.repeat([0, 1, 2], [1, 14, 15])
    held = splitting._hold_out(np.arange(30), np.zeros(30, int), groups, 0.2, np.random.default_rng(seed))
    assert groups[held].tolist() == [0]


@pytest.mark.parametrize("seed", range(8))
def test_a_group_with_all_of_another_class_trains(seed: int) -> None:
    """One patient has the only images of a rare finding, and common ones besides."""
    labels, groups = np.repeat([0, 1], [10, 2]), np.array([1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 1, 1])
    held = splitting._hold_out(np.arange(12), labels, groups, 0.2, np.random.default_rng(seed))
    assert len(held) == 2
    assert 1 not in groups[held]


# Near-duplicates


def test_groups_and_near_duplicates_are_told_apart(tmp_path: Path) -> None:
    lay(tmp_path / "x", {"all": [drawn(i) for i in (0, 1, 2, 3, 4, 5, 0, 6, 7)]})
    rows = [f"x/all/{i:03}.png,{'ab'[i % 2]},{group}" for i, group in enumerate(["", "p", "p", "p", "", "", "", "", ""])]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,group", *rows]))
    assert load_task(tmp_path / "list.csv").warnings == (
        "1 images are near-duplicates of others; they stay in one split",
        "2 images are of one group with others; they stay in one split",
    )
    (tmp_path / "list.csv").write_text("\n".join(["path,label,group", *(f"{row.rsplit(',', 1)[0]},one" for row in rows)]))
    with pytest.raises(InputError, match="those of each class are near-duplicates of one another, or of one group; give"):
        load_task(tmp_path / "list.csv")


def test_the_same_picture_saved_again_stays_on_one_side(signs: Path) -> None:
    """Every tenth photograph is there again: as a JPEG of low quality, or a few pixels smaller."""
    twins = {}
    for number, path in enumerate(sorted(signs.rglob("*.png"))[::10]):
        image = read_image(path)
        copies = [
            saved(image, "JPEG", quality=40),
            png(image.resize((image.width - 5, image.height - 3))),
        ]
        twin = path.with_name(f"copy {path.name}")
        twin.write_bytes(copies[number % 2])
        twins[str(path.relative_to(signs))] = str(twin.relative_to(signs))
    for seed in range(4):
        task = load_task(signs, seed=seed)
        side = {where: split for split, part in task.splits.items() for where in (task.where[i] for i in part)}
        assert all(side[one] == side[other] for one, other in twins.items())
        assert task.warnings == (f"{len(twins)} images are near-duplicates of others; they stay in one split",)


def test_near_duplicates_of_held_images_leave_training(shared: Path, tmp_path: Path) -> None:
    images = real_images(shared / "data" / "sign_digits.zip", "train", 2, 12)
    root = tmp_path / "leaky"
    for split, part in (("train", slice(0, 8)), ("validation", slice(8, 10)), ("test", slice(10, 12))):
        lay(root / split, {label: some[part] for label, some in images.items()})
    again = {label: [saved(read_image(some[11]), "JPEG")] for label, some in images.items()}
    lay(root / "train", again)
    lay(root / "validation", again)
    task = load_task(root)
    assert [counts(task, split) for split in (TRAIN, VALIDATION, TEST)] == [[8, 8], [2, 2], [2, 2]]
    assert not any(task.where[i].endswith("train/0/008.png") for i in range(len(task.labels)))
    assert [warning.split(" are ")[0] for warning in task.warnings] == [
        "2 train images",  # of validation
        "2 validation images",  # of test
    ]


def test_a_training_split_that_is_also_the_test_split_is_named(tmp_path: Path) -> None:
    for split in (TRAIN, TEST):
        lay_drawn(tmp_path / "photos" / split, {"a": 6, "b": 6})
    with pytest.raises(InputError, match=r"photos: no training image is left: all 12 are near-duplicates .* share no picture"):
        load_task(tmp_path / "photos")


def test_one_picture_under_two_labels_stays_on_one_side(tmp_path: Path) -> None:
    """Wrong labels happen; they must not lead to a picture that is both trained on and judged by."""
    folder = lay_drawn(tmp_path / "mixed", {"a": 20, "b": 20})
    lay(folder, {"b": [drawn(i) for i in range(10)]})
    for seed in range(3):
        task = load_task(folder, seed=seed)
        held = set(task.hashes[task.part(VALIDATION)].tolist())
        assert not held & set(task.hashes[task.part(TRAIN)].tolist())


@pytest.mark.parametrize(("name", "classes", "each"), [("omniglot_b", 40, 15), ("cifar10", 10, 60), ("sign_digits", 10, 60)])
def test_pictures_that_are_merely_similar_are_not_joined(
    shared: Path, tmp_path: Path, name: str, classes: int, each: int
) -> None:
    task = load_task(lay(tmp_path / name, real_images(shared / "data" / f"{name}.zip", "train", classes, each)))
    assert task.warnings == ()


def test_digits_are_not_joined() -> None:
    assert load_task("digits").warnings == ()


@pytest.mark.parametrize(("alike", "own"), [(0, 70), (50, 8), (10, 3)], ids=["photographs", "radiographs", "slides"])
def test_near_duplicates_are_those_of_all_pairs(alike: int, own: int) -> None:
    """The sorted search finds what comparing every pair finds, also among pictures that are alike and of little contrast."""
    rng = np.random.default_rng(0)
    shared_by_all = alike * np.kron(rng.normal(size=(4, 4)), np.ones((4, 4))).reshape(256)
    base = 128 + shared_by_all + own * rng.normal(size=(300, 256))
    noise = rng.uniform(0, 4, (100, 1)) * rng.normal(size=(100, 256))
    thumbnails = np.concatenate([base, base[:100] + noise, base[100:150] + rng.uniform(-4, 4, (50, 1))])
    thumbnails = thumbnails.clip(0, 255).astype(np.uint8)
    found = {tuple(sorted(pair)) for pair in near_duplicates(thumbnails)}
    assert found == all_near(thumbnails)
    assert {(i, i + 300) for i in range(150)} & found


def all_near(thumbnails: np.ndarray) -> set[tuple[int, int]]:
    """By comparing every pair."""
    values = thumbnails.astype(float)
    apart = np.abs(values[:, None] - values[None]).mean(axis=2)
    limits = np.minimum(splitting.ALIKE, 0.06 * values.std(axis=1))
    return {(int(i), int(j)) for i, j in np.argwhere(apart <= np.minimum(limits[:, None], limits[None])) if i < j}


def test_a_caption_hides_no_duplicate() -> None:
    """All that differs lies in one row of pictures that differ most from the top down, as landscapes do."""
    rng = np.random.default_rng(0)
    down = np.linspace(-1, 1, 16).repeat(16)
    pictures = 128 + rng.normal(0, 60, (200, 1)) + rng.normal(0, 100, (200, 1)) * down + rng.normal(0, 5, (200, 256))
    captioned = pictures.copy()
    captioned[:, -16:] += 40
    thumbnails = np.concatenate([pictures, captioned]).clip(0, 255).astype(np.uint8)
    found = {tuple(sorted(pair)) for pair in near_duplicates(thumbnails)}
    assert found == all_near(thumbnails)
    assert len(found & {(i, i + 200) for i in range(200)}) > 50


def test_near_duplicates_of_few_and_of_plain_images() -> None:
    assert near_duplicates(np.zeros((1, 256), dtype=np.uint8)) == []
    plain = np.repeat(np.arange(0, 250, 10, dtype=np.uint8)[:, None], 256, axis=1)
    assert near_duplicates(plain) == []
    assert near_duplicates(np.concatenate([plain, plain[:1]])) in ([(0, 25)], [(25, 0)])


def test_thousands_of_blank_images_are_not_millions_of_pairs() -> None:
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, 256, (2, 256), dtype=np.uint8)
    blank = np.zeros((3000, 256), dtype=np.uint8)
    almost = (drawn[:1] ^ 1).astype(np.uint8)
    pairs = near_duplicates(np.concatenate([blank, drawn, blank, almost]))
    assert len(pairs) == 6000
    assert {pair for pair in pairs if max(pair) == 6002} <= {(3000, 6002), (6002, 3000)}
