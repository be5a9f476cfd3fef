"""Pictures as SVG text: they scale, print, follow the page's colours and are readable without colour."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

from automl_tl.evaluation.calibration import Bin

WIDTH, HEIGHT = 560, 330
LEFT, RIGHT, TOP, BOTTOM = 46, 44, 14, 44
LETTER = 13
"""Height of a line of text."""
EPOCHS = (0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
"""Steps of an axis."""
LABEL = 28
"""Width of a short label."""
LABELLED = (HEIGHT - TOP - BOTTOM) // LETTER
"""Lines that are told by name, the best: more would not stand one below the other inside the picture."""
DASHES = ("", "7 4", "2 3", "9 3 2 3", "12 5", "1 5")


@dataclass(frozen=True)
class Line:
    """A learning curve."""

    label: str
    points: Sequence[tuple[float, float]]
    """Epoch, score 0–1."""
    winner: bool = False


@dataclass(frozen=True)
class Dot:
    """A trial among others."""

    label: str
    x: float
    """Above 0."""
    y: float
    """Score 0–1."""
    front: bool
    winner: bool = False


@dataclass(frozen=True)
class Law:
    """Runs, the curve fitted to them, and where that curve might as well lie."""

    label: str
    runs: Sequence[tuple[float, float]]
    """Images, score 0–1."""
    curve: Sequence[tuple[float, float]]
    low: Sequence[tuple[float, float]]
    high: Sequence[tuple[float, float]]


Place = Callable[[float, float], tuple[float, float]]


def learning_curves(lines: Sequence[Line], measure: str = "accuracy") -> Markup:
    """Validation `measure` by epoch. Each line has its own dash and its number at its end; the winner is the thick one."""
    lines = [line for line in lines if line.points]
    last = max((x for line in lines for x, _ in line.points), default=1.0) or 1.0
    low = floor_of([y for line in lines for _, y in line.points])
    place = _placing(lambda x: x / last, low)
    step = next((size for size in EPOCHS if size * 6 >= last), last / 6)
    ticks = [step * number for number in range(int(last / step + 1e-9) + 1)]
    parts = [_heights(low), _below([(x, f"{x:g}") for x in ticks], place, low, "epoch")]
    ends: list[tuple[float, float, Line]] = []
    for number, line in enumerate(sorted(lines, key=lambda line: line.winner)):
        path = [place(x, y) for x, y in line.points]
        kind = "curve winner" if line.winner else "curve"
        dash = "" if line.winner else DASHES[number % len(DASHES)]
        if len(path) > 1:
            parts.append(Markup('<polyline class="{}" stroke-dasharray="{}" points="{}"/>').format(kind, dash, _joined(path)))
        x, y = path[-1]
        parts.append(Markup('<circle class="{}" cx="{}" cy="{}" r="{}"/>').format(kind, x, y, 4 if line.winner else 3))
        ends.append((x, y, line))
    ends = sorted(ends, key=lambda end: (not end[2].winner, end[1]))[:LABELLED]
    for (x, _, line), y in zip(ends, _apart([(x, y) for x, y, _ in ends]), strict=True):
        parts.append(_text(x + 7, y + 4, line.label, "strong" if line.winner else ""))
    title = f"Learning curves: validation {measure} by epoch"
    return _svg(title, f"{len(lines)} trials; the table of trials gives the same figures.", parts)


def trade_off(dots: Sequence[Dot], along: str, measure: str = "accuracy") -> Markup:
    """Validation `measure` by a cost. Full dots are on the Pareto front of all costs, hollow ones not; the winner has a ring."""
    low, high = _decade([dot.x for dot in dots])
    floor = floor_of([dot.y for dot in dots])
    place = _placing(lambda x: math.log(max(x, low) / low) / math.log(high / low), floor)
    parts = [_heights(floor), _below([(x, f"{x:g}") for x in _ticks(low, high)], place, floor, along)]
    spots = [place(dot.x, dot.y) for dot in dots]
    labels: list[tuple[float, float]] = []
    for dot in sorted(dots, key=lambda dot: (not dot.winner, not dot.front)):
        x, y = place(dot.x, dot.y)
        parts.append(Markup('<circle class="{}" cx="{}" cy="{}" r="5"/>').format("dot" if dot.front else "dot beaten", x, y))
        if dot.winner:
            parts.append(Markup('<circle class="ring" cx="{}" cy="{}" r="9"/>').format(x, y))
        beside = [(x + across, y + down) for down in (0, -14, 14, -28, 28, -42, 42) for across in (22, -22)]
        beside[2:2] = [(x, y - 17), (x, y + 17)]
        free = (spot for spot in beside if not (_meets(spot, spots, 17) or _meets(spot, labels, LABEL)))
        middle = next(free, beside[0])
        labels.append(middle)
        parts.append(_text(middle[0], middle[1] + 4, dot.label, "middle strong" if dot.winner else "middle"))
    told = "Full dots: no other trial is better in everything. Hollow dots: beaten by another."
    return _svg(f"Validation {measure} by {along}", told, parts)


def scatter(groups: Mapping[str, np.ndarray], title: str = "t-SNE of the task's images among those of the sources") -> Markup:
    """Points of the plane (0–1), each group with a mark of its own; the first group is full and on top."""
    side = HEIGHT
    marks = []
    for number, (name, points) in enumerate(groups.items()):
        drawn = " ".join(_mark(number, 12 + x * (side - 24), 12 + y * (side - 24)) for x, y in points.tolist())
        kind = "mark own" if number == 0 else "mark"
        marks.append(Markup('<path class="{}" d="{}"/>').format(kind, drawn))
        middle = TOP + 10 + number * 22
        marks.append(Markup('<path class="{}" d="{}"/>').format(kind, _mark(number, side + 20, middle)))
        marks.append(_text(side + 32, middle + 4, f"{name} ({len(points)})", "strong" if number == 0 else ""))
    told = "; ".join(f"{name}: {len(points)} images" for name, points in groups.items())
    return _svg(title, told, marks[3:] + marks[:3])


def laws(found: Sequence[Law]) -> Markup:
    """Score by the number of training images: runs as marks, fitted curves as lines, bootstrap bands as areas."""
    low, high = _decade([x for law in found for x, _ in law.runs])
    floor = floor_of([y for law in found for _, y in law.runs])
    place = _placing(lambda x: math.log(x / low) / math.log(high / low), floor)
    parts = [_heights(floor), _below([(x, f"{x:g}") for x in _ticks(low, high)], place, floor, "training images")]
    anchors: list[tuple[float, float]] = []
    for number, law in enumerate(found):
        band = [place(*point) for point in law.low] + [place(*point) for point in reversed(law.high)]
        parts.append(Markup('<polygon class="band{}" points="{}"/>').format("" if number == 0 else " other", _joined(band)))
        path = [place(*point) for point in law.curve]
        kind, dash = ("curve winner", "") if number == 0 else ("curve", "7 4")
        parts.append(Markup('<polyline class="{}" stroke-dasharray="{}" points="{}"/>').format(kind, dash, _joined(path)))
        marks = " ".join(_mark(number, *place(x, y)) for x, y in law.runs)
        parts.append(Markup('<path class="{}" d="{}"/>').format("mark own" if number == 0 else "mark", marks))
        x, y = path[len(path) // 2]
        anchors.append((x + 8, y + (-8 if number == 0 else 22)))
    for law, (x, _), y in zip(found, anchors, _apart(anchors), strict=True):
        parts.append(_text(x, y, law.label, "strong"))
    return _svg("Score by the number of training images", "; ".join(law.label for law in found), parts)


def reliability_diagram(bins: Sequence[Bin]) -> Markup:
    """Accuracy by confidence. On the diagonal, a confidence of 0.8 is right four times in five."""
    size = HEIGHT - TOP - BOTTOM
    most = max((one.count for one in bins), default=1)
    floor = TOP + size
    parts = []
    for one in bins:
        x, width = LEFT + size * one.low, size * (one.high - one.low)
        height = round(size * one.accuracy, 1)
        shade = round(0.25 + 0.75 * one.count / most, 2)
        said = f"confidence {one.low:.2f}–{one.high:.2f}: {one.count} images, {one.accuracy:.2f} right"
        shape = (round(x + 1, 1), round(floor - height, 1), round(width - 2, 1), height, shade)
        bar = Markup('<rect class="bar" x="{}" y="{}" width="{}" height="{}" fill-opacity="{}"><title>{}</title></rect>')
        parts.append(bar.format(*shape, said))
    parts.append(Markup('<line class="ideal" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(LEFT, floor, LEFT + size, TOP))
    for step in range(6):
        along, value = size * step / 5, f"{step / 5:.1f}"
        parts.append(_text(LEFT + along, floor + 17, value, "middle"))
        parts.append(_text(LEFT - 6, floor - along + 4, value, "end"))
    parts.append(_text(LEFT + size / 2, floor + 36, "confidence", "middle"))
    return _svg("Reliability: share of right predictions by confidence", "", parts, width=LEFT + size + 16)


# Axes


def floor_of(scores: Sequence[float]) -> float:
    """A tenth at or below the lowest score: where the axis starts."""
    return max(0.0, min(0.9, math.floor(10 * min(scores, default=0.0) + 1e-9) / 10))


def _placing(across: Callable[[float], float], low: float) -> Place:
    """From (x, score) to the picture, for scores from `low` to 1 and an `across` that brings x to 0–1."""

    def place(x: float, y: float) -> tuple[float, float]:
        down = TOP + (HEIGHT - TOP - BOTTOM) * (1 - (y - low) / (1 - low))
        return round(LEFT + (WIDTH - LEFT - RIGHT) * across(x), 1), round(min(down, HEIGHT - BOTTOM), 1)

    return place


def _heights(low: float) -> Markup:
    """Lines across, with their scores."""
    place = _placing(lambda x: x, low)
    lines = []
    step = 0.02 if low >= 0.9 else 0.1 if low >= 0.5 else 0.2
    for number in range(int((1 - low) / step + 1e-9) + 1):
        value = 1 - number * step
        _, y = place(0, value)
        lines.append(Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(LEFT, WIDTH - RIGHT, y, y))
        lines.append(_text(LEFT - 6, y + 4, f"{value:.{2 if step < 0.1 else 1}f}", "end"))
    return Markup("").join(lines)


def _below(ticks: Sequence[tuple[float, str]], place: Place, low: float, along: str) -> Markup:
    floor = HEIGHT - BOTTOM
    lines = [_text(place(x, low)[0], floor + 17, label, "middle") for x, label in ticks]
    return Markup("").join([*lines, _text((LEFT + WIDTH - RIGHT) / 2, floor + 36, along, "middle")])


def _ticks(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, … between the ends, of which there are few enough to read; 3, 4, 6, 7, 8, too, where the ends are close."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for heads in ((1, 2, 5), (1, 2, 3, 4, 5, 6, 7, 8)):
        steps = [float(f"{head * 10.0**decade:.3g}") for decade in decades for head in heads]
        inside = [step for step in steps if low <= step * 1.0001 and step <= high * 1.0001]
        if len(inside) >= 3:
            break
    if len(inside) < 2:
        inside = [float(f"{value:.2g}") for value in np.geomspace(low, high, 5)[1:4]]
    return inside if len(inside) <= 8 else inside[:: math.ceil(len(inside) / 8)]


def _decade(values: Sequence[float]) -> tuple[float, float]:
    """Ends of a logarithmic axis with room on both sides."""
    low, high = min(values, default=1.0), max(values, default=1.0)
    low = max(low, high * 1e-6, 1e-9)
    high = max(high, low)
    room = max(1.25, (high / low) ** 0.08)
    return low / room, high * room


def _meets(spot: tuple[float, float], others: Sequence[tuple[float, float]], width: float) -> bool:
    """Whether a label with its middle there would touch any of what is `width` wide and as high as a line."""
    return any(abs(spot[0] - x) < width and abs(spot[1] - y) < LETTER for x, y in others)


def _apart(ends: Sequence[tuple[float, float]]) -> list[float]:
    """Heights of the labels of points, in their order: none over another, all inside the picture, the higher point's above."""
    heights = [y for _, y in ends]
    columns: dict[float, list[int]] = {}
    for index in sorted(range(len(ends)), key=lambda index: ends[index]):
        x = next((x for x in columns if ends[index][0] - x < LABEL), ends[index][0])
        columns.setdefault(x, []).append(index)
    for column in columns.values():
        above: float = TOP - LETTER
        for below, index in zip(range(len(column) - 1, -1, -1), sorted(column, key=lambda index: ends[index][1]), strict=True):
            room = HEIGHT - BOTTOM - LETTER * below
            heights[index] = above = max(above + LETTER, min(heights[index], room))
    return heights


def _mark(kind: int, x: float, y: float, size: float = 3.6) -> str:
    """A small shape as a path: disc, square, triangle, cross, diamond, plus."""
    r, x, y = size, round(x, 1), round(y, 1)
    return (
        f"M{x - r:.1f} {y}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0z",
        f"M{x - r:.1f} {y - r:.1f}h{2 * r}v{2 * r}h{-2 * r}z",
        f"M{x} {y - r:.1f}l{r} {2 * r}h{-2 * r}z",
        f"M{x - r:.1f} {y - r:.1f}l{2 * r} {2 * r}m0 {-2 * r}l{-2 * r} {2 * r}",
        f"M{x} {y - r - 1:.1f}l{r + 1:.1f} {r + 1:.1f}l{-r - 1:.1f} {r + 1:.1f}l{-r - 1:.1f} {-r - 1:.1f}z",
        f"M{x - r:.1f} {y}h{2 * r}m{-r} {-r}v{2 * r}",
    )[kind % 6]


def _joined(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x},{y}" for x, y in points)


def _text(x: float, y: float, text: str, kind: str = "") -> Markup:
    return Markup('<text class="{}" x="{}" y="{}">{}</text>').format(kind, round(x, 1), round(y, 1), text)


def _svg(title: str, description: str, parts: Sequence[Markup], *, width: int = WIDTH) -> Markup:
    head = Markup('<svg viewBox="0 0 {} {}" role="img" style="max-width:{}px"><title>{}</title><desc>{}</desc>')
    opened = head.format(width, HEIGHT, width, title, escape(description))
    return opened + Markup("").join(parts) + Markup("</svg>")
