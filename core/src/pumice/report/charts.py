"""Charts as inline SVG. Each is a function of plain numbers to markup; colours come from the page's style by class.

Every chart has a `role` and a label that says in words what it shows, and takes the width it is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import attrs
from markupsafe import Markup, escape


def pair_of_bars(before: float, after: float, label: str) -> Markup:
    """Two horizontal bars, to scale from zero."""
    top = max(before, after, 1e-30)
    rows = [("before", before, 0), ("after", after, 9)]
    bars = Markup().join(
        Markup('<rect class="{}" x="0" y="{}" width="{:.2f}" height="6" rx="1.5"/>').format(kind, y, 100 * value / top)
        for kind, value, y in rows
    )
    return _svg(100, 15, label, bars, stretch=True)


def pair_of_intervals(before: tuple[float, float, float], after: tuple[float, float, float], label: str) -> Markup:
    """Two points with their intervals (low, value, high) on one scale."""
    low, high = min(before[0], after[0]), max(before[2], after[2])
    room = (high - low) * 0.08 or abs(high) * 0.05 or 1.0
    low, high = low - room, high + room

    def at(value: float) -> float:
        return 100 * (value - low) / (high - low)

    mark = Markup(
        '<line class="{0}" x1="{1:.2f}" x2="{2:.2f}" y1="{3}" y2="{3}"/>'
        '<rect class="{0}" x="{4:.2f}" y="{5}" width="1.6" height="6"/>'
    )
    marks = Markup().join(
        mark.format(kind, at(point[0]), at(point[2]), y, at(point[1]) - 0.8, y - 3)
        for kind, point, y in (("before", before, 3.5), ("after", after, 11.5))
    )
    return _svg(100, 15, label, marks, stretch=True)


def histogram(
    edges: Sequence[float], before: Sequence[int], after: Sequence[int], label: str, grid: Sequence[float] = ()
) -> Markup:
    """Counts of both models over the same bins on a square-root scale: the original filled, the compressed as line.

    The quantization grid stands below as ticks.
    """
    width, height, floor = 320.0, 120.0, 102.0
    top = math.sqrt(max(*before, *after, 1))
    step = width / len(before)

    def y(count: int) -> float:
        return floor - (floor - 4) * math.sqrt(count) / top

    filled = Markup().join(
        Markup('<rect class="before" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>').format(
            i * step, y(count), max(step - 0.6, 0.5), floor - y(count)
        )
        for i, count in enumerate(before)
        if count
    )
    path = "".join(
        f"{'M' if i == 0 else 'L'}{i * step:.1f} {y(c):.1f}H{(i + 1) * step:.1f}" for i, c in enumerate(after)
    )
    line = Markup('<path class="after" d="{}"/>').format(path)
    axis = Markup('<line class="axis" x1="0" x2="{0}" y1="{1}" y2="{1}"/>').format(width, floor)
    ends = _text(0, 115, _short(edges[0]), "start") + _text(width, 115, _short(edges[-1]), "end")
    zero = Markup()
    if edges[0] < 0 < edges[-1]:
        x = width * -edges[0] / (edges[-1] - edges[0])
        zero = Markup('<line class="grid" x1="{0:.1f}" x2="{0:.1f}" y1="0" y2="{1}"/>').format(x, floor)
        if width * 0.2 < x < width * 0.8:
            ends += _text(x, 115, "0", "middle")
    scale = width / (edges[-1] - edges[0])
    ticks = "".join(f"M{(level - edges[0]) * scale:.1f} {floor}v4" for level in grid)
    levels = Markup('<path class="levels" d="{}"/>').format(ticks) if ticks else Markup()
    return _svg(width, height, label, zero + filled + line + axis + levels + ends)


def depth(names: Sequence[str], weights: Sequence[float | None], outputs: Sequence[float | None], label: str) -> Markup:
    """Decibels along the network: one column a layer, weights as rings, outputs as a line of dots."""
    width, height, left, floor, ceiling = 900.0, 220.0, 44.0, 190.0, 10.0
    values = [v for v in (*weights, *outputs) if v is not None]
    top = min(max([40.0, *(math.ceil(v / 10) * 10 for v in values)]), 100.0)
    step = (width - left - 10) / max(len(names), 1)

    def x(index: int) -> float:
        return left + step * (index + 0.5)

    def y(value: float) -> float:
        return floor - (floor - ceiling) * min(max(value, 0.0), top) / top

    grid = Markup()
    for level in range(0, int(top) + 1, 10 if top <= 60 else 20):
        grid += Markup('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(
            left, width, y(level), y(level)
        )
        grid += _text(left - 6, y(level) + 3.5, f"{level}", "end")
    poor = Markup('<line class="limit" x1="{0}" x2="{1}" y1="{2:.1f}" y2="{2:.1f}"/>').format(left, width, y(20))
    shown = [(i, v) for i, v in enumerate(outputs) if v is not None]
    path = "".join(f"{'M' if k == 0 else 'L'}{x(i):.1f} {y(v):.1f}" for k, (i, v) in enumerate(shown))
    line = Markup('<path class="after" d="{}"/>').format(path) if path else Markup()
    dots = _dots("output", names, outputs, x, y) + _dots("weight", names, weights, x, y)
    title = _text(left, floor + 24, "first layer", "start") + _text(width, floor + 24, "last layer", "end")
    unit = _text(left - 6, floor + 24, "dB", "end")
    return _svg(width, height, label, grid + poor + line + dots + title + unit)


def curve(values: Sequence[float], label: str, ends: tuple[str, str] | None = None) -> Markup:
    """A line over equal steps, with the lowest and the highest value beside it; `ends` says what its ends are."""
    width, height, floor, ceiling = 420.0, 130.0, 108.0, 8.0
    low, high = min(values), max(values)
    span = (high - low) or abs(high) or 1.0
    step = (width - 60) / max(1, len(values) - 1)

    def y(value: float) -> float:
        return floor - (floor - ceiling) * (value - low) / span

    path = "".join(f"{'M' if i == 0 else 'L'}{44 + i * step:.1f} {y(v):.1f}" for i, v in enumerate(values))
    content = Markup('<path class="after" d="{}"/>').format(path)
    content += Markup('<line class="axis" x1="44" x2="{0}" y1="{1}" y2="{1}"/>').format(width - 16, floor + 3)
    content += _text(40, y(high) + 4, _short(high), "end") + _text(40, y(low) + 4, _short(low), "end")
    first, last = ends or ("start", f"end: {_short(values[-1])}")
    content += _text(44, 124, first, "start") + _text(width - 16, 124, last, "end")
    return _svg(width, height, label, content)


@attrs.frozen(kw_only=True)
class Point:
    """A mark of a scatter."""

    x: float
    y: float
    kind: str
    """Class of the style."""
    title: str
    """Shown when the pointer rests on it."""


def scatter(points: Sequence[Point], across: str, up: str, label: str, *, stairs: bool = False) -> Markup:
    """Marks over two named scales, each from its lowest to its highest value; `stairs` join each to the next."""
    width, height, left, floor, ceiling = 340.0, 240.0, 46.0, 196.0, 30.0
    lowest_x, highest_x = _ends([point.x for point in points])
    lowest_y, highest_y = _ends([point.y for point in points])

    def x(value: float) -> float:
        return left + 8 + (width - left - 24) * (value - lowest_x) / (highest_x - lowest_x)

    def y(value: float) -> float:
        return floor - 8 - (floor - ceiling - 8) * (value - lowest_y) / (highest_y - lowest_y)

    axis = Markup('<line class="axis" x1="{0}" x2="{1}" y1="{2}" y2="{3}"/>')
    content = axis.format(left, width, floor, floor) + axis.format(left, left, ceiling, floor)
    content += _text(left, floor + 16, _short(lowest_x), "start") + _text(width, floor + 16, _short(highest_x), "end")
    content += _text(left - 6, floor, _short(lowest_y), "end") + _text(left - 6, ceiling + 6, _short(highest_y), "end")
    content += _text((left + width) / 2, floor + 34, across, "middle") + _text(left - 6, ceiling - 16, up, "start")
    if stairs:
        path = "".join(f"{f'H{x(p.x):.1f}V' if i else f'M{x(p.x):.1f} '}{y(p.y):.1f}" for i, p in enumerate(points))
        content += Markup('<path class="after" d="{}"/>').format(path)
    mark = Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="4.5"><title>{}</title></circle>')
    content += Markup().join(mark.format(point.kind, x(point.x), y(point.y), point.title) for point in points)
    return _svg(width, height, label, content)


def _ends(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _dots(
    kind: str,
    names: Sequence[str],
    values: Sequence[float | None],
    x: Callable[[int], float],
    y: Callable[[float], float],
) -> Markup:
    return Markup().join(
        Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="3.4"><title>{}: {} {:.1f} dB</title></circle>').format(
            kind, x(i), y(value), name, kind, value
        )
        for i, (name, value) in enumerate(zip(names, values, strict=True))
        if value is not None
    )


def _svg(width: float, height: float, label: str, content: Markup, *, stretch: bool = False) -> Markup:
    ratio = Markup(' preserveAspectRatio="none"') if stretch else Markup()
    kind = "stretch" if stretch else "chart"
    return Markup('<svg class="{}" viewBox="0 0 {:g} {:g}" role="img" aria-label="{}"{}>{}</svg>').format(
        kind, width, height, label, ratio, content
    )


def _text(x: float, y: float, text: str, anchor: str) -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(x, y, anchor, escape(text))


def _short(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")
