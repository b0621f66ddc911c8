"""Bias correction in sequence: every layer writes, on average, what it wrote before anything was rounded.

Rounding errors are not centred: a background of one colour is rounded the same way everywhere, and activations bend
what was symmetric. What one layer shifts, all later ones see, and deep networks of steep activations multiply it. The
mean of each output channel c over calibration data is restored layer by layer, in graph order:

    b'[c] = b[c] + E[y[c]] - E[y'[c]]        y as in floating point; y' given all the rounding and correction before it

(Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, empirical form.)
Order matters: corrections made all at once count the same shift once for every layer behind it, and diverge.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pumice.quantize.channel_scaling import Rescaling
from pumice.quantize.context import QuantizeContext
from pumice.quantize.rewrite import Bias
from pumice.quantize.segments import run_in_segments

SAMPLES = 128
"""Samples whose means are restored."""
JUDGED = 32
"""Samples by which the result is judged."""
BUDGET = 1 << 29
"""Bytes of intermediate values held meanwhile; fewer samples are used where they do not fit."""


@attrs.define(eq=False)
class _Means:
    """Means per channel of each sample, with how many numbers they are made of."""

    means: list[NDArray[np.float64]] = attrs.field(factory=list)
    counts: list[int] = attrs.field(factory=list)

    def add(self, array: NDArray[Any], axis: int) -> None:
        rows = np.moveaxis(array, axis, -1).reshape(-1, array.shape[axis])
        self.means.append(rows.mean(axis=0, dtype=np.float64) if len(rows) else np.zeros(rows.shape[1]))
        self.counts.append(len(rows))


def correct_biases(
    model: ir.Model,
    changed: ir.Model,
    biases: Mapping[ir.Node, Bias],
    writing: Mapping[ir.Node, Rescaling],
    context: QuantizeContext,
) -> None:
    """Shift the biases of `changed`, the quantized form of `model`, in place, if that brings its outputs nearer.

    Args:
        model: in floating point.
        changed: what `rewrite` made of it.
        biases: what `rewrite` returned.
        writing: how what a layer writes is stored, where that is not as it is.
        context: the calibration data and the runtime.
    """
    if not biases:
        return
    before = {bias.initializer: bias.initializer.const_value for bias in biases.values()}
    drift = context.drift(model, changed, JUDGED).ratio
    _in_sequence(model, changed, biases, writing, context)
    if context.drift(model, changed, JUDGED).ratio > drift:
        for initializer, tensor in before.items():
            initializer.const_value = tensor


def _in_sequence(
    model: ir.Model,
    changed: ir.Model,
    biases: Mapping[ir.Node, Bias],
    writing: Mapping[ir.Node, Rescaling],
    context: QuantizeContext,
) -> None:
    exact = _means(model, list(biases.values()), context)
    of_output = {bias.output: (bias, writing.get(node)) for node, bias in biases.items()}
    with context.progress.task("bias correction", len(biases)) as advance:

        def mend(cut: ir.Value, arrays: list[NDArray[Any]]) -> None:
            bias, rescaling = of_output[cut]
            seen = _Means()
            for array in arrays:
                seen.add(array, bias.axis)
            wanted = [_stored(mean, rescaling) for mean in exact[bias.name].means[: len(arrays)]]
            added = _shift(bias, sure_mean(np.stack(wanted) - np.stack(seen.means), seen.counts))
            for array in arrays:
                array += added.astype(np.float32).reshape(_broadcast(array.ndim, bias.axis))
            advance()

        run_in_segments(changed, list(of_output), context.runtime, context.feeds(SAMPLES), BUDGET, mend)


class _Exact(dict[str, _Means]):
    """Means in floating point by the name of the value: the same at every attempt of the guard."""


def _means(model: ir.Model, biases: Sequence[Bias], context: QuantizeContext) -> Mapping[str, _Means]:
    known = context.recall(_Exact)
    axes = {bias.name: bias.axis for bias in biases if bias.name not in known}
    found = {name: _Means() for name in axes}

    def observe(values: Mapping[str, NDArray[Any]]) -> None:
        for name, axis in axes.items():
            found[name].add(values[name], axis)

    if axes:
        context.stream(model, list(axes), observe, label="means", limit=SAMPLES)
    known.update(found)
    return known


def sure_mean(differences: NDArray[np.float64], counts: Sequence[int]) -> NDArray[np.float64]:
    """The mean difference of each channel, shrunk by how sure it is: m * m^2 / (m^2 + var(m)).

    Args:
        differences: means of the samples, (samples, channels).
        counts: numbers that each of them is the mean of.
    """
    total = float(sum(counts))
    if not total or not np.isfinite(differences).all():
        return np.zeros(differences.shape[1])
    weights = np.asarray(counts, np.float64)[:, None] / total
    mean = (weights * differences).sum(axis=0)
    variance = (weights**2 * (differences - mean) ** 2).sum(axis=0)
    return np.asarray(mean**3 / np.maximum(mean**2 + variance, np.finfo(np.float64).tiny))


def _stored(mean: NDArray[np.float64], rescaling: Rescaling | None) -> NDArray[np.float64]:
    """A mean per channel as it is stored."""
    if rescaling is None:
        return mean
    moved = mean if rescaling.offset is None else mean - rescaling.offset
    return np.asarray(moved / rescaling.factor)


def _shift(bias: Bias, by: NDArray[np.float64]) -> NDArray[np.float64]:
    """Add to a bias; returns what was added, since integers cannot take everything."""
    tensor = bias.initializer.const_value
    assert tensor is not None
    old, units = tensor.numpy(), 1.0 if bias.units is None else bias.units
    most = 2.0**31 - 1
    exact = old + by if bias.units is None else np.clip(old + np.rint(by / units), -most, most)
    new = exact.astype(old.dtype)
    bias.initializer.const_value = ir.tensor(new, name=bias.initializer.name)
    return np.asarray((new.astype(np.float64) - old) * units)


def _broadcast(rank: int, axis: int) -> tuple[int, ...]:
    shape = [1] * rank
    shape[axis] = -1
    return tuple(shape)
