"""What becomes of the sums of a product or a convolution before they are stored; `csrc/epilogue.cuh` computes it.

    v = (sum + offset[n]) scale[n] row_scale[m] + bias[n] + (residual[m, n] - residual_zero) residual_scale
    v = activation(v);  8-bit outputs: saturate(round_half_even(v / divisor) + zero)

Output `int32` is sum + offset[n] and nothing else.
"""

from __future__ import annotations

import ctypes
import math
from typing import TYPE_CHECKING, Any, Literal

import attrs

if TYPE_CHECKING:
    import cupy

OUTPUTS = {"int32": "s32", "float32": "f32", "float16": "f16", "bfloat16": "bf16", "int8": "s8", "uint8": "u8"}
WIDE = 16
"""Bytes that a thread stores at once where every row of the output begins at a multiple of them."""


class Structure(ctypes.Structure):
    """`struct Epilogue` of csrc/epilogue.cuh."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("out", "residual", "scale", "row_scale", "bias", "offset")),
        *((name, ctypes.c_longlong) for name in ("out_stride", "residual_stride")),
        *((name, ctypes.c_int) for name in ("rows", "columns", "scale_step", "zero", "residual_zero")),
        *((name, ctypes.c_float) for name in ("residual_scale", "low", "high", "divisor")),
        ("wide", ctypes.c_int),
    ]


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
    residual: cupy.ndarray | None = None
    """(m, n) of the output's type."""
    residual_scale: float = 1.0
    residual_zero: int = 0
    activation: Literal["none", "clip", "gelu", "silu"] = "none"
    low: float = -math.inf
    """Bounds of `clip`; relu has 0 and infinity."""
    high: float = math.inf
    divisor: float = 1.0
    zero: int = 0

    @property
    def macros(self) -> tuple[str, ...]:
        """For what of it a kernel is compiled."""
        residual = "false" if self.residual is None else "true"
        stored = OUTPUTS[self.output]
        return f"-DUSE_OUTPUT={stored}", f"-DUSE_ACTIVATION={self.activation}", f"-DUSE_RESIDUAL={residual}"

    def structure(self, out: cupy.ndarray) -> Structure:
        """The kernel's argument for an output (m, n) with contiguous rows.

        Raises:
            ValueError: an array does not fit the output.
        """
        rows, columns = out.shape
        self._check(rows, columns)
        stride = _row_stride(out)
        wide = out.data.ptr % WIDE == 0 and stride * out.itemsize % WIDE == 0
        return Structure(
            **{name: _pointer(getattr(self, name)) for name in ("residual", "scale", "row_scale", "bias", "offset")},
            out=out.data.ptr, out_stride=stride, rows=rows, columns=columns, wide=wide,
            residual_stride=0 if self.residual is None else _row_stride(self.residual),
            scale_step=int(self.scale is not None and self.scale.size > 1),
            zero=self.zero, residual_zero=self.residual_zero, residual_scale=self.residual_scale,
            low=self.low, high=self.high, divisor=self.divisor,
        )  # fmt: skip

    def _check(self, rows: int, columns: int) -> None:
        wanted = {
            "scale": ((columns,), "float32"), "row_scale": ((rows,), "float32"), "bias": ((columns,), "float32"),
            "offset": ((columns,), "int32"), "residual": ((rows, columns), self.output),
        }  # fmt: skip
        for name, (shape, dtype) in wanted.items():
            array = getattr(self, name)
            if array is None or (name == "scale" and array.shape == (1,) and array.dtype.name == dtype):
                continue
            if array.shape != shape or array.dtype.name != dtype:
                raise ValueError(f"{name} is {array.dtype}{list(array.shape)} where {dtype}{list(shape)} is needed")


PLAIN = Epilogue()


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
