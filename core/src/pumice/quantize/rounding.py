"""Rounding: the integers and the bias of every layer, from its weights and the moments of what it reads.

Factors are folded in, a scale per output channel is chosen, the integers are those of `compensation`, and the bias
takes up the mean error. Moments are large (k^2 numbers a layer), so layers are worked off in portions that fit in
memory, one pass over the data each. On CPUs that add pairs of products in 16 bits, the layers in which that saturates
on the calibration data are rounded once more, to weights of NARROW bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import attrs
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pumice.model import constant
from pumice.quantize.channel_scaling import Rescaling, fold
from pumice.quantize.compensation import WIDEST, Levels, Moments, round_weights
from pumice.quantize.context import QuantizeContext
from pumice.quantize.observation import (
    Memory,
    Reading,
    has_moments,
    moment_shape,
    observe_moments,
    rounded_together,
    saturating,
)
from pumice.quantize.parameters import QuantParams, symmetric_per_channel
from pumice.quantize.placement import Layer, weight_shape
from pumice.quantize.rewrite import QuantizedWeights

PORTION = 1 << 29
"""Bytes of moments held at once (more, if one layer alone needs more)."""
NARROW = 7
"""Bits of weights whose pairs of products always fit in 16 bits."""


@attrs.frozen(eq=False)
class _Task:
    """One layer to be rounded."""

    reading: Reading
    writing: Rescaling | None
    key: tuple[str, bytes]
    levels: Levels | None

    @property
    def layer(self) -> Layer:
        return self.reading.layer


@attrs.frozen(kw_only=True, eq=False)
class Rounder:
    """Rounds all layers of a model."""

    model: ir.Model
    """In floating point: the calibration data streams through it."""
    context: QuantizeContext
    memory: Memory
    compensate: bool
    correct_bias: bool
    levels: Mapping[str, Levels] = attrs.field(factory=dict)

    def weights(
        self, readings: Mapping[ir.Node, Reading], writing: Mapping[ir.Node, Rescaling]
    ) -> dict[ir.Node, QuantizedWeights]:
        """Of every layer; `writing` is how what a layer writes is stored, where that is not as it is."""
        tasks = {n: _task(reading, writing.get(n), self.levels.get(n.name or "")) for n, reading in readings.items()}
        missing = [task for task in tasks.values() if task.key not in self.memory.weights]
        for portion in _portions(missing):
            self._work_off(portion)
        return {node: self.memory.weights[task.key] for node, task in tasks.items()}

    def _work_off(self, tasks: Sequence[_Task]) -> None:
        moments = self._moments(tasks)
        rounded: dict[tuple[str, bytes], QuantizedWeights] = {}
        first: dict[object, QuantizedWeights] = {}
        with self.context.progress.task("round weights", len(tasks)) as advance:
            for task in tasks:
                group = (rounded_together(task.reading), task.levels)
                if group not in first or task.layer.bias_value is not None:
                    first[group] = self._rounded(task, moments.get(task.key))
                rounded[task.key] = first[group]
                advance()
        if self.context.target.pair_saturation:
            computing = [
                (task.reading, rounded[task.key].integers) for task in tasks if task.layer.mode != "weight-only"
            ]
            narrow = saturating(self.model, computing, self.context, self.memory)
            for task in tasks:
                if task.layer.node in narrow:
                    rounded[task.key] = self._rounded(task, moments.get(task.key), NARROW)
        self.memory.weights.update(rounded)

    def _moments(self, tasks: Sequence[_Task]) -> dict[tuple[str, bytes], Moments]:
        wanted = [task for task in tasks if has_moments(task.layer)]
        if not wanted or not (self.compensate or self.correct_bias):
            return {}
        found = observe_moments(self.model, [task.reading for task in wanted], self.context, self.memory)
        return {task.key: moments for task, moments in zip(wanted, found, strict=True)}

    def _rounded(self, task: _Task, moments: Moments | None, bits: int | None = None) -> QuantizedWeights:
        layer, target = task.layer, self.context.target
        folded, bias = _folded(task)
        bits = bits or target.weight_bits
        limit = 2 ** (bits - 1) - 1
        whole = not target.per_channel or (layer.node.op_type == "MatMul" and folded.ndim > 2)
        params = symmetric_per_channel(folded, None if whole else layer.axis, bits=bits)
        if task.reading.params is not None and target.bias == "int32":
            params = room_for_bias(params, bias, task.reading.params)
        if moments is None and task.levels is None:
            integers = np.clip(params.quantize(folded), -limit, limit)
            return QuantizedWeights(integers=integers, params=params, bias=bias, bits=bits)
        rounded = round_weights(
            layer.node,
            folded,
            layer.axis,
            params,
            moments,
            limit=limit,
            compensate=self.compensate,
            correct_bias=self.correct_bias,
            levels=task.levels,
        )
        takes_bias = bias is not None or layer.node.op_type in ("Conv", "Gemm") or layer.mode == "dynamic"
        if takes_bias and (bias is not None or self.correct_bias):
            bias = rounded.shift if bias is None else bias + rounded.shift
        return QuantizedWeights(integers=rounded.integers, params=rounded.params, bias=bias, bits=bits)


def _task(reading: Reading, writing: Rescaling | None, levels: Levels | None) -> _Task:
    written = (b"" if writing is None else writing.signature) + (b"" if levels is None else b"of few")
    return _Task(reading, writing, (reading.layer.node.name or "", reading.signature + b">" + written), levels)


def _portions(tasks: Sequence[_Task]) -> Iterator[list[_Task]]:
    """Tasks in runs whose moments take PORTION bytes at most; those that are rounded together stay together."""
    together: dict[object, list[_Task]] = {}
    for task in tasks:
        together.setdefault(rounded_together(task.reading), []).append(task)
    portion: list[_Task] = []
    held = 0
    for group in together.values():
        size = moment_bytes(group[0].layer)
        if portion and held + size > PORTION:
            yield portion
            portion, held = [], 0
        portion.extend(group)
        held += size
    if portion:
        yield portion


def moment_bytes(layer: Layer) -> int:
    """Bytes that the moments of a layer take."""
    if not has_moments(layer):
        return 0
    groups, width = moment_shape(layer)
    return 8 * groups * width * (2 + (width if width <= WIDEST else 0))


def _folded(task: _Task) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """Weights and bias (one number an output) with all factors folded in; no bias where it stays as it is."""
    layer = task.layer
    weights = constant(layer.weight_value)
    assert weights is not None
    if layer.mode == "weight-only":
        return weights.astype(np.float64), None
    bias = constant(layer.bias_value)
    if bias is not None:
        bias = np.broadcast_to(bias.reshape(-1), (weight_shape(layer)[layer.axis],))
    folded, scaled = fold(layer, weights, bias, task.reading.rescaling, task.writing)
    inputs = task.reading.running
    if inputs is not None:
        folded = folded * (inputs[None, :] if layer.axis == 0 else inputs[:, None])
    return folded, scaled


def room_for_bias(params: QuantParams, bias: NDArray[np.float64] | None, source: QuantParams) -> QuantParams:
    """Weight scales large enough for the units of the integer bias, which are s_x s_w.

    The bias uses at most half of the range of int32, because the sums need the rest, and its units are normal numbers.
    """
    least = np.full(params.scale.shape, 2.0**-100 / float(source.scale), np.float32)
    if bias is not None:
        each = np.minimum(np.abs(bias) / (float(source.scale) * 2.0**30), 2.0**120).astype(np.float32)
        least = np.maximum(least, each if params.axis is not None else each.max(initial=np.float32(0)))
    return attrs.evolve(params, scale=np.maximum(params.scale, least))
