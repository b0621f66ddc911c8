"""onnxruntime's product with weights of four bits, MatMulNBits: constant weights, packed when they are first used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pumice.ops.record import Array, Forward, Kernel, Node, Outputs
from pumice_cuda import reference
from pumice_cuda.constants import Once

if TYPE_CHECKING:
    from pumice_cuda.lowbit import Codebook

FEW_BITS = 4
GROUPS = (32, 64)


def _bind(node: Node, constants: Sequence[Any]) -> Forward | None:
    """With the codes, scales and zero points that the plan knows; others may be fed."""
    known = tuple((*constants, None, None, None)[1:4])
    if known[0] is None or known[1] is None:
        return None
    packed: Once[Codebook] = Once(lambda: _packed(node, *known))

    def run(node: Node, a: Array, *rest: Any) -> Outputs:
        from pumice_cuda.lowbit import matmul

        codes, scales, zeros, order, bias = (*rest, None, None, None)[:5]
        same = all(x is y for x, y in zip((codes, scales, zeros), known, strict=True))
        if not same or order is not None or not a.size:
            return reference.forward(node, a, *rest)
        return (matmul(a, packed(), bias),)

    return run


def _packed(node: Node, codes: Array, scales: Array, zeros: Array | None) -> Codebook:
    from pumice_cuda.lowbit import pack_affine

    depth, width, block = node.attributes["K"], node.attributes["N"], node.attributes["block_size"]
    blocks = -(-depth // block)
    points = None
    if zeros is not None:
        points = fields(zeros.reshape(width, -1), blocks) if zeros.dtype == np.uint8 else zeros.reshape(width, blocks)
    return pack_affine(fields(codes.reshape(width, -1), depth).T, scales.reshape(width, blocks), points, group=block)


def fields(packed: Any, count: int) -> Any:
    """Bytes (n, bytes) as their two fields each (n, count), the lower ones first."""
    import cupy

    return cupy.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1)[:, :count]


def _accepts(node: Node) -> str | None:
    block = node.get("block_size", 0)
    if node.get("bits", FEW_BITS) != FEW_BITS:
        return "its weights have not four bits"
    return None if block in GROUPS or (block and block % 128 == 0) else f"blocks of {block} have no kernel"


KERNELS = (
    Kernel(
        op_type="MatMulNBits", domain="com.microsoft", run=reference.forward, bind=_bind, accepts=_accepts,
        dtypes=frozenset({"float32", "float16"}), rtol=1e-3, atol=1e-3,
    ),
)  # fmt: skip
