"""Images decoded once, whoever asks."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from pictures import drawn, lay_drawn, png

from automl_tl import pixels
from automl_tl.data import load_task, picked
from automl_tl.errors import InputError
from automl_tl.images import read_image, square
from automl_tl.objectives import _joined
from automl_tl.pixels import decode, decode_images


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
from automl_tl.data import load_task
from automl_tl.pixels import decode
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
from automl_tl.data import load_task
from automl_tl.pixels import decode
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
    monkeypatch.setattr(pixels, "CACHE_BYTES", int(2.5 * 20 * 32 * 32 * 3))
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
    monkeypatch.setattr(pixels, "CACHE_BYTES", 0)
    (tmp_path / "gone.npy").symlink_to(tmp_path / "nowhere")
    (tmp_path / "held.npy").mkdir()
    (tmp_path / "old.npy").write_bytes(b"old")
    pixels._make_room(tmp_path, 1)
    assert {path.name for path in tmp_path.iterdir()} == {"gone.npy", "held.npy"}


def test_what_killed_builds_left_makes_room_and_what_is_being_built_stays(tmp_path: Path) -> None:
    for name in ("killed", "alive"):
        (tmp_path / f"{name}.npy.partial").write_bytes(b"half")
    with FileLock(tmp_path / "alive.lock"):
        pixels._make_room(tmp_path, 1)
        assert [path.name for path in tmp_path.glob("*.partial")] == ["alive.npy.partial"]


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
