"""Products with weights of few bits: onnxruntime's DynamicQuantizeMatMul, its MatMulNBits of four bits, and products by
weights of four bits that the graph widens.

Constant weights are packed when they are first used; weights that are fed go to core's NumPy code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pumice.ops.record import Array, Forward, Kernel, Node, Outputs
from pumice_cpu.fusing_lowbit import FOUR_BITS, stored_product

if TYPE_CHECKING:
    from pumice_cpu.gemm import Packed
    from pumice_cpu.lowbit import Codebook

Run = Callable[..., Outputs]
_MICROSOFT = "com.microsoft"
FEW_BITS = 4


def _core(node: Node, *arrays: Any) -> Outputs:
    from pumice.ops import core_table

    op = core_table().resolve(node.domain, node.op_type, node.opset)
    assert op is not None
    assert op.forward is not None
    return op.forward(node, *arrays)


def _bound(run: Run, positions: Sequence[int]) -> Callable[[Node, Sequence[Any]], Forward]:
    """`run(node, kept, *arrays)` while the inputs at `positions` are the plan's constants; `kept` outlives a call."""

    def bind(node: Node, constants: Sequence[Any]) -> Forward:
        known = {i: constants[i] for i in positions if i < len(constants)}
        kept: dict[str, Any] = {}

        def forward(node: Node, *arrays: Any) -> Outputs:
            same = all(arrays[i] is None or arrays[i] is known.get(i) for i in positions if i < len(arrays))
            return run(node, kept, *arrays) if same and arrays[0].size else _core(node, *arrays)

        return forward

    return bind


def _dynamic(
    node: Node, kept: dict[str, Any], a: Array, b: Array, sb: Array, zb: Array | None = None, bias: Array | None = None
) -> Outputs:
    from pumice_cpu.dynamic import matmul
    from pumice_cpu.gemm import pack

    if b.ndim != 2 or a.ndim < 2:
        return _core(node, a, b, sb, zb, bias)
    if not kept:
        kept["weights"] = pack(b, "integer")
    weights: Packed = kept["weights"]
    zero = None if zb is None else zb.astype(np.int32).reshape(-1)
    return (matmul(a, weights, sb, bias, per_row=False, b_zero=zero),)


def _few_bits(
    node: Node, kept: dict[str, Any], a: Array, b: Array, scales: Array, zeros: Array | None = None,
    order: Any = None, bias: Array | None = None,
) -> Outputs:  # fmt: skip
    from pumice_cpu.lowbit import matmul

    if order is not None:
        return _core(node, a, b, scales, zeros, order, bias)
    if not kept:
        kept["weights"] = _packed(node, b, scales, zeros)
    weights: Codebook = kept["weights"]
    return (matmul(a, weights, bias),)


def fields(packed: Array, count: int) -> Array:
    """Bytes (n, bytes) as their two fields each (n, count), the lower ones first."""
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1)[:, :count]


def _packed(node: Node, b: Array, scales: Array, zeros: Array | None) -> Codebook:
    """Codes less their zero point, in float32: what core multiplies with."""
    from pumice_cpu.lowbit import ENTRIES, pack

    depth, width, block = node.attributes["K"], node.attributes["N"], node.attributes["block_size"]
    blocks = -(-depth // block)
    middle: Any = np.float32(ENTRIES // 2)
    if zeros is not None:
        points = fields(zeros.reshape(width, -1), blocks) if zeros.dtype == np.uint8 else zeros
        middle = points.reshape(width, blocks)
    codes, table = fields(b.reshape(width, -1), depth).T, np.arange(ENTRIES)
    return pack(codes, table, scales.reshape(width, blocks), middle, group=block, table_type="float32")


def _four_bits_in_blocks(node: Node) -> str | None:
    block = node.get("block_size", 0)
    if node.get("bits", FEW_BITS) != FEW_BITS:
        return "its weights have not four bits"
    return None if block in {32, 64} or (block and block % 128 == 0) else f"blocks of {block} have no kernel"


KERNELS = (
    Kernel(
        op_type="DynamicQuantizeMatMul", domain=_MICROSOFT, run=_core, bind=_bound(_dynamic, (1, 2, 3)),
        rtol=1e-5, atol=1e-5,
    ),
    Kernel(
        op_type="MatMulNBits", domain=_MICROSOFT, run=_core, bind=_bound(_few_bits, (1, 2, 3)),
        accepts=_four_bits_in_blocks, rtol=1e-4, atol=1e-4,
    ),
    *(
        Kernel(op_type=op_type, run=_core, fuse=stored_product, dtypes=FOUR_BITS, rtol=0.0, atol=0.0)
        for op_type in ("Cast", "DequantizeLinear")
    ),
)  # fmt: skip
