"""CLASS/FILE, or SPLIT/CLASS/FILE; images without labels in unlabelled/."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from automl_tl import Listing, hookimpl
from automl_tl.errors import InputError
from automl_tl.images import SUFFIXES, called_images, check_readable, is_hidden, passed_over

from ._splits import KNOWN, split_of

UNLABELLED = ("unlabelled", "unlabeled")


class ImageFolder:
    """A folder for each class, below a folder for each split if there are splits. Hidden files are passed over.

    Images of `unlabelled`, beside the classes or the splits, have no label: they are the split "target".
    """

    name = "image-folder"

    def matches(self, location: Any) -> bool:
        return (
            isinstance(location, (str, Path)) and Path(location).is_dir() and not (Path(location) / "dataset_info.json").exists()
        )

    def open(self, location: Any) -> Listing:
        root = Path(location)
        check_readable(root)
        folders = _folders(root, root)
        if not folders:
            raise InputError(f"{root}: is empty of folders; expected CLASS/FILE or train/CLASS/FILE and test/CLASS/FILE")
        without = [folder for folder in folders if folder.name.lower() in UNLABELLED]
        splits = {folder: split_of(folder.name) for folder in folders if folder not in without}
        if not any(splits.values()):
            return _listing(root, [(root, None)] if splits else [], without)
        strangers = [folder.name for folder, split in splits.items() if split is None]
        if strangers:
            advice = f"keep only {KNOWN} there, or, if all of them are classes, put them into one folder train/"
            raise InputError(f"{root}: has {strangers[0]!r} beside split folders; {advice}")
        return _listing(root, list(splits.items()), without)


def _listing(root: Path, parts: list[tuple[Path, str | None]], without: list[Path]) -> Listing:
    images: list[Path] = []
    labels: list[str] = []
    splits: list[str] = []
    merged: dict[str, list[str]] = {}
    for part, split in parts:
        classes = [folder for folder in _folders(part, root) if folder not in without]
        if not classes:
            advice = f"; move it out of {root}, and give it to `predict`" if split == "test" and _images(part, root) else ""
            raise InputError(f"{part}: has no class folders; expected {part.name}/CLASS/FILE{advice}")
        for folder in classes:
            found = _images(folder, root)
            if not found:
                trained = f"it holds a trained model: move it out of {root}" if any(folder.rglob("model.json")) else ""
                advice = passed_over(folder) or trained or "delete the folder or fill it"
                raise InputError(f"{folder}: is a class without an image; {advice}")
            merged.setdefault(folder.name, []).extend(_inner(folder, found))
            images += found
            labels += [folder.name] * len(found)
            splits += [split or "train"] * len(found)
    for folder in without:
        found = _images(folder, root)
        if not found:
            raise InputError(f"{folder}: has no image; {passed_over(folder) or 'delete the folder or fill it'}")
        images += found
        labels += [""] * len(found)
        splits += ["target"] * len(found)
    where = [str(path.relative_to(root)) for path in images]
    given = splits if without or parts[0][1] else None
    alone = len(merged) == 1 and not given
    warnings = [_beside(folder, root) for folder in dict.fromkeys([root, *(part for part, _ in parts)])]
    warnings += [passed_over(root), *(_said(root, name, inner, alone=alone) for name, inner in merged.items() if inner)]
    return Listing(root.resolve().name, images, labels, where, given, warnings=[warning for warning in warnings if warning])


def _beside(folder: Path, root: Path) -> str:
    """What is said of images that lie beside the folders of `folder` and are of no class; nothing where there are none."""
    count = sum(path.is_file() and path.suffix.lower() in SUFFIXES and not is_hidden(path.name) for path in folder.iterdir())
    files = "1 image was" if count == 1 else f"{count:,} images were"
    place = root.resolve().name if folder == root else folder.relative_to(root)
    return f"{files} left out, directly in {place} and so of no class: put each into the folder of its class" if count else ""


def _inner(folder: Path, found: list[Path]) -> list[str]:
    """Folders in a class's that may be classes themselves: several with images, or one where no image lies beside it."""
    parts = [path.relative_to(folder).parts for path in found]
    inner = sorted({names[0] for names in parts if len(names) > 1})
    return inner if len(inner) > any(len(names) == 1 for names in parts) else []


def _said(root: Path, name: str, inner: list[str], *, alone: bool) -> str:
    several = list(dict.fromkeys(inner))  # once, though they are in each split
    names = ", ".join(several[:3]) + (" …" if len(several) > 3 else "")
    advice = f"did you mean {root / name}?" if alone else "if they are classes, put them beside the others"
    return f"sub-folders of {name!r} ({names}) were merged into one class; {advice}"


def _folders(folder: Path, root: Path) -> list[Path]:
    found = sorted(path for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name))
    for path in found:
        _check_inside(path, root)
    return found


def _images(folder: Path, root: Path) -> list[Path]:
    """Files below `folder` that look like images; links that lead out of the data, or to a folder, are refused."""
    found = []
    for path in called_images(folder):
        _check_inside(path, root)
        if path.is_file():
            found.append(path)
    return found


def _check_inside(path: Path, root: Path) -> None:
    if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(root.resolve()):  # of a loop, resolve() fails
        raise InputError(f"{path}: is a link that leads out of {root}; copy in what it leads to, or remove it")


@hookimpl
def register_formats() -> list[ImageFolder]:
    return [ImageFolder()]
