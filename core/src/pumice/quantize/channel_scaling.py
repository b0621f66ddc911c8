"""Channel scaling: eight bits for every channel of an activation, at no cost when the model runs.

A per-tensor scale wastes bits where the channels of a tensor differ in range. With a positive factor t[c] per channel
the stored tensor is x[c] / t[c], and every neighbour undoes or applies the factor for nothing:

    a layer that writes it   W[o, i] / t[o], b[o] / t[o]          (ReLU commutes with positive factors)
    a layer that reads it    W[o, i] * t[i]
    floating point after it  one multiplication by t[c], and, where that is worth it, one addition of an offset o[c]
    a gate, x[c] * h[c]      one multiplication of the few numbers h[c]
    floating point before it one multiplication by 1 / t[c]
    pooling                  the same t on both sides

(The first two lines are cross-layer equalisation, Nagel et al., ICCV 2019; with the fourth, SmoothQuant, Xiao et al.,
ICML 2023, for layers that find their range while running; the third extends it over operators that stay in floating
point.) How far to go is a trade: equal ranges round the activations best, but make the weights of the reading layer
uneven. t[c] = (r[c] / max r) ** alpha, with r the range of the channel, and alpha minimises the expected squared error
of the readers' outputs, rounding of activations and of weights together.

Where a multiplication is needed it is a pass over the values, and accuracy is bought with time. What is chosen has the
least product of noise (the root of the error) and time: a bit is worth at most twice the time. Time is counted in
products by weights for each number of the value, in the layers around it; a pass takes as long as about PASS of those.
(An offset, the middle of the channel's range, is taken out of the writing layer's bias: x[c] = t[c] * q[c] + o[c]. It
takes two.)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import attrs
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pumice.model import attribute, constant, consumers
from pumice.quantize.folding import folded_into_producers, gate_of, read_by_none_but
from pumice.quantize.placement import Layer, Placement, clip_bounds, weight_shape
from pumice.quantize.statistics import ChannelStatistics
from pumice.quantize.target import ChannelScales

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
HEADROOM = 2.0
"""Room that a channel keeps, times what calibration saw of it: its extremes are known less well than the tensor's."""
SMALLEST_FACTOR = 1.0 / 256
"""A channel silent in calibration keeps at least this share of the widest channel's range."""
AVERAGING = frozenset({"AveragePool", "GlobalAveragePool"})
PASS = 40
CHANNELWISE = AVERAGING | {"MaxPool"}
COMPENSATED = 0.25
"""Share of the weight-rounding error that compensated rounding leaves, roughly."""


@attrs.frozen(eq=False)
class Rescaling:
    """What is stored of a value x with channels on axis 1: (x - offset) / factor, per channel."""

    factor: NDArray[np.float64]
    offset: NDArray[np.float64] | None = None

    def stored(self, array: NDArray[np.float32]) -> NDArray[np.float32]:
        """The stored form of an array (batch, channels, ...)."""
        shape = (1, -1, *[1] * (array.ndim - 2))
        moved = array if self.offset is None else array - self.offset.reshape(shape)
        return np.asarray(moved / self.factor.reshape(shape), np.float32)

    def range(self, low: NDArray[np.float64], high: NDArray[np.float64]) -> tuple[float, float]:
        """The extremes of the stored form, from the extremes of every channel."""
        offset = 0.0 if self.offset is None else self.offset
        return float(((low - offset) / self.factor).min()), float(((high - offset) / self.factor).max())

    @property
    def signature(self) -> bytes:
        return self.factor.tobytes() + (b"" if self.offset is None else self.offset.tobytes())


@attrs.define(eq=False)
class _Space:
    """What surrounds the values of a space."""

    free_range: bool
    """Written by layers straight, without an activation that needs zero to stay where it is."""
    readers: list[Layer] = attrs.field(factory=list)
    gated: bool = False
    """Multiplied by a gate, which takes the factors at no cost."""
    float_readers: bool = False
    float_writers: bool = False
    products: float = 0.0
    """By weights, for each number of the values, in the convolutions that write and read them."""

    @property
    def passes(self) -> int:
        """Multiplications that factors cost when the model runs."""
        return self.float_readers + self.float_writers


def _price(products: float, passes: int) -> float:
    """What an error is multiplied by for the time of `passes` beside the one that quantizes: the time squared."""
    return (products + PASS * (1 + passes)) ** 2


def channel_factors(
    placement: Placement, statistics: Mapping[str, ChannelStatistics], scales: ChannelScales = "everywhere"
) -> dict[int, Rescaling]:
    """The rescaling of every space where one is possible and worth having, and where the target wants one."""
    if scales == "none":
        return {}
    layer_of = {layer.node: layer for layer in placement.layers if layer.mode == "static"}
    found = {}
    spaces = placement.spaces()
    for numbers in _linked(placement):
        values = [value for number in numbers for value in spaces[number]]
        space = _scalable(values, placement, layer_of)
        seen = [statistics[v.name or ""] for v in values]
        counts = {s.channels for s in seen}
        if space is None or (space.passes and scales == "free") or len(counts) != 1 or 0 in counts:
            continue
        best = _best(space, seen)
        if best is not None:
            found.update(dict.fromkeys(numbers, best))
    return found


def _linked(placement: Placement) -> list[list[int]]:
    """Spaces that must have the same factors, because an average pool lies between them."""
    root = {number: number for number in placement.spaces()}

    def find(number: int) -> int:
        while root[number] != number:
            number = root[number]
        return number

    for node in placement.integer_nodes:
        if node.op_type in AVERAGING:
            ends = [v for v in (node.inputs[0], node.outputs[0]) if v is not None and v in placement.space_of]
            if len(ends) == 2:
                low, high = sorted(find(placement.space_of[end]) for end in ends)
                root[high] = low
    groups: dict[int, list[int]] = {}
    for number in root:
        groups.setdefault(find(number), []).append(number)
    return [sorted(group) for _, group in sorted(groups.items())]


def _scalable(values: Sequence[ir.Value], placement: Placement, layer_of: Mapping[ir.Node, Layer]) -> _Space | None:
    """The space, if every node that touches it can take a factor per channel."""
    space = _Space(free_range=len(values) == 1)
    for value in values:
        if value.shape is None or len(value.shape) < 3 or value.is_graph_output():
            return None
        if not _writer_scales(space, value, placement, layer_of) or not _readers_scale(
            space, value, placement, layer_of
        ):
            return None
    return space


def _writer_scales(space: _Space, value: ir.Value, placement: Placement, layer_of: Mapping[ir.Node, Layer]) -> bool:
    producer = value.producer()
    if producer is not None and producer in placement.absorbed.values():
        if clip_bounds(producer) != (0.0, np.inf):
            return False  # a bounded activation cannot leave its range: giving that up for resolution is a bad trade
        source, space.free_range = producer.inputs[0], False
        producer = source.producer() if source is not None else None
    space.free_range = space.free_range and producer in layer_of
    if producer is None or producer not in placement.integer_nodes:
        space.float_writers = True
        return True
    if producer in layer_of:
        shape = weight_shape(layer_of[producer])
        space.products += float(np.prod(shape)) / shape[0]
    if producer in layer_of and value not in placement.writes_integers:
        # floating-point readers would read what the layer writes, straight
        return producer.op_type == "Conv" and all(reader in placement.integer_nodes for reader in consumers(value))
    return producer.op_type in CHANNELWISE or (producer in layer_of and producer.op_type == "Conv")


def _readers_scale(space: _Space, value: ir.Value, placement: Placement, layer_of: Mapping[ir.Node, Layer]) -> bool:
    for reader in consumers(value):
        layer = layer_of.get(reader)
        if layer is not None:
            if reader.op_type != "Conv" or layer.weight_value is value:
                return False
            space.readers.append(layer)
            space.products += _products(layer)
        elif reader not in placement.integer_nodes:
            space.gated |= (gate := gate_of(value, reader) is not None)
            space.float_readers |= not gate
        elif reader.op_type not in CHANNELWISE:
            return False
    return True


def _products(layer: Layer) -> float:
    """Products by weights for each number that a convolution reads."""
    shape, groups = weight_shape(layer), int(attribute(layer.node, "group", 1))
    return float(np.prod(shape) / (shape[1] * groups) / np.prod(attribute(layer.node, "strides", (1,))))


def _best(space: _Space, statistics: Sequence[ChannelStatistics]) -> Rescaling | None:
    """The factors of the best exponent; None if all factors would be one."""
    if not space.readers:
        return _for_floats(space, statistics[0]) if space.float_readers or space.gated else None
    ranges = np.max([s.largest for s in statistics], axis=0)
    widest = float(ranges.max(initial=0.0))
    if len(ranges) < 2 or widest <= 0.0:
        return None
    share = np.clip(HEADROOM * ranges / widest, SMALLEST_FACTOR, 1.0)
    squares = np.max([s.mean_square for s in statistics], axis=0)
    weights = [_per_input_channel(layer) for layer in space.readers]
    factors = _least_error(
        weights, share, ranges, squares, _price(space.products, 0) / _price(space.products, space.passes)
    )
    return None if factors is None else Rescaling(factors)


def _for_floats(space: _Space, statistics: ChannelStatistics) -> Rescaling | None:
    """For values that only floating-point operators read: nothing speaks against using the whole range everywhere."""
    assert statistics.low is not None
    assert statistics.high is not None
    low, high = np.minimum(statistics.low, 0.0), np.maximum(statistics.high, 0.0)
    if len(low) < 2 or high.max() <= low.min():
        return None
    factor = _shares(np.maximum(-low, high))
    choices: list[tuple[float, Rescaling | None]] = [
        (_span(low, high) ** 2 * _price(space.products, 0), None),
        (
            float(np.mean((factor * _span(low / factor, high / factor)) ** 2))
            * _price(space.products, space.float_readers),
            Rescaling(factor),
        ),
    ]
    half = (statistics.high - statistics.low) / 2.0
    if space.free_range and half.max() > 0.0:
        moved = _shares(half)
        error = float(np.mean((moved * _span(-half / moved, half / moved)) ** 2))
        choices.append((error * _price(space.products, 2), Rescaling(moved, (statistics.low + statistics.high) / 2.0)))
    return min(choices, key=lambda choice: choice[0])[1]


def _shares(ranges: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.clip(HEADROOM * ranges / ranges.max(), SMALLEST_FACTOR, 1.0), np.float64)


def _span(low: NDArray[np.float64], high: NDArray[np.float64]) -> float:
    return float(high.max() - low.min())


def _least_error(
    weights: Sequence[NDArray[np.float64]],
    share: NDArray[np.float64],
    ranges: NDArray[np.float64],
    squares: NDArray[np.float64],
    worth: float,
) -> NDArray[np.float64] | None:
    """share ** alpha for the best alpha; None if it does not bring the error below `worth` times what it is without."""
    costs = [sum(_error(w, share**alpha, ranges, squares) for w in weights) for alpha in ALPHAS]
    best = int(np.argmin(costs))
    return share ** ALPHAS[best] if best and costs[best] < worth * costs[0] else None


def dynamic_factors(
    layers: Sequence[Layer], statistics: Mapping[str, ChannelStatistics]
) -> dict[str, NDArray[np.float64]]:
    """t over the last axis of every value that layers with running ranges read, by the name of the value.

    None where the weights are read by layers of several values: they could not be stored once.
    """
    readers: dict[str, list[NDArray[np.float64]]] = {}
    values: dict[str, ir.Value] = {}
    dynamic = {layer.node for layer in layers if layer.mode == "dynamic"}
    several = _sharing_weights(layers)
    for layer in layers:
        weights = constant(layer.weight_value)
        if layer.mode == "dynamic" and weights is not None and weights.ndim == 2:
            matrix = weights if layer.axis == 0 else weights.T
            readers.setdefault(layer.data.name or "", []).append(matrix.astype(np.float64)[None, :, :, None])
            values[layer.data.name or ""] = layer.data
    found = {}
    for name, weights_read in readers.items():
        seen = statistics[name]
        if name in several:
            continue
        widest = float(seen.largest.max(initial=0.0)) if seen.channels else 0.0
        if widest <= 0.0:
            continue
        share = np.clip(seen.largest / widest, SMALLEST_FACTOR, 1.0)
        columns = sum(matrix.shape[1] for matrix in weights_read)
        worth = 1.0 if _takes_factors(values[name], len(share), dynamic) else _price(columns, 0) / _price(columns, 1)
        factors = _least_error(weights_read, share, seen.largest, seen.mean_square, worth)
        if factors is not None:
            found[name] = factors
    return found


def _takes_factors(value: ir.Value, channels: int, readers: Collection[ir.Node]) -> bool:
    """Whether constants before the value can take factors along its last axis."""
    if not read_by_none_but(value, readers):
        return False
    return folded_into_producers(value, np.ones(channels), may_change=lambda _: True) is not None


def _sharing_weights(layers: Sequence[Layer]) -> set[str]:
    """Names of values whose layers have weights that are also multiplied with other values."""
    names: dict[ir.Value, set[str]] = {}
    for layer in layers:
        if layer.mode == "dynamic":
            names.setdefault(layer.weight_value, set()).add(layer.data.name or "")
    return {name for shared in names.values() if len(shared) > 1 for name in shared}


def _per_input_channel(layer: Layer) -> NDArray[np.float64]:
    """Weights of a convolution as (groups, outputs per group, inputs per group, taps)."""
    weights = constant(layer.weight_value)
    assert weights is not None
    groups = int(attribute(layer.node, "group", 1))
    return weights.astype(np.float64).reshape(groups, weights.shape[0] // groups, weights.shape[1], -1)


def _error(
    weights: NDArray[np.float64],
    factors: NDArray[np.float64],
    ranges: NDArray[np.float64],
    squares: NDArray[np.float64],
) -> float:
    """Expected squared error of one reading layer: rounding of its inputs, and of its weights after the factors."""
    groups, _, inputs, taps = weights.shape
    t = factors.reshape(groups, 1, inputs, 1)
    step = float(np.max(ranges / factors)) / 255.0
    activation = float(np.sum(weights**2 * (step * t) ** 2)) / 12.0
    weight_step = np.abs(weights * t).max(axis=(2, 3)) / 127.0
    energy = (squares.reshape(groups, 1, inputs) / t[..., 0] ** 2).sum(axis=2) * taps
    return activation + COMPENSATED * float(np.sum(weight_step**2 / 12.0 * energy))


def fold(
    layer: Layer,
    weights: NDArray[np.floating],
    bias: NDArray[np.floating] | None,
    reading: Rescaling | None,
    writing: Rescaling | None,
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """Weights and bias of a convolution with the factors of the space it reads and of the space it writes."""
    folded = weights.astype(np.float64)
    shape = folded.shape
    groups = int(attribute(layer.node, "group", 1))
    if reading is not None:
        grouped = folded.reshape(groups, shape[0] // groups, shape[1], -1)
        folded = (grouped * reading.factor.reshape(groups, 1, shape[1], 1)).reshape(shape)
    scaled = None if bias is None else bias.astype(np.float64)
    if writing is not None:
        folded = folded / writing.factor.reshape(-1, *[1] * (len(shape) - 1))
        if writing.offset is not None:
            scaled = (0.0 if scaled is None else scaled) - writing.offset
        scaled = None if scaled is None else scaled / writing.factor
    return folded, scaled
