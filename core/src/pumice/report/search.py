"""What a search did, as plain values for the page: pictures of the trials, their table, and what made the difference.

The importance of a knob is the share of the variance of the cost that its values explain (eta squared of a one-way
analysis of variance; numbers count as low, middle and high). It says what mattered among what was tried, no more.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pumice.report import charts

if TYPE_CHECKING:
    from pumice.search import Found, Trial

FEWEST = 8
"""Measured trials with a knob below which its importance would be chance."""
SHOWN = 8
SLIGHT = 0.02


def search_view(found: Found) -> dict[str, Any]:
    """Everything that the page shows of a search."""
    measured = [trial for trial in found.trials if trial.state == "measured"]
    verdict, winner = found.verdict.sentence(), found.verdict.winner
    return {
        "verdict": f"{verdict[:1].upper()}{verdict[1:]}",
        "tally": f"Trials: {found.course}",
        "charts": _charts(found, measured),
        "trials": [
            {**_row(trial), "winner": winner is not None and trial.number == winner.trial.number}
            for trial in found.trials
            if trial.state != "repeated"
        ],
        "again": found.verdict.reasons(),
        "advice": found.advice,
        "techniques": _techniques(found.trials),
        "importance": _importance(measured),
        "left_out": [f"{one.kind} '{one.name}': {one.reason}" for one in found.space.left_out],
    }


def _charts(found: Found, measured: Sequence[Trial]) -> list[dict[str, Any]]:
    if not measured:
        return []
    pictures = []
    for name, up in (("speed", "times faster"), ("size", "times smaller")):
        points = [
            charts.Point(
                x=trial.figures.drop,
                y=trial.figures.speedup if name == "speed" else trial.figures.compression,
                kind=_kind(trial, found),
                title=f"trial {trial.number}: {trial.shape}: {trial.told}",
            )
            for trial in measured
            if trial.figures is not None
        ]
        chart = charts.scatter(points, "lost", up, f"{len(points)} trials, accuracy lost against {up}")
        pictures.append({"name": f"Accuracy against {name}", "caption": "each mark is a trial", "chart": chart})
    reached = _course(measured)
    if reached:
        caption = {"latency": "times faster", "size": "times smaller", "balanced": "times faster × times smaller"}
        told = f"{caption[found.limits.goal]}, within the limits"
        label = f"best so far after each of {len(reached)} trials"
        chart = charts.scatter(reached, "seconds", "best", label, stairs=True)
        pictures.append({"name": "Best so far", "caption": told, "chart": chart})
    return pictures


def _kind(trial: Trial, found: Found) -> str:
    winner = found.verdict.winner
    if winner is not None and trial.number == winner.trial.number:
        return "winner"
    return "after" if trial in found.front else "before"


def _course(measured: Sequence[Trial]) -> list[charts.Point]:
    """What the best trial within the limits had gained whenever one was finished."""
    ordered = sorted(measured, key=lambda trial: trial.finished)
    best = np.minimum.accumulate([trial.cost if trial.feasible else np.inf for trial in ordered])
    return [
        charts.Point(
            x=trial.finished,
            y=float(np.exp(-cost)),
            kind="after",
            title=f"{np.exp(-cost):.2f} after {trial.finished:.0f} s (trial {trial.number})",
        )
        for trial, cost in zip(ordered, best.tolist(), strict=True)
        if np.isfinite(cost)
    ]


def _row(trial: Trial) -> dict[str, Any]:
    figures = trial.figures
    values = (None,) * 3 if figures is None else (figures.drop, figures.speedup, figures.compression)
    texts = ["" if value is None else f"{value:.4f}" if at == 0 else f"{value:.2f}" for at, value in enumerate(values)]
    cells = [
        {"value": value if value is not None else "", "text": text} for value, text in zip(values, texts, strict=True)
    ]
    waited = f" + {trial.waited:.0f} waiting" if trial.waited >= 1.0 else ""
    cells.append({"value": trial.seconds, "text": f"{trial.seconds:.1f}{waited}"})
    return {"number": trial.number, "recipe": trial.shape, "state": trial.state, "reason": trial.reason, "cells": cells}


def _techniques(trials: Sequence[Trial]) -> list[str]:
    """The best trial of each sequence of steps that was tried, the best sequence first."""
    best: dict[str, Trial] = {}
    for trial in sorted((t for t in trials if t.state in ("measured", "stopped")), key=lambda t: t.rank):
        best.setdefault(trial.pipeline, trial)
    return [f"{pipeline}: {trial.told} (trial {trial.number}: {trial.shape})" for pipeline, trial in best.items()]


def _importance(measured: Sequence[Trial]) -> list[str]:
    """What made the difference, or why that cannot be told."""
    told = [f"{name}: {share:.0%} of the variance" for name, share in importance(measured)]
    return told or [f"No knob can be told to matter: that takes {FEWEST} measured trials that differ in it."]


def importance(measured: Sequence[Trial]) -> list[tuple[str, float]]:
    """Knobs and the share of the variance of the cost that each explains, the largest first."""
    found = []
    for name in sorted({name for trial in measured for name in trial.values}):
        chosen = [trial for trial in measured if name in trial.values]
        if len(chosen) < FEWEST:
            continue
        share = explained([trial.values[name] for trial in chosen], [trial.cost for trial in chosen])
        if share >= SLIGHT:
            found.append((name, share))
    return sorted(found, key=lambda item: (-item[1], item[0]))[:SHOWN]


def explained(values: Sequence[Any], costs: Sequence[float]) -> float:
    """Eta squared: the variance between groups of equal values over the whole variance; 0 where there is none."""
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) == len(values) and len(set(values)) > 3:
        values = np.digitize(values, np.quantile(values, (1 / 3, 2 / 3))).tolist()
    groups: defaultdict[Any, list[float]] = defaultdict(list)
    for value, cost in zip(values, costs, strict=True):
        groups[value].append(cost)
    total = float(np.var(costs)) * len(costs)
    if len(groups) < 2 or total <= 0.0:
        return 0.0
    mean = float(np.mean(costs))
    return sum(len(group) * (float(np.mean(group)) - mean) ** 2 for group in groups.values()) / total
