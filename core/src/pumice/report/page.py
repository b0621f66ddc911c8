"""The view: what a `Result` holds becomes what the page shows, as plain values; the template only places them."""

from __future__ import annotations

import functools
import json
import platform
import re
from collections.abc import Mapping
from importlib import resources
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from pumice.report import charts
from pumice.report.figures import size_text, time_text
from pumice.report.gauges import SIGNIFICANT, gauges
from pumice.report.search import search_view

if TYPE_CHECKING:
    import jinja2

    from pumice.diagnose import LayerError
    from pumice.ledger import Entry, Ledger
    from pumice.pipeline import Result
    from pumice.search import Found

POOR_DB = 20.0


def render(result: Result, search: Found | None = None) -> str:
    """The whole page; `search` is how the recipe was found, if it was searched for."""
    from pumice import __version__
    from pumice.diagnose import recommendations

    measured = result.measurements.to_json()
    headline = result.headline()
    return (
        _templates()
        .get_template("page.html.j2")
        .render(
            version=__version__,
            model=result.name,
            rerun=result.command(),
            headline=headline,
            bad=is_bad_news(measured),
            gauges=gauges(measured),
            notes=list(dict.fromkeys([*result.notes, *measured["notes"]])),
            recommendations=recommendations(result.layers),
            layers=[_layer(layer) for layer in result.layers],
            depth=_depth(result),
            histograms=[_histogram(layer) for layer in result.layers if layer.histogram is not None],
            curves=_curves(result.ledger),
            search=None if search is None else search_view(search),
            counts=result.ledger.counts(),
            groups=ledger_groups(result.ledger),
            recipe=result.recipe.to_toml().rstrip(),
            chosen=_chosen(result.ledger),
            environment=environment(result, measured),
            phases=phases(result.seconds),
            total_time=time_text(sum(result.seconds.values())),
            when="",
            style=Markup(_asset("page.css")),  # noqa: S704 - our own files, nothing of the user's
            script=Markup(_asset("tables.js") + _asset("page.js")),  # noqa: S704
        )
    )


def render_search(search: Found, model: str) -> str:
    """The page of a search that found no recipe: nothing but how it went."""
    return (
        _templates()
        .get_template("search.html.j2")
        .render(
            model=model,
            search=search_view(search),
            style=Markup(_asset("page.css")),  # noqa: S704
            script=Markup(_asset("tables.js")),  # noqa: S704
        )
    )


@functools.cache
def _templates() -> jinja2.Environment:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@functools.cache
def _asset(name: str) -> str:
    return (resources.files("pumice.report") / name).read_text(encoding="utf-8")


# --- the parts of the page --------------------------------------------------------------------------------------------


def is_bad_news(measured: Mapping[str, Any]) -> bool:
    """Whether the model became slower, larger, or significantly less accurate."""
    slower = (measured["speedup"] or {}).get("verdict") == "slower"
    larger = measured["compression"] < 1.0
    test = next(iter(measured["tests"].values()), None)
    drop = measured["drop"] or 0.0
    less_accurate = drop > 0 and test is not None and test["p"] is not None and test["p"] < SIGNIFICANT
    return slower or larger or less_accurate


def _layer(layer: LayerError) -> dict[str, Any]:
    low, high = layer.output_range or (None, None)
    cells = [
        _cell(layer.output_sqnr_db, "{:.1f}"),
        _cell(layer.weight_sqnr_db, "{:.1f}"),
        {"value": layer.weight_bytes_before, "text": size_text(layer.weight_bytes_before)},
        {"value": layer.weight_bytes_after, "text": size_text(layer.weight_bytes_after)},
        _cell(layer.outliers_3sigma, "{:.2%}"),
        _cell(layer.coverage, "{:.2%}"),
        _cell(low, "{:.3g}"),
        _cell(high, "{:.3g}"),
    ]
    poor = layer.output_sqnr_db is not None and layer.output_sqnr_db < POOR_DB
    return {"node": layer.node, "op": layer.op, "cells": cells, "poor": poor}


def _cell(value: float | None, form: str) -> dict[str, Any]:
    return {"value": "" if value is None else f"{value:.6g}", "text": "–" if value is None else form.format(value)}


def _depth(result: Result) -> Markup | None:
    """Error along the network, in the order of the compressed graph."""
    by_name = {layer.node: layer for layer in result.layers}
    order = [by_name[node.name] for node in result.model.graph if node.name in by_name]
    if len(order) < 3:
        return None
    worst = min((v for layer in order if (v := layer.output_sqnr_db) is not None), default=None)
    label = f"Precision of {len(order)} layers from input to output" + (
        f"; the least is {worst:.1f} dB" if worst is not None else ""
    )
    names = [layer.node for layer in order]
    return charts.depth(
        names, [layer.weight_sqnr_db for layer in order], [layer.output_sqnr_db for layer in order], label
    )


def _histogram(layer: LayerError) -> dict[str, Any]:
    found = layer.histogram
    assert found is not None
    decibels = layer.output_sqnr_db if found.of == "output" else layer.weight_sqnr_db
    caption = f"{layer.op}, {found.of}" + (f", {decibels:.1f} dB" if decibels is not None else "")
    label = f"Histogram of {layer.node}: {caption}"
    chart = charts.histogram(found.edges, found.before, found.after, label, found.grid)
    return {"node": layer.node, "caption": caption, "chart": chart}


def _chosen(ledger: Ledger) -> list[str]:
    """The recipes that steps which search have found."""
    from pumice.recipe import Recipe
    from pumice.steps import Auto

    found = [entry.details["recipe"] for entry in ledger.of(Auto.name) if "recipe" in entry.details]
    return [Recipe.from_dict(recipe).to_toml().rstrip() for recipe in found]


def _curves(ledger: Ledger) -> list[dict[str, Any]]:
    """Of every training: the loss over its steps, and the score over its epochs."""
    found = []
    for entry in ledger:
        for key, caption in (("losses", "loss, step by step"), ("scores", "score on held-out samples, epoch by epoch")):
            values = entry.details.get(key, ())
            if len(values) > 1:
                chart = charts.curve(values, f"{caption}: from {values[0]:.4g} to {values[-1]:.4g}")
                found.append({"step": entry.step, "caption": caption, "chart": chart})
    return found


def ledger_groups(ledger: Ledger) -> list[dict[str, Any]]:
    """Entries of one step and verdict whose reasons differ only in names and numbers, together; declined ones first."""
    groups: dict[tuple[str, str, str], list[Entry]] = {}
    for entry in ledger:
        groups.setdefault((entry.step, entry.verdict, _pattern(entry.reason)), []).append(entry)
    rank = {"declined": 0, "applied": 1, "skipped": 2}
    found = []
    for (step, verdict, pattern), entries in sorted(groups.items(), key=lambda g: (rank[g[0][1]], -len(g[1]))):
        same = len({e.reason for e in entries}) == 1
        rows = [
            {"node": e.node, "op": e.op, "reason": "" if same else e.reason, "details": _details(e.details)}
            for e in entries
        ]
        reason = entries[0].reason if same else pattern
        found.append({"step": step, "verdict": verdict, "reason": reason, "entries": rows})
    return found


def _pattern(reason: str) -> str:
    """A reason with its names and numbers replaced by an ellipsis."""
    return re.sub(r"'[^']*'|(?<![\w.])[-−]?\d[\d.,]*(?:e[-+]?\d+)?", "…", reason)


def _details(details: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {_short(value)}" for key, value in details.items() if key not in {"losses", "scores"})


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value, default=str)


def environment(result: Result, measured: Mapping[str, Any]) -> dict[str, str]:
    """What the figures hold for."""
    from pumice import __version__
    from pumice.doctor import cpu_features, cpu_model

    features = [f for f in cpu_features() if f not in {"avx", "fma"}]
    facts = {
        "CPU": cpu_model(),
        "instructions": " ".join(features) or "unknown",
        "runtime": str(measured.get("runtime") or "not measured"),
        "threads": str(measured.get("threads") or ""),
        "pumice": __version__,
        "Python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "model": f"opset {result.model.opset_imports.get('', 0)}, IR version {result.model.ir_version}",
    }
    return {name: value for name, value in facts.items() if value}


def phases(seconds: Mapping[str, float]) -> list[dict[str, Any]]:
    """Time per phase, in order, as a share of the longest."""
    top = max([*seconds.values(), 1e-9])
    return [{"name": n, "time": time_text(s), "percent": f"{100 * s / top:.1f}"} for n, s in seconds.items()]
