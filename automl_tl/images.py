"""One stored image to upright RGB, and to the square that a backbone takes."""

from __future__ import annotations

import io
import math
import os
import struct
import threading
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from .errors import InputError
from .records import BLACK, BORDER, CENTER, SQUASH, Colour

MOST_PIXELS = 178_956_970
"""Larger images are refused, as by Pillow itself: a file of some kB can ask for gigabytes of memory."""
MOST_RESIZED = 2**24
"""Pixels of an image that was made as small as a network wants it: more is a stretched line, of which the centre will do."""
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
"""What is read, whatever a file is called: Pillow knows more, and hands some of it to other programs (EPS to Ghostscript)."""
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"}
)
NOT_READ = frozenset(
    {".heic", ".heif", ".avif", ".jp2", ".j2k", ".jxl", ".svg", ".psd", ".tga", ".ico", ".exr", ".dcm"}
    | {".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2", ".pef", ".srw"}  # of cameras
)
"""Images, too, which somebody will miss where they are passed over without a word."""
NO_CLASSES = ("__MACOSX", "__pycache__", "@eaDir")
"""Folders that programs leave beside people's own, with copies of images in some; `__background__` is somebody's class."""
ROUNDING = 0.5 / 255
"""Half a grey level of 0–1: so far rounding, or what resizes images, may leave their range."""
CHANNELS = (1, 3, 4)
"""Of an array: grey, colours, colours and transparency."""

_METHODS = {"nearest": Image.Resampling.NEAREST, "bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""By the orientation in EXIF."""
_DAMAGED = (OSError, ValueError, SyntaxError, EOFError, ArithmeticError, LookupError, TypeError, AttributeError, struct.error)
"""What Pillow's readers raise where bytes are not what they say."""
_MANY_BITS = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")


def images_below(root: Path) -> list[Path]:
    """The files below `root` that are images by their names, sorted."""
    return [path for path in called_images(root) if path.is_file()]


def called_images(root: Path) -> Iterator[Path]:
    """What is below `root` and an image by its name, sorted, but for what is hidden or in a hidden folder.

    Raises:
        InputError: a link to a folder, which is not followed, or a folder that may not be read: its images would be missed
            without a word.
    """
    check_readable(root)
    for path in sorted(root.rglob("*")):
        if any(map(is_hidden, path.relative_to(root).parts)):
            continue
        if path.suffix.lower() in SUFFIXES:
            yield path
        elif path.is_symlink() and path.is_dir():
            raise InputError(f"{path}: is a link to a folder, which is not followed; copy in what it leads to, or remove it")
        elif path.is_dir():
            check_readable(path)


def check_readable(folder: Path) -> None:
    """Raises InputError where there is such a folder, and its files cannot be listed."""
    if folder.is_dir() and not os.access(folder, os.R_OK | os.X_OK):
        raise InputError(f"{folder}: may not be read by this user; change its permissions, or remove it")


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is passed over: it begins with a dot, or is a program's, such as __MACOSX."""
    return name.startswith(".") or name in NO_CLASSES


def passed_over(root: Path) -> str:
    """How many files below `root` are images of a kind that is not read, and what to do; nothing where there is none."""
    found: Counter[str] = Counter()
    for _, folders, names in os.walk(root):
        folders[:] = [folder for folder in folders if not is_hidden(folder)]
        found.update(Path(name).suffix.lower() for name in names if not name.startswith("."))
    kinds = sorted(NOT_READ & found.keys())
    count = sum(found[kind] for kind in kinds)
    files = "1 file was" if count == 1 else f"{count:,} files were"
    return f"{files} left out ({', '.join(kinds)}): convert to JPEG or PNG" if kinds else ""


def read_image(source: Any, *, where: str = "", least: int | None = None) -> Image.Image:
    """`source` (path, encoded bytes, PIL image, or uint8/uint16/float array H×W[×1|3|4]) as a person sees it, in RGB.

    An array may be a tensor, and have its channels first. EXIF orientation is followed, transparency laid on white, 16 bits
    scaled to 8, the first frame of an animation taken.
    With `least`, a JPEG may be decoded smaller, as long as its shorter side keeps `least` pixels.

    Raises:
        InputError: not an image, damaged, or too large; names `where`.
    """
    where = where or (str(source) if isinstance(source, (str, Path)) else "the image")
    try:
        with _quiet(), _opened(source, where) as image:
            if image.width * image.height > MOST_PIXELS:
                raise Image.DecompressionBombError
            if least is not None and image.format == "JPEG" and image is not source:  # the caller's stays as large as it is
                image.draft("RGB", (least, least))
            return _rgb(_upright(image), where)
    except InputError:
        raise
    except Image.DecompressionBombError:
        raise InputError(f"{where}: has more than the {MOST_PIXELS:,} pixels that are read; scale it down") from None
    except _DAMAGED as error:
        suffix = Path(source).suffix.lower() if isinstance(source, (str, Path)) else ""
        advice = f"; {suffix} is not read, convert it to JPEG or PNG" if suffix in NOT_READ else ""
        raise InputError(f"{where}: cannot be read as an image: {_line(error)}{advice}") from None


def is_one(images: Any) -> bool:
    """Whether what could be a batch is one image: of Pillow, the bytes of a file, or an array H×W, H×W×3 or H×W×4."""
    shape = tuple(getattr(images, "shape", ()))
    grey, coloured = len(shape) == 2, len(shape) == 3 and shape[-1] in (3, 4)
    return isinstance(images, (Image.Image, bytes)) or grey or coloured


def _upright(image: Image.Image) -> Image.Image:
    """As its EXIF says, or as it is stored where that is damaged. Pillow's `exif_transpose` writes the EXIF anew, and fails where
    it cannot."""
    image.load()
    try:
        turn = _TURNS.get(int(image.getexif().get(ExifTags.Base.Orientation, 1)))
    except _DAMAGED:
        return image
    return image if turn is None else image.transpose(turn)


_reading = 0
_lock = threading.Lock()
_warnings_off = ExitStack()


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings of Pillow while any thread reads: `catch_warnings`, left by threads in any order, would leave them off."""
    global _reading
    with _lock:
        if not _reading:
            _warnings_off.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
        _reading += 1
    try:
        yield
    finally:
        with _lock:
            _reading -= 1
            if not _reading:
                _warnings_off.close()


def _line(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # Pillow names the object that it read from, at its place in memory
        return "it is none of the kinds that are read"
    text = str(error).splitlines()
    return (text[0] if text else type(error).__name__)[:150]


def _opened(source: Any, where: str) -> AbstractContextManager[Image.Image]:
    """The image, and a file closed in the end; an image of the caller's stays open."""
    if isinstance(source, Image.Image):
        return nullcontext(source)
    if hasattr(source, "__array__") and not isinstance(source, (str, bytes)):  # NumPy's texts have it, too
        return nullcontext(_from_array(_as_array(source, where), where))
    if isinstance(source, bytes):
        return Image.open(io.BytesIO(source), formats=FORMATS)
    if isinstance(source, (str, Path)):
        return Image.open(source, formats=FORMATS)
    raise InputError(f"{where}: a {type(source).__name__} is not an image; give a path, a PIL image, bytes or an array")


def _as_array(source: Any, where: str) -> np.ndarray:
    """Raises InputError: a tensor that is not in this machine's memory, or of numbers that NumPy has not."""
    try:
        return np.asarray(source)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{where}: a {type(source).__name__} that cannot be made an array: {_line(error)}") from None


def _from_array(array: np.ndarray, where: str) -> Image.Image:
    if array.ndim == 3 and array.shape[0] in CHANNELS and array.shape[2] not in CHANNELS:  # as torch has them
        array = np.moveaxis(array, 0, 2)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or 0 in array.shape:
        raise InputError(f"{where}: an array of shape {array.shape} is not an image; expected H×W, H×W×3 or H×W×4")
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise InputError(f"{where}: has values that are not finite numbers")
        low, high = array.min(), array.max()
        if low < -ROUNDING or high > 1 + ROUNDING:
            white = "divide by 255, or by what white is in them"
            usual = white if low >= 0 and high <= 255 else "take (x + 1) / 2" if low >= -1 and high <= 1 else "scale it"
            raise InputError(f"{where}: floating-point images must lie in 0–1, but this one is in {low:g}–{high:g}; {usual}")
        array = (array.clip(0, 1) * 255 + 0.5).astype(np.uint8)
    elif (array.dtype.kind, array.dtype.itemsize) == ("u", 2):  # in either order of bytes
        array = _of_sixteen_bits(array)
    elif array.dtype.kind in "biu":
        if array.dtype == bool:
            array = array.astype(np.uint8) * 255
        elif array.min() < 0 or array.max() > 255:
            raise InputError(f"{where}: whole-number images must lie in 0–255, but this one is in {array.min()}–{array.max()}")
        array = array.astype(np.uint8)
    else:
        raise InputError(f"{where}: an array of {array.dtype} is not an image")
    return Image.fromarray(array)


def _of_sixteen_bits(values: np.ndarray) -> np.ndarray:
    """Grey values of 0–65535 in 8 bits; those that never pass 255 are of 8 bits already."""
    top = 65535.0 if values.max(initial=0) > 255.5 else 255.0
    scaled: np.ndarray = (values.clip(0, top) / top * 255 + 0.5).astype(np.uint8)
    return scaled


def _rgb(image: Image.Image, where: str) -> Image.Image:
    if image.mode in _MANY_BITS:
        values = np.asarray(image).astype(np.float64)
        if not np.isfinite(values).all():
            raise InputError(f"{where}: has values that are not finite numbers")
        low, high = values.min(initial=0), values.max(initial=0)
        if low < -ROUNDING or high > 65535:
            raise InputError(
                f"{where}: grey values must lie in 0–1, 0–255 or 0–65535, but these are in {low:g}–{high:g}; scale them"
            )
        if image.mode == "F" and high <= 1 + ROUNDING:
            values = values.clip(0, 1) * 255
        return Image.fromarray(_of_sixteen_bits(values)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def square(
    image: Image.Image, size: int, *, interpolation: str, crop_pct: float, crop_mode: str = CENTER, fill: Colour = BLACK
) -> np.ndarray:
    """uint8 size×size×3, as timm prepares an image for evaluation: the sides that `CROP_MODES` tells to size/crop_pct, then the
    centre, with `fill` around it where there is less."""
    scale = math.floor(size / crop_pct)
    width, height = image.size
    if crop_mode == SQUASH:
        resized = (scale, scale)
    elif crop_mode == BORDER:
        ratio = max(width / scale, height / scale)  # divided in timm's order, to round alike
        resized = (max(1, round(width / ratio)), max(1, round(height / ratio)))  # timm fails at a line that would be of none
    elif width <= height:
        resized = (scale, max(scale, int(scale * height / width)))
    else:
        resized = (max(scale, int(scale * width / height)), scale)
    if max(resized) > scale and resized[0] * resized[1] > MOST_RESIZED:  # a line of pixels, of which the centre is needed
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        image, resized = image.crop((left, top, left + side, top + side)), (scale, scale)
    if resized != image.size:
        image = image.resize(resized, _METHODS[interpolation])
    left, top = (_before_centre(side, size) for side in resized)
    if fill == BLACK:
        return np.asarray(image.crop((left, top, left + size, top + size)), dtype=np.uint8)
    whole = Image.new("RGB", (size, size), fill)
    whole.paste(image, (-left, -top))
    return np.asarray(whole, dtype=np.uint8)


def _before_centre(side: int, size: int) -> int:
    """Pixels of `side` before its middle `size`; below 0, those that are missing, as torchvision counts them."""
    return round((side - size) / 2) if side >= size else -((size - side) // 2)
