"""Gauges: the figures at the top of the page, the original beside the compressed model with the change in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import attrs
from markupsafe import Markup

from pumice.report import charts
from pumice.report.figures import percent, size_text

SIGNIFICANT = 0.05
SAME = 0.005
"""Shares that differ by less count as equal."""


@attrs.frozen(kw_only=True)
class Gauge:
    """One figure. `tone` is `good`, `bad` or empty; `before` is a phrase, `after` the figure alone."""

    name: str
    before: str
    after: str
    change: str
    tone: str
    chart: Markup
    detail: str = ""
    unit: str = ""


def gauges(measured: Mapping[str, Any]) -> list[Gauge]:
    """From `Comparison.to_json()`: accuracy first, then what was measured of size, speed and memory."""
    return [*_accuracies(measured), *_size(measured), *_latency(measured), *_throughput(measured), *_memory(measured)]


def _accuracies(measured: Mapping[str, Any]) -> Iterator[Gauge]:
    before, after = measured["before"]["accuracy"], measured["after"]["accuracy"]
    for name, score in after.items():
        if name in before:
            yield _paired(name, before[name], score, measured["tests"].get(name))
        else:
            yield _fidelity(name, score)


def _paired(name: str, before: Mapping[str, Any], after: Mapping[str, Any], test: Mapping[str, Any] | None) -> Gauge:
    difference = after["mean"] - before["mean"]
    worse = difference < 0 if after["higher_is_better"] else difference > 0
    certain = test is not None and test["p"] is not None and test["p"] < SIGNIFICANT
    tone = ("bad" if worse else "good") if certain else ""
    detail = f"{_interval(name, after)} on {after['samples']} samples"
    if test is not None:
        p = "" if test["p"] is None else f"; {test['name']} test p = {test['p']:.2g}"
        detail += f"; {test['lost']} samples lost, {test['gained']} gained{p}"
    change = _points(name, difference) + ("" if certain or difference == 0 else ", not significant")
    chart = charts.pair_of_intervals(_triple(before), _triple(after), f"{name} before and after with 95% intervals")
    return Gauge(
        name=f"Accuracy ({name})",
        before=f"was {_score(name, before['mean'])}",
        after=_score(name, after["mean"]),
        change=change,
        tone=tone,
        chart=chart,
        detail=detail,
    )


def _fidelity(name: str, score: Mapping[str, Any]) -> Gauge:
    """How closely the compressed model follows the original, for which the original has no figure of its own."""
    perfect = (1.0, 1.0, 1.0) if score["higher_is_better"] else (0.0, 0.0, 0.0)
    return Gauge(
        name=f"Fidelity ({name})",
        before=f"the original itself: {_score(name, perfect[1])}",
        after=_score(name, score["mean"]),
        change="to the original",
        tone="",
        chart=charts.pair_of_intervals(perfect, _triple(score), f"{name} with the original, with its 95% interval"),
        detail=f"{_interval(name, score)} on {score['samples']} samples",
    )


def _size(measured: Mapping[str, Any]) -> Iterator[Gauge]:
    before, after = measured["before"]["file_bytes"], measured["after"]["file_bytes"]
    weights = measured["before"]["weight_bytes"], measured["after"]["weight_bytes"]
    yield Gauge(
        name="Size on disk",
        before=f"was {size_text(before)}",
        after=size_text(after),
        **_change(before / max(after, 1), "smaller", "larger"),
        chart=charts.pair_of_bars(before, after, "Size on disk before and after"),
        detail=f"weights {size_text(weights[1])}, were {size_text(weights[0])}",
    )


def _latency(measured: Mapping[str, Any]) -> Iterator[Gauge]:
    before, after, ratio = measured["before"]["latency"], measured["after"]["latency"], measured["speedup"]
    if not (before and after and ratio):
        return
    certain = ratio["verdict"] != "as fast"
    change = _change(ratio["median"], "faster", "slower") if certain else {"change": "as fast", "tone": ""}
    yield Gauge(
        name="Latency",
        before=f"was {_milliseconds(before['median_ms'])}",
        after=_milliseconds(after["median_ms"]),
        **change,
        chart=charts.pair_of_intervals(
            (before["low_ms"], before["median_ms"], before["high_ms"]),
            (after["low_ms"], after["median_ms"], after["high_ms"]),
            "Latency before and after with quartiles",
        ),
        detail=f"a batch of {measured['batch']}, {_threads(measured['threads'])}; quartiles "
        f"{after['low_ms']:.3g} to {after['high_ms']:.3g} ms; ratio {ratio['low']:.2f} to {ratio['high']:.2f} over "
        f"{after['rounds']} interleaved rounds",
    )


def _throughput(measured: Mapping[str, Any]) -> Iterator[Gauge]:
    before, after, ratio = measured["before"]["throughput"], measured["after"]["throughput"], measured["speedup"]
    if not (before and after and ratio):
        return
    certain = ratio["verdict"] != "as fast"
    change = _change(after / before, "more", "less") if certain else {"change": "the same", "tone": ""}
    yield Gauge(
        name="Throughput",
        before=f"was {_rate(before)}",
        after=_rate(after),
        unit="samples/s",
        **change,
        chart=charts.pair_of_bars(before, after, "Throughput before and after"),
    )


def _memory(measured: Mapping[str, Any]) -> Iterator[Gauge]:
    before, after = measured["before"]["memory"], measured["after"]["memory"]
    if not (before and after):
        return
    yield Gauge(
        name="Peak memory",
        before=f"was {size_text(before['model'])}",
        after=size_text(after["model"]),
        **_change(before["model"] / max(after["model"], 1), "less", "more"),
        chart=charts.pair_of_bars(before["model"], after["model"], "Peak memory before and after"),
        detail=f"beyond the runtime itself; the whole process {size_text(after['process'])}, "
        f"was {size_text(before['process'])}",
    )


# --- words ------------------------------------------------------------------------------------------------------------


def _change(gain: float, better: str, worse: str) -> dict[str, str]:
    """`gain` above 1 is better."""
    if abs(gain - 1.0) < SAME:
        return {"change": "the same", "tone": ""}
    if gain > 1.0:
        return {"change": f"{gain:.2f}x {better}", "tone": "good"}
    return {"change": f"{1 / max(gain, 1e-9):.2f}x {worse}", "tone": "bad"}


def _is_share(name: str) -> bool:
    """Whether a metric counts right answers, so that percent is its natural unit."""
    return name.startswith("top") or name.endswith("accuracy") or name == "agreement"


def _score(name: str, value: float) -> str:
    return percent(value) if _is_share(name) else f"{value:.4g}"


def _points(name: str, difference: float) -> str:
    if difference == 0:
        return "unchanged"
    return f"{100 * difference:+.2f} points" if _is_share(name) else f"{difference:+.3g}"


def _interval(name: str, score: Mapping[str, Any]) -> str:
    if score["low"] is None or score["high"] is None:
        return "measured"
    return f"95% interval {_score(name, score['low'])} to {_score(name, score['high'])}"


def _triple(score: Mapping[str, Any]) -> tuple[float, float, float]:
    mean = score["mean"]
    return (mean if score["low"] is None else score["low"], mean, mean if score["high"] is None else score["high"])


def _milliseconds(value: float) -> str:
    return f"{value:.3g} ms" if value < 1000 else f"{value / 1000:.3g} s"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"
