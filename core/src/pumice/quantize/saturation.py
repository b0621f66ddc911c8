"""Pair saturation: how x86 CPUs without VNNI add products of 8-bit integers.

Their instruction (vpmaddubsw) multiplies unsigned activations by signed weights, adds the products of two neighbours k
and k + 1 of the depth in *16 bits with saturation*, and only then accumulates in 32 bits:

    sum = sum over even k of clip(a[k] w[k] + a[k + 1] w[k + 1], -32768, 32767)        0 <= a <= 255, -128 <= w <= 127

instead of the exact sum. A pair saturates only if both weights have one sign and |w[k]| + |w[k + 1]| > 128, and only
where a[k] + a[k + 1] > 256, so that the few candidates are looked at one by one and everything else is a matrix
product. With weights of 7 bits no pair saturates.

The depth is ordered as ONNX Runtime packs it: a matrix product along its inner axis, a convolution channels-last, that
is (taps..., channels of the group). Padding holds the zero point. Depthwise convolutions and unsigned weights have
kernels of their own that never saturate; signed activations are shifted by 128 to unsigned ones first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pumice.ops import Kernel, Node, core_table
from pumice.ops.integer import MS, finish_gemm, requantize
from pumice.ops.record import Array, Forward, Outputs
from pumice.ops.window import Window

LOW, HIGH = -32768, 32767
CHUNK = 1 << 22
"""Pair sums held at once."""


def pair_saturation(rows: NDArray[np.uint8], weights: NDArray[np.int8]) -> int:
    """How many pair sums saturate.

    Args:
        rows: activations of shape (positions, k), zero points included, in the order of the module's docstring.
        weights: shape (outputs, k).
    """
    return sum(int(np.count_nonzero(excess)) for _, _, excess in _excesses(rows, weights))


def saturation_error(rows: NDArray[np.uint8], weights: NDArray[np.int8]) -> NDArray[np.int64]:
    """What saturation adds to the exact sums: shape (positions, outputs)."""
    error = np.zeros((len(rows), len(weights)), np.int64)
    for positions, outputs, excess in _excesses(rows, weights):
        error[np.ix_(positions, outputs)] += excess
    return error


def _excesses(rows: Array, weights: Array) -> Iterator[tuple[Array, Array, Array]]:
    """For each pair of depths, in chunks: positions, outputs, and clip(sum) - sum of shape (positions, outputs)."""
    depth = rows.shape[1] // 2 * 2  # an odd last element has no partner, and alone it fits in 16 bits
    pairs = weights[:, :depth].astype(np.int32).reshape(len(weights), -1, 2)
    risky = (np.abs(pairs.sum(axis=2)) > 128) & (pairs[..., 0] * pairs[..., 1] > 0)
    for pair in np.flatnonzero(risky.any(axis=0)):
        outputs = np.flatnonzero(risky[:, pair])
        two = rows[:, 2 * pair : 2 * pair + 2].astype(np.int32)
        positions = np.flatnonzero(two.sum(axis=1) > 256)
        step = max(1, CHUNK // len(outputs))
        for start in range(0, len(positions), step):
            part = positions[start : start + step]
            sums = two[part] @ pairs[outputs, pair].T
            excess = np.clip(sums, LOW, HIGH) - sums
            if excess.any():
                yield part, outputs, excess


# --- kernels that saturate --------------------------------------------------------------------------------------------


def saturating_kernels() -> tuple[Kernel, ...]:
    """Kernels that make a plan compute what a CPU without VNNI computes."""
    runs: dict[tuple[str, str], Forward] = {
        ("", "QLinearConv"): _qlinear_conv,
        ("", "QLinearMatMul"): _qlinear_matmul,
        ("", "MatMulInteger"): _matmul_integer,
        (MS, "MatMulIntegerToFloat"): _matmul_integer_to_float,
        (MS, "QGemm"): _qgemm,
    }
    return tuple(
        Kernel(op_type=name, domain=domain, dtypes=frozenset({"uint8", "int8"}), rank=100, run=run, rtol=0.0, atol=0.0)
        for (domain, name), run in runs.items()
    )


def _matmul_integer(node: Node, a: Array, b: Array, za: Array | None = None, zb: Array | None = None) -> Outputs:
    return (_exact("MatMulInteger", a, b, za, zb) + _matmul_error(a, b).astype(np.int32),)


def _qlinear_matmul(
    node: Node, a: Array, sa: Array, za: Array, b: Array, sb: Array, zb: Array, sy: Array, zy: Array
) -> Outputs:
    (sums,) = _matmul_integer(node, a, b, za, zb)
    return (requantize(sums, sa.astype(np.float32) * sb.astype(np.float32) / sy.astype(np.float32), zy),)


def _matmul_integer_to_float(
    node: Node, a: Array, b: Array, sa: Array, sb: Array, za: Any = None, zb: Any = None, c: Any = None
) -> Outputs:
    y = _matmul_integer(node, a, b, za, zb)[0].astype(np.float32) * (sa * sb)
    return (y if c is None else y + c,)


def _qgemm(
    node: Node,
    a: Array,
    sa: Array,
    za: Array,
    b: Array,
    sb: Array,
    zb: Array,
    c: Array | None = None,
    sy: Array | None = None,
    zy: Array | None = None,
) -> Outputs:
    left, right = a.T if node.get("transA", 0) else a, b.T if node.get("transB", 0) else b
    (sums,) = _matmul_integer(node, left, right, za, zb)
    return finish_gemm(node, sums, sa, sb, c, sy, zy)


def _qlinear_conv(
    node: Node,
    x: Array,
    sx: Array,
    zx: Array,
    w: Array,
    sw: Array,
    zw: Array,
    sy: Array,
    zy: Array,
    b: Array | None = None,
) -> Outputs:
    flat = (-1, *(1,) * (x.ndim - 2))
    sums = _exact("ConvInteger", x, w, zx, zw, **node.attributes) + _conv_error(node, x, zx, w).astype(np.int32)
    sums = sums if b is None else sums + b.reshape(flat)
    multiplier = sx.astype(np.float32) * sw.astype(np.float32) / sy.astype(np.float32)
    return (requantize(sums, multiplier.reshape(flat), zy),)


def _exact(op_type: str, *inputs: Array | None, **attributes: Any) -> Array:
    """The sums without saturation, int32."""
    op = core_table().resolve("", op_type, 10)
    assert op is not None
    assert op.forward is not None
    return np.asarray(op.forward(Node(op_type=op_type, opset=10, attributes=attributes), *inputs)[0])


def _unsigned(x: Array) -> NDArray[np.uint8]:
    """Signed activations are shifted by 128; the zero point takes that back exactly."""
    return np.bitwise_xor(x.view(np.uint8), np.uint8(0x80)) if x.dtype == np.int8 else x


def _matmul_error(a: Array, b: Array) -> NDArray[np.int64]:
    """Of shape (..., M, N) for a of shape (..., M, K) and b of shape (K, N), or (..., K, N)."""
    if b.dtype != np.int8:
        return np.zeros((1, 1), np.int64)
    if b.ndim <= 2:
        error = saturation_error(_unsigned(a).reshape(-1, a.shape[-1]), b.reshape(a.shape[-1], -1).T)
        return error.reshape(*a.shape[:-1], *b.shape[1:])
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    left, right = (np.broadcast_to(m, (*batch, *m.shape[-2:])) for m in (_unsigned(a), b))
    error = np.zeros((*batch, a.shape[-2], b.shape[-1]), np.int64)
    for index in np.ndindex(*batch):
        error[index] = saturation_error(left[index], right[index].T)
    return error


def _conv_error(node: Node, x: Array, zx: Array, w: Array) -> NDArray[np.int64]:
    """Of the shape of the convolution's result."""
    groups, channels = node.get("group", 1), w.shape[1]
    window = Window.of(node, x.shape[2:], w.shape[2:])
    error = np.zeros((len(x), len(w), math.prod(window.output)), np.int64)
    if w.dtype == np.int8 and not (groups > 1 and channels == 1 and len(w) == groups):
        padded = window.pad(_unsigned(x), int(_unsigned(zx).flat[0]))
        filters = np.moveaxis(w, 1, -1).reshape(groups, len(w) // groups, -1)
        for image, found in zip(padded, error, strict=True):
            for group, rows in enumerate(channels_last_rows(image, window, groups)):
                share = slice(group * filters.shape[1], (group + 1) * filters.shape[1])
                found[share] = saturation_error(rows, filters[group]).T
    return error.reshape(len(x), len(w), *window.output)


def channels_last_rows(padded: NDArray[np.uint8], window: Window, groups: int) -> Iterator[NDArray[np.uint8]]:
    """For each group, the windows of a padded image (C, *size) as rows of shape (outputs, taps * C / groups)."""
    views = window.views(padded[None])[0].reshape(groups, -1, window.taps, math.prod(window.output))
    for columns in views:
        yield np.ascontiguousarray(columns.transpose(2, 1, 0)).reshape(columns.shape[2], -1)
