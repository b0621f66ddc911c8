"""Matrix products of floats: those of a constant matrix with what follows them, and all of 16 bits.

On Hopper a product with a constant matrix of float32 and its bias, residual and activation (`fusing`) is computed at
once: where there are many results as `pumice_cuda.products` does it, a stretch of the depth at a time, each added to
those before it in float32 (errors of 1e-5 of the norm, whatever the depth), and where there are few by `gemm` with
precision `float32`. Of few rows, of matrices whose parts would take much memory, and on other GPUs, cuBLAS multiplies
and the rest follows.

The operators' own functions widen matrices of 16 bits first, which is right and takes four times the memory and the
time of the tensor cores; here they are read and written in 16 bits, summed in 32. Biases and factors are applied in 32
bits. Their gradients need no kernel: nothing is widened there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from pumice.ops.record import Kernel, Link, Node, Outputs
from pumice_cuda import reference
from pumice_cuda.fusing import Tail

if TYPE_CHECKING:
    from pumice_cuda.epilogue import Epilogue
    from pumice_cuda.products import Right

HALF = frozenset({"float16", "bfloat16"})
MANY_RESULTS = 1 << 17
"""Of a product of float32 for which it pays to store the parts of both matrices."""
FEWEST_ROWS = 64
"""Of a product of fewer results that `gemm` computes: cuBLAS divides the depth among more blocks."""
DEEPEST = 1024
"""Depth of such a product, and of a stretch."""
LARGEST = 1 << 24
"""Elements of a matrix whose parts, three times its memory, are kept beside it."""


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


# --- chains -----------------------------------------------------------------------------------------------------------


class Weights:
    """A constant matrix as the kernels read it, laid out when it is first needed."""

    def __init__(self, matrix: Any) -> None:
        """`matrix`: (columns, depth), in any layout."""
        self._matrix = matrix
        self.columns, self.depth = matrix.shape

    def times(self, a: Any, epilogue: Epilogue) -> Any:
        """epilogue(A B') for A (rows, depth); NotImplemented where others are faster."""
        from pumice_cuda import device
        from pumice_cuda.gemm import gemm

        if device.gpu().capability != device.HOPPER:
            return NotImplemented
        if len(a) * self.columns >= MANY_RESULTS:
            return self._by_stretches(a, epilogue)
        if len(a) >= FEWEST_ROWS and self.depth <= DEEPEST:
            return gemm(a, self._rows, epilogue, precision="float32")
        return NotImplemented

    def _by_stretches(self, a: Any, epilogue: Epilogue) -> Any:
        from pumice_cuda.epilogue import Epilogue
        from pumice_cuda.products import finished

        sums, (*others, (last, right)) = epilogue.residual, self._stretches
        for stretch, part in others:
            sums = finished(a[:, stretch], part, Epilogue(scale=epilogue.scale, residual=sums))
        return finished(a[:, last], right, attrs.evolve(epilogue, residual=sums))

    @functools.cached_property
    def _rows(self) -> Any:
        import cupy

        return cupy.ascontiguousarray(self._matrix)

    @functools.cached_property
    def _stretches(self) -> list[tuple[slice, Right]]:
        """Places along the depth, of as many columns each, and the matrix there."""
        from pumice_cuda.products import QUAD, Right

        each = QUAD * -(-self.depth // (QUAD * -(-self.depth // DEEPEST)))
        places = [slice(start, start + each) for start in range(0, self.depth, each)]
        return [(place, Right.of(self._matrix[:, place])) for place in places]


def _single(chain: Sequence[Link]) -> Callable[..., Outputs] | None:
    """A product with a constant matrix of float32, and the terms, residual and activation after it."""
    weights = _weights(chain[0])
    return None if weights is None else _with_what_follows(chain, weights)


def _weights(product: Link) -> Weights | None:
    """The constant matrix of a product, if it has one of float32 that is not too large."""
    node, b = product.node, product.constants[1]
    if b is None or b.ndim != 2 or not 0 < b.size <= LARGEST or b.dtype != np.float32 or node.get("transA", 0):
        return None
    return Weights(b if node.get("transB", 0) else b.T)


def _with_what_follows(chain: Sequence[Link], weights: Weights) -> Callable[..., Outputs] | None:
    b, read = chain[0].constants[1], _begun(chain[0], weights.columns)
    if read is None or not read.read(chain, b.dtype.name):
        return None

    def run(*arrays: Any) -> Any:
        a = arrays[0]
        shape = (*a.shape[:-1], weights.columns)
        if a.ndim < 2 or not a.size or a.dtype != b.dtype or a.shape[-1] != weights.depth:
            return NotImplemented
        epilogue = read.epilogue(arrays, shape) if arrays[1] is b else None
        if epilogue is None:
            return NotImplemented
        if epilogue.residual is not None:
            epilogue = attrs.evolve(epilogue, residual=_rows(epilogue.residual))
        y = weights.times(_rows(a), epilogue)
        return y if y is NotImplemented else (y.reshape(shape),)

    return run


def _begun(product: Link, columns: int) -> Tail | None:
    """The factor and the term of a Gemm; nothing for a MatMul. None where the term is not one of columns."""
    node, is_gemm = product.node, product.node.op_type == "Gemm"
    read = Tail(columns=columns, axis=1, flat=is_gemm)
    if not is_gemm:
        return read
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    if alpha != 1:
        read.multiply(np.float64(alpha))
    if len(product.constants) > 2:
        if not read.covers(product.constants[2]):
            return None
        read.add(product.constants[2], beta)
    return read


def _rows(x: Any) -> Any:
    """The last axis as rows side by side."""
    import cupy

    return cupy.ascontiguousarray(x).reshape(-1, x.shape[-1])


_HALF: dict[str, Any] = {"dtypes": HALF, "rank": 5, "rtol": 1e-2, "atol": 1e-2}
_SINGLE: dict[str, Any] = {"run": reference.forward, "rank": 5, "fuse": _single, "rtol": 1e-4, "atol": 1e-4}

KERNELS = (
    Kernel(op_type="MatMul", run=_matmul, **_HALF),
    Kernel(op_type="Gemm", run=_gemm, **_HALF),
    Kernel(op_type="MatMul", **_SINGLE),
    Kernel(op_type="Gemm", **_SINGLE),
)
