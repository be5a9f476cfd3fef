"""What is written whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from automl_tl.errors import InputError
from automl_tl.home import read_json, whole, write_text


def test_many_threads_write_one_file_and_who_reads_finds_one_of_their_texts(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    texts = [f"{number:04d}" * 5000 for number in range(8)]
    write_text(path, texts[0])
    done = threading.Event()

    def read() -> set[str]:
        found = {path.read_text()}
        while not done.is_set():
            found.add(path.read_text())
        return found

    with ThreadPoolExecutor(9) as pool:
        reader = pool.submit(read)
        try:
            list(pool.map(lambda text: [write_text(path, text) for _ in range(20)], texts))
        finally:
            done.set()
        assert reader.result() <= set(texts)
    assert [left.name for left in tmp_path.iterdir()] == ["facts.json"]


def test_the_text_is_on_the_disk_before_its_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, flush, seen = tmp_path / "facts.json", os.fsync, []

    def watched(descriptor: int) -> None:
        seen.append((path.exists(), os.fstat(descriptor).st_size))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    write_text(path, "größe")
    assert seen == [(False, 7)]
    assert path.read_bytes() == "größe".encode()


def test_what_cannot_be_written_leaves_the_old_text_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "facts.json"
    write_text(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "new")
    assert (path.read_text(), len(list(tmp_path.iterdir()))) == ("old", 1)


@pytest.fixture
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.parametrize("umask", [0o022, 0o077], indirect=True)
def test_who_may_read_it_is_the_user_s_choice(tmp_path: Path, umask: int) -> None:
    write_text(tmp_path / "facts.json", "")
    assert stat.S_IMODE((tmp_path / "facts.json").stat().st_mode) == 0o666 & ~umask


def test_bytes_of_a_name_that_are_no_text_are_escaped(tmp_path: Path) -> None:
    write_text(tmp_path / "facts.json", os.fsdecode(b"gr\xf6sse"))
    assert (tmp_path / "facts.json").read_text() == "gr\\udcf6sse"


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"seconds": []}', "[" * 100_000, '{"second": 1}'])
def test_what_is_damaged_is_named_with_what_to_do(tmp_path: Path, text: str) -> None:
    path = tmp_path / "spent.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"spent\.json: is damaged: .*; delete it$"):
        read_json(path, lambda facts: float(facts["seconds"]), remedy="delete it")
    path.write_text('{"seconds": 1}')
    assert read_json(path, lambda facts: float(facts["seconds"]), remedy="delete it") == 1.0


def test_a_folder_becomes_what_it_is_to_be_at_once_or_not_at_all(tmp_path: Path) -> None:
    def fill(folder: Path, *, fails: bool) -> None:
        with whole(folder) as partial:
            partial.mkdir()
            (partial / "one.txt").write_text("1")
            assert not folder.exists()
            if fails:
                raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        fill(tmp_path / "new", fails=True)
    assert not list(tmp_path.iterdir())
    fill(tmp_path / "new", fails=False)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["new", "new/one.txt"]
