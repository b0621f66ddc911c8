"""Functions of rows and of elements on the GPU: softmax, normalisation, GELU, reductions.

All take CuPy arrays of float32, float16 or bfloat16, of any shape and strides (what is not contiguous is copied first),
compute in float32 and give new arrays of the same type. Sums are taken in the same order every time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pumice_cuda import device
from pumice_cuda.compiling import kernel
from pumice_cuda.launching import blocks, launch
from pumice_cuda.teams import ACCESS, FLOATS, WARP, Team, aligned, floats, team_of, truth, type_name

if TYPE_CHECKING:
    import cupy

Function = Literal["gelu", "gelu_tanh", "silu"]
FUNCTIONS = {"gelu": "Gelu", "gelu_tanh": "GeluTanh", "silu": "Silu"}
Reduction = Literal["sum", "mean", "max", "min", "sum_square"]
REDUCTIONS = {
    "sum": ("Add", "Identity"), "mean": ("Add", "Identity"), "max": ("Greatest", "Identity"),
    "min": ("Least", "Identity"), "sum_square": ("Add", "Square"),
}  # fmt: skip
LONG = 512
"""Accesses to a row that a whole block reduces."""
PART = 8192
"""Least elements of a part of a row that is divided among blocks."""
SHARED_PART = 64
"""Least rows of a part of a column, and least that threads share."""
THREADS, SHARERS = 256, 8
"""Of a block; those that share a column."""
BLOCKS_EACH, COLUMNS = 16, 128
"""Of a multiprocessor, at least, before a reduction is cut into parts; columns that such a block has, of float32."""
MAP_THREADS = 128
"""Of a block that maps elements."""


def softmax(x: cupy.ndarray, *, logarithm: bool = False) -> cupy.ndarray:
    """Softmax over the last axis, or its logarithm.

    Raises:
        ValueError: the type has no kernel.
    """
    import cupy

    x = floats(x, "x")
    y = cupy.empty_like(x)
    if x.size:
        columns = x.shape[-1]
        team = team_of(columns, x.itemsize, aligned=aligned(x))
        name = f"softmax<{type_name(x)}, {team.arguments}, {truth(logarithm)}>"
        _launch_rows(name, team, x.size // columns, columns, x, y)
    return y


def layer_norm(
    x: cupy.ndarray,
    scale: cupy.ndarray,
    bias: cupy.ndarray | None = None,
    epsilon: float = 1e-5,
    *,
    skip: cupy.ndarray | None = None,
    skip_bias: cupy.ndarray | None = None,
    columns: int | None = None,
    rms: bool = False,
    statistics: bool = False,
    total: bool = False,
) -> tuple[cupy.ndarray, cupy.ndarray | None, cupy.ndarray | None, cupy.ndarray | None]:
    """(v - mean) / sqrt(var + epsilon) * scale + bias over rows of `columns` elements of v = x + skip + skip_bias.

    Args:
        x: of any shape.
        scale: as many elements as a row has, of the type of x; `bias` and `skip_bias` the same.
        bias: what is added, or None.
        epsilon: added to the variance.
        skip: of the shape of x: a residual.
        skip_bias: what is added to each row beside it.
        columns: elements of a row; those of the last axis by default.
        rms: leave out the mean.
        statistics: give mean and 1 / sqrt(var + epsilon) as well, in float32, one a row.
        total: give v as well.

    Returns:
        The result; mean, inverse and v, each None where it was not asked for.

    Raises:
        ValueError: types or shapes do not fit.
    """
    import cupy

    x = floats(x, "x")
    columns = x.shape[-1] if columns is None else columns
    vectors = [None if v is None else floats(v, "a parameter of a row").reshape(-1) for v in (skip_bias, scale, bias)]
    skip = None if skip is None else floats(skip, "skip")
    if any(v is not None and (v.size != columns or v.dtype != x.dtype) for v in vectors):
        raise ValueError(f"scale and biases must have {columns} elements of {x.dtype}, as a row has")
    if skip is not None and (skip.shape != x.shape or skip.dtype != x.dtype):
        raise ValueError(f"skip is {skip.dtype}{list(skip.shape)} and x {x.dtype}{list(x.shape)}")
    y, rows = cupy.empty_like(x), x.size // max(columns, 1)
    mean, inverse = (cupy.empty(rows, np.float32) if statistics else None for _ in range(2))
    v = cupy.empty_like(x) if total else None
    if x.size:
        team = team_of(columns, x.itemsize, aligned=aligned(x, skip, *vectors))
        more = skip is not None or skip_bias is not None
        name = f"layer_norm<{type_name(x)}, {team.arguments}, {truth(rms)}, {truth(more)}>"
        values = (x, skip, *vectors, np.float32(epsilon), y, v, mean, inverse)
        _launch_rows(name, team, rows, columns, *values)
    return y, mean, inverse, v


def _launch_rows(name: str, team: Team, rows: int, columns: int, *arguments: Any) -> None:
    launch(
        kernel("rows", name), team.grid(rows), team.block, *arguments, np.int64(rows), np.int32(columns),
        overlaps=True,
    )  # fmt: skip


def map_elements(function: Function, x: cupy.ndarray) -> cupy.ndarray:
    """f(x) for every element: GELU by erf or by tanh, or SiLU.

    Raises:
        ValueError: the type has no kernel.
    """
    import cupy

    x = floats(x, "x")
    y = cupy.empty_like(x)
    if x.size:
        code = kernel("rows", f"map_elements<{type_name(x)}, {FUNCTIONS[function]}>")
        grid = blocks(x.size, MAP_THREADS * (ACCESS // x.itemsize))
        launch(code, grid, MAP_THREADS, x, y, np.int64(x.size), np.int32(aligned(x)))
    return y


# --- reductions -------------------------------------------------------------------------------------------------------


def total(x: cupy.ndarray, axes: Sequence[int]) -> cupy.ndarray:
    """The sum over axes, which are gone then; by CuPy for types that have no kernel."""
    if x.dtype.name in FLOATS and x.size:
        return reduce("sum", x, axes, keepdims=False)
    return x.sum(axis=tuple(axes))


def reduce(reduction: Reduction, x: cupy.ndarray, axes: Sequence[int], *, keepdims: bool = True) -> cupy.ndarray:
    """A reduction over any axes of x, none of them empty: in the shape of x, each of these axes 1, or gone without
    `keepdims`; a copy of x where there are no axes.

    Raises:
        ValueError: the type has no kernel, or x is empty.
    """
    x = floats(x, "x")
    if not x.size:
        raise ValueError(f"a reduction of an empty array {list(x.shape)} has no kernel")
    chosen = sorted({a % x.ndim for a in axes})
    combine, function = REDUCTIONS[reduction]
    kept = tuple(1 if i in chosen else extent for i, extent in enumerate(x.shape))
    divisor = math.prod(x.shape[a] for a in chosen) if reduction == "mean" else 1
    result, shape, groups = x, list(x.shape), list(_neighbours(chosen))
    for first, last in reversed(groups):
        outermost = first == groups[0][0]
        extents = math.prod(shape[:first]), math.prod(shape[first : last + 1]), math.prod(shape[last + 1 :])
        kind = x.dtype if outermost else np.dtype(np.float32)
        result = _reduced(result, extents, (combine, function), kind, divisor if outermost else 1)
        shape[first : last + 1], function = [1] * (last + 1 - first), "Identity"
    result = result if groups else x.copy()
    return result.reshape(kept if keepdims else [n for i, n in enumerate(x.shape) if i not in chosen])


def _neighbours(axes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Runs of neighbouring axes as (first, last)."""
    for i, axis in enumerate(axes):
        if i == 0 or axes[i - 1] != axis - 1:
            first = axis
        if i + 1 == len(axes) or axes[i + 1] != axis + 1:
            yield first, axis


def _reduced(
    x: cupy.ndarray, extents: tuple[int, int, int], folding: tuple[str, str], dtype: np.dtype[Any], divisor: int
) -> cupy.ndarray:
    """x as (outer, reduced, inner) over the middle one: in parts first where that keeps more of the GPU busy."""
    parts = _parts(*extents, device.gpu().multiprocessors)
    if parts > 1:
        x = _folded(x, extents, parts, folding, np.dtype(np.float32), 1)
        extents, folding = (extents[0], parts, extents[2]), (folding[0], "Identity")
    return _folded(x, extents, 1, folding, dtype, divisor)


def parts_of_columns(rows: int, columns: int) -> int:
    """Into how many parts rows are cut whose columns are summed."""
    return _parts(1, rows, columns, device.gpu().multiprocessors)


def _parts(outer: int, reduced: int, inner: int, multiprocessors: int) -> int:
    """Into how many the reduced axis is cut: enough blocks for every multiprocessor, none of them with little to do."""
    whole = outer if inner == 1 else blocks(outer * inner, COLUMNS)
    wanted = -(-BLOCKS_EACH * multiprocessors // whole)
    return max(1, min(wanted, reduced // (PART if inner == 1 else SHARED_PART), 1024))


def _neighbours_read(x: cupy.ndarray, extents: tuple[int, int, int]) -> int:
    """Elements of an access: those of 16 bytes, where every row begins at a multiple of them."""
    widest, (_, reduced, inner) = ACCESS // x.itemsize, extents
    return widest if aligned(x) and (reduced if inner == 1 else inner) % widest == 0 else 1


def _folded(
    x: cupy.ndarray, extents: tuple[int, int, int], parts: int, folding: tuple[str, str], dtype: np.dtype[Any],
    divisor: int,
) -> cupy.ndarray:  # fmt: skip
    """(outer, parts, inner)"""
    import cupy

    outer, reduced, inner = extents
    y, wide = cupy.empty((outer, parts, inner), dtype), _neighbours_read(x, extents)
    if inner == 1:
        part = -(-reduced // (parts * wide)) * wide
        team, sizes = THREADS if part > LONG * wide else WARP, [outer, reduced, part]
        name, grid = f"reduce_rows<{{}}, {team}, {{}}>", (blocks(outer * parts, THREADS // team), 1)
    else:
        part = -(-reduced // parts)
        sharers, sizes = SHARERS if part >= SHARED_PART else 1, [outer, reduced, inner, part]
        name, grid = f"reduce_columns<{{}}, {sharers}, {{}}>", (blocks(outer * inner, THREADS // sharers * wide), parts)
    code = kernel("rows", name.format(f"{type_name(x)}, {type_name(y)}, {wide}", ", ".join(folding)))
    launch(
        code, grid, THREADS, x, y, *map(np.int64, sizes), np.int32(parts), np.float32(divisor),
        overlaps=True,
    )  # fmt: skip
    return y
