"""Convolution: y[n, m, o] = b[m] + sum over c, t of w[m, c, t] x[n, g(m) C/G + c, o s + t d - p].

Computed as a matrix product. The windows of an image are laid out as columns of shape (groups, C/G * taps, outputs)
("im2col") and multiplied by the filters as (groups, M/G, C/G * taps); a 1x1 convolution needs no copy. A depthwise
convolution has no sum over channels, so there one multiply-add over the whole image per tap is faster. The columns of
large batches are made in chunks, so that memory stays bounded. ConvTranspose is the adjoint: product first, then the
columns are added back to where they came from ("col2im").

Float16 and bfloat16 accumulate in float32; integers exactly (see `matmul.exact`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs
import numpy as np

from pumice.errors import UnsupportedOp
from pumice.ops.dtypes import wide
from pumice.ops.matmul import exact
from pumice.ops.record import Array, Node, Op, OpCost, Outputs, Shape, elements, traffic
from pumice.ops.window import Window

CHUNK = 1 << 24
"""Elements of im2col columns held at once."""


def convolve(x: Array, w: Array, window: Window, groups: int) -> Array:
    """(N, C, *size) by (M, C/groups, *kernel) to (N, M, *output), without bias; the type of x."""
    batch, filters = x.shape[0], w.shape[0]
    if groups > 1 and w.shape[1] == 1:
        return _depthwise(window.pad(x, 0), w, window)
    outputs, depth = math.prod(window.output), w.shape[1] * window.taps
    kernel = w.reshape(groups, filters // groups, depth)
    padded = window.pad(x, 0)
    y = np.empty((batch, groups, filters // groups, outputs), x.dtype)
    step = max(1, CHUNK // max(1, groups * depth * outputs))
    for start in range(0, batch, step):
        part = padded[start : start + step]
        pointwise = window.taps == 1 and set(window.strides) <= {1}
        columns = part if pointwise else window.views(part)
        exact(kernel, columns.reshape(len(part), groups, depth, outputs), out=y[start : start + step])
    return y.reshape(batch, filters, *window.output)


def _depthwise(padded: Array, w: Array, window: Window) -> Array:
    """One filter bank per channel: taps are added up over the image, channels and filters in one go."""
    batch, channels = padded.shape[:2]
    multiplier = w.shape[0] // channels
    taps = w.reshape(channels, multiplier, window.taps)
    flat = (1,) * len(window.output)
    y = np.zeros((batch, channels, multiplier, *window.output), padded.dtype)
    product = np.empty(y.shape[1:], padded.dtype)
    for tap, where in enumerate(window.slices()):
        weights = taps[:, :, tap].reshape(channels, multiplier, *flat)
        for image, total in zip(padded, y, strict=True):
            np.multiply(image[where[1:]][:, None], weights, out=product)
            total += product
    return y.reshape(batch, w.shape[0], *window.output)


def add_bias(y: Array, b: Array | None) -> Array:
    """Adds a bias per channel in place."""
    if b is not None:
        y += b.reshape(-1, *(1,) * (y.ndim - 2))
    return y


def conv(node: Node, x: Array, w: Array, b: Array | None = None) -> Outputs:
    y = convolve(wide(x), wide(w), Window.of(node, x.shape[2:], w.shape[2:]), node.get("group", 1))
    return (add_bias(y, None if b is None else wide(b)).astype(x.dtype, copy=False),)


def _conv_transpose(node: Node, x: Array, w: Array, b: Array | None = None) -> Outputs:
    groups, batch, kernel = node.get("group", 1), x.shape[0], w.shape[2:]
    window, size = _adjoint_window(node, x.shape[2:], kernel)
    channels, outputs = x.shape[1] // groups, math.prod(x.shape[2:])
    filters = wide(w).reshape(groups, channels, -1).transpose(0, 2, 1)
    columns = exact(filters, wide(x).reshape(batch, groups, channels, outputs))
    columns = columns.reshape(batch, groups * w.shape[1], window.taps, *x.shape[2:])
    full = [n + p + q for n, p, q in zip(window.size, window.before, window.after, strict=True)]
    y = np.zeros((batch, groups * w.shape[1], *full), columns.dtype)
    for tap, where in enumerate(window.slices() if outputs else ()):
        y[where] += columns[:, :, tap]
    y = y[attrs.evolve(window, size=tuple(size)).interior]
    return (add_bias(np.ascontiguousarray(y), None if b is None else wide(b)).astype(x.dtype, copy=False),)


def _adjoint_window(node: Node, inputs: Sequence[int], kernel: Sequence[int]) -> tuple[Window, list[int]]:
    """The window of the convolution whose adjoint the node is, and the spatial size of the node's output.

    `output_shape` and SAME padding give the size and imply the padding; otherwise the padding gives the size. Elements
    that no window reaches (output padding) get the bias alone.
    """
    rank = len(inputs)
    strides = node.get("strides") or [1] * rank
    dilations = node.get("dilations") or [1] * rank
    extra = node.get("output_padding") or [0] * rank
    axes = zip(strides, inputs, extra, dilations, kernel, strict=True)
    spans = [s * (i - 1) + e + d * (k - 1) + 1 for s, i, e, d, k in axes]
    auto_pad = node.get("auto_pad", "NOTSET")
    size = node.get("output_shape")
    if size is None and auto_pad.startswith("SAME"):
        size = [i * s for i, s in zip(inputs, strides, strict=True)]
    if size is not None:
        size = list(size)[-rank:]
        total = [max(0, full - n) for full, n in zip(spans, size, strict=True)]
        small, large = [t // 2 for t in total], [t - t // 2 for t in total]
        before, after = (small, large) if auto_pad == "SAME_UPPER" else (large, small)
    else:
        pads = node.get("pads") or [0] * (2 * rank)
        before, after = list(pads[:rank]), list(pads[rank:])
        size = [full - p - q for full, p, q in zip(spans, before, after, strict=True)]
    beyond = [max(n, full - p) for n, full, p in zip(size, spans, before, strict=True)]
    window = Window(
        size=tuple(beyond), kernel=tuple(kernel), strides=tuple(strides), dilations=tuple(dilations),
        before=tuple(before), after=(0,) * rank, output=tuple(inputs),
    )  # fmt: skip
    return window, size


def _causal_conv(node: Node, x: Array, w: Array, b: Array | None = None, past: Array | None = None) -> Outputs:
    """Depthwise 1-D convolution of a stream; the state is the last taps - 1 elements seen."""
    taps = w.shape[2]
    state = np.zeros((*x.shape[:2], taps - 1), x.dtype) if past is None else past
    stream = np.concatenate([state, x], axis=2)
    window = Window.of(Node(op_type="Conv"), stream.shape[2:], (taps,))
    y = add_bias(convolve(wide(stream), wide(w), window, x.shape[1]), None if b is None else wide(b)).astype(x.dtype)
    activation = node.get("activation", "none")
    if activation in ("silu", "swish"):
        y = (wide(y) / (1 + np.exp(-wide(y)))).astype(x.dtype)
    elif activation != "none":
        raise UnsupportedOp(f"{node} has activation '{activation}'; known are none, silu and swish")
    return y, stream[:, :, stream.shape[2] - (taps - 1) :]


def conv_cost(node: Node, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> OpCost:
    """Every output element is a sum over the C/G * taps weights of its filter."""
    w, y = inputs[1], outputs[0]
    assert w is not None
    params = elements(w) + (elements(inputs[2]) if len(inputs) > 2 else 0)
    return OpCost(macs=elements(y) * elements(w[1:]), params=params, bytes=traffic(node, inputs, outputs).bytes)


def _transpose_cost(node: Node, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> OpCost:
    """Every input element is spread over the M/G * taps weights of its channel."""
    x, w = inputs[0], inputs[1]
    assert w is not None
    params = elements(w) + (elements(inputs[2]) if len(inputs) > 2 else 0)
    return OpCost(macs=elements(x) * elements(w[1:]), params=params, bytes=traffic(node, inputs, outputs).bytes)


OPS = (
    Op("Conv", forward=conv, cost=conv_cost),
    Op("ConvTranspose", forward=_conv_transpose, cost=_transpose_cost),
    Op("CausalConvWithState", since=27, forward=_causal_conv, cost=conv_cost),
)
