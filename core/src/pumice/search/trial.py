"""Trials: recipes that were run, and what makes one better than another.

A recipe is *feasible* if it keeps every limit. By how much it breaks them is its `violation`:

    max(0, (drop - max_drop) / max_drop) + sum over the other limits of max(0, ln(figure / limit))

and among recipes that keep them the one with the lowest `cost` is best: the logarithm of the time an inference takes,
of the file's size, or of both, each as a share of the original's. Times are rounded to what a measurement can tell
apart, so that noise does not choose between recipes that are equally fast.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from pumice.steps import Auto

RESOLUTION = 0.05
"""Logarithm of the ratio of two times below which they count as equal."""
TARGET, NEAR = 0.25, 2.0
"""Shares of what may be lost: that noise should cost, and up to which losses tell how much it costs."""


@attrs.frozen(kw_only=True)
class Figures:
    """What was measured of one compressed model, against the original in the same process."""

    drop: float
    """What it lost of the score that counts; without labels the share of decisions that changed."""
    low: float
    """Ends of the 95% interval of the drop."""
    high: float
    latency: float
    """Milliseconds of one inference."""
    speedup: float
    file_bytes: int
    compression: float
    """File bytes of the original over those of this one."""
    memory: int | None = None
    """Peak bytes, where there is a limit on them."""
    samples: int = 0

    @property
    def cautious_drop(self) -> float:
        """The drop and one standard error."""
        return self.drop + (self.high - self.drop) / 1.96

    def spares(self, max_drop: float) -> bool:
        """Whether the accuracy is kept with a standard error to spare, or nothing at all was lost."""
        return self.drop <= 0.0 or self.cautious_drop <= max_drop

    @property
    def gains(self) -> str:
        """Speed and size in words."""
        return f"{_times(self.speedup, 'faster', 'slower')}, {_times(self.compression, 'smaller', 'larger')}"


@attrs.frozen(kw_only=True)
class Trial:
    """One recipe that was tried."""

    number: int
    values: Mapping[str, Any]
    """The point of the space, by the names that `Space.walk` gives; empty for recipes that advice or a user gave."""
    recipe: Mapping[str, Any]
    origin: str
    """Who proposed it, and why."""
    state: str
    """`measured`, `stopped` (plainly too inaccurate on a part of the data), `late` (over its time) or `failed`."""
    reason: str = ""
    """Why it was not measured."""
    figures: Figures | None = None
    drop: float | None = None
    """What it lost, as far as that was looked at; also of what was stopped."""
    noise: float | None = None
    """Noise-to-signal ratio of its outputs, as far as it was looked at."""
    cost: float = math.inf
    violation: float = math.inf
    seconds: float = 0.0
    """What it took, without its waits."""
    waited: float = 0.0
    """Seconds that it waited for others to leave the cores."""
    finished: float = 0.0
    """Seconds from the start of the search to its end; to its beginning, while it runs."""
    model: str = ""
    """Name of its file in the study's folder; empty if it was not kept."""
    won: bool = False
    """Whether a course before this one ended with it."""

    @property
    def shape(self) -> str:
        """The recipe in a few words: its steps and what they put to work."""
        words = []
        for step in self.recipe["step"]:
            used = [value["name"] for value in step.values() if isinstance(value, Mapping) and "name" in value]
            ratio = f" {step['ratio']:.2f}" if "ratio" in step else ""
            words.append(f"{step['use']}{ratio}" + (f" ({', '.join(used)})" if used else ""))
        return " > ".join(words)

    @property
    def told(self) -> str:
        """Its figures in a few words."""
        if self.figures is None:
            return self.reason
        found = self.figures
        return f"loses {found.drop:.4f}, {found.gains}"

    @property
    def feasible(self) -> bool:
        return self.state == "measured" and self.violation <= 0.0

    @property
    def rank(self) -> tuple[float, float, int]:
        """Lower is better: limits first, then the cost, then who came first."""
        return self.violation, self.cost, self.number

    @property
    def pipeline(self) -> str:
        """The steps of its recipe, also where there is but one pipeline to choose."""
        return " > ".join(step["use"] for step in self.recipe["step"])

    def spares(self, max_drop: float) -> bool:
        """As its figures do; what was not measured does not."""
        return self.figures is not None and self.figures.spares(max_drop)

    def sure(self, max_drop: float, noise: float, figures: Figures | None = None) -> bool:
        """Whether the accuracy is kept with a standard error to spare or, where samples are few, with little noise.

        Args:
            max_drop: what may be lost.
            noise: what is `tolerable`.
            figures: of other data than the search's.
        """
        found = figures or self.figures
        few = found is not None and found.cautious_drop - found.drop > TARGET * max_drop
        if found is None or not few or self.noise is None or self.pipeline != "quantize":
            return found is not None and found.spares(max_drop)
        return found.drop <= max_drop and self.noise <= noise

    def to_json(self) -> dict[str, Any]:
        return attrs.asdict(self)

    @classmethod
    def from_json(cls, table: Mapping[str, Any]) -> Trial:
        figures = table["figures"]
        return cls(**{**table, "figures": None if figures is None else Figures(**figures)})


def tolerable(trials: Iterable[Trial], max_drop: float) -> float:
    """The noise that costs `TARGET` of what may be lost, by drop = c sqrt(noise); infinite where nothing was lost.

    A few hundred answers tell 0.5% from 1% badly, so recipes tell c together, by the quotient of their sums.

    Args:
        trials: of these, those that only quantize and do not lose far too much, or else the quietest that loses any.
        max_drop: what may be lost.
    """
    known = sorted((t.noise, t.drop) for t in trials if t.noise and t.drop is not None and t.pipeline == "quantize")
    near = [(noise, drop) for noise, drop in known if drop <= NEAR * max_drop]
    if not any(drop > 0.0 for _, drop in near):
        near = [(noise, drop) for noise, drop in known if drop > 0.0][:1]
    lost = sum(max(drop, 0.0) for _, drop in near)
    return (TARGET * max_drop * sum(math.sqrt(noise) for noise, _ in near) / lost) ** 2 if lost else math.inf


def violation(limits: Auto, figures: Figures) -> float:
    """How far the figures are from keeping the limits; 0 if they do."""
    broken = max(0.0, figures.drop - limits.max_drop) / max(limits.max_drop, 1e-3)
    for limit, ratio in (
        (limits.latency, figures.latency / (limits.latency or 1.0)),
        (limits.speedup, limits.speedup / figures.speedup),
        (limits.size, limits.size / figures.compression),
        (limits.memory, (figures.memory or 0) / (limits.memory * 1e6 or 1.0)),
    ):
        if limit and ratio > 0:
            broken += max(0.0, math.log(ratio))
    return broken


def cost(limits: Auto, figures: Figures) -> float:
    """What is to be made small."""
    time = -round(math.log(figures.speedup) / RESOLUTION) * RESOLUTION
    size = -math.log(figures.compression)
    return {"latency": time + 1e-3 * size, "size": size, "balanced": time + size}[limits.goal]


def broken_limits(limits: Auto, figures: Figures) -> list[str]:
    """The limits that the figures break, as parts of a sentence."""
    said = []
    if figures.drop > limits.max_drop:
        said.append(f"loses {figures.drop:.4f} where {limits.max_drop:g} is allowed")
    if limits.latency and figures.latency > limits.latency:
        said.append(f"takes {figures.latency:.3g} ms where {limits.latency:g} ms is allowed")
    if limits.speedup and figures.speedup < limits.speedup:
        said.append(f"is {_times(figures.speedup, 'faster', 'slower')} where {limits.speedup:g}x is asked")
    if limits.size and figures.compression < limits.size:
        said.append(f"is {_times(figures.compression, 'smaller', 'larger')} where {limits.size:g}x is asked")
    if limits.memory and (figures.memory or 0) > limits.memory * 1e6:
        said.append(f"needs {(figures.memory or 0) / 1e6:.3g} MB where {limits.memory:g} MB is allowed")
    return said


def _times(ratio: float, more: str, less: str) -> str:
    """A ratio in words: 2.00x faster, or, below 1, 2.00x slower."""
    return f"{ratio:.2f}x {more}" if ratio >= 1.0 else f"{1.0 / ratio:.2f}x {less}"


def front(trials: Iterable[Trial]) -> list[Trial]:
    """The trials that no other beats in accuracy, speed and size at once, the most accurate first."""
    measured = sorted((t for t in trials if t.figures is not None and t.state == "measured"), key=lambda t: t.number)
    best = [t for t in measured if not any(_dominates(other, t) for other in measured)]
    return sorted(best, key=lambda t: (_objectives(t), t.number))


def _objectives(trial: Trial) -> tuple[float, float, float]:
    """To be made small."""
    figures = trial.figures
    assert figures is not None
    return figures.drop, -figures.speedup, -figures.compression


def _dominates(one: Trial, other: Trial) -> bool:
    ours, theirs = _objectives(one), _objectives(other)
    alike = ours == theirs
    return all(a <= b for a, b in zip(ours, theirs, strict=True)) and (not alike or one.number < other.number)
