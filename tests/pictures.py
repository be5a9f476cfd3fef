"""Small sets of images, for tests: real ones from ../shared/data, and drawn ones where any will do."""

from __future__ import annotations

import io
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image


@cache
def real_images(archive: Path, part: str, classes: int, each: int) -> dict[str, list[bytes]]:
    """Class → the encoded first `each` images of the first `classes` classes of NAME/part in `archive`."""
    found: dict[str, list[bytes]] = defaultdict(list)
    with zipfile.ZipFile(archive) as opened:
        for name in sorted(opened.namelist()):
            folders, file = name.split("/")[:-1], name.split("/")[-1]
            if file and part in folders and (len(found) < classes or folders[-1] in found) and len(found[folders[-1]]) < each:
                found[folders[-1]].append(opened.read(name))
    return dict(found)


def drawn(seed: int, *, side: int = 24) -> Image.Image:
    """Coloured noise, coarse enough to survive JPEG: no two seeds look alike."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def lay(root: Path, classes: Mapping[str, Iterable[bytes | Image.Image]]) -> Path:
    """Write root/CLASS/000.png, …; bytes are written as they are."""
    for label, images in classes.items():
        folder = root / label
        folder.mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(images, len(list(folder.iterdir()))):
            (folder / f"{number:03}.png").write_bytes(image if isinstance(image, bytes) else png(image))
    return root


def lay_drawn(root: Path, counts: Mapping[str, int], *, start: int = 0) -> Path:
    """`counts[label]` drawn images in each class."""
    seeds = iter(range(start, start + sum(counts.values())))
    return lay(root, {label: [drawn(next(seeds)) for _ in range(count)] for label, count in counts.items()})
