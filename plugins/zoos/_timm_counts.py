"""What timm's pretrained networks cost, counted on the meta device, and shipped so that nobody has to wait for it.

`python -m automl_tl_plugins.zoos._timm_counts FILE` adds to FILE what the installed timm has and FILE has not.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from automl_tl.errors import ZooError
from automl_tl.home import write_text
from automl_tl.networks import Counts, count

SHIPPED = Path(str(files("automl_tl_plugins.zoos.networks"))) / "timm_architectures.csv"
COLUMNS = ("architecture", "input_size", "params", "macs", "num_features", "left_out", "timm")
Progress = Callable[[int, int], None]


@dataclass(frozen=True, order=True)
class Key:
    """What counts depend on."""

    architecture: str
    input_size: int


@dataclass(frozen=True)
class Counted:
    counts: Counts | None
    left_out: str
    """Why it cannot be a backbone; empty: it can."""
    timm: str
    """The version of timm that was counted with."""


def read(path: Path) -> dict[Key, Counted]:
    found = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            counts = None if row["left_out"] else Counts(int(row["params"]), int(row["macs"]), int(row["num_features"]))
            found[Key(row["architecture"], int(row["input_size"]))] = Counted(counts, row["left_out"], row["timm"])
    return found


def write(path: Path, counted: dict[Key, Counted]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for key in sorted(counted):
        fact = counted[key]
        numbers = (fact.counts.params, fact.counts.macs, fact.counts.num_features) if fact.counts else ("", "", "")
        writer.writerow((key.architecture, key.input_size, *numbers, fact.left_out, fact.timm))
    write_text(path, text.getvalue())


def count_tag(tag: str, *, num_classes: int, input_size: int) -> Counted:
    """About half a second."""
    import timm

    try:
        return Counted(count(tag, {}, num_classes=num_classes, input_size=input_size), "", timm.__version__)
    except ZooError as error:
        return Counted(None, str(error).removeprefix(f"build: {tag} "), timm.__version__)


def pretrained() -> Iterator[tuple[str, Any]]:
    """(Tag, what timm says about it) of every pretrained tag of the installed timm."""
    import timm

    for tag in timm.list_pretrained():
        yield tag, timm.get_pretrained_cfg(tag)


def missing(counted: dict[Key, Counted]) -> Iterator[tuple[Key, str, int]]:
    """(Key, one tag of it, its source classes) of the tags with square inputs that were not counted."""
    seen = set(counted)
    for tag, facts in pretrained():
        _, height, width = facts.input_size
        key = Key(facts.architecture, height)
        if height == width and key not in seen:
            seen.add(key)
            yield key, tag, facts.num_classes


def complete(counted: dict[Key, Counted], progress: Progress | None = None) -> None:
    """Add to `counted` what the installed timm has beyond it."""
    todo = list(missing(counted))
    for done, (key, tag, num_classes) in enumerate(todo, 1):
        counted[key] = count_tag(tag, num_classes=num_classes, input_size=key.input_size)
        if progress is not None:
            progress(done, len(todo))


def main(path: Path) -> None:
    counted = read(path) if path.exists() else {}
    try:
        complete(counted, lambda done, total: print(f"\r{done}/{total}", end="", file=sys.stderr))
    finally:
        write(path, counted)  # also after Ctrl-C: the next call goes on from here


if __name__ == "__main__":
    main(Path(sys.argv[1]))
