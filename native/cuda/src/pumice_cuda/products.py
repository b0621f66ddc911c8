"""Products of float32 matrices to float32's accuracy, on the tensor cores where that is fast.

On Hopper every operand is the sum of a high and a low TF32 part (csrc/split.cu) and one product over three times the
depth gives A B' but for 2^-21 of |A| |B'| and what the matrix unit cuts off its sums, 2^-27 of the result for each of
the depth (4e-6 at 512). Elsewhere cuBLAS multiplies (`blas`). `gemm` with precision `float32` rounds its sums, for any
depth; what is here has its constant operand ready and multiplies with wgmma.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import numpy as np

from pumice_cuda import device
from pumice_cuda.blas import matmul
from pumice_cuda.compiling import kernel
from pumice_cuda.epilogue import Epilogue
from pumice_cuda.gemm import gemm
from pumice_cuda.launching import blocks, launch

if TYPE_CHECKING:
    import cupy

QUAD = 4
"""Elements of 16 bytes, of which the copy engine wants rows to have a whole number."""
THREADS = 256


@attrs.frozen(eq=False)
class Right:
    """B (n, k) of float32, made ready once for many products."""

    matrix: cupy.ndarray
    parts: cupy.ndarray | None

    @classmethod
    def of(cls, matrix: cupy.ndarray) -> Right:
        splits = device.gpu().capability == device.HOPPER and matrix.size > 0
        return cls(matrix, _parts(matrix, second=1) if splits else None)


def product(
    a: cupy.ndarray, b: Right, bias: cupy.ndarray | None = None, *, out: cupy.ndarray | None = None
) -> cupy.ndarray:
    """A B' + bias as (m, n).

    Args:
        a: (m, k) of float32.
        b: (n, k).
        bias: (n,), or None.
        out: where to write, contiguous.
    """
    if b.parts is not None and a.size:
        return gemm(_parts(a, second=0), b.parts, Epilogue(bias=bias), out=out)
    y: cupy.ndarray = matmul(a, b.matrix.T, out)
    if bias is not None:
        y += bias
    return y


def finished(a: cupy.ndarray, b: Right, epilogue: Epilogue) -> cupy.ndarray:
    """epilogue(A B') as (m, n), on Hopper.

    Raises:
        NotImplementedError: on other GPUs.
    """
    if b.parts is None:
        raise NotImplementedError("products of float32 are finished as they are stored on Hopper alone")
    return gemm(_parts(a, second=0), b.parts, epilogue)


def _parts(matrix: cupy.ndarray, second: int) -> cupy.ndarray:
    import cupy

    matrix = matrix if matrix.strides[1] == matrix.itemsize else cupy.ascontiguousarray(matrix)
    rows, depth = matrix.shape
    padded = -(-depth // QUAD) * QUAD
    parts = cupy.empty((rows, 3 * padded), np.float32)
    launch(
        kernel("split", "split"), blocks(rows * padded, THREADS), THREADS, matrix, parts, np.int64(rows),
        np.int32(depth), np.int32(padded), np.int64(matrix.strides[0] // matrix.itemsize), np.int32(second),
    )  # fmt: skip
    return parts
