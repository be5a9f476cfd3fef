"""Readers of labelled images: what each finds, and in which order of preference."""

from __future__ import annotations

import os
import shutil
import sys
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import drawn, lay, lay_drawn, png
from PIL import Image

from automl_tl.data import load_task, load_unlabelled, read_listing
from automl_tl.errors import InputError
from automl_tl.images import images_below, read_image
from automl_tl.records import VALIDATION, Listing
from automl_tl.registry import formats

NOT_UTF_8 = pytest.mark.skipif(sys.platform != "linux", reason="needs a system with names that are not UTF-8")


def by_label(listing: Listing) -> dict[str, int]:
    return dict(Counter(listing.labels))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """pictures/a/000.png … 003.png, pictures/b/000.png … 002.png, and room for a manifest beside them."""
    return lay_drawn(tmp_path / "set" / "pictures", {"a": 4, "b": 3}).parent


def rows(*, label: Any = "{label}", columns: str = "", cells: str = "", separator: str = ",") -> str:
    """A manifest of the fixture's seven images."""
    head = f"path{separator}label{columns}"
    body = [
        f"pictures/{name}/{i:03}.png{separator}{str(label).format(label=name)}{cells}"
        for name, count in (("a", 4), ("b", 3))
        for i in range(count)
    ]
    return "\n".join([head, *body]) + "\n"


def test_each_location_has_one_reader(pictures: Path) -> None:
    (pictures / "list.csv").write_text(rows())
    places: dict[str, Any] = {
        "arrays": (np.zeros((2, 4, 4), dtype=np.uint8), ["a", "b"]),
        "digits": "digits",
        "formula": "formula:fractals",
        "huggingface": "hf:somebody/something",
        "image-folder": pictures / "pictures",
        "manifest": pictures / "list.csv",
    }
    assert set(formats()) == set(places)
    for name, place in places.items():
        assert [reader.name for reader in formats().values() if reader.matches(place)] == [name]
    assert formats()["image-folder"].matches(str(pictures))


# Image folder


def test_image_folder(tmp_path: Path) -> None:
    root = lay_drawn(tmp_path / "photos", {"cat": 3, "dog": 2})
    lay(root / "cat", {"deeper": [drawn(9)]})
    (root / "cat" / "notes.txt").write_text("no image")
    (root / "cat" / ".hidden.png").write_bytes(b"")
    (root / "dog" / "UPPER.PNG").write_bytes(png(drawn(8)))
    for folder in (".git", "__MACOSX"):
        lay(root, {folder: [drawn(1)]})
    listing = read_listing(root)
    assert (listing.name, by_label(listing), listing.splits) == ("photos", {"cat": 4, "dog": 3}, None)
    assert "cat/deeper/000.png" in listing.where
    assert all(Path(image).is_file() for image in listing.images)
    assert read_listing(str(root)).where == listing.where


@pytest.mark.parametrize(
    ("folder", "split"),
    [
        ("train", "train"),
        ("Training", "train"),
        ("val", "validation"),
        ("Dev", "validation"),
        ("test", "test"),
        ("testing", "test"),
    ],
)
def test_split_folders(tmp_path: Path, folder: str, split: str) -> None:
    lay_drawn(tmp_path / "train", {"a": 2, "b": 2})
    lay_drawn(tmp_path / folder, {"a": 1, "b": 1}, start=10)
    listing = read_listing(tmp_path)
    assert listing.splits is not None
    assert Counter(listing.splits) == ({"train": 6} if split == "train" else {"train": 4, split: 2})


def test_readers_know_the_same_splits(pictures: Path) -> None:
    """`test_split_folders` has those of folders."""
    for name, split in {"training": "train", "dev": "validation", "TESTING": "test", "": "train", "target": "target"}.items():
        (pictures / "list.csv").write_text(rows(columns=",split", cells=f",{name}"))
        assert read_listing(pictures / "list.csv").splits == [split] * 7
    (pictures / "list.csv").write_text(rows(columns=",split", cells=",holdout"))
    with pytest.raises(
        InputError, match=r"split 'holdout' is not known; known are train \(or training\), validation \(val, valid, dev\)"
    ):
        read_listing(pictures / "list.csv")


def test_images_beside_the_class_folders_are_told_of(tmp_path: Path) -> None:
    root = lay_drawn(tmp_path / "photos", {"train/cat": 4, "train/dog": 4, "test/cat": 1, "test/dog": 1, "more": 3})
    for number, place in enumerate(("", "test", "test")):
        shutil.copy(root / "more" / f"{number:03}.png", root / place / f"loose {number}.png")
    (root / "test" / ".hidden.png").write_bytes(b"")
    shutil.rmtree(root / "more")
    assert load_task(root).warnings == (
        "1 image was left out, directly in photos and so of no class: put each into the folder of its class",
        "2 images were left out, directly in test and so of no class: put each into the folder of its class",
    )
    assert len(load_task(root).labels) == 10
    warnings = load_task(root / "test", validation=0.0).warnings
    assert warnings[0].startswith("2 images were left out, directly in test and so of no class")


def test_images_of_a_kind_that_is_not_read_are_told_of(tmp_path: Path) -> None:
    root = lay_drawn(tmp_path / "photos", {"cat": 4, "dog": 4})
    (root / "dog" / "1.HEIC").write_bytes(b"")
    (root / "2.jxl").write_bytes(b"")
    assert load_task(root).warnings == ("2 files were left out (.heic, .jxl): convert to JPEG or PNG",)
    (root / "fox").mkdir()
    (root / "dog" / "1.HEIC").rename(root / "fox" / "1.HEIC")
    with pytest.raises(InputError, match=r"fox: is a class without an image; 1 file was left out \(\.heic\): convert"):
        read_listing(root)


def test_a_run_among_the_images_is_not_to_be_deleted(tmp_path: Path) -> None:
    """`cd photos; automl-tl fit .` writes one there."""
    root = lay_drawn(tmp_path / "photos", {"cat": 4, "dog": 4})
    (root / "runs" / "fit" / "model").mkdir(parents=True)
    (root / "runs" / "fit" / "model" / "model.json").write_text("{}")
    with pytest.raises(InputError, match=r"runs: is a class without an image; it holds a trained model: move it out of"):
        read_listing(root)


def test_folders_in_a_class_are_told_of(tmp_path: Path) -> None:
    lay_drawn(tmp_path / "nested" / "animals", {"cat": 3, "dog": 3})
    lay_drawn(tmp_path / "nested", {"vehicles": 5}, start=50)
    lay_drawn(tmp_path / "nested" / "vehicles", {"more": 1}, start=90)  # beside images: somebody's order, no classes
    merged = "sub-folders of 'animals' (cat, dog) were merged into one class; if they are classes, put them beside the others"
    assert load_task(tmp_path / "nested").warnings == (merged,)


def test_a_folder_around_the_classes_is_told_of(tmp_path: Path) -> None:
    lay_drawn(tmp_path / "wrapped" / "dataset", {"cat": 3, "dog": 3})
    with pytest.raises(
        InputError, match=r"one class, 'dataset'; .*\(cat, dog\) were merged into one class; did you mean .*wrapped/dataset\?"
    ):
        load_task(tmp_path / "wrapped")
    assert load_task(tmp_path / "wrapped" / "dataset").warnings == ()


def test_new_images_do_not_belong_beside_the_splits(tmp_path: Path) -> None:
    lay_drawn(tmp_path / "photos" / "train", {"a": 2, "b": 2})
    lay_drawn(tmp_path / "photos", {"test": 2}, start=50)
    with pytest.raises(
        InputError,
        match=r"test: has no class folders; expected test/CLASS/FILE; move it out of .*photos, and give it to `predict`",
    ):
        read_listing(tmp_path / "photos")


@pytest.mark.skipif(not hasattr(Path, "symlink_to"), reason="needs links")
def test_links_may_not_lead_out(tmp_path: Path) -> None:
    outside = lay_drawn(tmp_path / "outside", {"c": 2})
    root = lay_drawn(tmp_path / "photos", {"a": 2, "b": 2})
    (root / "a" / "again.png").symlink_to(root / "a" / "000.png")
    assert by_label(read_listing(root)) == {"a": 3, "b": 2}
    (root / "c").symlink_to(outside / "c", target_is_directory=True)
    with pytest.raises(InputError, match=r"photos/c: is a link that leads out of"):
        read_listing(root)
    (root / "c").unlink()
    (root / "b" / "secret.png").symlink_to(outside / "c" / "000.png")
    with pytest.raises(InputError, match=r"b/secret\.png: is a link that leads out of"):
        read_listing(root)
    (tmp_path / "elsewhere").symlink_to(outside.parent / "photos", target_is_directory=True)
    (root / "b" / "secret.png").unlink()
    assert by_label(read_listing(tmp_path / "elsewhere")) == {"a": 3, "b": 2}  # the data as a whole may be linked


@pytest.mark.skipif(not hasattr(Path, "symlink_to"), reason="needs links")
def test_images_behind_a_link_to_a_folder_are_not_missed_without_a_word(tmp_path: Path) -> None:
    more = lay_drawn(tmp_path / "elsewhere", {"more": 2}) / "more"
    root = lay_drawn(tmp_path / "photos", {"a": 2, "b": 2})
    (root / "a" / ".cache").symlink_to(more, target_is_directory=True)
    assert by_label(read_listing(root)) == {"a": 2, "b": 2}
    for leads_to in (more, root / "b"):
        (root / "a" / "more").symlink_to(leads_to, target_is_directory=True)
        for read in (read_listing, load_unlabelled, images_below):
            with pytest.raises(InputError, match=r"photos/a/more: is a link to a folder, which is not followed; copy in"):
                read(root)
        (root / "a" / "more").unlink()


@NOT_UTF_8
def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    """As a disk of an old Latin-1 system has them: shown as text that can be written anywhere, opened by their own names."""
    root = lay_drawn(tmp_path / os.fsdecode(b"f\xf6tos"), {os.fsdecode(b"gr\xf6sse"): 2, "größe": 1})
    (root / "größe" / "000.png").rename(root / "größe" / os.fsdecode(b"\xe9t\xe9.png"))
    listing = read_listing(root)
    assert listing.name == "f\\xf6tos"
    assert by_label(listing) == {"gr\\xf6sse": 2, "größe": 1}
    assert set(listing.where) == {"gr\\xf6sse/000.png", "gr\\xf6sse/001.png", "größe/\\xe9t\\xe9.png"}
    for image in listing.images:
        assert read_image(image).mode == "RGB"
    for path in (root / os.fsdecode(b"gr\xf6sse")).iterdir():
        path.unlink()
    with pytest.raises(InputError, match=r"f\\xf6tos/gr\\xf6sse: is a class without an image"):
        read_listing(root)


# Manifest


@NOT_UTF_8
def test_a_manifest_whose_own_name_is_not_utf_8(pictures: Path) -> None:
    table = pictures / os.fsdecode(b"\xfcbung.csv")
    table.write_text(rows())
    listing = read_listing(table)
    assert (listing.name, listing.where[0]) == ("\\xfcbung", "\\xfcbung.csv row 2: pictures/a/000.png")
    table.write_text("path,class\n")
    with pytest.raises(InputError, match=r"/\\xfcbung\.csv: has no column 'label'"):
        read_listing(table)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_manifest(pictures: Path, separator: str, encoding: str, end: str) -> None:
    text = rows(separator=separator, label="größer {label}")
    (pictures / "list.csv").write_bytes(text.replace("\n", end).encode(encoding))
    listing = read_listing(pictures / "list.csv")
    assert (listing.name, by_label(listing)) == ("list", {"größer a": 4, "größer b": 3})
    assert (listing.splits, listing.groups, listing.domains) == (None, None, None)
    assert listing.where[0] == "list.csv row 2: pictures/a/000.png"
    assert Path(listing.images[-1]) == (pictures / "pictures" / "b" / "002.png").resolve()


def test_manifest_with_every_column_in_any_order(pictures: Path) -> None:
    (pictures / "list.csv").write_text(
        "Domain, GROUP ,remark,Label,split,path\n"
        'photo,g1,"a, b", yes ,train,pictures/a/000.png\n'
        "\n"
        "photo,,,yes,,./pictures/a/001.png\n"
        'sketch,g2,"two\nlines",no,VAL,pictures\\b\\000.png\n'
        '" sketch",g2,,no,test,"pictures/b/001.png"\n'
    )
    listing = read_listing(pictures / "list.csv")
    assert listing.labels == ["yes", "yes", "no", "no"]
    assert listing.splits == ["train", "train", "validation", "test"]
    assert listing.groups == ["g1", "", "g2", "g2"]
    assert listing.domains == ["photo", "photo", "sketch", "sketch"]
    assert [place.split(":")[0].split()[-1] for place in listing.where] == ["2", "4", "6", "7"]
    assert Path(listing.images[2]).name == "000.png"


def test_columns_that_nobody_asks_for_may_have_any_names(pictures: Path) -> None:
    """Excel writes columns without a name where a cell was once filled."""
    (pictures / "list.csv").write_text(rows(columns=",,,note,note", cells=",,,1,2"))
    assert by_label(read_listing(pictures / "list.csv")) == {"a": 4, "b": 3}


def test_manifest_row_of_an_error_is_the_line_in_the_file(pictures: Path) -> None:
    (pictures / "list.csv").write_text("path,label\n\n\npictures/a/000.png,a\npictures/a/nowhere.png,a\n")
    with pytest.raises(InputError, match=r"list\.csv row 5: pictures/a/nowhere\.png: there is no such file"):
        read_listing(pictures / "list.csv")


def test_labels_that_are_numbers(pictures: Path) -> None:
    text = rows().replace(",a\n", ",2\n").replace(",b\n", ",10\n")
    (pictures / "list.csv").write_text(text)
    assert load_task(pictures / "list.csv").classes == ("2", "10")


def test_one_image_twice_is_one_picture(pictures: Path) -> None:
    (pictures / "list.csv").write_text(rows() + "pictures/a/000.png,a\n")
    task = load_task(pictures / "list.csv")
    assert any("near-duplicates" in warning for warning in task.warnings)


def test_the_order_of_the_rows_does_not_matter(tmp_path: Path) -> None:
    """A table that was shuffled is the same task with the same split, which is that of the folder, too."""
    root = lay_drawn(tmp_path / "set", {"a": 12, "a-b": 12, "b": 12})
    lines = [f"{path.relative_to(root).as_posix()},{path.parent.name}" for path in images_below(root)]
    tables = {"sorted": lines, "shuffled": np.random.default_rng(0).permutation(lines).tolist()}
    for name, body in tables.items():
        (root / f"{name}.csv").write_text("\n".join(["path,label", *body]))
    one, other, folder = load_task(root / "sorted.csv"), load_task(root / "shuffled.csv"), load_task(root)
    assert one.fingerprint == other.fingerprint == folder.fingerprint
    assert [other.images[i] for i in other.part(VALIDATION)] == [one.images[i] for i in one.part(VALIDATION)]
    place = other.where[0].split()[2].removesuffix(":")
    assert tables["shuffled"][int(place) - 2] == "a/000.png,a", "a row is still named by its line"
    for name, body in tables.items():
        both = [f"{line},{split}" for line in body for split in ("train", "target")[:: 1 if name == "sorted" else -1]]
        (root / f"{name}.csv").write_text("\n".join(["path,label,split", *both]))
    assert load_task(root / "sorted.csv").fingerprint == load_task(root / "shuffled.csv").fingerprint


def test_parquet_cells_that_are_no_text(pictures: Path) -> None:
    """A table that pandas or polars wrote: names in capitals, missing labels as NaN, several labels in a cell."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    (pictures / "list.csv").write_text(rows())
    paths = [place.split(": ")[1] for place in read_listing(pictures / "list.csv").where]
    nan = float("nan")

    def table(labels: list[Any]) -> Path:
        found = pyarrow.table({"Path": paths, "LABEL": labels, "group": pyarrow.array([nan] * 7, from_pandas=False)})
        parquet.write_table(found, pictures / "list.parquet")
        return pictures / "list.parquet"

    listing = read_listing(table(list("aaaabbb")))
    assert (listing.labels, listing.groups) == (list("aaaabbb"), [""] * 7)
    assert read_listing(table([0.0] * 4 + [1.0] * 3)).labels == list("0000111"), "a column with gaps somewhere has floats"
    with pytest.raises(InputError, match=r"list\.parquet row 2: pictures/a/001\.png: has no label"):
        read_listing(table(pyarrow.array([0.0, nan, 0.0, nan, 1.0, 1.0, 1.0], from_pandas=False)))
    with pytest.raises(InputError, match=r"list\.parquet: column 'label' has lists or records"):
        read_listing(table([[0, 1]] * 7))


def test_parquet_manifest_is_read_like_csv(pictures: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    (pictures / "list.csv").write_text(rows(columns=",split,group", cells=",train,g"))
    text = read_listing(pictures / "list.csv")
    paths = [place.split(": ")[1] for place in text.where]
    columns = {"path": paths, "label": text.labels, "split": text.splits, "group": text.groups, "other": [1.5] * 7}
    parquet.write_table(pyarrow.table(columns), pictures / "list.parquet")
    table = read_listing(pictures / "list.parquet")
    assert (table.images, table.labels, table.splits, table.groups) == (text.images, text.labels, text.splits, text.groups)
    assert table.where[0] == "list.parquet row 1: pictures/a/000.png"
    numbers = pyarrow.table({"path": paths, "label": pyarrow.array([0, 0, 0, 0, 1, 1, 1], pyarrow.int8())})
    parquet.write_table(numbers, pictures / "list.parquet")
    assert load_task(pictures / "list.parquet").classes == ("0", "1")
    parquet.write_table(pyarrow.table({"path": paths, "label": ["a", None, "a", "a", "b", "b", "b"]}), pictures / "list.parquet")
    with pytest.raises(InputError, match=r"list\.parquet row 2: pictures/a/001\.png: has no label"):
        read_listing(pictures / "list.parquet")


# Arrays


@pytest.mark.parametrize(
    "images",
    [
        np.arange(4 * 6 * 5 * 3, dtype=np.uint8).reshape(4, 6, 5, 3),
        np.arange(4 * 6 * 5, dtype=np.uint8).reshape(4, 6, 5),
        np.arange(4 * 6 * 5, dtype=np.uint8).reshape(4, 6, 5, 1),
        np.linspace(0, 1, 4 * 6 * 5 * 3, dtype=np.float32).reshape(4, 6, 5, 3),
        np.linspace(0, 65535, 4 * 6 * 5).astype(np.uint16).reshape(4, 6, 5),
        np.arange(4 * 3 * 6 * 5, dtype=np.uint8).reshape(4, 3, 6, 5),
        [np.zeros((6, 5), dtype=np.uint8), np.zeros((7, 3, 3)), Image.new("L", (4, 4)), png(drawn(0))],
    ],
    ids=["NHWC", "grey", "one channel", "floats", "16 bits", "NCHW", "a mixture"],
)
def test_arrays(images: Any) -> None:
    listing = read_listing((images, [0, 1, 0, 1]))
    assert (listing.labels, listing.where[3]) == (["0", "1", "0", "1"], "image 3")
    for image in listing.images:
        assert read_image(image).mode == "RGB"


def test_images_that_come_one_by_one() -> None:
    images = [drawn(number) for number in range(4)]
    listing = read_listing(((image for image in images), (label for label in "abab")))
    assert (list(listing.images), listing.labels) == (images, list("abab"))


def test_tensors_of_images() -> None:
    torch = pytest.importorskip("torch")
    listing = read_listing((torch.zeros(2, 3, 8, 8), torch.tensor([0, 1])))
    assert listing.labels == ["0", "1"]
    assert [read_image(image).size for image in listing.images] == [(8, 8)] * 2
    with pytest.raises(InputError, match=r"images of shape \(2, 16\)"):
        read_listing((torch.zeros(2, 16), [0, 1]))


@pytest.mark.parametrize("kind", [str, object, "T"])
def test_paths_in_an_array(kind: Any, tmp_path: Path) -> None:
    paths = [str(path) for path in lay_drawn(tmp_path / "x", {"a": 2, "b": 2}).rglob("*.png")]
    task = load_task((np.array(paths, dtype=kind), [0, 1, 0, 1]))
    assert list(map(str, task.images)) == paths


def test_labels_of_every_kind() -> None:
    torch = pytest.importorskip("torch")
    images = np.zeros((3, 4, 4), dtype=np.uint8)
    kinds = [[1, 2, 1], (1, 2, 1), np.array([1, 2, 1]), np.array(["1", "2", "1"]), torch.tensor([1, 2, 1])]
    for labels in kinds:
        assert read_listing((images, labels)).labels == ["1", "2", "1"]
    assert read_listing((images, [True, False, True])).labels == ["True", "False", "True"]
    for floats in ([1.0, 2.0, 1.0], np.array([1, 2, 1], dtype=np.float32)):
        assert read_listing((images, floats)).labels == ["1", "2", "1"], "NumPy reads a file of numbers as floats"


class NotKnown:
    """As pandas' NA is: whether it is equal to something is not known either."""

    def __ne__(self, other: object) -> Any:
        return self

    def __bool__(self) -> bool:
        raise TypeError("boolean value of NA is ambiguous")


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((3, 4, 4), dtype=np.uint8), [0, 1], "3 images, but 2 labels"),
        (np.zeros((2, 4, 4), dtype=np.uint8), ["a", None], "image 1: has no label"),
        (np.zeros((2, 4, 4), dtype=np.uint8), [float("nan"), 1.0], "image 0: has no label"),
        (np.zeros((2, 4, 4), dtype=np.uint8), ["a", " "], "image 1: has no label"),
        (np.zeros((2, 4, 4), dtype=np.uint8), ["a", NotKnown()], "image 1: has no label"),
        (np.zeros((2, 4, 4), dtype=np.uint8), [0.5, 1.0], r"image 0: its label is 0\.5; labels are classes"),
        (np.zeros((2, 4, 4), dtype=np.uint8), [[0, 1], [1, 0]], r"image 0: its label is \[0, 1\]; .*one for each image"),
        (np.zeros((2, 4, 4), dtype=np.uint8), np.eye(2), "image 0: its label is"),
        (np.zeros((2, 4, 4), dtype=np.uint8), ["a", "a"], "all images are of one class, 'a'"),
        (np.zeros((2, 16), dtype=np.uint8), [0, 1], r"images of shape \(2, 16\)"),
        (np.zeros((2, 5, 32, 32)), [0, 1], r"arrays: image 0: an array of shape \(5, 32, 32\) .*\(all 2 images alike\)"),
        (np.full((2, 4, 4), np.nan), [0, 1], r"arrays: image 0: has values that are not finite numbers \(all 2"),
        (
            np.array([200.0, 100.0])[:, None, None] + np.zeros((2, 4, 4)),
            [0, 1],
            "arrays: image 0: .* lie in 0–1, .*; divide by 255",
        ),
        (["nowhere.png", "elsewhere.png"], [0, 1], "image 0: nowhere.png: there is no such file"),
        (np.array(["nowhere.png", "elsewhere.png"]), [0, 1], "image 0: nowhere.png: there is no such file"),
        (np.array([["nowhere.png"], ["elsewhere.png"]]), [0, 1], r"images of shape \(2, 1\); expected .* or a row of paths"),
        ([], [], "there is no image in it"),
    ],
)
def test_arrays_that_are_wrong(images: Any, labels: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_task((images, labels))


# Digits, and what nobody reads


def test_digits() -> None:
    from sklearn.datasets import load_digits

    listing = read_listing("digits")
    digits = load_digits()
    assert listing.labels == [str(label) for label in digits.target]
    assert listing.splits is not None
    counts = Counter(zip(listing.labels, listing.splits, strict=True))
    for label in range(10):
        assert counts[str(label), "test"] == (digits.target == label).sum() // 5
    np.testing.assert_allclose(np.asarray(listing.images[0]) / 255 * 16, digits.images[0], atol=0.05)
    assert listing.splits == read_listing("digits").splits


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("nowhere", "nowhere does not exist; known names besides paths: digits, hf:DATASET"),
        (Path("nowhere.csv"), r"nowhere\.csv: does not exist"),
        (3, "a int is not something that can be read; readers tried: arrays, digits"),
        (None, "a NoneType is not something"),
    ],
)
def test_what_nobody_reads(location: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_listing(location)


def test_a_file_that_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a.png a")
    with pytest.raises(InputError, match=r"list\.txt is not something that can be read"):
        read_listing(tmp_path / "list.txt")


# Hugging Face


@pytest.fixture
def rows_of_images(tmp_path: Path) -> Any:
    """`make(labels)`: a dataset with a drawn image for each label."""
    datasets = pytest.importorskip("datasets", reason="needs the datasets library: pip install 'automl_tl[datasets]'")
    features = datasets.Features({"picture": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})

    def make(labels: list[int | None], *, start: int = 0) -> Any:
        images = [{"bytes": png(drawn(start + i)), "path": None} for i in range(len(labels))]
        return datasets.Dataset.from_dict({"picture": images, "label": labels}, features=features)

    return make


def test_hugging_face_dataset_on_disk(rows_of_images: Any, tmp_path: Path) -> None:
    rows_of_images([0, 1, 1]).save_to_disk(tmp_path / "one")
    listing = read_listing(tmp_path / "one")
    assert (listing.labels, listing.splits, listing.where[1]) == (["cat", "dog", "dog"], None, "train row 1")
    assert read_listing(f"{tmp_path}/one/").name == listing.name == "one"
    np.testing.assert_array_equal(np.asarray(read_image(listing.images[2])), np.asarray(drawn(2)))


def test_hugging_face_dataset_with_splits(rows_of_images: Any, tmp_path: Path) -> None:
    import datasets

    parts = {"train": rows_of_images([0, 1] * 5), "test": rows_of_images([1, 0], start=50)}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "two")
    task = load_task(tmp_path / "two")
    assert (task.classes, len(task.part("train")), len(task.part("test"))) == (("cat", "dog"), 8, 2)
    datasets.DatasetDict(parts | {"extra": rows_of_images([0])}).save_to_disk(tmp_path / "three")
    with pytest.raises(InputError, match="split 'extra' is not known"):
        read_listing(tmp_path / "three")


@pytest.mark.parametrize("missing", [None, -1])
def test_hugging_face_row_without_a_label(rows_of_images: Any, tmp_path: Path, missing: int | None) -> None:
    rows_of_images([0, 1, missing]).save_to_disk(tmp_path / "one")
    with pytest.raises(InputError, match="train row 2: has no label"):
        load_task(tmp_path / "one")


def test_hugging_face_labels_that_are_no_class(rows_of_images: Any, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    images = rows_of_images([0, 1]).remove_columns("label")
    for number, (labels, message) in enumerate(
        [([0.0, float("nan")], "row 1: has no label"), ([[0], [0, 1]], "has picture, label; a class is a text or number")]
    ):
        column = datasets.Dataset.from_dict({"label": labels})
        datasets.concatenate_datasets([images, column], axis=1).save_to_disk(str(tmp_path / f"{number}"))
        with pytest.raises(InputError, match=message):
            load_task(tmp_path / f"{number}")


def test_hugging_face_without_an_image_column(rows_of_images: Any, tmp_path: Path) -> None:
    rows_of_images([0, 1]).remove_columns("picture").save_to_disk(tmp_path / "one")
    with pytest.raises(InputError, match="needs one image and one class column, but has label"):
        read_listing(tmp_path / "one")


def test_hugging_face_dataset_that_is_damaged(rows_of_images: Any, tmp_path: Path) -> None:
    rows_of_images([0, 1]).save_to_disk(tmp_path / "one")
    next((tmp_path / "one").glob("*.arrow")).write_bytes(b"no arrow")
    with pytest.raises(InputError, match="one: cannot be loaded: "):
        read_listing(tmp_path / "one")


def test_dataset_of_the_hub_needs_the_library_or_the_net() -> None:
    with pytest.raises(InputError, match=r"hf:nobody/nothing: (needs the datasets library|cannot be loaded)"):
        read_listing("hf:nobody/nothing")


def test_unlabelled_images_of_a_kind_that_is_not_read_are_told_of(pictures: Path) -> None:
    root = pictures / "pictures"
    (root / "a" / "9.heic").write_bytes(b"")
    assert load_unlabelled(root).warnings == ("1 file was left out (.heic): convert to JPEG or PNG",)
    for image in images_below(root):
        image.unlink()
    with pytest.raises(InputError, match=r"is not a folder with images; 1 file was left out \(\.heic\): convert"):
        load_unlabelled(root)


def test_what_is_hidden_is_no_image(pictures: Path) -> None:
    """Notebooks, file managers and Macs leave copies beside the images, of which nobody thinks."""
    root = pictures / "pictures"
    for hidden in ("a/.ipynb_checkpoints/1.png", "a/._1.png", "__MACOSX/a/1.png", "b/.thumbnails/1.png", "b/__MACOSX/1.png"):
        (root / hidden).parent.mkdir(parents=True, exist_ok=True)
        (root / hidden).write_bytes(b"no image at all")
    assert by_label(read_listing(root)) == {"a": 4, "b": 3}
    assert len(load_unlabelled(root).images) == 7
    assert len(images_below(root)) == 7


def test_a_class_may_be_called_background(pictures: Path) -> None:
    root = lay(pictures / "pictures", {"__background__": [drawn(20), drawn(21)]})
    (root / "@eaDir").mkdir()
    (root / "@eaDir" / "1.png").write_bytes(png(drawn(22)))
    assert by_label(read_listing(root)) == {"a": 4, "b": 3, "__background__": 2}
    assert len(images_below(root)) == 9


def test_a_class_is_one_in_whatever_form_its_letters_are(tmp_path: Path) -> None:
    """A Mac's folders for training, those of Linux for the test: the same names to everybody who looks."""
    for number, (split, form) in enumerate([("train", "NFD"), ("test", "NFC")]):
        for place, name in enumerate(("café", "thé")):
            inner = {unicodedata.normalize(form, name): [drawn(40 * number + 20 * place + i) for i in range(3)]}
            lay(tmp_path / "cups" / split, inner)
    task = load_task(tmp_path / "cups")
    assert (task.classes, len(task.part("test"))) == (("café", "thé"), 6)
