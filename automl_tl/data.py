"""From a location to a checked, split task, and from its images to pixels that are decoded once."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
import unicodedata
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple
from warnings import warn

import numpy as np
import xxhash
from filelock import FileLock
from PIL import Image

from . import registry
from .errors import PLUGIN_FAULTS, AutomlError, InputError, PluginError
from .home import cache, write_text
from .hookspecs import Format
from .images import images_below, passed_over, read_image, square
from .records import BLACK, CENTER, TARGET, TEST, TRAIN, VALIDATION, Backbone, Colour, Listing, Task
from .threads import spread

UNREADABLE_SHARE = 0.05
CACHE_BYTES = 20 * 2**30
SHORTCUT = 4
"""JPEGs may be decoded smaller down to so many times the wanted size; the resize from there on is the backbone's own."""
THUMBNAIL = 16
NEARLY_BLACK = 32
"""Of 255: 12 bits in 16 come to 16."""
ALIKE = 3.0
"""Mean absolute difference (of 255) of two thumbnails below which images are the same picture, saved again."""
ROUNDING = 1e-2
"""Of 255: what single precision may add to a difference."""

Progress = Callable[[int, int], None]
Prepare = Callable[[tuple[Any, str]], np.ndarray]
"""An image and where it is → its pixels."""


class Seen(NamedTuple):
    """What is kept of an image that was read once."""

    hash: int
    """Of the RGB pixels."""
    width: int
    height: int
    thumbnail: bytes
    """16×16 grey, for near-duplicates."""
    error: str = ""


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
    modified = _modified(listing.images)
    seen = _read_all(listing, progress)
    readable, warnings = _readable(listing, seen)
    classes = tuple(sorted({listing.labels[i] for i in readable} - {""}, key=natural))
    codes = {"": -1} | {label: code for code, label in enumerate(classes)}
    labels = np.array([codes[listing.labels[i]] for i in readable], dtype=np.int64)
    hashes = np.array([seen[i].hash for i in readable], dtype=np.uint64)
    thumbnails = np.stack([np.frombuffer(seen[i].thumbnail, dtype=np.uint8) for i in readable])
    warnings += _darkness(thumbnails)
    given = None if listing.splits is None else np.array([listing.splits[i] for i in readable])
    groups, alike = _groups(listing, readable, thumbnails)
    splits, found = _split(listing.name, labels, classes, given, groups, alike, seed=seed, validation=validation, test=test)
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


def subset(task: Task, keep: np.ndarray, *, name: str) -> Task:
    """The images at the positions `keep`, their classes numbered anew; splits stay as they are."""
    labels = task.labels[keep]
    present = np.unique(labels)
    classes = tuple(task.classes[label] for label in present)
    renamed = np.searchsorted(present, labels)
    splits = {split: np.flatnonzero(np.isin(keep, part)) for split, part in task.splits.items()}
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
    seen = list(spread(_look, list(zip(images, task.where, strict=True))))
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
    modified = _modified(listing.images)
    seen = _read_all(listing, progress)
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


def _check_listing(listing: Listing, *, target: bool) -> None:
    splits = [TRAIN] * len(listing.labels) if listing.splits is None else listing.splits
    for label, where, split in zip(listing.labels, listing.where, splits, strict=True):
        if split != TARGET and not str(label).strip():
            raise InputError(f"{where}: has no label; give it one or remove it")
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


# Reading every image once


def _read_all(listing: Listing, progress: Progress | None) -> list[Seen]:
    """`Seen` of each image; files that did not change since the last time are not read again."""
    index = _Index(listing)
    todo = [i for i in range(len(listing.images)) if i not in index.known]
    work = [(listing.images[i], listing.where[i]) for i in todo]
    for done, (i, seen) in enumerate(zip(todo, spread(_look, work), strict=True), 1):
        index.known[i] = seen
        if progress is not None and (done % 64 == 0 or done == len(todo)):
            progress(done, len(todo))
    index.keep(todo)
    return [index.known[i] for i in range(len(listing.images))]


class _Index:
    """What was seen of the files of a listing, kept under their paths, sizes and times of change.

    Files out of one archive may all have one size and one time: which file it is, and when its place was last changed, tell of
    two that were exchanged.
    """

    def __init__(self, listing: Listing) -> None:
        self.keys: dict[int, str] = {}
        for i, image in enumerate(listing.images):
            if isinstance(image, (str, Path)):
                try:
                    state = os.stat(image)
                except OSError:
                    continue
                told = (state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino)
                self.keys[i] = "|".join(map(str, (os.path.abspath(image), *told)))
        whole = "\n".join(sorted(self.keys.values())).encode("utf-8", sys.getfilesystemencodeerrors())
        name = hashlib.sha256(whole).hexdigest()[:32]
        self.path = cache() / "seen" / f"{name}.json"
        try:
            kept = json.loads(self.path.read_text(encoding="utf-8"))
            by_key = {key: Seen(h, w, t, bytes.fromhex(b)) for key, h, w, t, b in kept}
        except (OSError, ValueError, TypeError):  # nothing was seen yet, or it is damaged: the images are read
            by_key = {}
        self.known = {i: by_key[key] for i, key in self.keys.items() if key in by_key}

    def keep(self, added: list[int]) -> None:
        if not self.keys or not added:
            return
        rows = [
            [key, one.hash, one.width, one.height, one.thumbnail.hex()]
            for i, key in self.keys.items()
            if not (one := self.known[i]).error
        ]
        self.path.parent.mkdir(exist_ok=True)
        write_text(self.path, json.dumps(rows))


def _modified(images: Sequence[Any]) -> np.ndarray:
    """When the file of each image, or its place, was last changed, in ns; 0 for what is no file, or is gone."""
    times = np.zeros(len(images), dtype=np.int64)
    for i, image in enumerate(images):
        if isinstance(image, (str, Path)):
            with suppress(OSError):
                state = os.stat(image)
                times[i] = max(state.st_mtime_ns, state.st_ctime_ns)
    return times


def _check_unchanged(task: Task) -> None:
    """Raises InputError: an image is another than the one that was read, whose content the caches know it by."""
    if task.modified is None:
        return
    touched = np.flatnonzero(_modified(task.images) != task.modified).tolist()
    for i, seen in zip(touched, spread(_look, [(task.images[i], task.where[i]) for i in touched]), strict=True):
        if seen.hash != task.hashes[i]:
            raise InputError(
                f"{task.where[i]}: was changed after it had been read; start again with images that stay as they are"
            )


def _look(item: tuple[Any, str]) -> Seen:
    source, where = item
    try:
        image = read_image(source, where=where)
    except InputError as error:
        return Seen(0, 0, 0, b"", str(error))
    pixels = np.asarray(image)
    shape = f"{image.width}x{image.height}".encode()
    digest = xxhash.xxh64(shape + pixels.tobytes()).intdigest()
    thumbnail = image.convert("L").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    return Seen(digest, image.width, image.height, np.asarray(thumbnail).tobytes())


# Splitting


def _groups(listing: Listing, readable: list[int], thumbnails: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A number for each image: equal for those that must stay in one split; and the same for near-duplicates alone."""
    parent = np.arange(len(readable))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return int(i)

    def join(i: int, j: int) -> None:
        parent[max(root(i), root(j))] = min(root(i), root(j))

    for i, j in near_duplicates(thumbnails):
        join(i, j)
    alike = np.array([root(i) for i in range(len(readable))])
    first: dict[str, int] = {}
    if listing.groups is not None:
        for position, i in enumerate(readable):
            if listing.groups[i]:
                join(first.setdefault(listing.groups[i], position), position)
    return np.array([root(i) for i in range(len(readable))]), alike


def near_duplicates(thumbnails: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of the same picture saved twice: n×256 grey thumbnails that differ by less than `ALIKE` on average.

    Drawings on white are all alike at first sight, so the difference is measured against the pictures' own contrast, too.
    Candidates are found by sorting along the two directions of greatest variance. Means of 4×4 blocks differ on average by no
    more than their pixels do, so pixels are compared only where those are near: most radiographs are alike at first sight, too.
    Of images that are the same to the last bit each is paired with the first alone: thousands of blank ones would make millions
    of pairs.
    """
    _, first, same = np.unique(thumbnails, axis=0, return_index=True, return_inverse=True)
    later = np.flatnonzero(first[same.reshape(-1)] != np.arange(len(thumbnails)))
    pairs = list(zip(first[same.reshape(-1)[later]].tolist(), later.tolist(), strict=True))
    values = thumbnails.astype(np.float32)
    centred = values - values.mean(axis=0)
    sample = centred[:: max(1, len(centred) // 2000)]
    directions = np.linalg.svd(sample, full_matrices=False)[2][:2]
    along, across = (centred @ directions.T).T if len(directions) == 2 else (centred[:, 0], centred[:, 0])
    steepest = float(np.abs(directions[0]).max()) if len(directions) == 2 else 1.0
    order = np.delete(np.arange(len(values)), later)
    order = order[np.argsort(along[order], kind="stable")]
    values, along, across = values[order], along[order], across[order]
    blocks = values.reshape(-1, 4, 4, 4, 4).mean(axis=(2, 4)).reshape(-1, 16)
    limits = np.minimum(ALIKE, 0.06 * values.std(axis=1))  # of a pair, the lesser
    reach = ALIKE * np.sqrt(values.shape[1])
    ends = np.searchsorted(along, along + np.minimum(reach, steepest * values.shape[1] * limits + ROUNDING), side="right")
    for i, end in enumerate(ends):
        others = i + 1 + np.flatnonzero(np.abs(across[i + 1 : end] - across[i]) <= reach)
        others = others[np.abs(blocks[others] - blocks[i]).mean(axis=1) <= limits[i] + ROUNDING]
        if len(others):
            difference = np.abs(values[others] - values[i]).mean(axis=1)
            near = others[difference <= np.minimum(limits[others], limits[i])]
            pairs += [(int(order[i]), int(order[j])) for j in near]
    return pairs


def _split(
    name: str,
    labels: np.ndarray,
    classes: tuple[str, ...],
    given: np.ndarray | None,
    groups: np.ndarray,
    alike: np.ndarray,
    *,
    seed: int,
    validation: float,
    test: float,
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Positions of each split, and what a person should know about it."""
    warnings = []
    given = np.full(len(labels), TRAIN) if given is None else given
    splits = {split: np.flatnonzero(given == split) for split in (TRAIN, VALIDATION, TEST, TARGET)}
    for split in (VALIDATION, TEST) if len(splits[TRAIN]) else ():
        held = splits[split]
        foreign = sorted(
            {classes[label] for label in labels[held]} - {classes[label] for label in labels[splits[TRAIN]]}, key=natural
        )
        if foreign:
            raise InputError(
                f"{name}: {split} has classes that train has not: {', '.join(foreign[:5])}; give both the same classes"
            )
    for split, other in ((TRAIN, VALIDATION), (TRAIN, TEST), (VALIDATION, TEST), (TARGET, TEST)):
        twins = splits[split][np.isin(groups[splits[split]], groups[splits[other]])]
        if len(twins):
            near = int(np.isin(alike[twins], alike[splits[other]]).sum())
            splits[split] = np.setdiff1d(splits[split], twins)
            for count, kind in ((near, "near-duplicates of"), (len(twins) - near, "of one group with")):
                warnings += [f"{count} {split} images are {kind} {other} images; they were left out"] if count else []
    if not len(splits[TRAIN]) and np.any(given == TRAIN):
        tie = _bound("validation or test images", groups, alike)
        raise InputError(
            f"{name}: no training image is left: all {np.sum(given == TRAIN)} are {tie}; "
            "give splits that share no picture or group, or all images as train, to hold out some of them"
        )
    for split, share in ((TEST, test), (VALIDATION, validation)):
        if share > 0 and len(splits[TRAIN]) and not len(splits[split]):
            _check_class_sizes(name, labels[splits[TRAIN]], classes)
            chosen = _hold_out(splits[TRAIN], labels, groups, share, np.random.default_rng([seed, len(split)]))
            if not len(chosen):
                tie = _bound("one another", groups, alike)
                raise InputError(
                    f"{name}: no image can be held out for {split}: those of each class are {tie}; "
                    f"give images that differ, or a {split} split"
                )
            splits[split], splits[TRAIN] = chosen, np.setdiff1d(splits[TRAIN], chosen)
    if not warnings:
        near, joined = (len(numbers) - len(np.unique(numbers)) for numbers in (alike, groups))
        for count, kind in ((near, "near-duplicates of"), (joined - near, "of one group with")):
            warnings += [f"{count} images are {kind} others; they stay in one split"] if count else []
    missing = np.setdiff1d(np.arange(len(classes)), labels[splits[TRAIN]])
    if len(missing) and len(splits[TRAIN]):
        raise InputError(f"{name}: class {classes[missing[0]]!r} has no training image left; give it more images")
    return {split: part for split, part in splits.items() if len(part)}, warnings


def _bound(others: str, groups: np.ndarray, alike: np.ndarray) -> str:
    """What ties images to `others`, in words: pictures that are the same, the groups that were given, or both."""
    if len(np.unique(alike)) == len(alike):
        return f"of one group with {others}"
    return f"near-duplicates of {others}" + ("" if np.array_equal(groups, alike) else ", or of one group")


def _check_class_sizes(name: str, labels: np.ndarray, classes: tuple[str, ...]) -> None:
    counts = np.bincount(labels, minlength=len(classes))
    if counts.min() < 2:
        small = classes[int(counts.argmin())]
        raise InputError(f"{name}: class {small!r} has {counts.min()} training image(s); it takes two to train and to validate")


def _hold_out(pool: np.ndarray, labels: np.ndarray, groups: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """About `share` of each class of `pool`, at least one image of each, whole groups, never all of a class.

    A group with more than twice the images that are wanted of a class stays where it is, if a smaller one can go.
    """
    taken: set[int] = set()
    for label in np.unique(labels[pool]):
        members = pool[labels[pool] == label]
        wanted = max(1, round(share * len(members)))
        names, sizes = np.unique(groups[members], return_counts=True)
        size_of = dict(zip(names.tolist(), sizes.tolist(), strict=True))
        count = sum(size_of[group] for group in taken & size_of.keys())
        drawn = rng.permutation(names).tolist()
        large = sorted((group for group in drawn if size_of[group] > 2 * wanted), key=lambda group: size_of[group])
        for group in [group for group in drawn if group not in large] + (large[:1] if not count else []):
            if count < wanted and group not in taken and count + size_of[group] < len(members):
                taken.add(group)
                count += size_of[group]
    return np.array([int(i) for i in pool if int(groups[i]) in taken], dtype=np.int64)


# Decoding once


@dataclass(frozen=True, eq=False)
class Pixels:
    """Decoded images of a task: read-only, shared between processes by the operating system."""

    array: np.ndarray
    """uint8 N×size×size×3."""

    @property
    def size(self) -> int:
        return int(self.array.shape[1])

    def __len__(self) -> int:
        return len(self.array)


def decode(
    task: Task,
    size: int,
    *,
    interpolation: str = "bicubic",
    crop_pct: float = 1.0,
    crop_mode: str = CENTER,
    fill: Colour = BLACK,
    progress: Progress | None = None,
) -> Pixels:
    """The images of a task, each resized and cropped as timm does for evaluation, from a cache that is built once.

    The cache is keyed by the images' content, so that the same images are decoded once wherever they lie. Processes that
    ask at the same time wait for the first.

    Raises:
        InputError: an image cannot be read, or was changed since the task was loaded; or the disk is full.
    """
    how = f"{size}/{interpolation}/{crop_pct:g}"
    if crop_mode != CENTER:  # what was decoded before there were others stays good
        how += f"/{crop_mode}/{fill}"
    key = hashlib.sha256(task.hashes.astype("<u8").tobytes() + how.encode()).hexdigest()[:32]
    path = cache() / "pixels" / f"{key}.npy"
    path.parent.mkdir(exist_ok=True)
    while True:
        try:
            os.utime(path)
            return Pixels(np.load(path, mmap_mode="r", allow_pickle=False))
        except FileNotFoundError:  # never built, or another process made room
            with FileLock(path.with_suffix(".lock")):
                if not path.exists():
                    _make_room(path.parent, len(task.labels) * size * size * 3)
                    prepare = _preparing(size, interpolation, crop_pct, crop_mode, fill)
                    _decode_into(path, task, size, prepare, progress)


def pixels_of(task: Task, backbone: Backbone, *, progress: Progress | None = None) -> Pixels:
    """The images of the task as `backbone` wants them, decoded once."""
    b = backbone
    return decode(
        task,
        b.input_size,
        interpolation=b.interpolation,
        crop_pct=b.crop_pct,
        crop_mode=b.crop_mode,
        fill=b.fill,
        progress=progress,
    )


def decode_images(
    images: Sequence[Any],
    where: Sequence[str],
    size: int,
    *,
    interpolation: str,
    crop_pct: float,
    crop_mode: str = CENTER,
    fill: Colour = BLACK,
) -> np.ndarray:
    """uint8 N×size×size×3 in memory, for images that are seen once.

    Raises:
        InputError: names the image that cannot be read.
    """
    work = list(zip(images, where, strict=True))
    array = np.empty((len(work), size, size, 3), dtype=np.uint8)  # a list of them, stacked, would be twice as large for a moment
    for i, pixels in enumerate(spread(_preparing(size, interpolation, crop_pct, crop_mode, fill), work)):
        array[i] = pixels
    return array


def _preparing(size: int, interpolation: str, crop_pct: float, crop_mode: str, fill: Colour) -> Prepare:
    """What reads an image and makes it square."""
    least = SHORTCUT * (int(size / crop_pct) + 1)

    def prepare(item: tuple[Any, str]) -> np.ndarray:
        source, where = item
        image = read_image(source, where=where, least=least)
        return square(image, size, interpolation=interpolation, crop_pct=crop_pct, crop_mode=crop_mode, fill=fill)

    return prepare


def _decode_into(path: Path, task: Task, size: int, prepare: Prepare, progress: Progress | None) -> None:
    partial = path.with_name(f"{path.name}.partial")  # of the lock's holder; what a killed process left is overwritten
    work = list(zip(task.images, task.where, strict=True))
    try:
        array = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=(len(work), size, size, 3))
        try:
            for i, pixels in enumerate(spread(prepare, work)):
                array[i] = pixels
                if progress is not None and (i % 64 == 63 or i + 1 == len(work)):
                    progress(i + 1, len(work))
            array.flush()
        finally:
            del array  # and with it the map: Windows neither moves nor deletes a file that is mapped
        _check_unchanged(task)  # now, so that it holds for what was changed during the decoding, too
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _make_room(folder: Path, needed: int) -> None:
    """Delete what was not used for longest. A file that another process has mapped lives on until that process ends."""
    entries: list[tuple[float, int, Path]] = []
    for path in folder.glob("*.npy"):
        with suppress(OSError):  # another process has made room, too
            state = path.stat()
            entries.append((state.st_mtime, state.st_size, path))
    total = sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries):
        if total + needed <= CACHE_BYTES:
            break
        with suppress(OSError):  # Windows deletes no file that is mapped
            path.unlink(missing_ok=True)
            total -= size
    free = shutil.disk_usage(folder).free
    if needed > free:  # a full disk would kill the process, as the file is written through memory
        raise InputError(
            f"{folder}: decoded images need {needed / 2**20:.0f} MB, but {free / 2**20:.0f} are free; move AUTOML_TL_HOME"
        )
