"""Who is trained on, validated on and tested on: splits without the same picture on both sides."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np

from .errors import InputError
from .records import TARGET, TEST, TRAIN, VALIDATION, Listing

ALIKE = 3.0
"""Mean absolute difference (of 255) of two thumbnails below which images are the same picture, saved again."""
ROUNDING = 1e-2
"""Of 255: what single precision may add to a difference."""


def groups_of(listing: Listing, readable: list[int], thumbnails: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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
    steep = np.abs(directions).max(axis=1) if len(directions) == 2 else np.ones(2)
    order = np.delete(np.arange(len(values)), later)
    order = order[np.argsort(along[order], kind="stable")]
    values, along, across = values[order], along[order], across[order]
    blocks = values.reshape(-1, 4, 4, 4, 4).mean(axis=(2, 4)).reshape(-1, 16)
    limits = np.minimum(ALIKE, 0.06 * values.std(axis=1))  # of a pair, the lesser
    reach = steep[:, None] * values.shape[1] * limits + ROUNDING  # however the difference lies: all of it may be in one corner
    ends = np.searchsorted(along, along + reach[0], side="right")
    for i, end in enumerate(ends):
        others = i + 1 + np.flatnonzero(np.abs(across[i + 1 : end] - across[i]) <= reach[1, i])
        others = others[np.abs(blocks[others] - blocks[i]).mean(axis=1) <= limits[i] + ROUNDING]
        if len(others):
            difference = np.abs(values[others] - values[i]).mean(axis=1)
            near = others[difference <= np.minimum(limits[others], limits[i])]
            pairs += [(int(order[i]), int(order[j])) for j in near]
    return pairs


def split_images(
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
        foreign = [classes[label] for label in np.setdiff1d(labels[held], labels[splits[TRAIN]])]
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
    left, inside = Counter(labels[pool].tolist()), defaultdict[int, Counter[int]](Counter)
    for group, label in zip(groups[pool].tolist(), labels[pool].tolist(), strict=True):
        inside[group][label] += 1  # a patient may have images of several classes
    for label in sorted(left):
        members = pool[labels[pool] == label]
        wanted = max(1, round(share * len(members)))
        size_of = {group: inside[group][label] for group in np.unique(groups[members]).tolist()}
        drawn = rng.permutation(list(size_of)).tolist()
        large = sorted((group for group in drawn if size_of[group] > 2 * wanted), key=lambda group: size_of[group])
        for group in [group for group in drawn if group not in large] + large[:1]:
            if group in large and left[label] < len(members):
                break  # a smaller one has gone
            spared = all(left[other] > count for other, count in inside[group].items())
            if len(members) - left[label] < wanted and group not in taken and spared:
                taken.add(group)
                left.subtract(inside[group])
    return np.array([int(i) for i in pool if int(groups[i]) in taken], dtype=np.int64)
