"""Operators that move, slice or describe data without arithmetic. Results are views where NumPy can make one.

Axes, pads, slices and so on are attributes in early opsets and inputs later; `setting` reads whichever is given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from pumice.errors import ModelError
from pumice.ops.gradient import linear, moved, namespace, sum_to, zeros
from pumice.ops.record import STOP, Array, Arrays, Node, Op, Outputs, Vjp, Wanted, traffic
from pumice.ops.shape_channels import CHANNELS, python_slice


def setting(node: Node, attribute: str, given: Array | None) -> list[int] | None:
    """The integers of an optional input, else of the attribute, else None."""
    if given is not None:
        return [int(v) for v in given.reshape(-1)]
    value = node.get(attribute)
    return None if value is None else [int(v) for v in value]


def _shape(node: Node, x: Array) -> Outputs:
    return (np.array(x.shape[node.get("start", 0) : node.get("end")], dtype=np.int64),)


def _size(node: Node, x: Array) -> Outputs:
    return (np.array(x.size, dtype=np.int64),)


def _reshape(node: Node, x: Array, shape: Array | None = None) -> Outputs:
    """0 copies the input's size there, unless `allowzero`; -1 is inferred."""
    wanted = setting(node, "shape", shape) or []
    if not node.get("allowzero", 0):
        wanted = [x.shape[i] if n == 0 else n for i, n in enumerate(wanted)]
    return (x.reshape(wanted),)


def _flatten(node: Node, x: Array) -> Outputs:
    axis = node.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return (x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:])),)


def _squeeze(node: Node, x: Array, axes: Array | None = None) -> Outputs:
    chosen = setting(node, "axes", axes)
    return (x.squeeze() if chosen is None else x.squeeze(tuple(chosen)),)


def _unsqueeze(node: Node, x: Array, axes: Array | None = None) -> Outputs:
    return (np.expand_dims(x, tuple(setting(node, "axes", axes) or ())),)


def _transpose(node: Node, x: Array) -> Outputs:
    return (x.transpose(node.get("perm")),)


def _concat(node: Node, *arrays: Array) -> Outputs:
    return (np.concatenate(arrays, axis=node.get("axis", 1)),)


def _split(node: Node, x: Array, split: Array | None = None) -> Outputs:
    """Given sizes, or equal parts of which the last may be smaller."""
    axis, parts = node.get("axis", 0), setting(node, "split", split)
    if parts is None:
        chunk = -(-x.shape[axis] // node.get("num_outputs", len(node.outputs)))
        bounds = [chunk * i for i in range(1, len(node.outputs))]
    else:
        bounds = list(np.cumsum(parts[:-1]))
    return tuple(np.split(x, bounds, axis=axis))


def _slice(node: Node, x: Array, *bounds: Array | None) -> Outputs:
    return (x[_sliced(node, x, *bounds)],)


def _sliced(
    node: Node,
    x: Array,
    starts: Array | None = None,
    ends: Array | None = None,
    axes: Array | None = None,
    steps: Array | None = None,
) -> tuple[slice, ...]:
    first, last = setting(node, "starts", starts) or [], setting(node, "ends", ends) or []
    along = setting(node, "axes", axes) or list(range(len(first)))
    strides = setting(node, "steps", steps) or [1] * len(first)
    index = [slice(None)] * x.ndim
    for axis, start, end, step in zip(along, first, last, strides, strict=True):
        index[axis] = python_slice(start, end, step, x.shape[axis])
    return tuple(index)


def _expand(node: Node, x: Array, shape: Array) -> Outputs:
    return (np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(int(n) for n in shape))),)


def _tile(node: Node, x: Array, repeats: Array) -> Outputs:
    return (np.tile(x, tuple(int(n) for n in repeats)),)


_PAD_MODES = {"constant": "constant", "reflect": "reflect", "edge": "edge", "wrap": "wrap"}


def _pad(
    node: Node, x: Array, pads: Array | None = None, value: Array | None = None, axes: Array | None = None
) -> Outputs:
    """Negative pads cut off."""
    mode = node.get("mode", "constant")
    if mode not in _PAD_MODES:
        raise ModelError(f"{node} has mode '{mode}'; it must be one of {', '.join(_PAD_MODES)}")
    cut, widths = _pad_widths(node, x, pads, axes)
    x = x[cut]
    if mode != "constant":
        return (np.pad(x, widths, mode=mode),)
    fill = node.get("value", 0.0) if value is None else value.reshape(-1)[0]
    y = namespace(x).full([b + n + a for n, (b, a) in zip(x.shape, widths, strict=True)], fill, x.dtype)
    y[tuple(slice(b, b + n) for n, (b, _) in zip(x.shape, widths, strict=True))] = x
    return (y,)


def _pad_widths(
    node: Node, x: Array, pads: Array | None, axes: Array | None
) -> tuple[tuple[slice, ...], list[tuple[int, int]]]:
    """What is kept of x, and how much is added before and after it along each axis."""
    amounts = setting(node, "pads", pads) or setting(node, "paddings", None) or []
    along = [a % x.ndim for a in (setting(node, "axes", axes) or range(x.ndim))]
    widths = [(0, 0)] * x.ndim
    for i, axis in enumerate(along):
        widths[axis] = (amounts[i], amounts[i + len(along)])
    cut = tuple(slice(max(0, -b), n - max(0, -a)) for n, (b, a) in zip(x.shape, widths, strict=True))
    return cut, [(max(0, b), max(0, a)) for b, a in widths]


def _identity(node: Node, x: Any) -> Outputs:
    return (x,)


def _depth_to_space(node: Node, x: Array) -> Outputs:
    block, (n, c, h, w) = node.attributes["blocksize"], x.shape
    depth = c // block**2
    if node.get("mode", "DCR") == "DCR":
        y = x.reshape(n, block, block, depth, h, w).transpose(0, 3, 4, 1, 5, 2)
    else:
        y = x.reshape(n, depth, block, block, h, w).transpose(0, 1, 4, 2, 5, 3)
    return (y.reshape(n, depth, h * block, w * block),)


def _space_to_depth(node: Node, x: Array) -> Outputs:
    block, (n, c, h, w) = node.attributes["blocksize"], x.shape
    y = x.reshape(n, c, h // block, block, w // block, block)
    order = (0, 3, 5, 1, 2, 4) if node.get("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    return (y.transpose(order).reshape(n, c * block**2, h // block, w // block),)


def _center_crop_pad(node: Node, x: Array, shape: Array) -> Outputs:
    axes = [a % x.ndim for a in node.get("axes") or range(x.ndim)]
    sizes = list(x.shape)
    for axis, n in zip(axes, shape.tolist(), strict=True):
        sizes[axis] = n
    y = namespace(x).zeros(sizes, x.dtype)
    source, target = zip(*map(_centred, x.shape, sizes), strict=True)
    y[target] = x[source]
    return (y,)


def _centred(have: int, want: int) -> tuple[slice, slice]:
    """Where to read and where to write so that the middles meet; the odd element is cut or added at the end."""
    n = min(have, want)
    read, write = (have - n) // 2, (want - n) // 2
    return slice(read, read + n), slice(write, write + n)


def _trilu(node: Node, x: Array, k: Array | None = None) -> Outputs:
    xp = namespace(x)
    keep = xp.tri(x.shape[-2], x.shape[-1], k=0 if k is None else int(k), dtype=bool)
    if node.get("upper", 1):
        keep = ~xp.tri(x.shape[-2], x.shape[-1], k=(0 if k is None else int(k)) - 1, dtype=bool)
    return (np.where(keep, x, xp.zeros((), x.dtype)),)


def _reverse_sequence(node: Node, x: Array, lengths: Array) -> Outputs:
    """The first `lengths[b]` steps of each sequence, backwards; the rest stays."""
    batch, time = node.get("batch_axis", 1), node.get("time_axis", 0)
    data = np.moveaxis(x, (batch, time), (0, 1))
    xp = namespace(data)
    steps = xp.arange(data.shape[1])
    order = np.where(steps < lengths[:, None], lengths[:, None] - 1 - steps, steps)
    return (np.moveaxis(data[xp.arange(len(data))[:, None], order], (0, 1), (batch, time)),)


# --- gradients --------------------------------------------------------------------------------------------------------


def _transpose_adjoint(node: Node, dy: Any, x: Any) -> Any:
    perm = node.get("perm")
    return dy.transpose(None if perm is None else sorted(range(len(perm)), key=perm.__getitem__))


def _slice_adjoint(node: Node, dy: Any, x: Any, *bounds: Any) -> Any:
    dx = zeros(x)
    dx[_sliced(node, x, *bounds)] = dy
    return dx


def _pad_vjp(node: Node, inputs: Arrays, outputs: Arrays, grads: Arrays, wanted: Wanted) -> Arrays:
    x, pads, _, axes = (*inputs, None, None, None)[:4]
    if node.get("mode", "constant") != "constant":
        return _PAD_MOVES(node, (x, pads, None, axes)[: len(inputs)], outputs, grads, wanted)
    cut, widths = _pad_widths(node, x, pads, axes)
    dx = zeros(x)
    dx[cut] = grads[0][tuple(slice(b, n - a) for n, (b, a) in zip(grads[0].shape, widths, strict=True))]
    return [dx, *[None] * (len(inputs) - 1)]


_PAD_MOVES = moved(_pad)


def _concat_vjp(node: Node, inputs: Arrays, outputs: Arrays, grads: Arrays, wanted: Wanted) -> Arrays:
    axis = node.get("axis", 1)
    bounds = np.cumsum([x.shape[axis] for x in inputs[:-1]]).tolist()
    return namespace(grads[0]).split(grads[0], bounds, axis=axis)  # type: ignore[no-any-return]


def _split_vjp(node: Node, inputs: Arrays, outputs: Arrays, grads: Arrays, wanted: Wanted) -> Arrays:
    parts = [zeros(y) if dy is None else dy for y, dy in zip(outputs, grads, strict=False)]
    return [np.concatenate(parts, axis=node.get("axis", 0)), *[None] * (len(inputs) - 1)]


_RESHAPED = linear(lambda node, dy, x, *_: dy.reshape(x.shape))

MOVES: Sequence[tuple[str, int, Any, Vjp]] = (
    ("Shape", 1, _shape, STOP),
    ("Size", 1, _size, STOP),
    ("Reshape", 1, _reshape, _RESHAPED),
    ("Flatten", 1, _flatten, _RESHAPED),
    ("Squeeze", 1, _squeeze, _RESHAPED),
    ("Unsqueeze", 1, _unsqueeze, _RESHAPED),
    ("Identity", 1, _identity, _RESHAPED),
    ("Transpose", 1, _transpose, linear(_transpose_adjoint)),
    ("Concat", 1, _concat, Vjp(_concat_vjp, inputs=(), outputs=())),
    ("Split", 1, _split, Vjp(_split_vjp, wrt=(0,), inputs=(1,), outputs=())),
    ("Slice", 1, _slice, linear(_slice_adjoint, reads=(1, 2, 3, 4))),
    ("Expand", 8, _expand, linear(lambda node, dy, x, shape: sum_to(dy, x.shape))),
    ("Pad", 1, _pad, Vjp(_pad_vjp, wrt=(0,), inputs=(1, 3), outputs=())),
    *(
        (name, since, forward, moved(forward))
        for name, since, forward in (
            ("Tile", 6, _tile),
            ("DepthToSpace", 1, _depth_to_space),
            ("SpaceToDepth", 1, _space_to_depth),
            ("CenterCropPad", 18, _center_crop_pad),
            ("Trilu", 14, _trilu),
            ("ReverseSequence", 10, _reverse_sequence),
        )
    ),
)

OPS = tuple(
    Op(name, since=since, forward=forward, vjp=vjp, cost=traffic, channels=CHANNELS.get(name))
    for name, since, forward, vjp in MOVES
)
