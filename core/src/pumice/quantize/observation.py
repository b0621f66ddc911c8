"""Observation: the passes over the calibration data, and what is remembered of them.

    channels     extremes and mean squares of every value that is to be quantized, per channel
    histograms   of these values as they will be stored, for calibrators that need them
    moments      of what every layer reads: see `compensation`
    saturation   in which layers pairs of products leave 16 bits: see `saturation`

Samples come one at a time, so that memory does not grow with their number. What may be needed again, when the accuracy
guard tries with fewer layers, is kept by name in a `Memory`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pumice.errors import DataError
from pumice.model import attribute
from pumice.quantize.channel_scaling import Rescaling
from pumice.quantize.compensation import ROWS, WIDEST, Moments, layer_columns
from pumice.quantize.context import QuantizeContext
from pumice.quantize.parameters import QuantParams, affine
from pumice.quantize.placement import Layer, Placement, weight_shape
from pumice.quantize.saturation import pair_saturation
from pumice.quantize.statistics import ChannelStatistics, Statistics

MOMENT_SAMPLES = 128
"""Samples that enter the moments: their rows are many more."""

FEWEST_ROWS = 64
"""Rows that every sample gives at least."""

Values = Mapping[str, NDArray[Any]]


@attrs.define(eq=False)
class Memory:
    """What is known of the calibration data and of layers that were rounded before."""

    samples: int = 0
    channels: dict[str, ChannelStatistics] = attrs.field(factory=dict)
    running: dict[str, ChannelStatistics] = attrs.field(factory=dict)
    """Along the last axis, for the inputs of layers that find their range while running."""
    histograms: dict[tuple[str, bytes], Statistics] = attrs.field(factory=dict)
    """By name and rescaling of the value."""
    weights: dict[tuple[str, bytes], Any] = attrs.field(factory=dict)
    """Rounded weights, by name of the layer and everything they depend on."""


@attrs.frozen(eq=False)
class Reading:
    """How a layer will see the value that it reads."""

    layer: Layer
    params: QuantParams | None
    """None: real numbers, or integers whose range is found while the model runs."""
    rescaling: Rescaling | None
    running: NDArray[np.float64] | None
    """Factors along the last axis."""

    @property
    def name(self) -> str:
        """Name of the value."""
        return self.layer.data.name or ""

    @property
    def signature(self) -> bytes:
        """Equal for readings that are the same."""
        params = b"" if self.params is None else self.params.scale.tobytes() + self.params.zero_point.tobytes()
        running = b"" if self.running is None else self.running.tobytes()
        return params + b"|" + (b"" if self.rescaling is None else self.rescaling.signature) + b"|" + running

    def stored(self, array: NDArray[Any]) -> NDArray[np.float32]:
        """The value without what is folded into the weights."""
        if self.rescaling is not None:
            return self.rescaling.stored(array)
        if self.running is not None:
            return np.asarray(array / self.running, np.float32)
        return array

    def integers(self, array: NDArray[Any]) -> tuple[NDArray[Any], int]:
        """What the integer kernel reads of a sample, and its zero point."""
        stored = self.stored(array)
        params = self.params
        if params is None:
            params = affine(float(stored.min()), float(stored.max()), np.uint8)
        return params.quantize(stored), int(params.zero_point)


def readings(
    placement: Placement,
    parameters: Mapping[int, QuantParams],
    factors: Mapping[int, Rescaling],
    running: Mapping[str, NDArray[np.float64]],
) -> dict[ir.Node, Reading]:
    """The reading of every layer, in graph order."""
    found = {}
    for layer in placement.layers:
        if layer.mode == "static":
            space = placement.space_of[layer.data]
            found[layer.node] = Reading(layer, parameters[space], factors.get(space), None)
        else:
            known = running.get(layer.data.name or "") if layer.mode == "dynamic" else None
            found[layer.node] = Reading(layer, None, None, known)
    return found


# --- passes -----------------------------------------------------------------------------------------------------------


def observe_channels(model: ir.Model, placement: Placement, context: QuantizeContext, memory: Memory) -> None:
    """Fill `memory.channels` and `memory.running` with what this placement needs.

    Raises:
        DataError: a value that is to be quantized becomes infinite or NaN.
    """
    fixed = {v.name or "": ChannelStatistics() for v in placement.space_of if v.name not in memory.channels}
    read = {layer.data.name or "" for layer in placement.layers if layer.mode == "dynamic"}
    running = {name: ChannelStatistics(axis=-1) for name in sorted(read - memory.running.keys())}
    if not fixed and not running:
        return
    samples = 0

    def observe(values: Values) -> None:
        nonlocal samples
        samples += 1
        for group in (fixed, running):
            for name, statistics in group.items():
                statistics.update(values[name])

    context.stream(model, [*fixed, *running], observe, label="ranges")
    for name, statistics in (*fixed.items(), *running.items()):
        if not statistics.finite:
            raise DataError(
                f"value '{name}' becomes infinite or NaN on the calibration data, so it cannot be quantized: "
                "check the data, or keep the layers around it in floating point with the knob 'exclude'"
            )
    memory.samples = max(memory.samples, samples)
    memory.channels.update(fixed)
    memory.running.update(running)


def observe_histograms(
    model: ir.Model, placement: Placement, factors: Mapping[int, Rescaling], context: QuantizeContext, memory: Memory
) -> dict[int, Statistics]:
    """Statistics of every space: of all its values together, as they will be stored."""
    keys = {value: _histogram_key(value, space, factors) for value, space in placement.space_of.items()}
    missing = {value: Statistics() for value, key in keys.items() if key not in memory.histograms}

    def observe(values: Values) -> None:
        for value, statistics in missing.items():
            array, rescaling = values[value.name or ""], factors.get(placement.space_of[value])
            statistics.update(array if rescaling is None else rescaling.stored(array))

    if missing:
        context.stream(model, [value.name or "" for value in missing], observe, label="histograms")
    memory.histograms.update({keys[value]: statistics for value, statistics in missing.items()})
    found: dict[int, Statistics] = {}
    for value, space in placement.space_of.items():
        found.setdefault(space, Statistics()).merge(memory.histograms[keys[value]])
    return found


def _histogram_key(value: ir.Value, space: int, factors: Mapping[int, Rescaling]) -> tuple[str, bytes]:
    return value.name or "", factors[space].signature if space in factors else b""


def has_moments(layer: Layer) -> bool:
    """Whether the layer is a matrix product of rows: its rounding can be judged by its output."""
    return layer.mode != "weight-only" and (layer.node.op_type == "Conv" or len(weight_shape(layer)) == 2)


def moment_shape(layer: Layer) -> tuple[int, int]:
    """Groups, and inputs of one output."""
    shape = weight_shape(layer)
    if layer.node.op_type == "Conv":
        return int(attribute(layer.node, "group", 1)), int(np.prod(shape[1:]))
    return 1, shape[1 - layer.axis]


def rounded_together(reading: Reading) -> tuple[ir.Value, object]:
    """Equal for layers whose integers must be the same: the weights of an unrolled loop stay one matrix."""
    layer = reading.layer
    return layer.weight_value, None if layer.mode == "dynamic" and reading.running is None else layer.node


def _no_moments(layer: Layer) -> Moments:
    groups, width = moment_shape(layer)
    return Moments(groups, width, width <= WIDEST)


def observe_moments(
    model: ir.Model, chosen: Sequence[Reading], context: QuantizeContext, memory: Memory
) -> list[Moments]:
    """Moments of what each layer reads, as it is and as the layer will see it, both without what is folded.

    Layers that are `rounded_together`, or read alike, have one object of moments between them.
    """
    keys = _moments_keys(chosen)
    of_key = {key: _no_moments(reading.layer) for key, reading in zip(keys, chosen, strict=True)}
    sources = {(key, reading.name): reading for key, reading in zip(keys, chosen, strict=True)}
    samples = min(memory.samples, MOMENT_SAMPLES)
    most = max(FEWEST_ROWS, ROWS // max(samples, 1))

    def observe(values: Values) -> None:
        for (key, _), reading in sources.items():
            if not values[reading.name].size:
                continue
            moments = of_key[key]
            node, shape, exact = reading.layer.node, weight_shape(reading.layer), reading.stored(values[reading.name])
            columns = layer_columns(node, shape, exact, most)
            if reading.params is None:
                moments.update(columns, columns)
            else:
                moments.update(columns, layer_columns(node, shape, reading.params.round_trip(exact), most))

    context.stream(model, [r.name for r in chosen], observe, label="moments", limit=samples)
    return [of_key[key] for key in keys]


def _moments_keys(chosen: Sequence[Reading]) -> list[object]:
    """Equal for readings with the same moments: layers rounded together, and matrix products that read alike."""
    together = [rounded_together(reading) for reading in chosen]
    count = Counter(together)
    return [
        key if count[key] > 1 or reading.layer.node.op_type == "Conv" else (reading.name, reading.signature)
        for key, reading in zip(together, chosen, strict=True)
    ]


def saturating(
    model: ir.Model, chosen: Iterable[tuple[Reading, NDArray[np.int8]]], context: QuantizeContext, memory: Memory
) -> set[ir.Node]:
    """The layers in which a pair of products leaves 16 bits on the calibration data, given their integer weights."""
    open_layers = {
        reading.layer.node: (reading, _in_pair_order(reading.layer, integers))
        for reading, integers in chosen
        if not _is_depthwise(reading.layer)
    }
    found: set[ir.Node] = set()

    def observe(values: Values) -> None:
        for node, (reading, weights) in list(open_layers.items()):
            if values[reading.name].size and _saturates(reading, values[reading.name], weights):
                found.add(node)
                del open_layers[node]

    if open_layers:
        names = [reading.name for reading, _ in open_layers.values()]
        context.stream(model, names, observe, label="saturation", limit=min(memory.samples, MOMENT_SAMPLES))
    return found


def _saturates(reading: Reading, array: NDArray[Any], weights: NDArray[np.int8]) -> bool:
    node, shape = reading.layer.node, weight_shape(reading.layer)
    integers, zero = reading.integers(array)
    if integers.dtype == np.int8:  # the kernel shifts signed activations to unsigned ones
        integers, zero = np.bitwise_xor(integers.view(np.uint8), np.uint8(0x80)), zero + 128
    rows = layer_columns(node, shape, integers, None, padding=zero).transpose(0, 2, 1)
    if node.op_type == "Conv":
        rows = _channels_last(rows, shape[1])
    return any(pair_saturation(r, w) for r, w in zip(rows, weights, strict=True))


def _is_depthwise(layer: Layer) -> bool:
    """Whether a kernel of its own computes the layer, which never saturates."""
    groups = int(attribute(layer.node, "group", 1))
    return layer.node.op_type == "Conv" and groups > 1 and weight_shape(layer)[:2] == (groups, 1)


def _in_pair_order(layer: Layer, integers: NDArray[np.int8]) -> NDArray[np.int8]:
    """Weights as (groups, outputs per group, k), k in the order in which the kernel pairs neighbours."""
    if layer.node.op_type == "Conv":
        groups = int(attribute(layer.node, "group", 1))
        return _channels_last(integers.reshape(groups, len(integers) // groups, -1), integers.shape[1])
    matrix = integers if layer.axis == 0 else np.moveaxis(integers, -1, -2)
    return np.ascontiguousarray(matrix.reshape(-1, matrix.shape[-1])[None])


def _channels_last(rows: NDArray[Any], channels: int) -> NDArray[Any]:
    """(..., channels * taps) becomes (..., taps * channels)."""
    taps = rows.reshape(*rows.shape[:-1], channels, -1)
    return np.ascontiguousarray(np.moveaxis(taps, -2, -1)).reshape(rows.shape)
