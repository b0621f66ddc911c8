"""Per-layer error: how far each layer of a compressed model is from the same layer of the original, in decibels.

Two errors are told apart. The *weight* error is the layer's own: its weights against the original's. The *output*
error is accumulated: the layer's output when both whole models run on the same samples, so it also shows what earlier layers
did to it. Values stream through running sums, sample by sample; layers are tapped in groups, so that memory stays
below `TAP_BYTES` however large the model is. Only the worst layers are visited a second time, for their histograms.

The original is simplified first, as the compressed model was: folding a normalisation changes weights and loses nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pumice.diagnose.decibels import sqnr, sqnr_of
from pumice.diagnose.pairing import Pair, pairs
from pumice.model import clone, constant, simplify
from pumice.progress import Progress, Silent

if TYPE_CHECKING:
    from pumice.data import Dataset
    from pumice.strategy import Runtime

TAP_BYTES = 256 << 20
"""Values of one sample that may be held at once, both models together."""
WORST = 8
"""Layers that get a histogram."""
BINS = 64


@attrs.frozen(kw_only=True)
class Histogram:
    """Counts of a layer's output values (or of its weights) in both models, over the same equal bins."""

    of: str
    """`output` or `weights`."""
    edges: tuple[float, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]


@attrs.frozen(kw_only=True)
class LayerError:
    """One layer of the compressed model against the original. Decibels are `pumice.diagnose.decibels`."""

    node: str
    op: str
    weight_bytes_before: int
    weight_bytes_after: int
    weight_sqnr_db: float | None
    output_sqnr_db: float | None
    """Accumulated from the input on; None without calibration data."""
    output_range: tuple[float, float] | None
    """Least and greatest value of the original's output seen."""
    outliers_3sigma: float | None
    """Share of the original's output values more than three standard deviations from the mean of their sample."""
    coverage: float | None
    """Share of the original's output values inside the range that the compressed output can express."""
    histogram: Histogram | None = None


def layer_errors(
    original: ir.Model,
    compressed: ir.Model,
    calibration: Dataset | None,
    runtime: Runtime,
    *,
    progress: Progress | None = None,
    samples: int = 8,
) -> list[LayerError]:
    """The error of every layer whose weights were changed, worst first.

    Worst means: least output SQNR, or least weight SQNR when there is no data. With `calibration` None only the weights
    are compared.

    Args:
        original: the model before compression, simplified or not; left unchanged.
        compressed: the model after it.
        calibration: where samples come from, or None.
        runtime: what runs both models.
        progress: shows progress.
        samples: how many samples to run at most.
    """
    progress = progress or Silent()
    reference = clone(original)
    simplify(reference)
    found = list(pairs(reference, compressed))
    errors = [_of_weights(pair) for pair in found]
    if calibration is not None and found:
        observed = _observe(reference, compressed, found, calibration, runtime, samples, progress)
        errors = [seen.complete(error) for seen, error in zip(observed, errors, strict=True)]
    order = sorted(range(len(errors)), key=lambda i: (_badness(errors[i]), errors[i].node))
    worst = order[:WORST]
    histograms = _histograms(reference, compressed, found, errors, worst, calibration, runtime, samples)
    for index, histogram in zip(worst, histograms, strict=True):
        errors[index] = attrs.evolve(errors[index], histogram=histogram)
    return [errors[index] for index in order]


def _badness(error: LayerError) -> float:
    for value in (error.output_sqnr_db, error.weight_sqnr_db):
        if value is not None:
            return value
    return math.inf


def _of_weights(pair: Pair) -> LayerError:
    exact = constant(pair.weights_before)
    assert exact is not None
    return LayerError(
        node=pair.after.name or "",
        op=pair.before.op_type,
        weight_bytes_before=exact.nbytes,
        weight_bytes_after=pair.weights_after.nbytes,
        weight_sqnr_db=sqnr_of(exact, pair.weights_after.values),
        output_sqnr_db=None,
        output_range=None,
        outliers_3sigma=None,
        coverage=None,
    )


# --- running both models ----------------------------------------------------------------------------------------------


@attrs.define
class _Observed:
    """Running sums over the output of one layer."""

    covered_range: tuple[float, float] | None
    signal: float = 0.0
    noise: float = 0.0
    count: int = 0
    outliers: int = 0
    covered: int = 0
    low: float = math.inf
    high: float = -math.inf

    def update(self, exact: NDArray[Any], approximate: NDArray[Any]) -> None:
        wide = exact.astype(np.float64)
        if not wide.size or exact.shape != approximate.shape:
            return
        difference = wide - approximate.astype(np.float64)
        self.signal += float(np.vdot(wide, wide))
        self.noise += float(np.vdot(difference, difference))
        self.count += wide.size
        self.outliers += int(np.count_nonzero(np.abs(wide - wide.mean()) > 3.0 * wide.std()))
        self.low, self.high = min(self.low, float(wide.min())), max(self.high, float(wide.max()))
        if self.covered_range is not None:
            low, high = self.covered_range
            self.covered += int(np.count_nonzero((wide >= low) & (wide <= high)))

    def complete(self, error: LayerError) -> LayerError:
        if not self.count:
            return error
        finite = math.isfinite(self.low) and math.isfinite(self.high)
        return attrs.evolve(
            error,
            output_sqnr_db=sqnr(self.signal, self.noise),
            output_range=(self.low, self.high) if finite else None,
            outliers_3sigma=self.outliers / self.count,
            coverage=None if self.covered_range is None else self.covered / self.count,
        )


def _observe(
    reference: ir.Model,
    compressed: ir.Model,
    found: Sequence[Pair],
    calibration: Dataset,
    runtime: Runtime,
    samples: int,
    progress: Progress,
) -> list[_Observed]:
    observed = [_Observed(pair.covered) for pair in found]
    groups = list(_groups(found))
    total = len(groups) * (samples if calibration.length is None else min(samples, calibration.length))
    with progress.task("per-layer error", total) as advance:
        for group in groups:
            chosen = [found[index] for index in group]
            run = _Taps.open(reference, compressed, chosen, runtime)
            for exact, approximate in run.values(calibration, samples, advance):
                for index, pair in zip(group, chosen, strict=True):
                    observed[index].update(exact[_name(pair.output_before)], approximate[_name(pair.output_after)])
    return observed


@attrs.frozen(eq=False)
class _Taps:
    """Both models, opened so that they give the outputs of some layers."""

    before: Any
    after: Any

    @classmethod
    def open(cls, reference: ir.Model, compressed: ir.Model, chosen: Sequence[Pair], runtime: Runtime) -> _Taps:
        exact = list(dict.fromkeys(_name(pair.output_before) for pair in chosen))
        approximate = list(dict.fromkeys(_name(pair.output_after) for pair in chosen))
        return cls(runtime.open(clone(reference), outputs=exact), runtime.open(clone(compressed), outputs=approximate))

    def values(
        self, calibration: Dataset, samples: int, advance: Callable[..., None] | None = None
    ) -> Iterator[tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]]:
        for batch in calibration.batches(batch_size=1, limit=samples):
            yield self.before.run(batch.feeds), self.after.run(batch.feeds)
            if advance is not None:
                advance()


def _groups(found: Sequence[Pair]) -> Iterator[list[int]]:
    """Indices of layers whose outputs fit into `TAP_BYTES` together; unknown sizes count as a mebibyte."""
    group: list[int] = []
    held = 0
    for index, pair in enumerate(found):
        size = 2 * _bytes_of_one_sample(pair.output_before)
        if group and held + size > TAP_BYTES:
            yield group
            group, held = [], 0
        group.append(index)
        held += size
    if group:
        yield group


def _bytes_of_one_sample(value: ir.Value) -> int:
    if value.shape is None:
        return 1 << 20
    return 4 * math.prod(d if isinstance(d, int) else 1 for d in value.shape)


def _name(value: ir.Value) -> str:
    return value.name or ""


# --- histograms of the worst layers -----------------------------------------------------------------------------------


def _histograms(
    reference: ir.Model,
    compressed: ir.Model,
    found: Sequence[Pair],
    errors: Sequence[LayerError],
    worst: Sequence[int],
    calibration: Dataset | None,
    runtime: Runtime,
    samples: int,
) -> list[Histogram | None]:
    chosen = [index for index in worst if errors[index].output_range is not None]
    if calibration is None or not chosen:
        return [_weight_histogram(found[index]) for index in worst]
    edges = {index: _edges(*(errors[index].output_range or (0.0, 0.0))) for index in chosen}
    counts = {index: np.zeros((2, BINS), np.int64) for index in chosen}
    run = _Taps.open(reference, compressed, [found[index] for index in chosen], runtime)
    for exact, approximate in run.values(calibration, samples):
        for index in chosen:
            pair, bins = found[index], edges[index]
            counts[index][0] += _count(exact[_name(pair.output_before)], bins)
            counts[index][1] += _count(approximate[_name(pair.output_after)], bins)
    return [_histogram("output", edges[i], *counts[i]) if i in counts else _weight_histogram(found[i]) for i in worst]


def _weight_histogram(pair: Pair) -> Histogram | None:
    exact = constant(pair.weights_before)
    if exact is None or not exact.size:
        return None
    low, high = float(exact.min()), float(exact.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        return None
    edges = _edges(low, high)
    return _histogram("weights", edges, _count(exact, edges), _count(pair.weights_after.values, edges))


def _edges(low: float, high: float) -> NDArray[np.float64]:
    if high <= low:
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, BINS + 1)


def _count(values: NDArray[Any], edges: NDArray[np.float64]) -> NDArray[np.int64]:
    """Values outside fall into the outermost bins."""
    wide = values.astype(np.float64).ravel()
    return np.histogram(np.clip(wide[np.isfinite(wide)], edges[0], edges[-1]), edges)[0].astype(np.int64)


def _histogram(of: str, edges: NDArray[np.float64], before: NDArray[np.int64], after: NDArray[np.int64]) -> Histogram:
    return Histogram(
        of=of,
        edges=tuple(float(f"{edge:.6g}") for edge in edges),
        before=tuple(map(int, before)),
        after=tuple(map(int, after)),
    )
