"""Archives from strangers, and the datasets that come of them."""

from __future__ import annotations

import io
import stat
import struct
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import httpx
import pytest
import serving
from serving import Running, digits_zip, fault, picture, zipped

from automl_tl.data import read_listing
from automl_tl.errors import InputError
from automl_tl.service import archives
from automl_tl.service.archives import unpack
from automl_tl.service.datasets import Datasets
from automl_tl.service.faults import Refused

home, root, server, dataset = serving.home, serving.root, serving.server, serving.dataset


def link(name: str, target: str) -> tuple[zipfile.ZipInfo, bytes]:
    entry = zipfile.ZipInfo(name)
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    return entry, target.encode()


def encrypted() -> io.BytesIO:
    file = zipped(("a/1.png", b"secret"))
    data = bytearray(file.getvalue())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + offset] |= 1
    return io.BytesIO(bytes(data))


def of_the_future() -> io.BytesIO:
    """An entry that asks for a reader of version 23.5."""
    data = bytearray(zipped(("a/1.png", b"x")).getvalue())
    at = data.index(b"PK\x01\x02") + 6
    data[at : at + 2] = (235).to_bytes(2, "little")
    return io.BytesIO(bytes(data))


def nameless() -> io.BytesIO:
    """The only entry has a name of no letters."""
    data = bytearray(zipped(("a", b"x")).getvalue())
    at = data.index(b"PK\x01\x02")
    data[at + 28 : at + 30] = b"\0\0"
    del data[at + 46]
    end = data.index(b"PK\x05\x06")
    data[end + 12 : end + 16] = (end - at).to_bytes(4, "little")
    return io.BytesIO(bytes(data))


@pytest.mark.parametrize(
    ("archive", "named"),
    [
        (of_the_future, "cannot be unpacked: zip file version 23.5"),
        (nameless, "'', which is no name for a file"),
        (lambda: zipped(("../evil.png", b"x")), "leads out"),
        (lambda: zipped(("a/../../evil.png", b"x")), "leads out"),
        (lambda: zipped(("/etc/evil.png", b"x")), "leads out"),
        (lambda: zipped(("C:/evil.png", b"x")), "leads out"),
        (lambda: zipped(("a\\..\\evil.png", b"x")), "leads out"),
        (lambda: zipped(link("a/1.png", "/etc/passwd")), "a link"),
        (lambda: zipped(link("a", "/etc"), ("a/1.png", b"x")), "a link"),
        (lambda: zipped(("a/1.png", b"\0" * 80 * 2**20)), "bomb"),
        (lambda: zipped(("a.png", b"x"), ("a.png/1.png", b"x")), "both as a file and as a folder"),
        (lambda: zipped(("a/" + "n" * 300 + ".png", b"x")), "no name for a file"),
        (lambda: zipped(("a/" * 1500 + "1.png", b"x")), "^the archive has 'a/a/.*a name of 1501 parts"),
        (encrypted, "encrypted"),
        (lambda: io.BytesIO(b"no zip at all"), "cannot be unpacked"),
        (lambda: io.BytesIO(digits_zip()[:-200]), "cannot be unpacked"),
        (lambda: io.BytesIO(b""), "cannot be unpacked"),
    ],
)
def test_a_wicked_archive_writes_nothing(archive: Any, named: str, tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    with pytest.raises(InputError, match=named):
        unpack(archive(), inside)
    assert list(tmp_path.rglob("*")) == [inside]


def test_limits_of_archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many = zipped(*((f"a/{number}.png", b"x") for number in range(20)))
    with monkeypatch.context() as patch:
        patch.setattr(archives, "MOST_ENTRIES", 10)
        with pytest.raises(InputError, match="20 entries"):
            unpack(many, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(archives, "MOST_DIRECTORY", 500)
        with pytest.raises(InputError, match="list of entries has 1,"):
            unpack(many, tmp_path)
    monkeypatch.setattr(archives, "MOST_BYTES", 10)
    with pytest.raises(InputError, match="unpacks to 20 bytes"):
        unpack(many, tmp_path)


@pytest.mark.parametrize("zip64", [False, True])
def test_entries_are_counted_before_they_take_memory_whatever_number_is_told(tmp_path: Path, zip64: bool) -> None:
    """Nothing but a list of empty entries, 47 bytes each."""
    entry = struct.pack("<4s4B4HL2L5H2L", b"PK\x01\x02", 20, 3, 20, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    listed = entry * (archives.MOST_ENTRIES + 1)
    end = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, len(listed), 0) if zip64 else b""
    end += struct.pack("<4sLQL", b"PK\x06\x07", 0, len(listed), 1) if zip64 else b""
    size = 2**32 - 1 if zip64 else len(listed)
    end += struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, size, 0, 0)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=r"^the archive has 500,001 entries"):
            unpack(io.BytesIO(listed + end), tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 3 * len(listed)
    finally:
        tracemalloc.stop()


def test_a_file_that_is_larger_than_it_says_is_cut_off(tmp_path: Path) -> None:
    data = bytearray(zipped(("a/1.png", b"x" * 5000)).getvalue())
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = data.index(signature) + offset
        data[at : at + 4] = (100).to_bytes(4, "little")
    with pytest.raises(InputError, match="cannot be unpacked"):
        unpack(io.BytesIO(bytes(data)), tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) <= 100


def test_what_is_no_image_stays_packed(tmp_path: Path) -> None:
    archive = zipped(("cat/1.png", b"x"), ("cat/run.sh", b"x"), ("__MACOSX/cat/1.png", b"x"), ("cat/.hidden.png", b"x"))
    assert unpack(archive, tmp_path).passed_over == 3
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["1.png"]


def test_archives_over_http(server: Running, dataset: str) -> None:
    def send(file: io.BytesIO | bytes) -> httpx.Response:
        return server.client.post("/api/datasets", files={"archive": ("some.zip", file)})

    assert "leads out" in fault(send(zipped(("../evil.png", b"x")).getvalue()), 422)
    assert "one class" in fault(send(zipped(("photos/1.png", b"x")).getvalue()), 422)
    message = fault(send(zipped(("1.png", b"x")).getvalue()), 422)
    assert message.startswith("some: ")
    assert str(server.state) not in message, "the server's folders are nobody's business"
    assert "archive" in fault(server.client.post("/api/datasets"), 422)
    again = server.client.post("/api/datasets", files={"archive": ("other name.zip", digits_zip())})
    assert again.json()["id"] == dataset, "the same archive is the same dataset"
    assert [one["id"] for one in server.client.get("/api/datasets").json()] == [dataset]
    assert not [path for path in (server.state / "datasets").iterdir() if path.name != dataset]


def test_a_manifest_in_an_archive_is_read(server: Running) -> None:
    rows = "path,label\n" + "".join(f"pictures/{number}.png,digit {number % 2}\n" for number in range(6))
    entries = [(f"set/pictures/{number}.png", picture(number)) for number in range(6)]
    archive = zipped(("set/list.csv", rows.encode()), *entries).getvalue()
    facts = server.client.post("/api/datasets", files={"archive": ("listed.zip", archive)}).json()
    assert facts["classes"] == {"digit 0": 3, "digit 1": 3}
    assert server.client.delete(f"/api/datasets/{facts['id']}").status_code == 204
    assert fault(server.client.get(f"/api/datasets/{facts['id']}"), 404)


# Datasets


def test_an_archive_may_be_called_as_the_facts_are(tmp_path: Path) -> None:
    kept = Datasets(tmp_path)
    found = kept.add(zipped(("a/1.png", picture(0)), ("b/1.png", picture(1))), "dataset.json.zip")
    assert kept.get(found.id) == found
    assert len(read_listing(kept.location(found.id)).images) == 2


def test_a_dataset_that_is_damaged_can_be_sent_again(tmp_path: Path) -> None:
    kept = Datasets(tmp_path)
    one, two = (zipped(("a/1.png", picture(shade)), ("b/1.png", picture(shade))) for shade in (0, 1))
    whole, broken = kept.add(one, "one"), kept.add(two, "two")
    (tmp_path / broken.id / "dataset.json").write_text("{")
    assert kept.all() == [whole]
    with pytest.raises(Refused, match=r"is damaged on the server; delete it and send it again") as refused:
        kept.add(two, "two")
    assert refused.value.status_code == 409
    kept.remove(broken.id)
    assert kept.add(two, "two") == broken
