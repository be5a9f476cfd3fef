"""A table of paths and labels."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from automl_tl import Listing, hookimpl
from automl_tl.data import class_name
from automl_tl.errors import InputError

from ._splits import KNOWN, split_of

COLUMNS = ("path", "label", "split", "group", "domain")


class Manifest:
    """CSV (comma, semicolon or tab) or Parquet with the columns path, label and, if there are any, split, group, domain.

    Paths are relative to the table's folder and stay inside it. Images without a label are those of the split "target".
    The images come in the order of their paths, as those of a folder do: in another order of the rows they are the same task.
    """

    name = "manifest"

    def matches(self, location: Any) -> bool:
        return isinstance(location, (str, Path)) and Path(location).suffix.lower() in (".csv", ".tsv", ".parquet")

    def open(self, location: Any) -> Listing:
        table = Path(location)
        if not table.is_file():
            raise InputError(f"{table}: does not exist")
        rows = _parquet_rows(table) if table.suffix.lower() == ".parquet" else _csv_rows(table)
        if not rows:
            raise InputError(f"{table}: has no rows")
        root = table.parent.resolve()
        where = [f"{table.name} row {number}: {row['path']}" for number, row in rows.items()]
        cells = list(rows.values())
        images = [_inside(root, row["path"], place) for row, place in zip(cells, where, strict=True)]
        labels = [row["label"] for row in cells]
        splits = _splits(cells, where) if "split" in cells[0] else None
        _check_labels(images, labels, where, splits or ["train"] * len(labels))
        order = sorted(range(len(cells)), key=lambda i: _place(cells[i]))
        columns = {name: [cells[i][name] for i in order] if name in cells[0] else None for name in ("group", "domain")}
        return Listing(
            table.stem,
            [images[i] for i in order],
            [labels[i] for i in order],
            [where[i] for i in order],
            None if splits is None else [splits[i] for i in order],
            columns["group"],
            columns["domain"],
        )


def _place(row: Mapping[str, str]) -> tuple[tuple[str, ...], str]:
    """Key of a row's place among the others: of one image in two splits, the rows are in the order of these."""
    return Path(row["path"].replace("\\", "/")).parts, row.get("split", "")


def _check_labels(images: Sequence[Path], labels: Sequence[str], where: Sequence[str], splits: Sequence[str]) -> None:
    first: dict[Path, tuple[str, str]] = {}
    for image, label, place, split in zip(images, labels, where, splits, strict=True):
        if split == "target":
            continue
        if not label:
            raise InputError(f"{place}: has no label; give it one or remove the row")
        before, there = first.setdefault(image, (label, place))
        if before != label:
            raise InputError(f"{place}: is labelled {label!r}, but {before!r} in {there}; keep one of the rows")


def _splits(rows: Sequence[Mapping[str, str]], where: Sequence[str]) -> list[str]:
    splits = []
    for row, place in zip(rows, where, strict=True):
        name = row["split"] or "train"
        split = "target" if name.lower() == "target" else split_of(name)
        if split is None:
            raise InputError(f"{place}: split {name!r} is not known; known are {KNOWN}")
        splits.append(split)
    return splits


def _inside(root: Path, text: str, where: str) -> Path:
    try:
        if "\\" in text and not (root / text).exists():
            text = text.replace("\\", "/")  # written on Windows
        path = Path(os.path.realpath(root / text))  # of a link to itself, resolve() fails
        there = path.is_file()
    except (OSError, ValueError) as error:  # too long, or with a zero byte
        raise InputError(f"{where[:200]!r}: is not a path: {error.args[-1]}") from None
    if not path.is_relative_to(root):
        raise InputError(f"{where}: lies outside the manifest's folder; paths must stay below {root.name}/")
    if not there:
        raise InputError(f"{where}: there is no such file; paths are relative to the manifest's folder")
    return path


def _csv_rows(table: Path) -> dict[int, dict[str, str]]:
    """Line → what is in it."""
    try:
        text = table.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = error.object[: error.start].count(b"\n") + 1
        raise InputError(f"{table} row {row}: is not UTF-8 text; save the table as UTF-8") from None
    if not text.strip():
        raise InputError(f"{table}: is empty; the first line names the columns: path,label")
    separator = max(",;\t", key=text.splitlines()[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        header = [cell.strip().lower() for cell in next(reader)]
        _check_header(table, header)
        rows = {}
        for line in reader:
            cells = [cell.strip() for cell in line]
            if not any(cells):
                continue
            if len(cells) != len(header):
                raise InputError(
                    f"{table} row {reader.line_num}: has {len(cells)} cells, the header {len(header)}; "
                    f"is {separator!r} the separator throughout?"
                )
            rows[reader.line_num] = {name: cell for name, cell in zip(header, cells, strict=True) if name in COLUMNS}
    except csv.Error as error:
        raise InputError(f"{table} row {reader.line_num}: {error}") from None
    return rows


def _parquet_rows(table: Path) -> dict[int, dict[str, str]]:
    """Number, from 1 → what is in the row."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise InputError(f"{table}: reading Parquet needs pyarrow: pip install 'automl_tl[parquet]'") from None
    try:
        content = parquet.read_table(table)
        content = content.rename_columns([name.strip().lower() for name in content.column_names])
        _check_header(table, content.column_names)
        names = [name for name in COLUMNS if name in content.column_names]
        nested = [name for name in names if pyarrow.types.is_nested(content.schema.field(name).type)]
        if nested:
            raise InputError(f"{table}: column {nested[0]!r} has lists or records; give one text or number a row")
        columns = [[_text(cell, name) for cell in content[name].to_pylist()] for name in names]
    except (pyarrow.ArrowException, OSError, UnicodeError) as error:
        raise InputError(f"{table}: cannot be read as Parquet: {str(error).splitlines()[0]}") from None
    return {number: dict(zip(names, cells, strict=True)) for number, cells in enumerate(zip(*columns, strict=True), 1)}


def _text(cell: Any, column: str) -> str:
    if cell is None or cell != cell:
        return ""
    return (class_name(cell) if column == "label" else str(cell)).strip()


def _check_header(table: Path, header: Sequence[str]) -> None:
    for name in COLUMNS[:2]:
        if name not in header:
            found = ", ".join(map(repr, header))
            raise InputError(f"{table}: has no column {name!r}; its columns are: {found[:200]}")
    twice = [name for name in COLUMNS if header.count(name) > 1]  # of others any number, as of Excel's without a name
    if twice:
        raise InputError(f"{table}: has the column {twice[0]!r} twice")


@hookimpl
def register_formats() -> list[Manifest]:
    return [Manifest()]
