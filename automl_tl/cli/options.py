"""Arguments and options that several commands share, and how a place of images is read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

Images = Annotated[str, typer.Argument(help="Image folder, CSV, TSV or Parquet manifest, hf:DATASET, or 'digits'.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of tables.")]
Seed = Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Decides the split, the ranking, the training.")]
ZooName = Annotated[str | None, typer.Option("--zoo", help="Also consider the networks of this zoo, such as 'timm'.")]
RayAddress = Annotated[
    str | None,
    typer.Option("--ray", metavar="ADDRESS", help="Spread the work over a Ray cluster: local, auto or HOST:PORT."),
]


def location(text: str) -> Any:
    """Paths as paths; names that a reader knows ("digits", "hf:…", "formula:…") as they are."""
    return text if text == "digits" or text.startswith(("hf:", "formula:")) else Path(text)
