"""Products with weights of four bits: ONNX Runtime's MatMulNBits, and MatMul by a codebook that the graph spells out.

In fast mode rows of the data are quantized to 8 bits and multiplied by tables of 8 bits; else everything is float32.
"""

from __future__ import annotations

import attrs
import numpy as np

from pumice.ops.record import Array
from pumice.program import ABSENT, Step
from pumice_cpu.kernels.lowbit import fields
from pumice_cpu.lowbit import BLOCK, ENTRIES, TableType
from pumice_cpu.runtime import packing
from pumice_cpu.runtime.compiler import Compiler

MIDDLE = ENTRIES // 2
SMALL_BLOCKS = frozenset({32, 64})


def nbits(c: Compiler, step: Step) -> bool:
    a, b, scales, zeros, order, bias = (*step.inputs, *[ABSENT] * 6)[:6]
    node = step.node
    depth, width, block = (node.attributes[name] for name in ("K", "N", "block_size"))
    known = all(slot == ABSENT or c.trace.is_known(slot) for slot in (b, scales, zeros, bias))
    if not known or order != ABSENT or node.get("bits", 4) != 4 or not c.is_float(a) or c.trace.is_known(a):
        return False
    if block not in SMALL_BLOCKS and block % BLOCK:
        return False
    blocks = -(-depth // block)

    def make() -> packing.Packed:
        packed, scale, points = c.known(b), c.known(scales), c.known(zeros)
        assert packed is not None
        assert scale is not None
        middle = np.full((width, blocks), MIDDLE, np.float32)
        if points is not None:
            stored = fields(points.reshape(width, -1), blocks) if points.dtype == np.uint8 else points
            middle = stored.reshape(width, blocks).astype(np.float32)
        codes = fields(packed.reshape(width, -1), depth).T
        shift = 0 if c.exact else MIDDLE
        table = np.arange(ENTRIES) - shift
        offset = None if (middle == shift).all() else middle - np.float32(shift)
        return packing.codebook(codes, table, scale.reshape(width, blocks), offset, block, _table_type(c))

    _emit(c, step, a, c.packer.get((b, c.exact), make), c.known(bias))
    return True


def _table_type(c: Compiler) -> TableType:
    return "float32" if c.exact else "int8"


def _emit(c: Compiler, step: Step, a: int, packed: packing.Packed, bias: Array | None) -> None:
    slot, width = step.outputs[0], c.shape(step.outputs[0])[-1]
    following = c.reader(slot)
    if following is not None and following.node.op_type == "Add":
        added = c.known(following.inputs[1] if following.inputs[0] == slot else following.inputs[0])
        if added is not None and added.shape == (width,):
            c.absorb(following)
            bias, slot = added if bias is None else bias + added, following.outputs[0]
    given = c.plain(a)
    row = None if bias is None else np.ascontiguousarray(np.broadcast_to(bias.reshape(-1), (width,)), np.float32)
    c.emit(
        "lowbit", c.result(slot), given, weights=packed, rows=given.array.size // given.shape[-1],
        depth=given.shape[-1], columns=width, bias=row, op=step.node.op_type,
    )  # fmt: skip


# --- codebooks --------------------------------------------------------------------------------------------------------


@attrs.frozen
class Codebook:
    """weight[k, n] = table[codes[k, n]] scale[n]."""

    codes: Array
    table: Array
    scale: Array


def by_codebook(c: Compiler, step: Step) -> bool:
    """A MatMul whose constant weights are looked up in a table of at most 16 entries."""
    a, b = step.inputs
    if not c.is_float(a) or c.trace.is_known(a) or not c.trace.is_known(b) or len(c.shape(b)) != 2:
        return False
    found = codebook_of(c, b)
    if found is None:
        return False

    def make() -> packing.Packed:
        table, scale = found.table, found.scale
        if not c.exact:
            top = float(np.abs(table).max()) / 127 or 1.0
            table, scale = np.rint(table / top).astype(np.int8), scale * np.float32(top)
        return packing.codebook(found.codes, table, scale[:, None], None, None, _table_type(c))

    _emit(c, step, a, c.packer.get((b, "codebook", c.exact), make), None)
    return True


def codebook_of(c: Compiler, slot: int) -> Codebook | None:
    """Of Gather(table, codes) [* a scale a row] [transposed]; codes lie (outputs, depth) before the transposition."""
    step, turned = c.producer(slot), False
    if step is not None and step.node.op_type == "Transpose":
        step, turned = c.producer(step.inputs[0]), True
    scale = None
    if step is not None and step.node.op_type == "Mul":
        scale, step = c.known(step.inputs[1]), c.producer(step.inputs[0])
    if step is None or step.node.op_type != "Gather" or not turned:
        return None
    table, codes = c.known(step.inputs[0]), c.known(step.inputs[1])
    if table is None or codes is None or table.ndim != 1 or table.size > ENTRIES or codes.ndim != 2:
        return None
    if scale is not None and scale.shape != (len(codes), 1):
        return None
    rows = np.ones(len(codes), np.float32) if scale is None else scale.reshape(-1).astype(np.float32)
    padded = np.zeros(ENTRIES, np.float32)
    padded[: table.size] = table
    return Codebook(codes.T, padded, rows)


LOWERS = {("com.microsoft", "MatMulNBits"): nbits}
