"""From images on disk to a checked, split task, and to pixels that are decoded once."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import drawn, lay, lay_drawn, png, real_images
from PIL import Image

from automl_tl import data
from automl_tl.data import decode, decode_images, load_task, load_unlabelled, near_duplicates, picked, subset
from automl_tl.errors import InputError
from automl_tl.images import read_image, square
from automl_tl.objectives import _joined
from automl_tl.records import TEST, TRAIN, VALIDATION, Task


@pytest.fixture
def signs(shared: Path, tmp_path: Path) -> Path:
    """Ten classes of thirty real photographs."""
    return lay(tmp_path / "signs", real_images(shared / "data" / "sign_digits.zip", "train", 10, 30))


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


# Splits


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
    held = data._hold_out(np.arange(175), labels, groups, 0.2, np.random.default_rng(seed))
    assert len(held) == 25
    assert 1 not in groups[held]
    two = np.repeat([0, 1], [30, 5])
    assert two[data._hold_out(np.arange(35), np.zeros(35, int), two, 0.05, np.random.default_rng(seed))].tolist() == [1] * 5


@pytest.mark.parametrize("share", [-1, 1.0, 1.5])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(InputError, match="share of images for validation must be from 0 to below 1"):
        load_task("digits", validation=share)
    with pytest.raises(InputError, match="share of images for test"):
        load_task("digits", test=share)


def test_bytes_that_are_no_image_are_said_alike() -> None:
    with pytest.raises(InputError) as caught:
        load_task(([b"aaaa", b"bbbb", b"cccc", b"dd"], [0, 1, 0, 1]))
    assert "cannot be read as an image: it is none of the kinds that are read" in str(caught.value)
    assert "0x" not in str(caught.value)


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


# Near-duplicates


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
    values = thumbnails.astype(float)
    apart = np.abs(values[:, None] - values[None]).mean(axis=2)
    limits = np.minimum(data.ALIKE, 0.06 * values.std(axis=1))
    every = {(int(i), int(j)) for i, j in np.argwhere(apart <= np.minimum(limits[:, None], limits[None])) if i < j}
    assert found == every
    assert {(i, i + 300) for i in range(150)} & every


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


# What a task is


def test_fingerprint_is_of_the_content(signs: Path, tmp_path: Path) -> None:
    first = load_task(signs)
    elsewhere = shutil.copytree(signs, tmp_path / "far" / "away" / "other name")
    assert load_task(elsewhere).fingerprint == first.fingerprint
    assert (load_task(elsewhere).name, load_task(elsewhere, name="mine").name) == ("other name", "mine")
    shutil.move(elsewhere / "0" / "000.png", elsewhere / "1" / "zzz.png")
    assert load_task(elsewhere).fingerprint != first.fingerprint


def test_fingerprint_changes_with_a_pixel_a_class_name_and_a_split(tmp_path: Path) -> None:
    folder = lay_drawn(tmp_path / "d", {"a": 10, "b": 10})
    seen = {load_task(folder).fingerprint, load_task(folder, validation=0.4).fingerprint}
    (folder / "b").rename(folder / "c")
    seen.add(load_task(folder).fingerprint)
    image = read_image(folder / "a" / "000.png")
    image.putpixel((0, 0), (1, 2, 3))
    image.save(folder / "a" / "000.png")
    seen.add(load_task(folder).fingerprint)
    assert len(seen) == 4


def test_fingerprint_is_the_same_in_every_process(tmp_path: Path, own_home: Path) -> None:
    """Names that count alike (1, 01) have one order, whatever Python's hash seed is; odd digits are not numbers."""
    folder = lay_drawn(tmp_path / "d", {"1": 3, "01": 3, "001": 3, "10": 3, "9": 3, "m²": 3, "²": 3, "a1": 3, "a": 3})
    script = (
        "import sys; from automl_tl import load_task; from pathlib import Path; print(load_task(Path(sys.argv[1])).fingerprint)"
    )
    found = {load_task(folder).fingerprint}
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)],
        env={**os.environ, "PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    found.add(done.stdout.strip())
    assert len(found) == 1
    assert load_task(folder).classes == ("001", "01", "1", "9", "10", "a", "a1", "m²", "²")


def test_subset_is_a_task_of_its_own(signs: Path) -> None:
    task = load_task(signs)
    keep = np.flatnonzero(np.isin(task.labels, [2, 7]))
    part = subset(task, keep, name="two")
    assert (part.classes, len(part.labels), part.name) == (("2", "7"), 60, "two")
    assert counts(part, VALIDATION) == [6, 6]
    assert [part.where[i] for i in part.part(VALIDATION)] == [
        task.where[i] for i in task.part(VALIDATION) if task.labels[i] in (2, 7)
    ]
    assert part.fingerprint != task.fingerprint
    assert decode(part, 32).array[0].tolist() == decode(task, 32).array[keep[0]].tolist()


def test_sizes_and_hashes_are_of_the_upright_image(tmp_path: Path) -> None:
    folder = lay(tmp_path / "d", {"a": [drawn(i) for i in range(3)], "b": [drawn(i) for i in range(3, 6)]})
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20), "red").save(folder / "a" / "wide.png", exif=exif)
    task = load_task(folder)
    assert task.sizes is not None
    assert task.sizes[task.where.index("a/wide.png")].tolist() == [20, 40]


# Unreadable files


def spoil(folder: Path, count: int) -> list[str]:
    """Truncate the first `count` images."""
    chosen = sorted(folder.rglob("*.png"))[:count]
    for path in chosen:
        path.write_bytes(path.read_bytes()[:60])
    return [str(path.relative_to(folder)) for path in chosen]


def test_four_percent_unreadable_are_skipped_and_listed(tmp_path: Path) -> None:
    folder = lay_drawn(tmp_path / "d", {"a": 50, "b": 50})
    bad = spoil(folder, 4)
    for _ in range(2):  # and again, with what is known of the readable ones
        task = load_task(folder)
        assert len(task.labels) == 96
        assert not set(bad) & set(task.where)
        listed = [warning for warning in task.warnings if warning.startswith("skipped, as it cannot be read")]
        assert len(listed) == 4
        assert all(where in warning for where, warning in zip(bad, listed, strict=True))


def test_six_percent_unreadable_are_an_error(tmp_path: Path) -> None:
    folder = lay_drawn(tmp_path / "d", {"a": 50, "b": 50})
    bad = spoil(folder, 6)
    with pytest.raises(InputError, match=rf"d: 6 of 100 images cannot be read, more than 5%; the first: {bad[0]}: "):
        load_task(folder)


def test_a_class_whose_only_image_is_unreadable_does_not_vanish(tmp_path: Path) -> None:
    folder = lay_drawn(tmp_path / "d", {"a": 30, "b": 30})
    lay(folder, {"c": [b"no image"]})
    with pytest.raises(InputError, match=r"d: no image of class 'c' can be read; the first: c/000\.png"):
        load_task(folder)


# Read once


def test_an_unchanged_folder_is_not_read_again(signs: Path) -> None:
    """One whose files hold other bytes is, though their sizes and times are as they were."""
    first = load_task(signs)
    told: list[tuple[int, int]] = []
    assert load_task(signs, progress=lambda *done: told.append(done)).fingerprint == first.fingerprint
    assert told == []
    for path in signs.rglob("*.png"):
        state = path.stat()
        path.write_bytes(b"\0" * state.st_size)
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    with pytest.raises(InputError, match="cannot be read as an image"):
        load_task(signs)


@pytest.mark.skipif(sys.platform != "linux", reason="needs a system with names that are not UTF-8")
def test_files_whose_names_are_not_utf_8_are_read_and_known_again(tmp_path: Path) -> None:
    folder = lay_drawn(tmp_path / "photos", {"a": 4, "b": 4})
    before = load_task(folder)
    (folder / "a" / "000.png").rename(folder / "a" / os.fsdecode(b"gr\xf6sse.png"))
    (folder / "a").rename(folder / os.fsdecode(b"\xe4"))
    task = load_task(folder)
    assert task.classes == ("\\xe4", "b")
    assert "\\xe4/gr\\xf6sse.png" in task.where
    assert sorted(task.hashes) == sorted(before.hashes)
    told: list[tuple[int, int]] = []
    again = load_task(folder, progress=lambda *done: told.append(done))
    assert (again.fingerprint, told) == (task.fingerprint, []), "read once"
    flat = load_unlabelled(folder)
    assert set(flat.where) == set(task.where)


def test_what_was_seen_is_kept_under_the_digest_that_it_always_was(tmp_path: Path, own_home: Path) -> None:
    folder = lay_drawn(tmp_path / "größe", {"a": 2, "b": 2})
    load_task(folder)
    states = {path: path.stat() for path in folder.rglob("*.png")}
    keys = sorted(
        f"{path}|{state.st_size}|{state.st_mtime_ns}|{state.st_ctime_ns}|{state.st_ino}" for path, state in states.items()
    )
    digest = hashlib.sha256("\n".join(keys).encode()).hexdigest()[:32]
    assert [path.stem for path in (own_home / "cache" / "seen").iterdir()] == [digest]


@pytest.mark.parametrize("kept", [b"", b"\0" * 80, b'{"a": 1}', b"[[1]]", b'[["key", 1, 2, 3, "no hex"]]'])
def test_what_was_seen_and_is_damaged_is_looked_at_again(tmp_path: Path, own_home: Path, kept: bytes) -> None:
    folder = lay_drawn(tmp_path / "d", {"a": 2, "b": 2})
    before = load_task(folder)
    (path,) = (own_home / "cache" / "seen").iterdir()
    whole = path.read_bytes()
    path.write_bytes(kept)
    assert load_task(folder).fingerprint == before.fingerprint
    assert path.read_bytes() == whole


def test_a_changed_file_is_read_again(signs: Path) -> None:
    first = load_task(signs)
    state = (signs / "3" / "004.png").stat()
    drawn(1).save(signs / "3" / "004.png")
    os.utime(signs / "3" / "004.png", ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert load_task(signs).fingerprint != first.fingerprint


def test_progress_tells_of_every_image(tmp_path: Path) -> None:
    task = load_task(lay_drawn(tmp_path / "d", {"a": 40, "b": 60}))
    told: list[tuple[int, int]] = []
    decode(task, 16, progress=lambda done, total: told.append((done, total)))
    assert told == [(64, 100), (100, 100)]


# Decoded once


def test_pixels_are_those_of_each_image(signs: Path) -> None:
    task = load_task(signs)
    pixels = decode(task, 64, interpolation="bilinear", crop_pct=0.875)
    assert (pixels.size, len(pixels), pixels.array.shape, pixels.array.dtype) == (64, 300, (300, 64, 64, 3), np.uint8)
    for i in (0, 17, 299):
        expected = square(read_image(task.images[i]), 64, interpolation="bilinear", crop_pct=0.875)
        np.testing.assert_array_equal(pixels.array[i], expected)
    in_memory = decode_images(task.images, task.where, 64, interpolation="bilinear", crop_pct=0.875)
    np.testing.assert_array_equal(pixels.array, in_memory)
    with pytest.raises(ValueError, match="read-only"):
        pixels.array[0] = 0


@pytest.mark.parametrize(("size", "most"), [(40, 0.0), (10, 1.0)])
def test_only_photographs_of_eight_times_the_size_are_decoded_smaller(signs: Path, size: int, most: float) -> None:
    """100 px are decoded whole for 40 and halved by libjpeg for 10, which is less than a level of 255 away from the long way."""
    task = load_task(signs)
    pixels = decode(task, size).array.astype(float)
    whole = [square(read_image(image), size, interpolation="bicubic", crop_pct=1.0) for image in task.images]
    difference = np.abs(pixels - whole).mean()
    assert difference <= most
    assert (difference > 0) == (most > 0)


def test_images_are_decoded_once(signs: Path, tmp_path: Path) -> None:
    task = load_task(signs)
    first = decode(task, 32)
    copy = load_task(shutil.copytree(signs, tmp_path / "copy"))
    shutil.rmtree(signs)
    np.testing.assert_array_equal(decode(task, 32).array, first.array)
    shutil.rmtree(tmp_path / "copy")
    np.testing.assert_array_equal(decode(copy, 32).array, first.array)
    with pytest.raises(InputError, match=r"0/000\.png"):
        decode(task, 33)


@pytest.mark.parametrize(
    "part", [lambda task: task, lambda task: picked(task, np.arange(4)), lambda task: _joined(task, task, task.labels)]
)
@pytest.mark.parametrize("exchanged", [False, True])
def test_an_image_that_was_changed_after_it_was_read_is_not_decoded(part: Any, exchanged: bool, tmp_path: Path) -> None:
    """Its pixels would be kept under the hash of the other ones, for this task and every later one."""
    folder = lay_drawn(tmp_path / "photos", {"a": 4, "b": 4})
    one, other, aside = folder / "a" / "000.png", folder / "a" / "001.png", tmp_path / "aside.png"
    for file in (one, other):
        os.utime(file, ns=(0, 0))
    task = part(load_task(folder))
    before = one.read_bytes()
    if exchanged:
        for source, place in ((one, aside), (other, one), (aside, other)):
            source.rename(place)
    else:
        one.write_bytes(png(drawn(99)))
    with pytest.raises(InputError, match=r"^a/000\.png: was changed after it had been read; start again"):
        decode(task, 32)
    if not exchanged:
        one.write_bytes(before)
        np.testing.assert_array_equal(decode(task, 24).array[0], np.asarray(drawn(0)), "it was only touched")


def test_two_files_that_were_exchanged_are_read_again(tmp_path: Path) -> None:
    """Of one size and one time, as an archive leaves them: so somebody mends two labels."""
    folder = lay(tmp_path / "photos", {"a": [drawn(i) for i in range(3)], "b": [drawn(i) for i in range(10, 13)]})
    ours, theirs, aside = folder / "a" / "000.bmp", folder / "b" / "000.bmp", folder / "aside"
    for path in (ours, theirs):
        read_image(path.with_suffix(".png")).save(path)
        path.with_suffix(".png").unlink()
        os.utime(path, (1.6e9, 1.6e9))
    before = load_task(folder)
    for source, target in ((ours, aside), (theirs, ours), (aside, theirs)):
        source.rename(target)
    after = load_task(folder)
    place = after.where.index("a/000.bmp")
    assert after.hashes[place] == before.hashes[before.where.index("b/000.bmp")]
    np.testing.assert_array_equal(
        decode(after, 8).array[place], square(read_image(ours), 8, interpolation="bicubic", crop_pct=1.0)
    )


@pytest.mark.parametrize(("bits", "told"), [(12, ["no part of any image is brighter than 1"]), (16, [])])
def test_images_that_are_nearly_black_are_told_of(bits: int, told: list[str], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 2**bits, (16, 16)).astype(np.uint16) for _ in range(8)]
    warnings = load_task((images, list("abababab"))).warnings
    assert [warning[: len("no part of any image is brighter than 1")] for warning in warnings] == told


def cached(home: Path) -> list[str]:
    return sorted(path.name for path in (home / "cache" / "pixels").iterdir() if path.suffix != ".lock")


def test_size_interpolation_and_crop_are_other_pixels(tmp_path: Path, own_home: Path) -> None:
    task = load_task(lay_drawn(tmp_path / "d", {"a": 5, "b": 5}))
    for size, interpolation, crop_pct in (
        (16, "bicubic", 1.0),
        (17, "bicubic", 1.0),
        (16, "bilinear", 1.0),
        (16, "bicubic", 0.9),
    ):
        decode(task, size, interpolation=interpolation, crop_pct=crop_pct)
    assert len(cached(own_home)) == 4
    squash, border = {"crop_mode": "squash"}, {"crop_mode": "border"}
    for how in (squash, border, {**border, "fill": (124, 116, 104)}):
        decode(task, 16, **how)  # type: ignore[arg-type]
    assert len(cached(own_home)) == 7


def test_pixels_of_before_there_were_crop_modes_are_found(tmp_path: Path, own_home: Path) -> None:
    task = load_task(lay_drawn(tmp_path / "d", {"a": 5, "b": 5}))
    decode(task, 16, crop_pct=0.875)
    before = hashlib.sha256(task.hashes.astype("<u8").tobytes() + b"16/bicubic/0.875").hexdigest()[:32]
    assert cached(own_home) == [f"{before}.npy"]


BUILD = """
import sys
from pathlib import Path
from automl_tl.data import decode, load_task
print(decode(load_task(Path(sys.argv[1])), 48).array.sum(), flush=True)
"""


def test_processes_that_ask_together_build_one_file(signs: Path, own_home: Path) -> None:
    load_task(signs)
    running = [subprocess.Popen([sys.executable, "-c", BUILD, str(signs)], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=60)[0].strip() for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert set(said) == {str(decode(load_task(signs), 48).array.sum())}
    assert len(cached(own_home)) == 1


def test_threads_that_ask_together_build_once(tmp_path: Path) -> None:
    task = load_task(lay_drawn(tmp_path / "d", {"a": 80, "b": 80}))
    builds: list[int] = []
    threads = [
        threading.Thread(target=decode, args=(task, 32), kwargs={"progress": lambda done, total: builds.append(done)})
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert builds == [64, 128, 160]


def test_an_interrupted_build_leaves_nothing(tmp_path: Path, own_home: Path) -> None:
    task = load_task(lay_drawn(tmp_path / "d", {"a": 80, "b": 80}))

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decode(task, 32, progress=interrupt)
    assert cached(own_home) == []
    assert decode(task, 32).array[159].any()


KILLED = """
import os, sys
from pathlib import Path
from automl_tl.data import decode, load_task
decode(load_task(Path(sys.argv[1])), 64, progress=lambda done, total: os.kill(os.getpid(), 9))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs kill -9")
def test_a_killed_build_is_neither_taken_for_whole_nor_kept(signs: Path, own_home: Path) -> None:
    task = load_task(signs)
    assert subprocess.run([sys.executable, "-c", KILLED, str(signs)]).returncode == -9
    assert [name.endswith(".partial") for name in cached(own_home)] == [True]
    last = square(read_image(task.images[299]), 64, interpolation="bicubic", crop_pct=1)
    np.testing.assert_array_equal(decode(task, 64).array[299], last)
    assert [name.endswith(".npy") for name in cached(own_home)] == [True]


def test_the_cache_is_bounded(tmp_path: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was not used for longest goes; who has it open keeps it."""
    tasks = [load_task(lay_drawn(tmp_path / f"d{k}", {"a": 10, "b": 10}, start=20 * k)) for k in range(3)]
    monkeypatch.setattr(data, "CACHE_BYTES", int(2.5 * 20 * 32 * 32 * 3))
    kept = []
    for age, task in zip((50, 40), tasks, strict=False):
        kept.append(decode(task, 32))
        newest = max((own_home / "cache" / "pixels").glob("*.npy"), key=lambda path: path.stat().st_mtime)
        os.utime(newest, (time.time() - age, time.time() - age))
    before = kept[1].array.copy()
    decode(tasks[0], 32)  # used again: now the second is the oldest
    decode(tasks[2], 32)
    assert len(cached(own_home)) == 2
    np.testing.assert_array_equal(kept[1].array, before)
    shutil.rmtree(tmp_path / "d0")
    decode(tasks[0], 32)  # still there
    shutil.rmtree(tmp_path / "d1")
    with pytest.raises(InputError, match=r"a/000\.png"):
        decode(tasks[1], 32)


def test_others_may_make_room_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link to nothing is listed but cannot be looked at, as a file that another process deletes meanwhile; a folder cannot be
    deleted, as on Windows a file that is mapped."""
    monkeypatch.setattr(data, "CACHE_BYTES", 0)
    (tmp_path / "gone.npy").symlink_to(tmp_path / "nowhere")
    (tmp_path / "held.npy").mkdir()
    (tmp_path / "old.npy").write_bytes(b"old")
    data._make_room(tmp_path, 1)
    assert {path.name for path in tmp_path.iterdir()} == {"gone.npy", "held.npy"}


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="asks Linux what is mapped")
@pytest.mark.parametrize("interrupted", [False, True])
def test_what_is_moved_or_deleted_is_no_longer_mapped(interrupted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows refuses to."""
    task, mapped = load_task(lay_drawn(tmp_path / "d", {"a": 40, "b": 40})), list[bool]()

    def watch(name: str) -> None:
        true = getattr(Path, name)

        def watched(path: Path, *arguments: Any, **options: Any) -> Any:
            if path.suffix == ".partial":
                mapped.append(path.name in Path("/proc/self/maps").read_text())
            return true(path, *arguments, **options)

        monkeypatch.setattr(Path, name, watched)

    def progress(done: int, total: int) -> None:
        assert ".partial" in Path("/proc/self/maps").read_text()
        if interrupted:
            raise KeyboardInterrupt

    watch("replace")
    watch("unlink")
    with pytest.raises(KeyboardInterrupt) if interrupted else nullcontext():
        decode(task, 32, progress=progress)
    assert mapped == [False] * (1 if interrupted else 2)


def test_a_full_disk_is_noticed_before(tmp_path: Path) -> None:
    task = load_task(lay_drawn(tmp_path / "d", {"a": 5, "b": 5}))
    with pytest.raises(InputError, match=r"decoded images need \d+ MB, but \d+ are free"):
        decode(task, 10_000_000)


def test_no_images_are_no_pixels() -> None:
    assert decode_images([], [], 32, interpolation="bicubic", crop_pct=1.0).shape == (0, 32, 32, 3)


def test_labels_follow_their_images_through_skipping_and_splitting(tmp_path: Path) -> None:
    """Class c is drawn in brightness 60·c: pixels, labels, places and sizes must still belong together at the end."""
    noise = np.random.default_rng(0)
    for label in range(4):
        images = [Image.fromarray((60 * label + noise.integers(0, 20, (20 + label, 20, 3))).astype(np.uint8)) for _ in range(25)]
        lay(tmp_path / "d", {f"c{label}": images})
    spoil(tmp_path / "d", 3)
    task = load_task(tmp_path / "d", test=0.2)
    brightness = decode(task, 20).array.mean(axis=(1, 2, 3))
    np.testing.assert_array_equal(np.round((brightness - 10) / 60).astype(int), task.labels)
    assert Counter(where.split("/")[0] for where in task.where) == Counter(task.classes[label] for label in task.labels)
    assert task.sizes is not None
    np.testing.assert_array_equal(task.sizes[:, 1] - 20, task.labels)
