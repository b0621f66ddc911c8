"""Convolution: y[n, m, o] = b[m] + sum over c, t of w[m, c, t] x[n, g(m) C/G + c, o s + t d - p].

Computed as a matrix product. The windows of an image are laid out as columns of shape (groups, C/G * taps, outputs)
("im2col") and multiplied by the filters as (groups, M/G, C/G * taps); a 1x1 convolution needs no copy. A depthwise
convolution has no sum over channels, so there one multiply-add over the whole image per tap is faster. The columns of
large batches are made in chunks, so that memory stays bounded. ConvTranspose is the adjoint: product first, then the
columns are added back to where they came from ("col2im").

With W a filter bank as a matrix, X the columns of an image and dY the gradient of its outputs, the gradients are

    dx = col2im(W^T dY)        dW = sum over images of dY X^T        db = sum of dY over images and outputs

and those of ConvTranspose the same with x and dy in each other's place.

Float16 and bfloat16 accumulate in float32; integers exactly (see `matmul.exact`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import attrs
import numpy as np

from pumice.errors import UnsupportedOp
from pumice.ops.channels import Balanced, Cellwise, Channels, Edit, Kept, Same, Site, Summed, Tie, into, out
from pumice.ops.dtypes import wide
from pumice.ops.gradient import namespace
from pumice.ops.matmul import exact, product
from pumice.ops.record import Array, Arrays, Node, Op, OpCost, Outputs, Shape, Vjp, Wanted, elements, traffic
from pumice.ops.window import Window

CHUNK = 1 << 22
"""Elements of im2col columns held at once."""


def convolve(x: Array, w: Array, window: Window, groups: int) -> Array:
    """(N, C, *size) by (M, C/groups, *kernel) to (N, M, *output), without bias; the type of x."""
    batch, filters = x.shape[0], w.shape[0]
    if groups > 1 and w.shape[1] == 1:
        return _depthwise(window.pad(x, 0), w, window)
    kernel = w.reshape(groups, filters // groups, -1)
    y: Array = namespace(x).empty((batch, groups, filters // groups, math.prod(window.output)), x.dtype)
    for part, columns in _columns(x, window, groups):
        exact(kernel, columns, out=y[part])
    return y.reshape(batch, filters, *window.output)


def _columns(x: Array, window: Window, groups: int) -> Iterator[tuple[slice, Array]]:
    """The windows of some images at a time, as (images, groups, C/groups * taps, outputs)."""
    depth, outputs = x.shape[1] // groups * window.taps, math.prod(window.output)
    pointwise = window.taps == 1 and set(window.strides) <= {1}
    padded = window.pad(x, 0)
    for part in _parts(len(x), groups * depth * outputs):
        images = padded[part]
        columns = images if pointwise else window.views(images)
        yield part, columns.reshape(len(images), groups, depth, outputs)


def _parts(batch: int, size: int) -> Iterator[slice]:
    """Runs of images whose columns, of `size` elements an image, may be held at once."""
    step = max(1, CHUNK // max(1, size))
    return (slice(start, start + step) for start in range(0, batch, step))


def _depthwise(padded: Array, w: Array, window: Window) -> Array:
    """One filter bank per channel: taps are added up over the image, channels and filters in one go."""
    batch, channels = padded.shape[:2]
    multiplier = w.shape[0] // channels
    taps = w.reshape(channels, multiplier, window.taps)
    flat = (1,) * len(window.output)
    xp = namespace(padded)
    y: Array = xp.zeros((batch, channels, multiplier, *window.output), padded.dtype)
    each = 1 if xp is np else max(1, batch)  # images at once: what a CPU keeps in its cache, or few launches
    scaled = xp.empty((each, *y.shape[1:]), padded.dtype)
    for tap, where in enumerate(window.slices()):
        weights = taps[:, :, tap].reshape(channels, multiplier, *flat)
        for first in range(0, batch, each):
            np.multiply(padded[where][first : first + each, :, None], weights, out=scaled)
            y[first : first + each] += scaled
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
    window, size = adjoint_window(node, x.shape[2:], w.shape[2:])
    y = _adjoint(wide(x), wide(w), window, node.get("group", 1))[attrs.evolve(window, size=tuple(size)).interior]
    return (add_bias(namespace(y).ascontiguousarray(y), None if b is None else wide(b)).astype(x.dtype, copy=False),)


def _adjoint(y: Array, w: Array, window: Window, groups: int) -> Array:
    """The transpose of `convolve` as a linear map: (N, M, *output) to the padded (N, C, *size)."""
    batch, filters = y.shape[0], w.shape[0] // groups
    channels, outputs = groups * w.shape[1], math.prod(y.shape[2:])
    after = map(max, window.after, window.reach)
    full = [p + n + q for p, n, q in zip(window.before, window.size, after, strict=True)]
    x = np.zeros_like(w, shape=(batch, channels, *full))
    kernel = w.reshape(groups, filters, -1).swapaxes(1, 2)
    for part in _parts(batch if outputs else 0, channels * window.taps * outputs):
        columns = exact(kernel, y[part].reshape(-1, groups, filters, outputs))
        columns = columns.reshape(-1, channels, window.taps, *y.shape[2:])
        for tap, where in enumerate(window.slices()):
            x[part][where] += columns[:, :, tap]
    return x


def adjoint_window(node: Node, inputs: Sequence[int], kernel: Sequence[int]) -> tuple[Window, list[int]]:
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
    state = namespace(x).zeros((*x.shape[:2], taps - 1), x.dtype) if past is None else past
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


# --- gradients --------------------------------------------------------------------------------------------------------


def _filter_gradient(x: Any, dy: Any, filters: tuple[int, ...], window: Window, groups: int) -> Any:
    """Of the filters of `convolve`, in their shape."""
    if groups > 1 and filters[1] == 1:
        return _depthwise_filter_gradient(window.pad(x, 0), dy, filters, window)
    rows = dy.reshape(len(dy), groups, filters[0] // groups, -1)
    total = np.zeros_like(dy, shape=(groups, filters[0] // groups, filters[1] * window.taps))
    for part, columns in _columns(x, window, groups):
        total += product(rows[part], columns.swapaxes(-1, -2)).sum(axis=0)
    return total.reshape(filters)


def _depthwise_filter_gradient(padded: Any, dy: Any, filters: tuple[int, ...], window: Window) -> Any:
    channels = padded.shape[1]
    each = dy.reshape(len(dy), channels, -1, *window.output)
    spatial = tuple(range(3, each.ndim))
    total = namespace(dy).empty((*each.shape[1:3], window.taps), dy.dtype)
    for tap, where in enumerate(window.slices()):  # a stack of many arrays would copy their addresses to a device
        total[..., tap] = (each * padded[where][:, :, None]).sum(axis=(0, *spatial))
    return total.reshape(filters)


def _input_gradient(dy: Any, w: Any, window: Window, groups: int) -> Any:
    """With unit strides the adjoint is itself a convolution, with the filters turned round: no columns to add up."""
    reach = [d * (k - 1) for d, k in zip(window.dilations, window.kernel, strict=True)]
    before, after = ([r - p for r, p in zip(reach, pads, strict=True)] for pads in (window.before, window.after))
    if max(window.strides) > 1 or min(*before, *after) < 0:
        return _adjoint(dy, w, window, groups)[window.interior]
    turned = attrs.evolve(
        window, size=window.output, before=tuple(before), after=tuple(after), output=window.size,
    )  # fmt: skip
    filters = np.flip(w.reshape(groups, -1, *w.shape[1:]).swapaxes(1, 2), tuple(range(3, w.ndim + 1)))
    return convolve(dy, filters.reshape(-1, *filters.shape[2:]), turned, groups)


def _conv_vjp(node: Node, inputs: Arrays, outputs: Arrays, grads: Arrays, wanted: Wanted) -> Arrays:
    (x, w), dy, groups = inputs[:2], grads[0], node.get("group", 1)
    window = Window.of(node, x.shape[2:], w.shape[2:])
    dx = _input_gradient(dy, w, window, groups) if wanted[0] else None
    dw = _filter_gradient(x, dy, w.shape, window, groups) if wanted[1] else None
    return [dx, dw, *_bias_gradient(inputs, dy, wanted)]


def _conv_transpose_vjp(node: Node, inputs: Arrays, outputs: Arrays, grads: Arrays, wanted: Wanted) -> Arrays:
    (x, w), dy, groups = inputs[:2], grads[0], node.get("group", 1)
    window, size = adjoint_window(node, x.shape[2:], w.shape[2:])
    window = attrs.evolve(window, size=tuple(size))
    dx = convolve(dy, w, window, groups) if wanted[0] else None
    dw = _filter_gradient(dy, x, w.shape, window, groups) if wanted[1] else None
    return [dx, dw, *_bias_gradient(inputs, dy, wanted)]


def _bias_gradient(inputs: Arrays, dy: Any, wanted: Sequence[bool]) -> list[Any]:
    axes = (0, *range(2, dy.ndim))
    return [dy.sum(axis=axes) if want else None for want in wanted[2:]]


# --- channels ---------------------------------------------------------------------------------------------------------


def _conv_ties(site: Site) -> Iterator[Tie]:
    """Without groups inputs meet axis 1 of the filters and outputs axis 0; a group per channel goes as a whole.

    In between every group loses equally many inputs and outputs, each of its own choice: its filters are its own.
    """
    inputs, filters, groups = site.size(0, 1), site.size(1, 0), site.node.get("group", 1)
    if inputs is None or filters is None:
        return
    yield Summed(into(0, 1))
    yield from _biased(site)
    if groups == 1:
        yield Same(into(0, 1), into(1, 1))
    elif groups == inputs:
        yield Same(into(0, 1), into(1, 0), np.arange(filters) // (filters // groups), np.arange(filters))
    else:
        yield Same(into(0, 1), into(1, Cellwise(1, groups)))
        yield Balanced(into(0, 1), groups)
        yield Balanced(out(0, 1), groups)
    yield Same(into(1, 0), out(0, 1))


def _conv_transpose_ties(site: Site) -> Iterator[Tie]:
    """As a convolution with inputs on axis 0 of the filters and a group's outputs on axis 1."""
    inputs, outputs, groups = site.size(0, 1), site.size(~0, 1), site.node.get("group", 1)
    if inputs is None or outputs is None:
        return
    yield Summed(into(0, 1))
    yield from _biased(site)
    yield Same(into(0, 1), into(1, 0))
    if groups == 1:
        yield Same(into(1, 1), out(0, 1))
    elif groups == inputs:
        yield Same(into(0, 1), out(0, 1), np.arange(outputs) // (outputs // groups), np.arange(outputs))
    else:
        yield Same(into(1, Cellwise(1, groups)), out(0, 1))
        yield Balanced(into(0, 1), groups)
        yield Balanced(out(0, 1), groups)


def _biased(site: Site) -> Iterator[Tie]:
    if site.has(2):
        yield Same(into(2, 0), out(0, 1))


def _regrouped(site: Site, kept: Kept) -> Edit | None:
    """With a group per channel there are as many groups as channels left."""
    mask = kept(into(0, 1))
    depthwise = site.node.get("group", 1) == site.size(0, 1)
    return Edit(attributes={"group": int(mask.sum())}) if depthwise and mask is not None else None


OPS = (
    Op(
        "Conv",
        forward=conv,
        vjp=Vjp(_conv_vjp, inputs=(0, 1), outputs=()),
        cost=conv_cost,
        channels=Channels(_conv_ties, _regrouped),
    ),
    Op(
        "ConvTranspose",
        forward=_conv_transpose,
        vjp=Vjp(_conv_transpose_vjp, inputs=(0, 1), outputs=()),
        cost=_transpose_cost,
        channels=Channels(_conv_transpose_ties, _regrouped),
    ),
    Op("CausalConvWithState", since=27, forward=_causal_conv, cost=conv_cost),
)
