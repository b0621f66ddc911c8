"""What becomes of the sums of a product or a convolution before they are stored; `csrc/epilogue.cuh` computes it.

    v = activation((sum + offset[n]) scale[n] scale_by row_scale[m] + bias[n] + residual[m, n])

Output `int32` is sum + offset[n] and nothing else. Outputs of 8 bits are levels, saturate(round_half_even(v) + zero); a
residual of theirs is added to them by `LevelSum`. Where `ranges` are asked for, v factor[n] is stored.
"""

from __future__ import annotations

import ctypes
import math
from typing import TYPE_CHECKING, Any, Literal

import attrs

if TYPE_CHECKING:
    import cupy

OUTPUTS = {"int32": "s32", "float32": "f32", "float16": "f16", "bfloat16": "bf16", "int8": "s8", "uint8": "u8"}
ARRAYS = ("residual", "scale", "row_scale", "bias", "offset", "offset_zero", "scale_by", "factor", "ranges")
"""Fields of an epilogue that are pointers in the kernel's structure."""
INSTRUCTIONS, INSTRUCTIONS_OF_LEVELS, INSTRUCTIONS_OF_GELU = 6, 12, 12
"""For a sum that is stored in 16 bits, or in 8, and what GELU adds; measured on an H200."""
RANGED_ROWS, RANGED_COLUMNS = 16, 64
"""Of a result, that have a range together."""
WIDE = 16
"""Bytes that a thread stores at once where every row of the output begins at a multiple of them."""


class Structure(ctypes.Structure):
    """`struct Epilogue` of csrc/epilogue.cuh."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("out", *ARRAYS)),
        *((name, ctypes.c_longlong) for name in ("out_stride", "residual_stride")),
        *((name, ctypes.c_int) for name in ("rows", "columns", "scale_step", "zero", "residual_last")),
        *((name, ctypes.c_float) for name in ("low", "high", "level_factor", "residual_factor", "sum_offset")),
        ("wide", ctypes.c_int),
    ]


@attrs.frozen(kw_only=True)
class LevelSum:
    """How two arrays of levels are added, rounded once each: onnxruntime's QLinearAdd.

    saturate(round_half_even(level level_factor + (residual residual_factor + offset)))
    """

    level_factor: float
    """Scale of the product's own levels over that of the result."""
    residual_factor: float
    offset: float
    """The zero points, folded into one."""
    residual_last: bool = False
    """The two products change places."""


@attrs.frozen(kw_only=True, eq=False)
class Epilogue:
    """Arrays are CuPy's and of float32 unless said otherwise."""

    output: str = "float32"
    """Name of the type that is stored: `float32`, `float16`, `bfloat16`, `int8`, `uint8`, `int32`."""
    scale: cupy.ndarray | None = None
    """(n,) or (1,)."""
    row_scale: cupy.ndarray | None = None
    """(m,)."""
    bias: cupy.ndarray | None = None
    """(n,)."""
    offset: cupy.ndarray | None = None
    """(n,) of int32, for integer sums: a bias in their units, the zero point of A times the sums of B's rows."""
    offset_zero: cupy.ndarray | None = None
    """One uint8, whose negative multiplies the offsets: a zero point of A that only the GPU knows."""
    scale_by: cupy.ndarray | None = None
    """One number on the GPU, by which the scales are multiplied."""
    factor: cupy.ndarray | None = None
    """(n,), with `ranges`."""
    ranges: cupy.ndarray | None = None
    """(ceil(m / 16), ceil(n / 64), 2), to hold the least and the greatest of what is stored there, and of zero."""
    residual: cupy.ndarray | None = None
    """(m, n) of the output's type."""
    level_sum: LevelSum | None = None
    """How it is added where it is of 8 bits."""
    activation: Literal["none", "clip", "gelu", "silu"] = "none"
    low: float = -math.inf
    """Bounds of `clip`; relu has 0 and infinity."""
    high: float = math.inf
    zero: int = 0

    @property
    def macros(self) -> tuple[str, ...]:
        """For what of it a kernel is compiled."""
        present = {
            "RESIDUAL": self.residual is not None, "ROW_SCALE": self.row_scale is not None,
            "RANGED": self.ranges is not None, "OFFSETS": self.offset is not None,
        }  # fmt: skip
        return (
            f"-DUSE_OUTPUT={OUTPUTS[self.output]}", f"-DUSE_ACTIVATION={self.activation}",
            *(f"-DUSE_{name}={str(given).lower()}" for name, given in present.items()),
        )  # fmt: skip

    @property
    def instructions(self) -> float:
        """That finish one of a thread's sums, about: cycles of its warp."""
        of_levels = INSTRUCTIONS_OF_LEVELS if self.output in ("int8", "uint8") else INSTRUCTIONS
        return of_levels + (INSTRUCTIONS_OF_GELU if self.activation == "gelu" else 0)

    def beside(self, out: cupy.ndarray) -> int:
        """Blocks of 8 columns of which a thread of Hopper's kernels stores 16 bytes side by side; 0: it cannot.

        Then the rows of B come in the order of `tensor_maps.columns`.
        """
        blocks = WIDE // 2 // out.itemsize
        whole = out.shape[1] % (8 * blocks) == 0
        return blocks if whole and self._is_wide(out) else 0

    def _is_wide(self, out: cupy.ndarray) -> bool:
        return all(_begins_wide(matrix) for matrix in (out, self.residual) if matrix is not None)

    def structure(self, out: cupy.ndarray) -> Structure:
        """The kernel's argument for an output (m, n) with contiguous rows.

        Raises:
            ValueError: an array does not fit the output.
        """
        rows, columns = out.shape
        self._check(rows, columns)
        levels = self.level_sum or LevelSum(level_factor=1.0, residual_factor=1.0, offset=0.0)
        return Structure(
            **{name: _pointer(getattr(self, name)) for name in ARRAYS},
            out=out.data.ptr, out_stride=_row_stride(out), rows=rows, columns=columns, wide=self._is_wide(out),
            residual_stride=0 if self.residual is None else _row_stride(self.residual),
            scale_step=int(self.scale is not None and self.scale.size > 1),
            zero=self.zero, low=self.low, high=self.high, level_factor=levels.level_factor,
            residual_factor=levels.residual_factor, sum_offset=levels.offset, residual_last=levels.residual_last,
        )  # fmt: skip

    def _check(self, rows: int, columns: int) -> None:
        wanted = {
            "scale": ((columns,), "float32"), "row_scale": ((rows,), "float32"), "bias": ((columns,), "float32"),
            "offset": ((columns,), "int32"), "residual": ((rows, columns), self.output),
            "factor": ((columns,), "float32"), "ranges": (ranges_shape(rows, columns), "float32"),
        }  # fmt: skip
        if self.ranges is not None and self.output != "float32":
            raise ValueError(f"the range of {self.output} is not found; store float32")
        for name, (shape, dtype) in wanted.items():
            array = getattr(self, name)
            if array is None or (name == "scale" and array.shape == (1,) and array.dtype.name == dtype):
                continue
            if array.shape != shape or array.dtype.name != dtype:
                raise ValueError(f"{name} is {array.dtype}{list(array.shape)} where {dtype}{list(shape)} is needed")


PLAIN = Epilogue()


def ranges_shape(rows: int, columns: int) -> tuple[int, int, int]:
    """Of `Epilogue.ranges` for a result (rows, columns)."""
    return -(-rows // RANGED_ROWS), -(-columns // RANGED_COLUMNS), 2


def _begins_wide(matrix: Any) -> bool:
    return bool(matrix.data.ptr % WIDE == 0 and _row_stride(matrix) * matrix.itemsize % WIDE == 0)


def _pointer(array: Any) -> int | None:
    return None if array is None else array.data.ptr


def _row_stride(matrix: Any) -> int:
    """Elements from one row to the next.

    Raises:
        ValueError: the elements of a row are not side by side.
    """
    if matrix.shape[1] > 1 and matrix.strides[1] != matrix.itemsize:
        raise ValueError(f"the rows of a matrix {list(matrix.shape)} with strides {matrix.strides} are not contiguous")
    return int(matrix.strides[0]) // int(matrix.itemsize)
