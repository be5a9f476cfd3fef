"""What people call the parts of a data set."""

from __future__ import annotations

_NAMES = {"train": ("train", "training"), "validation": ("validation", "val", "valid", "dev"), "test": ("test", "testing")}
SPLITS = {name: split for split, names in _NAMES.items() for name in names}
KNOWN = "train (or training), validation (val, valid, dev) and test (testing)"


def split_of(name: str) -> str | None:
    """The split that is called so, in letters of any size; None: it is not known."""
    return SPLITS.get(name.lower())
