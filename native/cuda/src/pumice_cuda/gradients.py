"""Gradients of functions of rows and of elements on the GPU: softmax, normalisation, GELU.

All take CuPy arrays of float32, float16 or bfloat16, all of one type and of one shape (what is not contiguous is copied
first), compute in float32 and give new arrays of the same type. Sums are taken in the same order every time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pumice_cuda.compiling import kernel
from pumice_cuda.launching import blocks, launch
from pumice_cuda.rows import MAP_THREADS, SHARERS, THREADS, parts_of_columns, reduce
from pumice_cuda.teams import ACCESS, Team, aligned, floats, team_of, truth, type_name

if TYPE_CHECKING:
    import cupy

FUNCTIONS = {"gelu": "Gelu", "gelu_tanh": "GeluTanh"}


def softmax(y: cupy.ndarray, dy: cupy.ndarray, *, logarithm: bool = False) -> cupy.ndarray:
    """The gradient of x through a softmax over the last axis, given its result y; or through its logarithm.

    Raises:
        ValueError: types or shapes do not fit.
    """
    import cupy

    y, dy = _alike(y, dy)
    dx = cupy.empty_like(y)
    if y.size:
        columns = y.shape[-1]
        team = _team(columns, y, dy)
        name = f"softmax_gradient<{type_name(y)}, {team.arguments}, {truth(logarithm)}>"
        rows = y.size // columns
        _launch(name, team.grid(rows), team.block, y, dy, dx, np.int64(rows), np.int32(columns))
    return dx


def layer_norm(
    x: cupy.ndarray, dy: cupy.ndarray, scale: cupy.ndarray, epsilon: float, *, rms: bool = False
) -> tuple[cupy.ndarray, cupy.ndarray, cupy.ndarray]:
    """Through y = (x - mean) / sqrt(var + epsilon) * scale + bias over rows as long as `scale`: dL/dx, and the sums
    over all rows for `scale` and for the bias, in its shape.

    Raises:
        ValueError: types or shapes do not fit, or x is empty.
    """
    import cupy

    (x, dy), factors = _alike(x, dy), floats(scale, "scale")
    columns = factors.size
    if not x.size or x.size % columns or factors.dtype != x.dtype:
        raise ValueError(f"scale is {scale.dtype}{list(scale.shape)} and x {x.dtype}{list(x.shape)}")
    rows, dx = x.size // columns, cupy.empty_like(x)
    mean, inverse = cupy.empty((2, rows), np.float32)
    team = _team(columns, x, dy, factors)
    name = f"norm_gradient<{type_name(x)}, {team.arguments}, {truth(rms)}>"
    arguments = (x, dy, factors, np.float32(epsilon), dx, mean, inverse, np.int64(rows), np.int32(columns))
    _launch(name, team.grid(rows), team.block, *arguments)
    parts = parts_of_columns(rows, columns)
    sums, part = cupy.empty((2, parts, columns), np.float32), -(-rows // parts)
    name, across = f"norm_columns<{type_name(x)}, {team.wide}, {SHARERS}>", THREADS // SHARERS * team.wide
    sizes = map(np.int64, (rows, columns, part))
    _launch(name, (blocks(columns, across), parts), THREADS, x, dy, mean, inverse, sums, *sizes)
    dscale, dbias = reduce("sum", sums, [1]).astype(x.dtype).reshape(2, *scale.shape)
    return dx, dscale, dbias


def map_elements(function: str, x: cupy.ndarray, dy: cupy.ndarray) -> cupy.ndarray:
    """dy f'(x) for every element: of GELU by erf (`gelu`) or by tanh (`gelu_tanh`).

    Raises:
        ValueError: types or shapes do not fit.
    """
    import cupy

    x, dy = _alike(x, dy)
    dx = cupy.empty_like(x)
    if x.size:
        code = kernel("gradients", f"map_gradient<{type_name(x)}, {FUNCTIONS[function]}>")
        grid = blocks(x.size, MAP_THREADS * (ACCESS // x.itemsize))
        launch(code, grid, MAP_THREADS, x, dy, dx, np.int64(x.size), np.int32(aligned(x, dy)))
    return dx


def _alike(x: cupy.ndarray, dy: cupy.ndarray) -> tuple[cupy.ndarray, cupy.ndarray]:
    """Both contiguous."""
    if x.dtype != dy.dtype or x.shape != dy.shape:
        raise ValueError(f"a gradient of {dy.dtype}{list(dy.shape)} does not fit {x.dtype}{list(x.shape)}")
    return floats(x, "x"), floats(dy, "dy")


def _team(columns: int, *arrays: cupy.ndarray) -> Team:
    return team_of(columns, arrays[0].itemsize, aligned=aligned(*arrays))


def _launch(name: str, grid: int | tuple[int, int], block: int, *arguments: object) -> None:
    launch(kernel("gradients", name), grid, block, *arguments, overlaps=True)
