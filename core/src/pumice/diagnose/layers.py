"""Per-layer error: how far each layer of a compressed model is from the same layer of the original, in decibels.

Three errors are told apart. The *weight* error is that of the layer's weights against the original's. The *output*
error is accumulated: the layer's output when both whole models run on the same samples, so it also shows what earlier
layers did to it. The error *alone* is that of the output when the layer reads exactly what the original's layer reads.
Values stream through running sums, sample by sample; layers are tapped in groups, so that memory stays below
`TAP_BYTES` however large the model is. Only the worst layers are visited again, for their histograms.

Neither folding a normalisation nor rescaling channels loses anything: the original is simplified first, as the
compressed model was, and channel factors are undone (`pumice.diagnose.rescaling`) before errors are taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pumice.diagnose.alone import Isolated
from pumice.diagnose.decibels import sqnr, sqnr_of
from pumice.diagnose.pairing import Pair, pairs
from pumice.diagnose.rescaling import MANY, Gain, GainFit, by_channel, undo_in_weights, with_gain, without_gain
from pumice.model import clone, constant, simplify
from pumice.progress import Progress, Silent
from pumice.quantize.weight_matrices import moved, weight_matrices

if TYPE_CHECKING:
    from pumice.data import Dataset
    from pumice.strategy import Runtime

TAP_BYTES = 256 << 20
"""Values of one sample that may be held at once, both models together."""
WORST = 8
"""Layers that get a histogram."""
WORST_CHANNELS = 3
"""Channels whose outliers are told."""
BINS = 64
FINEST_GRID = 256
"""Points of a quantization grid that a histogram shows at most."""


@attrs.frozen(kw_only=True)
class Histogram:
    """Counts of a layer's output values (or of its weights) in both models, over the same equal bins."""

    of: str
    """`output` or `weights`."""
    edges: tuple[float, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    grid: tuple[float, ...] = ()
    """The quantization grid: numbers between the edges that the compressed model can express (of weights with a scale a
    channel, those of the channel with the largest weight); empty where there are too many to show."""


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
    rescaled: bool
    """Its channels were rescaled (equalised); errors are those after undoing that."""
    histogram: Histogram | None = None
    output_mse: float | None = None
    """Mean square of the accumulated error."""
    output_cosine: float | None = None
    """Between the outputs of both models."""
    alone_sqnr_db: float | None = None
    """Of the output when this layer alone is compressed: it reads exactly what the original's does."""
    saturated: float | None = None
    """Share of the original's output values beyond the range that integers express, which they clip."""
    unused: float | None = None
    """Share of that range in which no value was seen: bits that say nothing."""
    outlier_channels: tuple[tuple[int, float], ...] = ()
    """Channels with most values beyond three standard deviations of the sample, and their share of such values."""


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
    watches = [_Watch(pair) for pair in found]
    if calibration is not None and found:
        models = _Models(reference, compressed, calibration, runtime, samples, progress)
        _fit_gains(models, watches, [error.rescaled for error in errors])
        _observe(models, watches)
        alone = _alone(models, watches)
        errors = [
            attrs.evolve(watch.complete(error), alone_sqnr_db=decibels)
            for watch, error, decibels in zip(watches, errors, alone, strict=True)
        ]
    order = sorted(range(len(errors)), key=lambda i: (_badness(errors[i]), errors[i].node))
    worst = order[:WORST]
    pictures = [_weight_histogram(watches[index].pair) for index in worst]
    if calibration is not None and found:
        on_grid = [watches[index] for index in worst if watches[index].pair.covered is not None]
        _count_outputs(models, on_grid)  # outputs that stayed in floating point have no grid: their weights are shown
        pictures = [watches[index].histogram() or pictures[place] for place, index in enumerate(worst)]
    for index, histogram in zip(worst, pictures, strict=True):
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
    undone = undo_in_weights(pair.before, exact, pair.weights_after.values)
    return LayerError(
        node=pair.after.name or "",
        op=pair.before.op_type,
        weight_bytes_before=exact.nbytes,
        weight_bytes_after=pair.weights_after.nbytes,
        weight_sqnr_db=sqnr_of(exact, pair.weights_after.values if undone is None else undone),
        output_sqnr_db=None,
        output_range=None,
        outliers_3sigma=None,
        coverage=None,
        rescaled=undone is not None,
    )


# --- running both models ----------------------------------------------------------------------------------------------


@attrs.define(eq=False)
class _Watch:
    """Running sums over the output of one layer."""

    pair: Pair
    gain: Gain | None = None
    signal: float = 0.0
    noise: float = 0.0
    count: int = 0
    crossed: float = 0.0
    """Sum of products of both outputs."""
    found: float = 0.0
    """Sum of squares of the compressed output."""
    outliers: NDArray[np.int64] | int = 0
    """By channel."""
    covered: int = 0
    low: float = math.inf
    high: float = -math.inf
    counts: NDArray[np.int64] = attrs.field(factory=lambda: np.zeros((2, BINS), np.int64))

    @property
    def op(self) -> str:
        return self.pair.before.op_type

    def update(self, exact: NDArray[Any], approximate: NDArray[Any]) -> None:
        wide = exact.astype(np.float64)
        if not wide.size or exact.shape != approximate.shape:
            return
        seen = with_gain(approximate.astype(np.float64), self.gain, self.op)
        difference = wide - seen
        self.crossed += float(np.vdot(wide, seen))
        self.found += float(np.vdot(seen, seen))
        self.signal += float(np.vdot(wide, wide))
        self.noise += float(np.vdot(difference, difference))
        self.count += wide.size
        far = np.abs(wide - wide.mean()) > 3.0 * wide.std()
        self.outliers = self.outliers + by_channel(np.atleast_2d(far), self.op).sum(axis=1)
        self.low, self.high = min(self.low, float(wide.min())), max(self.high, float(wide.max()))
        if self.pair.covered is not None:
            low, high = self.pair.covered
            stored = without_gain(wide, self.gain, self.op)
            self.covered += int(np.count_nonzero((stored >= low) & (stored <= high)))

    def squares(self, exact: NDArray[Any], approximate: NDArray[Any]) -> tuple[float, float]:
        """Summed squares of the exact output and of what another differs from it."""
        if exact.shape != approximate.shape:
            return 0.0, 0.0
        wide = exact.astype(np.float64)
        difference = wide - with_gain(approximate.astype(np.float64), self.gain, self.op)
        return float(np.vdot(wide, wide)), float(np.vdot(difference, difference))

    def complete(self, error: LayerError) -> LayerError:
        if not self.count:
            return error
        return attrs.evolve(
            error,
            output_sqnr_db=sqnr(self.signal, self.noise),
            output_range=(self.low, self.high) if self._is_finite() else None,
            outliers_3sigma=int(np.sum(self.outliers)) / self.count,
            coverage=None if self.pair.covered is None else self.covered / self.count,
            output_mse=self.noise / self.count if math.isfinite(self.noise) else None,
            output_cosine=self._cosine(),
            saturated=None if self.pair.covered is None else 1.0 - self.covered / self.count,
            unused=self._unused(),
            outlier_channels=self._outlier_channels(),
        )

    def _cosine(self) -> float | None:
        lengths = math.sqrt(self.signal) * math.sqrt(self.found)
        return self.crossed / lengths if math.isfinite(lengths) and lengths > 0 else None

    def _unused(self) -> float | None:
        """The range seen is that of the original's values, so this needs channels that were not rescaled."""
        if self.pair.covered is None or self.gain is not None or not self._is_finite():
            return None
        low, high = self.pair.covered
        return 1.0 - max(min(self.high, high) - max(self.low, low), 0.0) / (high - low)

    def _outlier_channels(self) -> tuple[tuple[int, float], ...]:
        counts = np.atleast_1d(np.asarray(self.outliers))
        worst = [int(c) for c in np.argsort(-counts, kind="stable")[:WORST_CHANNELS] if counts[c]]
        return tuple((c, float(counts[c] / counts.sum())) for c in worst)

    def tally(self, exact: NDArray[Any], approximate: NDArray[Any]) -> None:
        """Count values into the bins of the histogram; the range must be known."""
        if not self._is_finite() or exact.shape != approximate.shape:
            return
        edges = _edges(self.low, self.high)
        self.counts[0] += _count(exact, edges)
        self.counts[1] += _count(with_gain(approximate, self.gain, self.op), edges)

    def histogram(self) -> Histogram | None:
        if not self.counts.any():
            return None
        steps = () if self.pair.covered is None or self.gain is not None else np.linspace(*self.pair.covered, 256)
        before, after = self.counts
        return _histogram("output", _edges(self.low, self.high), before, after, np.asarray(steps))

    def _is_finite(self) -> bool:
        return math.isfinite(self.low) and math.isfinite(self.high)


@attrs.frozen(eq=False)
class _Models:
    """Both models and what to run them on."""

    reference: ir.Model
    compressed: ir.Model
    calibration: Dataset
    runtime: Runtime
    samples: int
    progress: Progress

    def run(self, watches: Sequence[_Watch], observe: Callable[[int, NDArray[Any], NDArray[Any]], None]) -> None:
        """Hand `observe` the outputs of every watched layer in both models, sample by sample."""
        groups = list(_groups([watch.pair for watch in watches]))
        known = self.calibration.length
        total = len(groups) * (self.samples if known is None else min(self.samples, known))
        with self.progress.task("per-layer error", total) as advance:
            for group in groups:
                exact = [_name(watches[index].pair.output_before) for index in group]
                approximate = [_name(watches[index].pair.output_after) for index in group]
                before = self.runtime.open(clone(self.reference), outputs=list(dict.fromkeys(exact)))
                after = self.runtime.open(clone(self.compressed), outputs=list(dict.fromkeys(approximate)))
                for batch in self.calibration.batches(batch_size=1, limit=self.samples):
                    seen, found = before.run(batch.feeds), after.run(batch.feeds)
                    for index, ours, theirs in zip(group, exact, approximate, strict=True):
                        observe(index, seen[ours], found[theirs])
                    advance()

    def values(self, model: ir.Model, names: Iterable[str]) -> Iterator[tuple[Mapping[str, Any], dict[str, Any]]]:
        """(feeds, named values) of one of the models, sample by sample; names may be those of inputs."""
        inputs = {value.name for value in model.graph.inputs}
        taps = [name for name in dict.fromkeys(names) if name not in inputs]
        session = self.runtime.open(clone(model), outputs=taps) if taps else None
        for batch in self.calibration.batches(batch_size=1, limit=self.samples):
            found = {} if session is None else session.run(batch.feeds)
            yield batch.feeds, {**batch.feeds, **found}


def _fit_gains(models: _Models, watches: Sequence[_Watch], rescaled: Sequence[bool]) -> None:
    """Of every output; where the weights already tell of rescaling, a few numbers will do."""
    pairs_ = zip(watches, rescaled, strict=True)
    fits = [GainFit(watch.op, least=1 if known else MANY) for watch, known in pairs_]
    models.run(watches, lambda index, exact, approximate: fits[index].update(exact, approximate))
    for watch, fit in zip(watches, fits, strict=True):
        watch.gain = fit.gain()


def _observe(models: _Models, watches: Sequence[_Watch]) -> None:
    models.run(watches, lambda index, exact, approximate: watches[index].update(exact, approximate))


def _alone(models: _Models, watches: Sequence[_Watch]) -> list[float | None]:
    """SQNR of every layer's output when it reads exactly what the original's layer reads."""
    sums = np.zeros((2, len(watches)))
    rescaled = any(watch.gain is not None for watch in watches)
    for group in _groups([watch.pair for watch in watches]):
        chosen = {index: watches[index].pair for index in group}
        isolated = Isolated.of(chosen, models.reference, models.compressed)
        session = isolated.open(models.runtime)
        if session is None:
            continue
        gains = _input_gains(models, isolated) if rescaled else {}
        taps = [*isolated.inputs, *(_name(pair.output_before) for pair in chosen.values())]
        for _, exact in models.values(models.reference, taps):
            found = session.run(isolated.feeds(exact, gains))
            for index, name in isolated.outputs.items():
                sums[:, index] += watches[index].squares(exact[_name(chosen[index].output_before)], found[name])
    return [sqnr(signal, noise) if signal else None for signal, noise in sums.T.tolist()]


def _input_gains(models: _Models, isolated: Isolated) -> dict[str, Gain]:
    """How channels of the values that isolated layers read were rescaled, where they were."""
    present = {value.name for node in models.compressed.graph for value in node.outputs}
    fits = {name: GainFit(op, least=MANY) for name, op in isolated.inputs.items() if name in present}
    if not fits:
        return {}
    both = zip(models.values(models.reference, fits), models.values(models.compressed, fits), strict=True)
    for (_, exact), (_, seen) in both:
        for name, fit in fits.items():
            fit.update(exact[name], seen[name])
    return {name: gain for name, fit in fits.items() if (gain := fit.gain()) is not None}


def _count_outputs(models: _Models, watches: Sequence[_Watch]) -> None:
    models.run(watches, lambda index, exact, approximate: watches[index].tally(exact, approximate))


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


# --- histograms -------------------------------------------------------------------------------------------------------


def _weight_histogram(pair: Pair) -> Histogram | None:
    exact = constant(pair.weights_before)
    if exact is None or not exact.size:
        return None
    low, high = float(exact.min()), float(exact.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        return None
    edges = _edges(low, high)
    undone = undo_in_weights(pair.before, exact, pair.weights_after.values)
    after = pair.weights_after.values if undone is None else undone
    return _histogram("weights", edges, _count(exact, edges), _count(after, edges), _levels(pair.before, after))


def _levels(node: ir.Node, weights: NDArray[Any]) -> NDArray[Any]:
    """The distinct values of all weights, or of the output with the largest weight where these are too many."""
    every = np.unique(weights)
    matrix = next((m for m in weight_matrices(iter([node])) if m.shape[0] * m.shape[1] > 1), None)
    if len(every) <= FINEST_GRID or matrix is None:
        return every
    rows = moved(weights, matrix.to_rows).reshape(-1, matrix.shape[2])
    return np.unique(rows[np.abs(rows).max(axis=1).argmax()])


def _edges(low: float, high: float) -> NDArray[np.float64]:
    if high <= low:
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, BINS + 1)


def _count(values: NDArray[Any], edges: NDArray[np.float64]) -> NDArray[np.int64]:
    """Values outside fall into the outermost bins."""
    wide = values.astype(np.float64).ravel()
    return np.histogram(np.clip(wide[np.isfinite(wide)], edges[0], edges[-1]), edges)[0].astype(np.int64)


def _histogram(
    of: str, edges: NDArray[np.float64], before: NDArray[np.int64], after: NDArray[np.int64], grid: NDArray[Any]
) -> Histogram:
    shown = grid[(grid >= edges[0]) & (grid <= edges[-1])]
    return Histogram(
        of=of,
        edges=_short(edges),
        before=tuple(map(int, before)),
        after=tuple(map(int, after)),
        grid=_short(shown) if len(shown) <= FINEST_GRID else (),
    )


def _short(numbers: NDArray[Any]) -> tuple[float, ...]:
    return tuple(float(f"{number:.6g}") for number in numbers)
