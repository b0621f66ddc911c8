"""Quantization on the GPU as ONNX defines it, bit for bit what the CPU computes, and its straight-through gradients.

Arrays are CuPy's, of any shape and strides (what is not contiguous is copied first). Scales and zero points are one, or
one for each place of an axis; they stay on the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from pumice_cuda import device
from pumice_cuda.compiling import kernel
from pumice_cuda.launching import blocks, launch
from pumice_cuda.rows import reduce
from pumice_cuda.teams import ACCESS, FLOATS, Team, aligned, contiguous, floats, parameter, team_of, truth, type_name

if TYPE_CHECKING:
    import cupy

THREADS, LOADS = 256, 4
"""Of a block where one scale is for all, and accesses of each of its threads; as in csrc/quantize.cu."""
NEIGHBOURS = 4
"""Elements of a thread where scales differ."""
RANGE_THREADS = 1024
SHORT = 32
"""Neighbours of one scale below which threads have columns of their own."""
PULLED = 16_384
"""Elements that a block pulls back, about."""
BYTES = ("uint8", "int8")


@attrs.frozen(eq=False)
class Along:
    """Scales and zero points of an array seen as (outer, places, inner)."""

    scale: cupy.ndarray
    """float32 [places]."""
    zero: cupy.ndarray | None
    outer: int
    places: int
    inner: int

    @classmethod
    def of(cls, scale: Any, zero: Any, kind: Any, shape: tuple[int, ...], axis: int | None) -> Along:
        """
        Raises:
            ValueError: the scales do not fit the axis.
        """
        import cupy

        scales, zeros = parameter(scale), parameter(zero, kind)
        assert scales is not None
        if zeros is not None and zeros.size != scales.size:
            zeros = cupy.ascontiguousarray(cupy.broadcast_to(zeros, scales.shape))
        if scales.size == 1:
            return cls(scales, zeros, 1, 1, math.prod(shape))
        if axis is None or not -len(shape) <= axis < len(shape) or scales.size != shape[axis]:
            raise ValueError(f"{scales.size} scales do not fit axis {axis} of shape {list(shape)}")
        axis %= len(shape)
        return cls(scales, zeros, math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :]))

    @property
    def extents(self) -> tuple[Any, ...]:
        """The count, places and inner extent, as kernels take them."""
        count = self.outer * self.places * self.inner
        return np.int64(count), np.int32(self.places), np.int64(self.inner)


def quantize(
    x: cupy.ndarray,
    scale: Any,
    zero: Any = None,
    dtype: Any = np.uint8,
    *,
    axis: int | None = None,
    low: int | None = None,
    high: int | None = None,
    out: cupy.ndarray | None = None,
) -> cupy.ndarray:
    """clamp(round_to_even(x / scale) + zero, low, high) as uint8 or int8.

    ReLU and Clip before a quantization are tighter bounds: `low=zero` for ReLU.

    Args:
        x: float32, float16 or bfloat16, of any shape.
        scale: one, or one per index of `axis`.
        zero: the same; 0 if it is left out.
        dtype: uint8 or int8.
        axis: along which the parameters go.
        low: least stored value; the type's own by default.
        high: greatest stored value; the type's own by default.
        out: where to write, contiguous.

    Raises:
        ValueError: types or shapes do not fit.
    """
    import cupy

    x, kind = floats(x, "x"), np.dtype(dtype)
    if kind.name not in BYTES:
        raise ValueError(f"quantization to {kind} has no kernel; use uint8 or int8")
    along, limits = Along.of(scale, zero, kind, x.shape, axis), np.iinfo(kind)
    q = cupy.empty(x.shape, kind) if out is None else out
    bounds = np.int32(limits.min if low is None else low), np.int32(limits.max if high is None else high)
    types = f"{type_name(x)}, {type_name(q)}"
    if along.places == 1:
        code, per_block = kernel("quantize", f"quantize<{types}>"), THREADS * LOADS * (ACCESS // x.itemsize)
        given = (x, q, np.int64(x.size), along.scale, along.zero, *bounds, np.int32(aligned(x, q)))
        _launch_if(x.size, code, blocks(x.size, per_block), *given)
    else:
        code = kernel("quantize", f"quantize_along<{types}>")
        given = (x, q, *along.extents, along.scale, along.zero, *bounds)
        _launch_if(x.size, code, blocks(x.size, THREADS * NEIGHBOURS), *given)
    return q


def _launch_if(size: int, code: Any, grid: int, *arguments: Any) -> None:
    if size:
        launch(code, grid, THREADS, *arguments)


def dequantize(
    q: cupy.ndarray, scale: Any, zero: Any = None, *, axis: int | None = None, dtype: Any = np.float32
) -> cupy.ndarray:
    """(q - zero) scale for uint8 or int8, as `dtype`: float32, float16 or bfloat16.

    Raises:
        ValueError: types or shapes do not fit.
    """
    import cupy

    q = _bytes(q)
    along, y = Along.of(scale, zero, q.dtype, q.shape, axis), cupy.empty(q.shape, dtype)
    if y.dtype.name not in FLOATS:
        raise ValueError(f"dequantization to {y.dtype} has no kernel; use {', '.join(FLOATS)}")
    types = f"{type_name(q)}, {type_name(y)}"
    if along.places == 1:
        code, per_block = kernel("quantize", f"dequantize<{types}>"), THREADS * LOADS * (ACCESS // y.itemsize)
        given = (q, y, np.int64(q.size), along.scale, along.zero, np.int32(aligned(q, y)))
        _launch_if(q.size, code, blocks(q.size, per_block), *given)
    else:
        code = kernel("quantize", f"dequantize_along<{types}>")
        _launch_if(q.size, code, blocks(q.size, THREADS * NEIGHBOURS), q, y, *along.extents, along.scale, along.zero)
    return y


def _bytes(q: cupy.ndarray) -> cupy.ndarray:
    if q.dtype.name not in BYTES:
        raise ValueError(f"dequantization of {q.dtype} has no kernel; use uint8 or int8")
    return contiguous(q)


# --- scales from the data ---------------------------------------------------------------------------------------------


def dynamic_quantize(x: cupy.ndarray) -> tuple[cupy.ndarray, cupy.ndarray, cupy.ndarray]:
    """DynamicQuantizeLinear: x as uint8 over its range, which holds zero; scale and zero point, arrays without axes.

    Raises:
        ValueError: x is empty or its type has no kernel.
    """
    import cupy

    x = floats(x, "x")
    if not x.size:
        raise ValueError("the range of an empty array is not defined")
    parts = blocks(x.size, RANGE_THREADS * 4 * (ACCESS // x.itemsize), 2 * device.gpu().multiprocessors)
    least, greatest = cupy.empty((2, parts), np.float32)
    code = kernel("quantize", f"value_range<{type_name(x)}>")
    launch(code, parts, RANGE_THREADS, x, np.int64(x.size), least, greatest, np.int32(aligned(x)))
    scale, zero = cupy.empty((), np.float32), cupy.empty((), np.uint8)
    launch(kernel("quantize", "dynamic_parameters"), 1, 32, least, greatest, np.int32(parts), scale, zero)
    return quantize(x, scale, zero), scale, zero


def quantize_rows(x: cupy.ndarray) -> tuple[cupy.ndarray, cupy.ndarray]:
    """Each row (of the last axis) as int8, symmetric: (q, scale) with x about q scale and scale = max |row| / 127.

    Raises:
        ValueError: the type has no kernel.
    """
    import cupy

    x = floats(x, "x")
    q, scale = cupy.empty(x.shape, np.int8), cupy.empty(x.shape[:-1], np.float32)
    _launch_rows("quantize_rows_s8", x, q, scale)
    return q, scale


def dynamic_quantize_rows(x: cupy.ndarray) -> tuple[cupy.ndarray, cupy.ndarray, cupy.ndarray]:
    """As `dynamic_quantize`, each row by its own range: (q, scale, zero).

    Raises:
        ValueError: the type has no kernel.
    """
    import cupy

    x = floats(x, "x")
    q, scale, zero = (cupy.empty(s, t) for s, t in ((x.shape, "u1"), (x.shape[:-1], "f4"), (x.shape[:-1], "u1")))
    _launch_rows("quantize_rows_u8", x, q, scale, zero)
    return q, scale, zero


def _launch_rows(name: str, x: cupy.ndarray, q: cupy.ndarray, *found: cupy.ndarray) -> None:
    if x.size:
        columns = x.shape[-1]
        rows, team = x.size // columns, _row_team(x, q)
        code = kernel("quantize", f"{name}<{type_name(x)}, {team.arguments}>")
        launch(code, team.grid(rows), team.block, x, q, *found, np.int64(rows), np.int32(columns))


def _row_team(x: cupy.ndarray, q: cupy.ndarray) -> Team:
    return team_of(x.shape[-1], x.itemsize, aligned=aligned(x, q))


# --- training ---------------------------------------------------------------------------------------------------------


def fake_quantize(
    x: cupy.ndarray, scale: Any, zero: Any = None, bounds: tuple[int, int] = (-128, 127), *, axis: int | None = None
) -> cupy.ndarray:
    """(clamp(round(x / scale) + zero, *bounds) - zero) scale, of the type of x.

    Raises:
        ValueError: types or shapes do not fit.
    """
    import cupy

    x = floats(x, "x")
    along, y = Along.of(scale, zero, np.float32, x.shape, axis), cupy.empty_like(x)
    given = (x, y, *along.extents, along.scale, along.zero, *map(np.int32, bounds))
    code = kernel("quantize", f"fake_quantize<{type_name(x)}>")
    _launch_if(x.size, code, blocks(x.size, THREADS * NEIGHBOURS), *given)
    return y


def fake_quantize_gradient(
    x: cupy.ndarray, dy: cupy.ndarray, scale: Any, zero: Any = None, bounds: tuple[int, int] = (-128, 127), *,
    axis: int | None = None,
) -> tuple[cupy.ndarray, cupy.ndarray]:  # fmt: skip
    """dx, straight through where nothing is clamped, and the scale's gradient of LSQ (Esser et al., ICLR 2020).

    Raises:
        ValueError: types or shapes do not fit.
    """
    return _pulled_through("fake_quantize_gradient", x, dy, scale, zero, bounds, axis)


def quantize_gradient(
    x: cupy.ndarray, dq: cupy.ndarray, scale: Any, zero: Any, bounds: tuple[int, int], *, axis: int | None
) -> tuple[cupy.ndarray, cupy.ndarray]:
    """dx and dscale of QuantizeLinear, whose rounding counts as the identity and whose bounds saturate.

    Raises:
        ValueError: types or shapes do not fit.
    """
    return _pulled_through("quantize_gradient", x, dq, scale, zero, bounds, axis)


def dequantize_gradient(
    q: cupy.ndarray, dy: cupy.ndarray, scale: Any, zero: Any, *, axis: int | None
) -> tuple[cupy.ndarray, cupy.ndarray]:
    """dq and dscale of DequantizeLinear, for uint8 or int8; the gradients are float32.

    Raises:
        ValueError: types or shapes do not fit.
    """
    import cupy

    q, dy = _bytes(q), contiguous(dy, np.float32)
    along = Along.of(scale, zero, np.float32, q.shape, axis)
    return _pulled("dequantize_gradient", type_name(q), q, dy, cupy.empty_like(dy), along)


def _pulled_through(
    name: str, x: cupy.ndarray, given: cupy.ndarray, scale: Any, zero: Any, bounds: tuple[int, int], axis: int | None
) -> tuple[cupy.ndarray, cupy.ndarray]:
    import cupy

    x, given = floats(x, "x"), contiguous(given, x.dtype)
    along = Along.of(scale, zero, np.float32, x.shape, axis)
    return _pulled(name, type_name(x), x, given, cupy.empty_like(x), along, bounds)


def _pulled(
    name: str, kind: str, values: cupy.ndarray, given: cupy.ndarray, dx: cupy.ndarray, along: Along,
    bounds: tuple[int, ...] = (),
) -> tuple[cupy.ndarray, cupy.ndarray]:  # fmt: skip
    """Gradients of the elements, and of the scales: parts of sums, then those."""
    import cupy

    if values.shape != given.shape:
        raise ValueError(f"a gradient of shape {list(given.shape)} does not fit values of shape {list(values.shape)}")
    if not values.size:
        return dx, cupy.zeros(along.places, np.float32)
    divided: Callable[[Along], tuple[Any, ...]] = _by_column if along.inner < SHORT else _by_place
    grid, part, parts, axes = divided(along)
    columns = truth(along.inner < SHORT)
    launch(
        kernel("quantize", f"{name}<{kind}, {columns}>"), grid, THREADS, values, given, dx, np.int64(along.outer),
        np.int32(along.places), np.int64(along.inner), along.scale, along.zero, np.int64(part), parts,
        *map(np.int32, bounds),
    )  # fmt: skip
    return dx, reduce("sum", parts, axes, keepdims=False)


def _by_place(along: Along) -> tuple[Any, ...]:
    import cupy

    elements = along.outer * along.inner
    count = blocks(elements, PULLED)
    return (count, along.places), -(-elements // count), cupy.empty((along.places, count), np.float32), [1]


def _by_column(along: Along) -> tuple[Any, ...]:
    import cupy

    columns = along.places * along.inner
    wanted = 2048 * device.gpu().multiprocessors // columns
    count = max(1, min(wanted, along.outer // 16, 1024))
    parts = cupy.empty((count, along.places, along.inner), np.float32)
    return (blocks(columns, THREADS), count), -(-along.outer // count), parts, [0, 2]
