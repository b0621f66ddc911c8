"""Reading images at arbitrary positions: grids, regions of interest, deformed convolutions, and col2im.

`sample` reads v(p) at real positions p as the sum over pixels i around it of v[i] times K(p - i) along each axis. K is
the triangle, the cubic kernel (a = -0.75), or nearest (rounded half to even). Pixels outside are zero, clamped to the
border, or reflected. Normalised grid coordinates run over [-1, 1] from centre to centre of the corner pixels
(`align_corners`) or from edge to edge.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from pumice.ops.conv import add_bias
from pumice.ops.dtypes import wide
from pumice.ops.record import Array, Node, Op, OpCost, Outputs, Shape, elements, traffic
from pumice.ops.window import Window

_MODES = {"bilinear": "linear", "bicubic": "cubic"}


def _reflect(p: Array, size: int, corners: bool) -> Any:
    """Positions mirrored at the borders until they lie inside."""
    low, high = (0.0, size - 1.0) if corners else (-0.5, size - 0.5)
    span = high - low
    if span <= 0:
        return np.zeros_like(p)
    away = np.abs(p - low) % (2 * span)
    return low + np.where(away > span, 2 * span - away, away)


def _weights(distance: Array, mode: str) -> Any:
    t = np.abs(distance)
    if mode == "linear":
        return np.maximum(0, 1 - t)
    a = -0.75
    near, far = ((a + 2) * t - (a + 3)) * t * t + 1, ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
    return np.where(t <= 1, near, np.where(t < 2, far, 0))


def sample(v: Array, positions: Sequence[Array], mode: str, padding: str = "zeros", corners: bool = True) -> Array:
    """Values of v (C, *size) at `positions`, one array of any common shape per spatial axis: (C, *shape)."""
    if mode == "nearest":
        positions, offsets = [np.rint(p) for p in positions], [0]
    else:
        offsets = [0, 1] if mode == "linear" else [-1, 0, 1, 2]
    if padding == "border":
        positions = [np.clip(p, 0, n - 1) for p, n in zip(positions, v.shape[1:], strict=True)]
    elif padding == "reflection":
        positions = [_reflect(p, n, corners) for p, n in zip(positions, v.shape[1:], strict=True)]
    total: Any = 0
    for taps in itertools.product(offsets, repeat=len(positions)):
        pixel = [np.floor(p) + t for p, t in zip(positions, taps, strict=True)]
        weight: Any = 1.0
        if mode != "nearest":
            for p, i in zip(positions, pixel, strict=True):
                weight = weight * _weights(p - i, mode)
        index: list[Any] = [slice(None)]
        inside: Any = np.ones(positions[0].shape, bool)
        for i, n in zip(pixel, v.shape[1:], strict=True):
            inside &= (i >= 0) & (i <= n - 1)
            kept = np.trunc(_reflect(i, n, corners)) if padding == "reflection" else i
            index.append(np.clip(kept, 0, n - 1).astype(np.int64))
        value = v[tuple(index)]
        total = total + np.where(inside, value, 0) * weight if padding == "zeros" else total + value * weight
    return np.asarray(total)


def _grid_sample(node: Node, x: Array, grid: Array) -> Outputs:
    mode = node.get("mode", "linear")
    corners = bool(node.get("align_corners", 0))
    sizes = x.shape[2:]
    results = []
    for image, places in zip(wide(x), wide(grid), strict=True):
        unit = [places[..., -1 - axis] for axis in range(len(sizes))]
        positions = [
            (g + 1) / 2 * (n - 1) if corners else ((g + 1) * n - 1) / 2 for g, n in zip(unit, sizes, strict=True)
        ]
        results.append(sample(image, positions, _MODES.get(mode, mode), node.get("padding_mode", "zeros"), corners))
    return (np.stack(results).astype(x.dtype),)


def _affine_grid(node: Node, theta: Array, size: Array) -> Outputs:
    """Normalised positions theta (x, y[, z], 1) for every pixel of an output of this size."""
    sizes = [int(n) for n in size[2:]]
    if node.get("align_corners", 0):
        axes = [np.linspace(-1, 1, n) for n in sizes]
    else:
        axes = [(np.arange(n) * 2 + 1) / n - 1 for n in sizes]
    places = np.stack([*reversed(np.meshgrid(*axes, indexing="ij")), np.ones(sizes)], axis=-1)
    return (np.einsum("nij,...j->n...i", wide(theta), places).astype(theta.dtype),)


def _roi_align(node: Node, x: Array, rois: Array, batch: Array) -> Outputs:
    """Each region is cut into bins and each bin averages (or takes the maximum of) a grid of bilinear samples."""
    half = node.opset >= 16 and node.get("coordinate_transformation_mode", "half_pixel") == "half_pixel"
    shape = (node.get("output_height", 1), node.get("output_width", 1))
    results = [_pooled(node, x[image], roi, shape, half) for roi, image in zip(rois, batch, strict=True)]
    return (np.stack(results).astype(x.dtype),)


def _pooled(node: Node, image: Array, roi: Array, shape: tuple[int, int], half: bool) -> Any:
    start, end = (v[::-1] * node.get("spatial_scale", 1.0) - (0.5 if half else 0) for v in (roi[:2], roi[2:]))
    extent = end - start if half else np.maximum(end - start, 1)
    ratio, axes = node.get("sampling_ratio", 0), []
    for begin, span, bins in zip(start, extent, shape, strict=True):
        count = ratio if ratio > 0 else math.ceil(span / bins)
        axes.append((begin + (np.arange(bins * count) + 0.5) * span / (bins * count), count))
    rows, columns = np.meshgrid(axes[0][0], axes[1][0], indexing="ij")
    grid = (shape[0], axes[0][1], shape[1], axes[1][1])
    if node.get("mode", "avg") == "avg":
        return _bilinear(image, rows, columns).sum(axis=0).reshape(-1, *grid).mean(axis=(2, 4))
    return _bilinear(image, rows, columns).max(axis=0).reshape(-1, *grid).max(axis=(2, 4))


def _bilinear(image: Array, rows: Array, columns: Array) -> Array:
    """The four weighted neighbours (4, C, ...) of positions; zero more than one pixel outside, clamped within it."""
    height, width = image.shape[1:]
    inside = (rows >= -1) & (rows <= height) & (columns >= -1) & (columns <= width)
    y, x = np.clip(rows, 0, height - 1), np.clip(columns, 0, width - 1)
    top, left = np.floor(y).astype(int), np.floor(x).astype(int)
    bottom, right = np.minimum(top + 1, height - 1), np.minimum(left + 1, width - 1)
    down, over = y - top, x - left
    corners = ((top, left, (1 - down) * (1 - over)), (top, right, (1 - down) * over),
               (bottom, left, down * (1 - over)), (bottom, right, down * over))  # fmt: skip
    return np.stack([image[:, i, j] * np.where(inside, w, 0) for i, j, w in corners])


def _deform_conv(
    node: Node, x: Array, w: Array, offset: Array, b: Array | None = None, mask: Array | None = None
) -> Outputs:
    """A convolution that reads each tap at its place plus an offset, times a mask."""
    groups, offset_groups, rank = node.get("group", 1), node.get("offset_group", 1), len(w.shape[2:])
    window = Window.of(node, x.shape[2:], w.shape[2:])
    shifts = offset.reshape(len(x), offset_groups, *window.kernel, rank, *window.output)
    shifts = np.moveaxis(shifts, 2 + rank, 2)
    gates = np.ones((len(x), offset_groups, *window.kernel, *window.output), np.float32) if mask is None else mask
    gates = gates.reshape(len(x), offset_groups, 1, *window.kernel, *window.output)
    base = _tap_positions(window)
    columns = np.stack([
        [sample(part, [p + s for p, s in zip(base, moved, strict=True)], "linear") * gate
         for part, moved, gate in zip(np.split(wide(image), offset_groups), shift, gating, strict=True)]
        for image, shift, gating in zip(x, shifts, gates, strict=True)
    ])  # fmt: skip
    depth, outputs = w.shape[1] * window.taps, math.prod(window.output)
    y = wide(w).reshape(groups, -1, depth) @ columns.reshape(len(x), groups, depth, outputs)
    y = add_bias(y.reshape(len(x), w.shape[0], *window.output), None if b is None else wide(b))
    return (y.astype(x.dtype),)


def _tap_positions(window: Window) -> list[Array]:
    """Per axis, where each tap of each output reads, of shape (*kernel, *output)."""
    rank, places = len(window.size), []
    for axis in range(rank):
        tap = np.arange(window.kernel[axis]) * window.dilations[axis]
        start = np.arange(window.output[axis]) * window.strides[axis] - window.before[axis]
        shape = [1] * (2 * rank)
        tap_shape, start_shape = shape.copy(), shape.copy()
        tap_shape[axis], start_shape[rank + axis] = -1, -1
        places.append(np.broadcast_to(
            tap.reshape(tap_shape) + start.reshape(start_shape), (*window.kernel, *window.output)
        ).astype(np.float64))  # fmt: skip
    return places


def _col2im(node: Node, columns: Array, size: Array, block: Array) -> Outputs:
    """Sums (N, C * taps, windows) back into images where the windows were."""
    window = Window.of(node, [int(n) for n in size], [int(k) for k in block])
    batch, channels = columns.shape[0], columns.shape[1] // window.taps
    parts = columns.reshape(batch, channels, window.taps, *window.output)
    padded = [n + p + q for n, p, q in zip(window.size, window.before, window.after, strict=True)]
    y = np.zeros((batch, channels, *padded), columns.dtype)
    for tap, where in enumerate(window.slices()):
        y[where] += parts[:, :, tap]
    return (y[window.interior],)


def _deform_cost(node: Node, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> OpCost:
    w = inputs[1]
    assert w is not None
    macs = elements(outputs[0]) * elements(w[1:])
    return OpCost(macs=macs, params=elements(w), bytes=traffic(node, inputs, outputs).bytes)


OPS = (
    Op("GridSample", since=16, forward=_grid_sample, cost=traffic),
    Op("AffineGrid", since=20, forward=_affine_grid, cost=traffic),
    Op("RoiAlign", since=10, forward=_roi_align, cost=traffic),
    Op("DeformConv", since=19, forward=_deform_conv, cost=_deform_cost),
    Op("Col2Im", since=18, forward=_col2im, cost=traffic),
)
