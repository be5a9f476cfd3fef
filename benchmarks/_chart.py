"""A line chart as SVG: each line's name stands at its end, in its colour, so that there is no legend to look up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 360, 48, 232, 44, 52
APART = 17
"""Pixels between names of lines that end near each other."""
INK, OURS, OTHERS = "#1f2d3d", "#b3261e", ("#1f5fa8", "#5f6b76", "#8a6d00")


@dataclass(frozen=True)
class Line:
    """Ours is thick and comes first."""

    name: str
    points: Sequence[tuple[float, float]]


def chart(title: str, across: str, lines: Sequence[Line], ticks: Sequence[tuple[float, str]], *, note: str = "") -> str:
    """`lines` over `ticks` (place and text, first and last at the edges), from 0 up; `across` names the axis."""
    first, last = ticks[0][0], ticks[-1][0]
    marks = _marks(max(y for line in lines for _, y in line.points))
    right, floor = WIDTH - RIGHT, HEIGHT - BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        return round(LEFT + (right - LEFT) * (x - first) / (last - first), 1), round(floor - (floor - TOP) * y / marks[-1], 1)

    parts = [Markup('<text x="0" y="18" font-weight="bold" font-size="15">{}</text>').format(title)]
    parts.append(Markup('<text x="{}" y="18" text-anchor="end" fill="{}">{}</text>').format(WIDTH, OTHERS[1], note))
    for mark in marks:
        y = place(first, mark)[1]
        colour = INK if mark == 0 else "#d8dde2"
        parts.append(Markup('<line x1="{}" x2="{}" y1="{}" y2="{}" stroke="{}"/>').format(LEFT, right, y, y, colour))
        parts.append(Markup('<text x="{}" y="{}" text-anchor="end">{:g}</text>').format(LEFT - 8, y + 4, mark))
    for x, text in ticks:
        at = place(x, 0)[0]
        parts.append(Markup('<line x1="{}" x2="{}" y1="{}" y2="{}" stroke="{}"/>').format(at, at, floor, floor + 5, INK))
        parts.append(Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(at, floor + 20, text))
    parts.append(Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format((LEFT + right) / 2, HEIGHT - 10, across))
    colours = dict(zip((line.name for line in lines), (OURS, *OTHERS), strict=False))
    below, base = -math.inf, len(parts)
    for line in sorted(lines, key=lambda line: -line.points[-1][1]):
        end = place(*line.points[-1])[1]
        below = max(end, below + APART)
        colour, width, weight = colours[line.name], *((3, "bold") if line is lines[0] else (1.8, "normal"))
        path = " ".join(f"{x},{y}" for x, y in (place(*point) for point in line.points))
        drawn = '<polyline points="{}" fill="none" stroke="{}" stroke-width="{}" stroke-linejoin="round"/>'
        parts.insert(len(parts) if line is lines[0] else base, Markup(drawn).format(path, colour, width))
        hook = '<polyline points="{},{} {},{}" fill="none" stroke="{}"/>'
        parts.append(Markup(hook).format(right + 2, end, right + 10, below, colour))
        text = '<text x="{}" y="{}" fill="{}" font-weight="{}">{}</text>'
        parts.append(Markup(text).format(right + 14, below + 4, colour, weight, line.name))
    head = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="-8 -6 {} {}" font-family="sans-serif" font-size="13" fill="{}">'
    opening = Markup(head + '<title>{}</title><rect x="-8" y="-6" width="100%" height="100%" fill="white"/>')
    return str(opening.format(WIDTH + 16, HEIGHT + 12, INK, title) + Markup("").join(parts) + Markup("</svg>\n"))


def _marks(most: float) -> list[float]:
    """Round numbers from 0 to above `most`, seven at most."""
    rough = most / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(step * power for step in (1, 2, 5, 10) if step * power >= rough)
    return [round(step * index, 10) for index in range(math.ceil(most / step - 1e-9) + 1)]
