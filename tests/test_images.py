"""Stored images to what a person sees, and to what a backbone takes."""

from __future__ import annotations

import io
import os
import struct
import time
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from synthetic import make_backbone

from automl_tl.data import read_listing
from automl_tl.errors import InputError
from automl_tl.images import images_below, passed_over, read_image, square
from automl_tl.records import CROP_MODES

ORIENTATION = 0x0112
UPRIGHT = np.array([[(250, 0, 0), (0, 250, 0)], [(0, 0, 250), (250, 250, 0)], [(250, 0, 250), (0, 250, 250)]], dtype=np.uint8)
"""3×2, every pixel another colour: each of the eight orientations is another picture."""


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def seen(source: Any) -> np.ndarray:
    image = read_image(source)
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.fixture(scope="module")
def photographs(shared: Path) -> list[Image.Image]:
    """Real photographs of several shapes."""
    with zipfile.ZipFile(shared / "data" / "imagenet_samples.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))[:400:20]
        images = [Image.open(io.BytesIO(archive.read(name))).convert("RGB") for name in names]
    assert len({image.size for image in images}) > 3
    return images


# As a person sees it


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_followed(orientation: int, format: str) -> None:
    """The stored pixels are the upright ones, undone by hand (EXIF 2.3, table of orientations)."""
    undo = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored = Image.fromarray(np.ascontiguousarray(undo[orientation](UPRIGHT)))
    options = {"lossless": True} if format == "WEBP" else {}
    np.testing.assert_array_equal(seen(encoded(stored, format, exif=exif, **options)), UPRIGHT)


def test_exif_orientation_of_a_photograph_that_is_decoded_smaller(photographs: list[Image.Image]) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    wide = photographs[0].resize((400, 200))
    image = read_image(encoded(wide, "JPEG", exif=exif, quality=95), least=60)
    assert image.width < image.height < 400
    assert image.width >= 60
    reference = np.rot90(np.asarray(wide.resize((image.height, image.width), Image.Resampling.BOX)), -1)
    assert np.abs(np.asarray(image, dtype=float) - reference).mean() < 6


def test_folders_that_may_not_be_read_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python passes over them without a word; root, which tests may run as, may read all."""
    for place in ("cat/2023", "dog"):
        (tmp_path / place).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / place / "1.png")
    may = os.access
    for closed in (tmp_path, tmp_path / "cat" / "2023"):
        with monkeypatch.context() as patched:
            patched.setattr(os, "access", lambda path, mode, closed=closed: Path(path) != closed and may(path, mode))
            for read in (images_below, read_listing):
                with pytest.raises(InputError, match=rf"{closed}: may not be read by this user; change its permissions"):
                    read(tmp_path)


def test_grey_has_three_equal_channels() -> None:
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    for image in (seen(encoded(Image.fromarray(grey), "PNG")), seen(grey), seen(grey[:, :, None])):
        np.testing.assert_array_equal(image, np.repeat(grey[:, :, None], 3, axis=2))


def test_two_levels_are_black_and_white() -> None:
    bits = np.array([[True, False], [False, True]])
    for image in (seen(encoded(Image.fromarray(bits), "PNG")), seen(bits)):
        np.testing.assert_array_equal(image[:, :, 0], bits * 255)


def test_transparency_is_laid_on_white() -> None:
    """Red at 255, 128 and 0 of opacity: c·a + 255·(1 − a)."""
    pixels = np.array([[(200, 0, 0, 255), (200, 0, 0, 128), (200, 0, 0, 0)]], dtype=np.uint8)
    expected = [(200, 0, 0), (227, 127, 127), (255, 255, 255)]
    for source in (pixels, encoded(Image.fromarray(pixels), "PNG"), encoded(Image.fromarray(pixels), "TIFF")):
        np.testing.assert_allclose(seen(source)[0], expected, atol=1)


def test_transparency_of_grey_and_of_one_colour() -> None:
    both = Image.fromarray(np.array([[(100, 255), (100, 0)]], dtype=np.uint8), "LA")
    np.testing.assert_array_equal(seen(encoded(both, "PNG"))[0, :, 0], [100, 255])
    keyed = Image.fromarray(np.array([[(9, 9, 9), (80, 0, 0)]], dtype=np.uint8))
    np.testing.assert_array_equal(seen(encoded(keyed, "PNG", transparency=(9, 9, 9)))[0], [(255, 255, 255), (80, 0, 0)])


@pytest.mark.parametrize("transparency", [1, b"\xff\x00\xff"])
def test_palette_with_transparency(transparency: int | bytes) -> None:
    """Palette entry 1 is transparent, whether PNG says so for it alone or gives the opacity of each entry."""
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 99, 99, 99, 200, 0, 0])
    image.putdata([0, 1, 2])
    found = seen(encoded(image, "PNG", transparency=transparency))
    np.testing.assert_array_equal(found[0], [(10, 20, 30), (255, 255, 255), (200, 0, 0)])


def test_sixteen_bits_are_scaled() -> None:
    values = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    files = [encoded(Image.fromarray(values), format) for format in ("PNG", "TIFF")]
    for source in (*files, values, values.astype(">u2")):  # as a scan has them that was read by another library
        np.testing.assert_allclose(seen(source)[0, :, 0], [0, 1, 128, 255], atol=1)


def test_eight_bits_kept_in_sixteen_are_not_black() -> None:
    values = np.array([[0, 100, 255]], dtype=np.uint16)
    for source in (encoded(Image.fromarray(values), "PNG"), values, values.astype(np.int32)):
        np.testing.assert_array_equal(seen(source)[0, :, 0], [0, 100, 255])


def test_floating_point_images() -> None:
    values = np.array([[0.0, 0.5, 1.0]], dtype=np.float32)
    for source in (values, values.astype(np.float64), Image.fromarray(values), encoded(Image.fromarray(values), "TIFF")):
        np.testing.assert_allclose(seen(source)[0, :, 0], [0, 128, 255], atol=1)
    np.testing.assert_allclose(seen(Image.fromarray(values * 255))[0, :, 0], [0, 128, 255], atol=1)
    rounded = values + np.array([[-1e-8, 0, 1e-4]], dtype=np.float32)  # as of a resampling
    for source in (rounded, rounded.astype(np.float16), Image.fromarray(rounded), Image.fromarray(255 * rounded)):
        np.testing.assert_allclose(seen(source)[0, :, 0], [0, 128, 255], atol=1)


@pytest.mark.parametrize("values", [[-1.0, 1.0], [0.0, 70_000.0]])
@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_values_that_no_scale_explains_are_refused(values: list[float], kind: type, tmp_path: Path) -> None:
    """As of arrays: what lies below 0, as much of a tomogram does, would silently become black."""
    Image.fromarray(np.array([values], dtype=kind)).save(tmp_path / "scan.tif")
    with pytest.raises(InputError, match=rf"scan\.tif: grey values must lie in 0–1, .* these are in {values[0]:g}–"):
        read_image(tmp_path / "scan.tif")


def test_cmyk_photograph(photographs: list[Image.Image]) -> None:
    """Through CMYK and JPEG and back: the same picture, neither inverted nor in false colours."""
    image = photographs[1]
    found = seen(encoded(image.convert("CMYK"), "JPEG", quality=95, subsampling=0)).astype(float)
    assert np.abs(found - np.asarray(image)).mean() < 3


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_first_frame_of_an_animation(format: str) -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    found = seen(encoded(frames[0], format, save_all=True, append_images=frames[1:], duration=50))
    assert found.shape == (6, 8, 3)
    np.testing.assert_allclose(found.reshape(-1, 3), np.tile((255, 0, 0), (48, 1)), atol=3)


def test_other_colour_spaces(photographs: list[Image.Image]) -> None:
    image = photographs[2]
    for mode in ("YCbCr", "HSV"):
        assert np.abs(seen(image.convert(mode)).astype(float) - np.asarray(image)).mean() < 3


# Damaged, huge, odd


def bomb(width: int, height: int) -> bytes:
    """A PNG of some bytes that claims width×height pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [13_500, 20_000, 60_000])
def test_decompression_bomb_is_refused_before_it_takes_memory(side: int) -> None:
    start = time.perf_counter()
    with pytest.raises(InputError, match=r"bomb\.png: .*pixels.*scale it down"):
        read_image(bomb(side, side), where="bomb.png")
    assert time.perf_counter() - start < 0.5


def test_large_photograph_is_read_at_a_fraction_of_its_cost(photographs: list[Image.Image]) -> None:
    large = encoded(photographs[0].resize((6000, 4000)), "JPEG")
    image = read_image(large, least=100)
    assert 100 <= min(image.size) < 1000
    assert image.width / image.height == pytest.approx(1.5, abs=0.02)
    assert read_image(large).size == (6000, 4000)


def test_an_image_of_the_callers_stays_as_large_as_it_is(photographs: list[Image.Image]) -> None:
    """A JPEG that was opened and not yet decoded would be decoded smaller, for good."""
    stored = encoded(photographs[0].resize((400, 300)), "JPEG")
    own = Image.open(io.BytesIO(stored))
    assert read_image(own, least=30).size == (400, 300)
    assert own.size == (400, 300)
    assert read_image(stored, least=30).width < 400


@pytest.mark.parametrize("crop_mode", CROP_MODES)
@pytest.mark.parametrize("size", [(1, 1), (1, 700), (700, 1), (3, 5), (1, 100_000), (100_000, 1)])
def test_tiny_and_stretched_images(size: tuple[int, int], crop_mode: str) -> None:
    """A line of pixels, too, whose shorter side timm's border would leave no pixel."""
    image = Image.new("RGB", size, (10, 200, 30))
    read, fill = read_image(encoded(image, "PNG")), (10, 200, 30) if crop_mode == "border" else (0, 0, 0)
    found = square(read, 64, interpolation="bicubic", crop_pct=0.875, crop_mode=crop_mode, fill=fill)
    assert found.shape == (64, 64, 3)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(np.unique(found.reshape(-1, 3), axis=0), [(10, 200, 30)])


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_truncated_file_is_named(photographs: list[Image.Image], tmp_path: Path, format: str) -> None:
    whole = encoded(photographs[0], format)
    for share in (0.01, 0.5):
        path = tmp_path / f"half.{format.lower()}"
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(InputError, match=rf"half\.{format.lower()}: cannot be read as an image: .") as caught:
            read_image(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (b"", "cannot be read as an image"),
        (b"<svg></svg>", "cannot be read as an image"),
        (Path("nowhere.png"), r"nowhere\.png: cannot be read as an image: .*No such file"),
        (None, "a NoneType is not an image; give a path"),
        (3, "a int is not an image"),
        (np.zeros((2, 32, 32)), r"shape \(2, 32, 32\)"),
        (np.zeros((6, 4, 5)), r"shape \(6, 4, 5\)"),
        (np.zeros(9), r"shape \(9,\)"),
        (np.zeros((0, 4)), r"shape \(0, 4\)"),
        (np.full((4, 4), np.nan), "not finite"),
        (Image.fromarray(np.full((4, 4), np.nan, dtype=np.float32)), "not finite"),
        (np.full((4, 4), 16.0), "0–1.*16; divide by 255, or by what white is in them"),
        (np.full((4, 4), -0.5), "0–1.*-0.5; take .x . 1. / 2"),
        (np.full((4, 4), 300.0), "0–1.*300; scale it"),
        (np.full((4, 4), -1), "0–255.*-1"),
        (np.full((4, 4), 70_000), "0–255.*70000"),
        (np.full((4, 4), "x"), "is not an image"),
    ],
    ids=lambda value: None if isinstance(value, str) else type(value).__name__,
)
def test_what_is_not_an_image_is_named(source: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_image(source)


def test_exif_that_cannot_be_written_again_does_not_matter() -> None:
    """Orientation 3, and a resolution that is a text: Pillow reads both, but could not store them again."""
    entries = struct.pack("<HHI4s", ORIENTATION, 3, 1, b"\3\0\0\0") + struct.pack("<HHI4s", 0x011A, 2, 2, b"7\0\0\0")
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + b"\0\0\0\0"
    np.testing.assert_array_equal(seen(encoded(Image.fromarray(UPRIGHT), "PNG", exif=exif)), UPRIGHT[::-1, ::-1])


def test_damaged_exif_does_not_matter(photographs: list[Image.Image]) -> None:
    damaged = encoded(photographs[0], "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xffgarbage")
    assert seen(damaged).shape[2] == 3


def test_threads_leave_warnings_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """`warnings.catch_warnings` is not for threads: what reads in parallel must neither warn nor leave warnings off."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    source = encoded(Image.new("RGB", (40, 40)), "PNG")  # Pillow warns of this one, and pytest makes that an error
    before = warnings.filters[:]
    with ThreadPoolExecutor(8) as pool:
        sizes = list(pool.map(lambda _: read_image(source).size, range(2000)))
    assert set(sizes) == {(40, 40)}
    assert warnings.filters == before


# Exactly timm's preparation


@pytest.mark.parametrize("crop_mode", CROP_MODES)
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize(("size", "crop_pct"), [(64, 1.0), (96, 0.875), (160, 0.95), (225, 0.9), (77, 1.15)])
def test_square_is_timms_evaluation_transform(
    photographs: list[Image.Image], interpolation: str, size: int, crop_pct: float, crop_mode: str
) -> None:
    from timm.data import create_transform

    backbone = replace(make_backbone(0), mean=(0.485, 0.456, 0.406), crop_mode=crop_mode)
    theirs = create_transform(
        input_size=(3, size, size), interpolation=interpolation, crop_pct=crop_pct, crop_mode=crop_mode, mean=backbone.mean
    )
    theirs.transforms = theirs.transforms[:2]  # resize and crop; without ToTensor and Normalize
    assert {image.width > image.height for image in photographs} == {True, False}
    for image in [*photographs, *odd_shapes(photographs[0])]:
        ours = square(image, size, interpolation=interpolation, crop_pct=crop_pct, crop_mode=crop_mode, fill=backbone.fill)
        np.testing.assert_array_equal(ours, np.asarray(theirs(image)))


def odd_shapes(image: Image.Image) -> Iterator[Image.Image]:
    for size in ((31, 200), (200, 31), (64, 64), (65, 63), (7, 7)):
        yield image.resize(size)


def test_tensors_and_channels_first() -> None:
    torch = pytest.importorskip("torch")
    pixels = np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    expected = np.asarray(read_image(pixels))
    for source in (torch.tensor(pixels), np.moveaxis(pixels, 2, 0), torch.tensor(pixels).permute(2, 0, 1) / 255):
        np.testing.assert_array_equal(np.asarray(read_image(source)), expected)
    assert read_image(pixels[None, ..., 0]).size == (9, 8)
    assert read_image(pixels[:3]).size == (9, 3)  # three rows, whose channels are last
    with pytest.raises(InputError, match=r"image 4: a Tensor that cannot be made an array: .*detach"):
        read_image(torch.zeros(3, 8, 9, requires_grad=True), where="image 4")


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".JPG"])
def test_jpegs_by_other_names(suffix: str, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / f"a{suffix}", "JPEG")
    assert images_below(tmp_path) == [tmp_path / f"a{suffix}"]
    assert read_image(tmp_path / f"a{suffix}").size == (8, 8)


def test_images_that_are_not_read_are_counted(tmp_path: Path) -> None:
    for name in ("1.HEIC", "deeper/2.heic", "3.avif", "notes.txt", ".4.heic", "__MACOSX/5.heic", "6.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert passed_over(tmp_path) == "3 files were left out (.avif, .heic): convert to JPEG or PNG"
    assert passed_over(tmp_path / "deeper") == "1 file was left out (.heic): convert to JPEG or PNG"
    (tmp_path / "deeper" / "2.heic").unlink()
    assert passed_over(tmp_path / "deeper") == ""
    with pytest.raises(
        InputError, match=r"1\.HEIC: cannot be read as an image: .*; \.heic is not read, convert it to JPEG or PNG"
    ):
        read_image(tmp_path / "1.HEIC")
