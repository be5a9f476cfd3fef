"""Pictures as SVG text: they scale, print, follow the page's colours and are readable without colour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from automl_tl.evaluation.calibration import Bin

WIDTH, HEIGHT = 720, 320
LEFT, RIGHT, TOP, BOTTOM = 46, 70, 14, 38
DASHES = ("", "7 4", "2 3", "9 3 2 3", "12 5", "1 5")


@dataclass(frozen=True)
class Line:
    """A learning curve."""

    label: str
    points: Sequence[tuple[float, float]]
    """Epoch, score 0–1."""
    winner: bool = False


def learning_curves(lines: Sequence[Line]) -> Markup:
    """Validation accuracy by epoch. Each line has its own dash and its number at its end; the winner is the thick one."""
    lines = [line for line in lines if line.points]
    last = max((x for line in lines for x, _ in line.points), default=1.0) or 1.0
    lowest = min((y for line in lines for _, y in line.points), default=0.0)
    low = max(0.0, 0.1 * int(10 * lowest))

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (WIDTH - LEFT - RIGHT) * x / last
        down = TOP + (HEIGHT - TOP - BOTTOM) * (1 - (y - low) / (1 - low or 1))
        return round(across, 1), round(down, 1)

    parts = [_grid(last, low, place(0, low)[1])]
    taken: list[float] = []
    for number, line in enumerate(sorted(lines, key=lambda line: line.winner)):
        path = [place(x, y) for x, y in line.points]
        kind = "curve winner" if line.winner else "curve"
        dash = "" if line.winner else DASHES[number % len(DASHES)]
        if len(path) > 1:
            steps = " ".join(f"{x},{y}" for x, y in path)
            parts.append(Markup('<polyline class="{}" stroke-dasharray="{}" points="{}"/>').format(kind, dash, steps))
        x, y = path[-1]
        parts.append(Markup('<circle class="{}" cx="{}" cy="{}" r="{}"/>').format(kind, x, y, 4 if line.winner else 3))
        parts.append(Markup('<text x="{}" y="{}">{}</text>').format(x + 7, _free(y + 4, taken), line.label))
    title = "Learning curves: validation accuracy by epoch"
    return _svg(title, f"{len(lines)} trials; the table of trials gives the same figures.", parts)


def _free(y: float, taken: list[float]) -> float:
    """A height near `y` where no label stands yet."""
    for shift in (0, 11, -11, 22, -22, 33, -33, 44, -44):
        if all(abs(y + shift - other) >= 11 for other in taken):
            taken.append(y + shift)
            return y + shift
    return y


def _grid(last: float, low: float, floor: float) -> Markup:
    lines = []
    for step in range(6):
        value = low + (1 - low) * step / 5
        y = round(TOP + (floor - TOP) * (1 - step / 5), 1)
        lines.append(Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(LEFT, WIDTH - RIGHT, y, y))
        lines.append(Markup('<text class="end" x="{}" y="{}">{}</text>').format(LEFT - 6, y + 4, f"{value:.2f}"))
    for step in range(5):
        epoch = last * step / 4
        x = round(LEFT + (WIDTH - LEFT - RIGHT) * step / 4, 1)
        lines.append(Markup('<text class="middle" x="{}" y="{}">{}</text>').format(x, floor + 16, f"{epoch:.3g}"))
    middle = (LEFT + WIDTH - RIGHT) / 2
    lines.append(Markup('<text class="middle" x="{}" y="{}">epoch</text>').format(middle, floor + 32))
    return Markup("").join(lines)


def reliability_diagram(bins: Sequence[Bin]) -> Markup:
    """Accuracy by confidence. On the diagonal, a confidence of 0.8 is right four times in five."""
    size = HEIGHT - TOP - BOTTOM
    most = max((one.count for one in bins), default=1)
    floor = TOP + size
    parts = [Markup('<line class="grid" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(LEFT, floor, LEFT + size, TOP)]
    for one in bins:
        x, width = LEFT + size * one.low, size * (one.high - one.low)
        height = round(size * one.accuracy, 1)
        shade = round(0.25 + 0.75 * one.count / most, 2)
        said = f"confidence {one.low:.2f}–{one.high:.2f}: {one.count} images, {one.accuracy:.2f} right"
        shape = (round(x + 1, 1), round(floor - height, 1), round(width - 2, 1), height, shade)
        bar = Markup('<rect class="bar" x="{}" y="{}" width="{}" height="{}" fill-opacity="{}"><title>{}</title></rect>')
        parts.append(bar.format(*shape, said))
    for step in range(6):
        along, value = size * step / 5, f"{step / 5:.1f}"
        parts.append(Markup('<text class="middle" x="{}" y="{}">{}</text>').format(LEFT + along, floor + 16, value))
        parts.append(Markup('<text class="end" x="{}" y="{}">{}</text>').format(LEFT - 6, floor - along + 4, value))
    parts.append(Markup('<text class="middle" x="{}" y="{}">confidence</text>').format(LEFT + size / 2, floor + 32))
    return _svg("Reliability: share of right predictions by confidence", "", parts, width=LEFT + size + 12)


def _svg(title: str, description: str, parts: Sequence[Markup], *, width: int = WIDTH) -> Markup:
    head = Markup('<svg viewBox="0 0 {} {}" role="img" style="max-width:{}px"><title>{}</title><desc>{}</desc>')
    opened = head.format(width, HEIGHT, width, title, escape(description))
    return opened + Markup("").join(parts) + Markup("</svg>")
