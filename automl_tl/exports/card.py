"""The model card: what a stranger must know before using the model.

No path of this machine and no name of a file is in it, but the task's name, which is that of its folder or manifest.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from automl_tl import model
from automl_tl.cards import sha256
from automl_tl.evaluation.classification import accuracy_interval
from automl_tl.home import read_json
from automl_tl.model import Model
from automl_tl.progress import read_trials
from automl_tl.records import CROP_MODES

MOST_CLASSES = 100
"""Names that the card lists; config.json has all."""
HUB_LICENCES = frozenset(
    ("apache-2.0", "mit", "bsd-3-clause", "bsd-2-clause", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc0-1.0", "gpl-3.0")
)
"""Names that the hub's front matter takes as they are; others are given as `license_name`."""

SETTINGS = frozenset(
    (
        *("--budget", "--trials", "--skew", "--robust", "--shots", "--zoo", "--strategy", "--backbone", "--tracker"),
        *("--remember", "--exemplars", "--seed"),
    )
)
"""Options of `fit` with a number or the name of something installed."""
PLACES = frozenset(("--out", "--source", "--after", "--keep", "--clients", "--ray", "--json"))
"""Its other options: of places, or without a value."""


def write_card(run: Path, trained: Model, *, repository: str | None = None) -> str:
    """Markdown with the hub's front matter, of the run in `run` (the profile of the data is left out where it is not there)."""
    loader = PackageLoader("automl_tl.exports", ".")
    environment = Environment(loader=loader, autoescape=False, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"plain": plain, "figure": _figure}
    licence = trained.backbone.licence
    return environment.get_template("card.md").render(
        backbone=trained.backbone,
        candidate=trained.candidate,
        classes=trained.classes[:MOST_CLASSES],
        more_classes=max(len(trained.classes) - MOST_CLASSES, 0),
        facts={"task": "", "provenance": {}, "trial": "", "fingerprint": "", "images": {}, **trained.facts},
        front=_front(trained),
        licence=licence or "not stated",
        profile=_profile(run),
        training=_training(run, trained),
        scores=_scores(trained.facts),
        sides=CROP_MODES[trained.backbone.crop_mode],
        command=without_paths(str(trained.facts.get("provenance", {}).get("command", ""))),
        digest=sha256(model.model_folder(run) / model.WEIGHTS),
        where=f"hf-hub:{repository}" if repository else "local-dir:FOLDER",
    )


def plain(text: object) -> str:
    """Somebody's words on one line, with nothing that Markdown, HTML or a table would read."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(str(text).split())).replace("\\<", "&lt;").replace("\\>", "&gt;")


def without_paths(command: str) -> str:
    """A `fit` as somebody else could type it: PATH for every word that may say where files lie or what they are called.

    Nothing of another program's command, whose words nobody here understands, nor of one with an open quote, which has none.
    """
    try:
        words = shlex.split(command)
    except ValueError:
        return ""
    if words[:2] != ["automl-tl", "fit"]:
        return ""
    shown = words[:2]
    for before, word in itertools.pairwise(words[1:]):
        option, equals, _ = word.partition("=")
        if option in PLACES and equals:
            shown.append(f"{option}=PATH")
        elif option in SETTINGS | PLACES or before in SETTINGS:
            shown.append(word)
        else:
            shown.append("PATH")
    return shlex.join(shown)


def _front(trained: Model) -> list[tuple[str, str]]:
    """Of the hub; JSON values are YAML values."""
    b, licence = trained.backbone, trained.backbone.licence.lower()
    front: list[tuple[str, Any]] = [("library_name", "timm"), ("pipeline_tag", "image-classification")]
    front.append(("tags", ["timm", "image-classification", "automl_tl"]))
    front.append(("license", licence if licence in HUB_LICENCES else "other"))
    if licence not in HUB_LICENCES:
        front.append(("license_name", licence or "unknown"))
    if re.fullmatch(r"[\w.-]+/[\w.-]+", b.weights) and b.zoo == "timm":
        front.append(("base_model", b.weights))
    return [(name, json.dumps(value)) for name, value in front]


def _profile(run: Path) -> dict[str, Any] | None:
    """What was measured of the data, and how far it is from what the networks were trained on, closest first."""
    path = run / "advice.json"
    if not path.exists():
        return None
    profile = read_json(path, lambda facts: facts["profile"], remedy="delete it, and the card says nothing of the data")
    distances = {source: found["frechet"] for source, found in profile["distances"].items() if "frechet" in found}
    return {
        "meta": {name.replace("_", " "): value for name, value in profile["meta"].items() if math.isfinite(value)},
        "distances": sorted(distances.items(), key=lambda pair: pair[1]),
        "warnings": len(profile["warnings"]),
    }


def _training(run: Path, trained: Model) -> dict[str, Any]:
    """What the winner's training took, and among how many it was chosen."""
    found = read_trials(run)
    winner = next((trial for trial in found if trial.id == trained.facts.get("trial")), None)
    if winner is None:
        return {"trials": len(found), "seconds": None, "epochs": None, "seed": None}
    epochs = winner.curve[-1].epoch if winner.curve else None
    return {"trials": len(found), "seconds": winner.seconds, "epochs": epochs, "seed": winner.seed}


def _scores(facts: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, float, tuple[float, float] | None]]]]:
    """split → (score, value, 95 % interval where it can be told from the value and the number of images)."""
    tables = []
    for split in ("test", "validation"):
        scores, count = facts.get(split) or {}, int(facts.get("images", {}).get(split, 0))
        rows = []
        for name, value in scores.items():
            interval = accuracy_interval(round(value * count), count) if name == "accuracy" and count else None
            rows.append((name.replace("_", " "), value, interval))
        if rows:
            tables.append((f"{count} {split} images" if count else f"{split} images", rows))
    return tables


def _figure(value: float) -> str:
    return f"{value:.3f}" if 0.001 <= abs(value) < 10 else f"{value:.4g}"
