"""The engine: from a floating-point model and calibration data to integers, one pass at a time.

    1  placement             which layers, which values           (no data)
    2  channel statistics    ranges of every value, per channel   (first pass over the data)
    3  channel factors       share the ranges out                 (no data)
    4  ranges                calibrator -> scale and zero point   (second pass, for calibrators that need histograms)
    5  moments               what the layers really see           (third pass)
    6  rounding              integers and biases                  (no data)
    7  rewriting             Q/DQ nodes

Statistics and moments are kept by name in a `Memory`, so that the accuracy guard can try again with fewer layers without
streaming the data anew.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pumice.model import attribute, clone, constant, nodes
from pumice.quantize.calibration import Calibrator
from pumice.quantize.channel_scaling import channel_factors, dynamic_factors, fold
from pumice.quantize.compensation import ROWS, WIDEST, Moments, layer_rows, round_weights
from pumice.quantize.context import QuantizeContext
from pumice.quantize.parameters import QuantParams, affine, symmetric_per_channel
from pumice.quantize.placement import STEP, Layer, Placement, clip_bounds, find_layers, place
from pumice.quantize.rewrite import QuantizedWeights, rewrite
from pumice.quantize.statistics import ChannelStatistics, Statistics
from pumice.quantize.target import Mode

MOMENT_SAMPLES = 128
"""Samples that enter the moments: their patches are many more."""

Reason = Callable[[ir.Node], str | None]


@attrs.frozen(kw_only=True)
class Scheme:
    """How integers are chosen; every field is somebody's knob."""

    calibrator: Calibrator = attrs.field(factory=Calibrator)
    modes: tuple[Mode, ...] = ("dynamic", "static", "weight-only")
    """Modes allowed; a layer takes the first that its target prefers among these."""
    equalize: bool = True
    compensate: bool = True
    correct_bias: bool = True
    smallest: int = 64


@attrs.define(eq=False)
class Memory:
    """What has been seen of the calibration data, by value and node name."""

    channels: dict[str, ChannelStatistics] = attrs.field(factory=dict)
    running: dict[str, ChannelStatistics] = attrs.field(factory=dict)
    """Along the last axis, for the inputs of layers that find their range while running."""
    moments: dict[tuple[str, bytes], Moments] = attrs.field(factory=dict)


def quantize_layers(
    model: ir.Model, scheme: Scheme, context: QuantizeContext, memory: Memory, keep: Reason | None = None
) -> ir.Model:
    """A quantized copy of the model. `keep` gives the reason to leave a node in floating point."""
    target, changed = context.target, clone(model)

    def excluded(node: ir.Node) -> str | None:
        return context.excluded(node) or (keep(node) if keep is not None else None)

    def choose(node: ir.Node, modes: tuple[Mode, ...]) -> Mode:
        return next((mode for mode in modes if mode in scheme.modes), modes[0])

    layers = find_layers(
        changed, target, context.ledger, excluded=excluded, choose_mode=choose, smallest=scheme.smallest
    )
    placement = place(changed, target, layers)
    _observe_channels(model, placement, context, memory)
    wanted = scheme.equalize and target.channel_scales
    factors = channel_factors(changed, placement, memory.channels) if wanted else {}
    running = dynamic_factors(placement.layers, memory.running) if wanted else {}
    parameters = _parameters(model, placement, factors, scheme, context, memory)
    moments = _observe_moments(model, placement, factors, running, parameters, context, memory) if scheme.compensate or scheme.correct_bias else {}
    weights = {
        layer.node: _weights(layer, placement, factors, running, parameters, moments.get(layer.node.name or ""), scheme, context)
        for layer in placement.layers
    }
    _account(placement, factors, running, context)
    _account_for_the_rest(changed, placement, context)
    rewrite(changed, placement, parameters, weights, factors, running)
    return changed


def _observe_channels(model: ir.Model, placement: Placement, context: QuantizeContext, memory: Memory) -> None:
    fixed = {v.name or "": ChannelStatistics() for v in placement.space_of if v.name not in memory.channels}
    read = {layer.data.name or "" for layer in placement.layers if layer.mode == "dynamic"}
    running = {name: ChannelStatistics(axis=-1) for name in sorted(read - memory.running.keys())}
    if not fixed and not running:
        return

    def observe(values: dict[str, NDArray[Any]]) -> None:
        for group in (fixed, running):
            for name, statistics in group.items():
                statistics.update(values[name])

    context.stream(model, [*fixed, *running], observe, label="ranges")
    memory.channels.update(fixed)
    memory.running.update(running)


def _parameters(
    model: ir.Model,
    placement: Placement,
    factors: dict[int, NDArray[np.float64]],
    scheme: Scheme,
    context: QuantizeContext,
    memory: Memory,
) -> dict[int, QuantParams]:
    """Scale and zero point of every space, for the values divided by their factors."""
    ranges = _extremes(placement, factors, memory)
    if scheme.calibrator.method != "minmax":
        ranges = _calibrated(model, placement, factors, scheme.calibrator, context)
    found = {}
    activations = set(placement.absorbed.values())
    for number, values in placement.spaces().items():
        low, high = ranges[number]
        for value in values:
            producer = value.producer()
            bounds = clip_bounds(producer) if producer is not None and producer in activations else None
            if bounds is not None:
                low, high = max(low, bounds[0]), min(high, bounds[1])
        found[number] = affine(low, high, context.target.activation_type, symmetric=context.target.activation_symmetric)
    return found


def _extremes(
    placement: Placement, factors: dict[int, NDArray[np.float64]], memory: Memory
) -> dict[int, tuple[float, float]]:
    found = {}
    for number, values in placement.spaces().items():
        seen = [memory.channels[v.name or ""] for v in values]
        divisor = factors.get(number, np.ones(1))
        lows = [float((s.low / divisor).min()) for s in seen if s.low is not None]
        highs = [float((s.high / divisor).max()) for s in seen if s.high is not None]
        found[number] = (min(lows, default=0.0), max(highs, default=0.0))
    return found


def _calibrated(
    model: ir.Model,
    placement: Placement,
    factors: dict[int, NDArray[np.float64]],
    calibrator: Calibrator,
    context: QuantizeContext,
) -> dict[int, tuple[float, float]]:
    """Ranges by histogram, one pass over the data; every value contributes to the statistics of its space."""
    statistics = {number: Statistics() for number in placement.spaces()}
    space_of = {value.name or "": number for value, number in placement.space_of.items()}

    def observe(values: dict[str, NDArray[Any]]) -> None:
        for name, number in space_of.items():
            array = values[name]
            if number in factors:
                array = (array / _along_channels(factors[number], array.ndim)).astype(np.float32)
            statistics[number].update(array)

    context.stream(model, space_of, observe, label="histograms")
    return {number: calibrator.range(found) for number, found in statistics.items()}


def _along_channels(vector: NDArray[np.float64], rank: int) -> NDArray[np.float64]:
    return vector.reshape(1, -1, *[1] * (rank - 2))


def _observe_moments(
    model: ir.Model,
    placement: Placement,
    factors: dict[int, NDArray[np.float64]],
    running: dict[str, NDArray[np.float64]],
    parameters: dict[int, QuantParams],
    context: QuantizeContext,
    memory: Memory,
) -> dict[str, Moments]:
    """Moments of every layer's input, as it is and as the layer will see it, both divided by the factors."""
    found: dict[str, Moments] = {}
    samples = min(context.count() or MOMENT_SAMPLES, MOMENT_SAMPLES)
    most = max(64, ROWS // samples)
    missing: dict[str, tuple[Layer, Moments, int | None]] = {}
    for layer in placement.layers:
        shape = _weight_shape(layer)
        if layer.mode == "weight-only" or (layer.node.op_type != "Conv" and len(shape) != 2):
            continue
        space = placement.space_of[layer.data] if layer.mode == "static" else None
        key = (layer.node.name or "", _signature(space, factors, parameters))
        if key not in memory.moments:
            groups = int(attribute(layer.node, "group", 1)) if layer.node.op_type == "Conv" else 1
            width = int(np.prod(shape[1:])) if layer.node.op_type == "Conv" else shape[1 - layer.axis]
            memory.moments[key] = Moments(groups, width, width <= WIDEST)
            missing[layer.node.name or ""] = (layer, memory.moments[key], space)
        found[layer.node.name or ""] = memory.moments[key]

    def observe(values: dict[str, NDArray[Any]]) -> None:
        for layer, moments, space in missing.values():
            exact = values[layer.data.name or ""]
            if space is not None and space in factors:
                exact = (exact / _along_channels(factors[space], exact.ndim)).astype(np.float32)
            elif space is None and (layer.data.name or "") in running:
                exact = (exact / running[layer.data.name or ""]).astype(np.float32)
            rows = layer_rows(layer.node, _weight_shape(layer), exact, most)
            moments.update(rows, rows if space is None else parameters[space].round_trip(rows))

    if missing:
        read = [layer.data.name or "" for layer, _, _ in missing.values()]
        context.stream(model, read, observe, label="moments", limit=samples)
    return found


def _weight_shape(layer: Layer) -> tuple[int, ...]:
    shape = layer.weight_value.shape
    assert shape is not None
    return tuple(int(n) for n in shape.numpy())


def _signature(
    space: int | None, factors: dict[int, NDArray[np.float64]], parameters: dict[int, QuantParams]
) -> bytes:
    if space is None:
        return b""
    params = parameters[space]
    tail = factors[space].tobytes() if space in factors else b""
    return params.scale.tobytes() + params.zero_point.tobytes() + tail


def _weights(
    layer: Layer,
    placement: Placement,
    factors: dict[int, NDArray[np.float64]],
    running: dict[str, NDArray[np.float64]],
    parameters: dict[int, QuantParams],
    moments: Moments | None,
    scheme: Scheme,
    context: QuantizeContext,
) -> QuantizedWeights:
    weights = constant(layer.weight_value)
    assert weights is not None
    bias = constant(layer.node.inputs[layer.bias]) if layer.bias is not None else None
    static = layer.mode == "static"
    reading = factors.get(placement.space_of[layer.data]) if static else None
    writing = factors.get(_written_space(layer, placement)) if static else None
    folded, offset = fold(layer, weights, None if bias is None else bias.reshape(-1), reading, writing)
    if layer.mode == "dynamic" and (layer.data.name or "") in running:
        inputs = running[layer.data.name or ""]
        folded = folded * (inputs[None, :] if layer.axis == 0 else inputs[:, None])
    axis = layer.axis if context.target.per_channel and (weights.ndim == 2 or layer.node.op_type != "MatMul") else None
    bits = context.target.weight_bits
    params = symmetric_per_channel(folded, axis, bits=bits, bound=None)
    if static and offset is not None:
        params = _room_for_bias(params, offset, parameters[placement.space_of[layer.data]])
    if moments is None:
        integers = np.clip(params.quantize(folded), -(2 ** (bits - 1) - 1), 2 ** (bits - 1) - 1)
        return QuantizedWeights(integers=integers, params=params, bias=offset)
    rounded = round_weights(
        layer.node,
        folded,
        layer.axis,
        params,
        moments,
        limit=2 ** (bits - 1) - 1,
        compensate=scheme.compensate,
        correct_bias=scheme.correct_bias,
    )
    takes_bias = offset is not None or layer.node.op_type in ("Conv", "Gemm") or layer.mode == "dynamic"
    if takes_bias and (offset is not None or scheme.correct_bias):
        offset = rounded.shift if offset is None else offset + rounded.shift
    return QuantizedWeights(integers=rounded.integers, params=params, bias=offset)


def _written_space(layer: Layer, placement: Placement) -> int:
    """The space a layer writes, -1 if its output stays in floating point."""
    output = layer.node.outputs[0]
    if output in placement.absorbed:
        output = placement.absorbed[output].outputs[0]
    return placement.space_of.get(output, -1)


def _room_for_bias(params: QuantParams, bias: NDArray[np.float64], source: QuantParams) -> QuantParams:
    """Weight scales large enough that the int32 bias uses at most half of its range: the accumulator needs the rest."""
    least = (np.abs(bias) / (float(source.scale) * 2.0**30)).astype(np.float32)
    if params.axis is None:
        least = least.max(initial=np.float32(0))
    return attrs.evolve(params, scale=np.maximum(params.scale, least))


_MODE_REASON = {
    "static": "computes with integers, its input's range fixed by calibration",
    "dynamic": "computes with integers, its input's range found while it runs",
    "weight-only": "its weights are stored as integers; the runtime has no integer kernel for it",
}
_RECURRENT = frozenset({"LSTM", "GRU", "RNN"})


def _account(
    placement: Placement,
    factors: dict[int, NDArray[np.float64]],
    running: dict[str, NDArray[np.float64]],
    context: QuantizeContext,
) -> None:
    for layer in placement.layers:
        if layer.mode == "static":
            scaled = placement.space_of[layer.data] in factors
        else:
            scaled = layer.mode == "dynamic" and (layer.data.name or "") in running
        reason = _MODE_REASON[layer.mode] + ("; input channels rescaled" if scaled else "")
        context.ledger.applied(STEP, layer.node.name or "", layer.node.op_type, reason, mode=layer.mode)


def _account_for_the_rest(model: ir.Model, placement: Placement, context: QuantizeContext) -> None:
    """A line for every node that is not a layer and has none yet."""
    said = {entry.node for entry in context.ledger.of(STEP)}
    absorbed = set(placement.absorbed.values())
    for node in nodes(model):
        name = node.name or ""
        if name in said:
            continue
        if node.graph is not model.graph:
            context.ledger.skipped(STEP, name, node.op_type, "it lies in a control-flow body, which is carried untouched")
        elif node in absorbed:
            context.ledger.applied(STEP, name, node.op_type, "vanished into the range of the value it writes")
        elif node in placement.integer_nodes:
            context.ledger.applied(STEP, name, node.op_type, "passes integers on between quantized neighbours")
        elif node.op_type in _RECURRENT:
            reason = "recurrent layers stay in floating point: rounding errors would add up in their state"
            context.ledger.declined(STEP, name, node.op_type, reason)
        else:
            context.ledger.skipped(STEP, name, node.op_type, "no integer layer asks for its values")
