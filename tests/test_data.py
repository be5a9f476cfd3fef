"""From images on disk to a checked task, each of them read once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import drawn, lay, lay_drawn
from PIL import Image

from automl_tl import seen
from automl_tl.data import load_task, load_unlabelled, subset
from automl_tl.errors import InputError
from automl_tl.images import read_image, square
from automl_tl.pixels import decode
from automl_tl.records import VALIDATION, Task


def counts(task: Task, split: str) -> list[int]:
    return np.bincount(task.labels[task.part(split)], minlength=len(task.classes)).tolist()


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


def test_of_files_that_were_seen_only_new_ones_are_read(tmp_path: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, read = lay_drawn(tmp_path / "größe", {"a": 3, "b": 3}), list[str]()

    def watched(item: tuple[Any, str]) -> seen.Seen:
        read.append(item[1])
        return look(item)

    look = seen.look
    monkeypatch.setattr(seen, "look", watched)
    load_task(folder)
    assert len(read) == 6
    lay_drawn(folder, {"b": 1}, start=50)
    (folder / "a" / "000.png").rename(folder / "b" / "moved.png")
    drawn(60).save(folder / "a" / "001.png")
    assert len(load_task(folder).images) == 7
    assert sorted(read[6:]) == ["a/001.png", "b/003.png", "b/moved.png"]
    (folder / "list.csv").write_text("path,label\na/001.png,a\na/002.png,a\nb/000.png,b\nb/001.png,b\n")
    lay_drawn(folder, {"a": 1}, start=70)
    for place in (folder / "list.csv", folder, folder / "list.csv"):
        load_task(place)
    assert [place.split()[-1] for place in read[9:]] == ["a/002.png"], "that was laid anew; a table of some leaves the others"
    (kept,) = (own_home / "cache" / "seen").iterdir()
    assert len(json.loads(kept.read_text())) == 7, "nothing of what is gone"


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
