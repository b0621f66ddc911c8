"""Latencies as horizontal bars: a picture of its own, an SVG file that any viewer shows."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

WIDTH, LABELS, ROW = 720, 220, 26
COLOURS = ("#2a6f97", "#e07a5f", "#81b29a", "#6d597a", "#f2cc8f")


def bars(title: str, rows: Sequence[tuple[str, str, float, float, float]]) -> str:
    """Rows of (label, series, first quartile, median, third quartile) in milliseconds; a series has one colour."""
    series = list(dict.fromkeys(row[1] for row in rows))
    top = max((high for *_, high in rows), default=1.0) or 1.0
    room = WIDTH - LABELS - 90
    body = Markup().join(
        _row(label, low / top * room, middle / top * room, high / top * room, middle, 40 + i * ROW,
             COLOURS[series.index(name) % len(COLOURS)])
        for i, (label, name, low, middle, high) in enumerate(rows)
    )  # fmt: skip
    return str(
        Markup(
            '<svg xmlns="http://www.w3.org/2000/svg" width="{w}" height="{h}" font-family="sans-serif" font-size="13">'
            '<rect width="100%" height="100%" fill="white"/>'
            '<text x="12" y="24" font-size="15">{title}</text>{body}</svg>\n'
        ).format(w=WIDTH, h=52 + ROW * len(rows), title=title, body=body)
    )


def _row(label: str, low: float, middle: float, high: float, value: float, y: float, colour: str) -> Markup:
    return Markup(
        '<text x="{end}" y="{text}" text-anchor="end">{label}</text>'
        '<rect x="{begin}" y="{y}" width="{middle:.1f}" height="16" rx="2" fill="{colour}"/>'
        '<line x1="{low:.1f}" x2="{high:.1f}" y1="{line}" y2="{line}" stroke="#333"/>'
        '<text x="{after:.1f}" y="{text}">{value:.3g} ms</text>'
    ).format(
        end=LABELS - 8, text=y + 13, label=label, begin=LABELS, y=y, middle=middle, colour=colour, low=LABELS + low,
        high=LABELS + high, line=y + 8, after=LABELS + high + 6, value=value,
    )  # fmt: skip
