"""From a location to a checked, split task."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from warnings import warn

import numpy as np
from PIL import Image

from . import registry
from .errors import PLUGIN_FAULTS, AutomlError, InputError, PluginError
from .hookspecs import Format
from .images import images_below, passed_over, read_image
from .records import TARGET, TEST, TRAIN, VALIDATION, Listing, Task
from .seen import Progress, Seen, changed_at, look, read_all
from .splitting import groups_of, split_images
from .threads import spread

UNREADABLE_SHARE = 0.05
NEARLY_BLACK = 32
"""Of 255: 12 bits in 16 come to 16."""


def shown(name: str | Path) -> str:
    """The name of a file, or a text with some in it, as text that can be written anywhere.

    Linux allows names that are not UTF-8; their strange bytes are shown as \\xNN. The file is opened by its own name.
    """
    try:
        return str(name).encode("utf-8", sys.getfilesystemencodeerrors()).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half a character, which is no file's name
        return str(name).encode("utf-8", "backslashreplace").decode("utf-8")


def class_name(label: Any) -> str:
    """As `shown`, with letters and their accents in one form (NFC): some Macs name files in another, which looks the same.

    Of a whole number without the ".0" of a float: a column of a table with gaps, or what NumPy read, has floats for 1 and 2.
    """
    whole = isinstance(label, (float, np.floating)) and label.is_integer()
    return unicodedata.normalize("NFC", shown(str(int(label) if whole else label)))


def read_listing(location: Any) -> Listing:
    """What the first reader that knows `location` finds; names of files and folders in it are as `shown`.

    Raises:
        InputError: no reader knows it, or it is not in order.
        PluginError: the reader breaks; it is named.
    """
    known = registry.formats()
    for reader in known.values():
        if _matches(reader, location):
            listing = _open(reader, location)
            if not len(listing.images):
                raise InputError(f"{listing.name}: there is no image in it")
            return listing
    text = shown(location) if isinstance(location, (str, Path)) else f"a {type(location).__name__}"
    if isinstance(location, (str, Path)) and not Path(location).exists() and not str(location).startswith("hf:"):
        raise InputError(f"{text} does not exist; known names besides paths: digits, hf:DATASET")
    raise InputError(f"{text} is not something that can be read; readers tried: {', '.join(known)}")


def _matches(reader: Format, location: Any) -> bool:
    try:
        return bool(reader.matches(location))
    except PLUGIN_FAULTS as error:  # it is named, and the next one is asked
        text = f"reader {reader.name!r} is passed over, as its `matches` raised {type(error).__name__}: {error}"
        warn(shown(text), registry.PluginWarning, stacklevel=1)
        return False


def _open(reader: Format, location: Any) -> Listing:
    """What it finds, or says is wrong. No reader has to think of names that are not UTF-8: they are `shown` here."""
    try:
        listing = reader.open(location)
        _check_lengths(listing)
        labels = [class_name(label) for label in listing.labels]
        where, found = ([shown(text) for text in texts] for texts in (listing.where, listing.warnings))
        return replace(listing, name=shown(listing.name), labels=labels, where=where, warnings=found)
    except InputError as error:
        raise InputError(shown(str(error))) from error
    except AutomlError:
        raise
    except PLUGIN_FAULTS as error:
        raise PluginError(shown(f"reader {reader.name!r}: {type(error).__name__}: {error}")) from error


def _check_lengths(listing: Listing) -> None:
    """Later on, nobody would know whose lists they are."""
    if not isinstance(listing, Listing):
        raise TypeError(f"expected an automl_tl.Listing, but got {listing!r}")
    for name in ("labels", "where", "splits", "groups", "domains"):
        entries = getattr(listing, name)
        if entries is not None and len(entries) != len(listing.images):
            raise ValueError(f"expected one entry for each of {len(listing.images)} images, but {name} has {len(entries)}")


def load_task(
    location: Any,
    *,
    name: str | None = None,
    seed: int = 0,
    validation: float = 0.2,
    test: float = 0.0,
    target: bool = False,
    progress: Progress | None = None,
) -> Task:
    """Read, check and split labelled images; unlabelled ones beside them are the split `TARGET`, with the label -1.

    With `target`, another domain will be trained on, so labelled training images need not be there.

    Every image is decoded once to see that it can be; up to 5 % unreadable ones are skipped and listed in the warnings. Given
    splits are kept. Where there is no validation split, the share `validation` of the training images becomes one: stratified,
    seeded, with groups and near-duplicates on one side; `test` likewise. Near-duplicates of test images leave the training
    images.

    Raises:
        InputError: names the file, row or class and says what to do.
    """
    for split, share in ((VALIDATION, validation), (TEST, test)):
        if not 0 <= share < 1:
            raise InputError(f"the share of images for {split} must be from 0 to below 1, but is {share}")
    listing = read_listing(location)
    listing = _unlabel(listing)
    _check_listing(listing, target=target)
    modified = changed_at(listing.images)
    seen = read_all(listing, progress)
    readable, warnings = _readable(listing, seen)
    classes = tuple(sorted({listing.labels[i] for i in readable} - {""}, key=natural))
    codes = {"": -1} | {label: code for code, label in enumerate(classes)}
    labels = np.array([codes[listing.labels[i]] for i in readable], dtype=np.int64)
    hashes = np.array([seen[i].hash for i in readable], dtype=np.uint64)
    thumbnails = np.stack([np.frombuffer(seen[i].thumbnail, dtype=np.uint8) for i in readable])
    warnings += _darkness(thumbnails)
    given = None if listing.splits is None else np.array([listing.splits[i] for i in readable])
    groups, alike = groups_of(listing, readable, thumbnails)
    splits, found = split_images(listing.name, labels, classes, given, groups, alike, seed=seed, validation=validation, test=test)
    kept = np.sort(np.concatenate([splits[split] for split in splits]))
    splits = {split: np.searchsorted(kept, part) for split, part in splits.items()}
    positions = [readable[i] for i in kept]
    return Task(
        name=shown(name or listing.name),
        images=[listing.images[i] for i in positions],
        labels=labels[kept],
        classes=classes,
        splits=splits,
        fingerprint=_fingerprint(classes, hashes[kept], labels[kept], splits),
        where=[listing.where[i] for i in positions],
        hashes=hashes[kept],
        sizes=np.array([(seen[i].width, seen[i].height) for i in positions]),
        modified=modified[positions],
        warnings=tuple(warnings + found),
    )


def check_outside(out: Path, task: Task, *places: tuple[str, Any]) -> None:
    """Of `places`, each an option ("": the argument) and where it says that images are. Worth asking before the work.

    Raises:
        InputError: `out` lies in a folder of images of the task, where the next start would take it for a class.
    """
    for option, place in places:
        if not isinstance(place, (str, Path)) or not out.resolve().is_relative_to(Path(place).resolve()):
            continue
        if any(isinstance(image, (str, Path)) and Path(image).is_relative_to(place) for image in task.images):
            folder = Path(place).resolve()  # "digits" may be a folder, too, and a run: neither is where the images are
            beside = os.path.relpath(folder.parent / "runs" / folder.name)
            whose = f" of {option}" if option else ""
            text = f"{out}: lies in the folder of the images{whose}; choose another --out, such as {beside}"
            raise InputError(shown(text))


def subset(task: Task, keep: np.ndarray, *, name: str) -> Task:
    """The images at the positions `keep`, their classes numbered anew; splits of which something is left stay as they are."""
    labels = task.labels[keep]
    present = np.unique(labels[labels >= 0])
    classes = tuple(task.classes[label] for label in present)
    renamed = np.where(labels < 0, -1, np.searchsorted(present, labels))
    splits = {split: left for split, part in task.splits.items() if len(left := np.flatnonzero(np.isin(keep, part)))}
    hashes = task.hashes[keep]
    return replace(
        task,
        name=name,
        images=[task.images[i] for i in keep],
        labels=renamed,
        classes=classes,
        splits=splits,
        fingerprint=_fingerprint(classes, hashes, renamed, splits),
        where=[task.where[i] for i in keep],
        hashes=hashes,
        sizes=None if task.sizes is None else task.sizes[keep],
        modified=None if task.modified is None else task.modified[keep],
    )


def picked(task: Task, index: np.ndarray) -> Task:
    """The images at `index` with their labels and nothing else of the task: to look at them without decoding the others."""
    return replace(
        task,
        images=[task.images[i] for i in index],
        labels=task.labels[index],
        splits={},
        where=[task.where[i] for i in index],
        hashes=task.hashes[index],
        sizes=None if task.sizes is None else task.sizes[index],
        clients=None,
        modified=None if task.modified is None else task.modified[index],
    )


def altered(task: Task, change: Callable[[np.ndarray, int], np.ndarray], *, name: str, side: int) -> Task:
    """A copy of `task` of which every image was changed: uint8 height×width×3 and its place in the task to the same.

    Images are read at a longer side of at most `side` pixels, and are in memory from then on. Labels and splits stay.
    """
    images = []
    for place, (source, where) in enumerate(zip(task.images, task.where, strict=True)):
        image = read_image(source, where=where, least=side)
        image.thumbnail((side, side), Image.Resampling.BICUBIC)
        images.append(change(np.asarray(image), place))
    seen = list(spread(look, list(zip(images, task.where, strict=True))))
    hashes = np.array([one.hash for one in seen], dtype=np.uint64)
    return replace(
        task,
        name=name,
        images=images,
        fingerprint=_fingerprint(task.classes, hashes, task.labels, dict(task.splits)),
        hashes=hashes,
        sizes=np.array([(one.width, one.height) for one in seen]),
        modified=None,
    )


def load_unlabelled(location: Any, *, progress: Progress | None = None) -> Task:
    """All images below a folder as a task without classes: one that others learn to suit.

    Raises:
        InputError: no image, or too many that cannot be read.
    """
    root = Path(location)
    found = images_below(root)
    if not found:
        missed = passed_over(root)
        raise InputError(f"{shown(root)}: is not a folder with images{missed and '; ' + missed}")
    where = [shown(path.relative_to(root)) for path in found]
    listing = Listing(shown(root.resolve().name), found, [""] * len(found), where)
    modified = changed_at(listing.images)
    seen = read_all(listing, progress)
    readable, warnings = _readable(listing, seen)
    hashes = np.array([seen[i].hash for i in readable], dtype=np.uint64)
    labels, splits = np.full(len(readable), -1, dtype=np.int64), {TARGET: np.arange(len(readable))}
    return Task(
        name=listing.name,
        images=[found[i] for i in readable],
        labels=labels,
        classes=(),
        splits=splits,
        fingerprint=_fingerprint((), hashes, labels, splits),
        where=[where[i] for i in readable],
        hashes=hashes,
        sizes=np.array([(seen[i].width, seen[i].height) for i in readable]),
        modified=modified[readable],
        warnings=tuple(filter(None, (passed_over(root), *warnings))),
    )


def natural(text: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sort key that puts 2 before 10, and 01 and 1 always in the same order."""
    parts = re.split(r"(\d+)", text)
    return [(0, *_number(part)) if part.isdecimal() else (1, 0, part) for part in parts if part], text


def _number(digits: str) -> tuple[int, str]:
    """Sort key of a whole number of any length, in any script's digits: how many it has, then which."""
    plain = "".join(str(unicodedata.decimal(digit)) for digit in digits).lstrip("0")
    return len(plain), plain


def _unlabel(listing: Listing) -> Listing:
    """Labels of the split `TARGET` are not looked at, whatever they are."""
    if listing.splits is None or TARGET not in listing.splits:
        return listing
    labels = ["" if split == TARGET else label for label, split in zip(listing.labels, listing.splits, strict=True)]
    return replace(listing, labels=labels)


def check_labelled(listing: Listing, places: Iterable[int]) -> None:
    """Raises InputError: an image at `places` has no label."""
    for i in places:
        if not listing.labels[i].strip():
            raise InputError(f"{listing.where[i]}: has no label; give it one or remove it")


def _check_listing(listing: Listing, *, target: bool) -> None:
    splits = [TRAIN] * len(listing.labels) if listing.splits is None else listing.splits
    check_labelled(listing, (i for i, split in enumerate(splits) if split != TARGET))
    for split, where in zip(splits, listing.where, strict=True):
        if split not in (TRAIN, VALIDATION, TEST, TARGET):
            raise InputError(f"{where}: split {split!r} is not known; write train, validation or test")
    if target and TRAIN not in splits:
        return
    if TRAIN not in splits:
        advice = "; give labelled images of another domain with --source" if TARGET in splits else ""
        raise InputError(f"{listing.name}: no image is marked as train{advice}")
    known = {label for label, split in zip(listing.labels, splits, strict=True) if split != TARGET}
    if len(known) < 2 and not target:
        cause = "".join(f"; {warning}" for warning in listing.warnings)
        raise InputError(f"{listing.name}: all images are of one class, {known.pop()!r}; a classifier needs at least two{cause}")


def _readable(listing: Listing, seen: Sequence[Seen]) -> tuple[list[int], list[str]]:
    bad = [i for i, one in enumerate(seen) if one.error]
    causes = {re.sub(r"[\d.-]+", "", seen[i].error.removeprefix(f"{listing.where[i]}: ")) for i in bad}
    if len(bad) == len(seen) and len(causes) == 1:  # but for its numbers: nothing is wrong with one of them alone
        raise InputError(f"{listing.name}: {seen[0].error} (all {len(seen)} images alike)")
    if len(bad) > UNREADABLE_SHARE * len(seen):
        raise InputError(
            f"{listing.name}: {len(bad)} of {len(seen)} images cannot be read, more than {UNREADABLE_SHARE:.0%}; "
            f"the first: {seen[bad[0]].error}"
        )
    readable = [i for i, one in enumerate(seen) if not one.error]
    left = {listing.labels[i] for i in readable}
    for i in bad:
        if listing.labels[i] not in left:
            raise InputError(f"{listing.name}: no image of class {listing.labels[i]!r} can be read; the first: {seen[i].error}")
    return readable, [*listing.warnings, *(f"skipped, as it cannot be read: {seen[i].error}" for i in bad)]


def _darkness(thumbnails: np.ndarray) -> list[str]:
    """A warning where all images are nearly black: so are those of a camera or a scanner that fills 12 of 16 bits."""
    brightest = int(thumbnails.max())
    advice = "if they have 10 or 12 bits in 16, scale them to all 16"
    return [f"no part of any image is brighter than {brightest} of 255; {advice}"] if brightest < NEARLY_BLACK else []


def _fingerprint(classes: tuple[str, ...], hashes: np.ndarray, labels: np.ndarray, splits: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256(json.dumps(classes).encode())
    digest.update(hashes.astype("<u8").tobytes())
    digest.update(labels.astype("<i8").tobytes())
    for split in sorted(splits):
        digest.update(split.encode())
        digest.update(splits[split].astype("<i8").tobytes())
    return digest.hexdigest()[:16]
