"""Datasets of the Hugging Face library, on disk or by id."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from automl_tl import Listing, hookimpl
from automl_tl.data import class_name
from automl_tl.errors import InputError

from ._splits import KNOWN, split_of

PREFIX = "hf:"


class HuggingFace:
    """A folder that `save_to_disk` wrote, or `hf:NAME` for a dataset of the hub. One image and one class column are needed."""

    name = "huggingface"

    def matches(self, location: Any) -> bool:
        if isinstance(location, str) and location.startswith(PREFIX):
            return True
        if not isinstance(location, (str, Path)):
            return False
        return any((Path(location) / name).exists() for name in ("dataset_info.json", "dataset_dict.json"))

    def open(self, location: Any) -> Listing:
        parts = _load(location)
        images: list[Any] = []
        labels: list[str] = []
        splits: list[str] = []
        where: list[str] = []
        for name, part in parts.items():
            split = split_of(name)
            if split is None:
                raise InputError(f"{location}: split {name!r} is not known; known are {KNOWN}")
            image, label = _columns(part, location)
            names = getattr(part.features[label], "names", None)
            images += [one and (one["bytes"] or one["path"]) for one in _encoded(part, image)]
            labels += [_class(value, names) for value in part[label]]
            splits += [split] * len(part)
            where += [f"{split} row {row}" for row in range(len(part))]
        given = splits if set(splits) != {"train"} else None
        return Listing(Path(str(location).removeprefix(PREFIX)).resolve().name, images, labels, where, given)


def _load(location: Any) -> dict[str, Any]:
    try:
        import datasets
    except ImportError:
        raise InputError(f"{location}: needs the datasets library: pip install 'automl_tl[datasets]'") from None
    try:
        if str(location).startswith(PREFIX):
            found = datasets.load_dataset(str(location).removeprefix(PREFIX))
        else:
            found = datasets.load_from_disk(str(location))
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{location}: cannot be loaded: {(str(error).splitlines() or [type(error).__name__])[0]}") from None
    return dict(found) if isinstance(found, datasets.DatasetDict) else {"train": found}


def _encoded(part: Any, column: str) -> Iterable[Any]:
    """Not decoded: a dataset's images in memory as pixels would take ten times as much."""
    import datasets

    encoded: Iterable[Any] = part.cast_column(column, datasets.Image(decode=False))[column]
    return encoded


def _class(value: Any, names: Sequence[str] | None) -> str:
    """The name of a class; none, which the caller's checks refuse, where there is no label (or -1, by the library's custom)."""
    if value is None or value != value or (names and value < 0):
        return ""
    return names[value] if names else class_name(value)


def _columns(part: Any, location: Any) -> tuple[str, str]:
    import datasets

    images = [name for name, kind in part.features.items() if isinstance(kind, datasets.Image)]
    labels = [name for name, kind in part.features.items() if isinstance(kind, datasets.ClassLabel)]
    labels = labels or [name for name in ("label", "labels", "class") if isinstance(part.features.get(name), datasets.Value)]
    if len(images) != 1 or len(labels) != 1:
        found = ", ".join(part.features)
        raise InputError(f"{location}: needs one image and one class column, but has {found}; a class is a text or number")
    return images[0], labels[0]


@hookimpl
def register_formats() -> list[HuggingFace]:
    return [HuggingFace()]
