"""Products of float32 rows and 8-bit weights, the rows quantized on the way.

Per row: symmetric int8 with scale max |row| / 127, computed while the row is in cache. Per matrix: what ONNX's
DynamicQuantizeLinear does, one uint8 scale and zero point. Sums are exact integers; one rounding each for the scale,
the bias and the activation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from pumice_cpu.arrays import Array, contiguous, empty, pointer, refuse_overlap, rows
from pumice_cpu.gemm import ACTIVATIONS, Packed
from pumice_cpu.native import NativeError, check, library

Activation = Literal["none", "gelu", "silu", "tanh", "sigmoid"]


def matmul(
    a: Array,
    weights: Packed,
    scale: Array | float,
    bias: Array | None = None,
    *,
    per_row: bool = True,
    b_zero: Array | None = None,
    activation: Activation = "none",
    out: Array | None = None,
    threads: int = 0,
) -> Array:
    """activation(A W scale + bias) as (..., n).

    Args:
        a: float32, (..., k).
        weights: `gemm.pack(w, "integer")` of (k, n).
        scale: of the weights: one, or one a column.
        bias: (n,).
        per_row: a scale for each row of A, else one for all of it.
        b_zero: (n,), zero points of the weights' columns.
        activation: what becomes of the biased products.
        out: where to write; contiguous, overlapping no operand.
        threads: 0 means `native.threads()`.

    Raises:
        NativeError: shapes or types do not fit, or `out` overlaps an operand.
    """
    if out is None:
        out = empty((*a.shape[:-1], weights.n))
    bound(
        a, weights, scale, bias, out, per_row=per_row, b_zero=b_zero, activation=activation, threads=threads
    )()  # fmt: skip
    return out


def bound(
    a: Array,
    weights: Packed,
    scale: Array | float,
    bias: Array | None,
    out: Array,
    *,
    per_row: bool = True,
    b_zero: Array | None = None,
    activation: Activation = "none",
    threads: int = 0,
) -> Callable[[], None]:
    """`matmul` on these very arrays as a call without arguments, for layers that run again and again.

    Raises:
        NativeError: shapes or types do not fit, or `out` overlaps an operand.
    """
    if a.dtype != np.float32 or a.shape[-1] != weights.k or weights.product != "integer":
        raise NativeError(
            f"A is {a.dtype}{list(a.shape)}; it must be float32 (..., {weights.k}), and W packed as integers"
        )
    matrix, stride = rows(a if a.ndim == 2 else contiguous(a, "A").reshape(-1, weights.k), "A")
    scales = np.ascontiguousarray(scale, np.float32).reshape(-1)
    bias = None if bias is None else np.ascontiguousarray(np.broadcast_to(np.asarray(bias, np.float32), (weights.n,)))
    zeros = None if b_zero is None else np.ascontiguousarray(np.broadcast_to(b_zero, (weights.n,)), np.int32)
    if scales.size not in {1, weights.n}:
        raise NativeError(f"{scales.size} scales do not fit {weights.n} columns; give one, or one a column")
    shape = (*a.shape[:-1], weights.n)
    if out.shape != shape or out.dtype != np.float32 or not out.flags.c_contiguous:
        raise NativeError(f"`out` must be a contiguous float32 array of shape {list(shape)}")
    refuse_overlap(out, matrix, bias)
    run, left, target, m, n = library().pumice_dynamic_matmul, pointer(matrix), pointer(out), matrix.shape[0], weights.n
    right = (pointer(scales), n, int(scales.size > 1), pointer(zeros), pointer(bias), ACTIVATIONS[activation])

    def call(_alive: Any = (matrix, weights, scales, zeros, bias, out)) -> None:
        status = run(weights.handle, left, m, weights.k, stride, int(per_row), *right, target, n, threads)
        if status:
            check(status, f"the product of {list(a.shape)} and 8-bit weights {[weights.k, n]}")

    return call
