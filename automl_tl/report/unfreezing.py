"""The page about how many layers to unfreeze: three pictures over one axis, a table, and one sentence."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from markupsafe import Markup

from automl_tl.errors import InputError
from automl_tl.home import read_json, write_text
from automl_tl.records import Task
from automl_tl.unfreezing import Study

from .draw import floor_of
from .outcome import pages

WIDTH, PANEL, LEFT, RIGHT, TOP, GAP = 640, 150, 56, 16, 26, 44


def check_free(folder: Path, task: Task) -> None:
    """Worth asking before the work.

    Raises:
        InputError: the folder holds a run, or a study of another kind or of other images.
    """
    for other in ("run.json", "study.json"):
        if (folder / other).exists():
            raise InputError(f"{folder} holds something else ({other}); choose another --out")
    path, remedy = folder / "unfreezing.json", "choose another --out or delete it"
    # studies of earlier versions do not say of which images they are
    if path.exists() and read_json(path, dict, remedy=remedy).get("fingerprint", task.fingerprint) != task.fingerprint:
        raise InputError(f"{folder} holds the study of other images; {remedy}")


def report_study(study: Study, folder: Path) -> Path:
    """Write `unfreezing.json`, `unfreezing.svg` and `unfreezing.html` into `folder`; the page needs nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    picture = draw(study)
    page = pages().get_template("unfreezing.html").render(study=study, picture=picture, sentence=conclusion(study))
    write_text(folder / "unfreezing.json", json.dumps({**asdict(study), "enough": study.enough}, indent=1, ensure_ascii=False))
    write_text(folder / "unfreezing.svg", str(picture))
    write_text(folder / "unfreezing.html", page)
    return folder / "unfreezing.html"


def conclusion(study: Study) -> str:
    """The answer, for a person."""
    chosen, last = study.depths[study.enough], study.depths[-1]
    verb = "are" if study.enough > 1 else "is"
    said = f"{study.enough} of {len(study.groups)} groups of layers" if study.enough else "The head alone"
    best = max(study.depths, key=lambda depth: depth.score)
    share = chosen.seconds / max(last.seconds, 1e-9)
    before, kept, lost = study.depths[0].source, chosen.source, last.source
    source = (
        "" if before is None else f" On the source: {before:.3f} before, {kept:.3f} after that, {lost:.3f} after training all."
    )
    return (
        f"{said} {verb} enough: validation accuracy {chosen.score:.3f}, within one standard error of the best "
        f"({best.score:.3f}, {best.groups} group{'s' * (best.groups != 1)}), at {share:.0%} of the time of training all.{source}"
    )


def draw(study: Study) -> Markup:
    """Accuracy, forgetting and time by depth, as one SVG that stands alone."""
    accuracy = [depth.score for depth in study.depths]
    panels = [("validation accuracy", accuracy, floor_of(accuracy), 1.0)]
    changed = [depth.changed for depth in study.depths if depth.changed is not None]
    if len(changed) == len(accuracy):
        panels.append(("forgetting: share of images that the source head calls otherwise", changed, 0.0, 1.0))
    right = [depth.source for depth in study.depths if depth.source is not None]
    if len(right) == len(accuracy):
        panels.append(("accuracy of the source head on images of the source", right, 0.0, 1.0))
    drift = [depth.drift for depth in study.depths]
    panels.append(("drift of the features, of how much images differ", drift, 0.0, max(*drift, 0.1)))
    seconds = [depth.seconds for depth in study.depths]
    panels.append(("seconds of training", seconds, 0.0, max(seconds)))
    height = TOP + len(panels) * (PANEL + GAP) + 10
    head = Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {0} {1}" width="{0}" role="img" '
        'style="font:12px system-ui,sans-serif;max-width:100%" fill="currentColor" stroke="currentColor" stroke-width="0">'
        "<title>How many layers to unfreeze: {2} on {3}</title>"
    ).format(WIDTH, height, study.backbone, study.task)
    drawn = [_panel(*panel, TOP + number * (PANEL + GAP), study.enough) for number, panel in enumerate(panels)]
    axis = Markup('<text x="{}" y="{}" text-anchor="middle">groups of layers trained, from the top (0: the head alone)</text>')
    return head + Markup("").join(drawn) + axis.format((LEFT + WIDTH - RIGHT) / 2, height - 8) + Markup("</svg>")


def _panel(title: str, values: Sequence[float], low: float, high: float, top: float, marked: int) -> Markup:
    """One line over the depths; the marked depth is the full circle."""
    step = (WIDTH - LEFT - RIGHT) / max(len(values) - 1, 1)
    across = [round(LEFT + step * depth, 1) for depth in range(len(values))]
    down = [round(top + PANEL * (1 - (value - low) / (high - low or 1)), 1) for value in values]
    parts = [Markup('<text x="{}" y="{}" font-weight="600">{}</text>').format(LEFT, top - 10, title)]
    for share in (0.0, 0.5, 1.0):
        y = round(top + PANEL * (1 - share), 1)
        line = Markup('<line x1="{}" x2="{}" y1="{}" y2="{}" stroke-width="1" stroke-opacity="0.2"/>')
        parts.append(line.format(LEFT, WIDTH - RIGHT, y, y))
        label = Markup('<text x="{}" y="{}" text-anchor="end" fill-opacity="0.7">{}</text>')
        parts.append(label.format(LEFT - 6, y + 4, f"{low + share * (high - low):.3g}"))
    points = " ".join(f"{x},{y}" for x, y in zip(across, down, strict=True))
    parts.append(Markup('<polyline fill="none" stroke-width="2" points="{}"/>').format(points))
    for depth, (x, y, value) in enumerate(zip(across, down, values, strict=True)):
        fill = "currentColor" if depth == marked else "Canvas"
        circle = Markup('<circle cx="{}" cy="{}" r="5" fill="{}" stroke-width="2"><title>{}: {}</title></circle>')
        parts.append(circle.format(x, y, fill, depth, f"{value:.3g}"))
        parts.append(Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(x, top + PANEL + 16, depth))
    return Markup("").join(parts)
