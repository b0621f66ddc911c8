"""Matrix products of 16-bit floats, by cuBLAS: read and written in 16 bits, summed in 32.

The operators' own functions widen such matrices first, which is right and takes four times the memory and the time of
the tensor cores. Biases and factors are applied in 32 bits. Their gradients need no kernel: nothing is widened there.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pumice.ops.record import Kernel, Node, Outputs

HALF = frozenset({"float16", "bfloat16"})


def _matmul(node: Node, a: Any, b: Any) -> Outputs:
    from pumice_cuda.blas import matmul

    return (matmul(a, b),)


def _gemm(node: Node, a: Any, b: Any, c: Any = None) -> Outputs:
    from pumice_cuda.blas import matmul

    left, right = a.T if node.get("transA", 0) else a, b.T if node.get("transB", 0) else b
    y, alpha, beta = matmul(left, right), node.get("alpha", 1.0), node.get("beta", 1.0)
    if c is None and alpha == 1:
        return (y,)
    wide = alpha * y.astype(np.float32)
    return ((wide if c is None else wide + beta * c.astype(np.float32)).astype(a.dtype),)


KERNELS = (
    Kernel(op_type="MatMul", dtypes=HALF, rank=5, run=_matmul, rtol=1e-2, atol=1e-2),
    Kernel(op_type="Gemm", dtypes=HALF, rank=5, run=_gemm, rtol=1e-2, atol=1e-2),
)
