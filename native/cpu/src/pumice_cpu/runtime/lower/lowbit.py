"""Products with weights of four bits: ONNX Runtime's MatMulNBits, and MatMul by weights that the graph widens.

In fast mode rows of the data are quantized to 8 bits and multiplied by tables of 8 bits; else everything is float32.
"""

from __future__ import annotations

import math

import attrs
import numpy as np

from pumice.ops.record import Array, Link
from pumice.program import ABSENT, Step
from pumice_cpu.fusing_lowbit import FEW_ROWS, stored_weights
from pumice_cpu.kernels.lowbit import fields
from pumice_cpu.lowbit import BLOCK, ENTRIES, TableType
from pumice_cpu.runtime import packing
from pumice_cpu.runtime.compiler import Compiler

MIDDLE, LARGEST = ENTRIES // 2, 127
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


# --- weights that the graph widens ------------------------------------------------------------------------------------

LONGEST = 5
"""Nodes between the codes and the product."""


def by_codebook(c: Compiler, step: Step) -> bool:
    """A MatMul whose constant weights the graph widens from four bits: see `pumice_cpu.fusing_lowbit`."""
    a, b = step.inputs
    if not c.is_float(a) or c.trace.is_known(a) or not c.trace.is_known(b) or len(c.shape(b)) != 2:
        return False
    chain = _chain(c, b)
    found = stored_weights([link for link, _ in chain]) if chain else None
    if found is None or found[1] or not found[0].turned:
        return False
    stored = found[0]
    if (c.exact or stored.group in SMALL_BLOCKS) and math.prod(c.shape(a)[:-1]) > FEW_ROWS:
        return False  # codes are decoded for every row of the data: see `fusing_lowbit`
    table = c.known(chain[1][1].inputs[0]) if isinstance(stored.table, int) else stored.table
    if table is None or table.shape[-1] > ENTRIES:
        return False

    def make() -> packing.Packed:
        codes, entries, scale, offset, group = stored.arranged(table)
        if not c.exact:
            entries, scale, offset = _in_bytes(entries, scale, offset)
        return packing.codebook(codes, entries, scale, offset, group, _table_type(c))

    _emit(c, step, a, c.packer.get((b, "codebook", c.exact), make), None)
    return True


def _chain(c: Compiler, slot: int) -> list[tuple[Link, Step]]:
    """From the codes to a value, each node with what it reads besides the one before."""
    found: list[tuple[Link, Step]] = []
    while len(found) < LONGEST and (step := c.producer(slot)) is not None:
        at = 1 if step.node.op_type in ("Gather", "GatherElements") else 0
        if at >= len(step.inputs):
            break
        found.insert(0, (Link(node=step.node, constants=[c.known(i) for i in step.inputs], at=at), step))
        slot = step.inputs[at]
    if found:
        found[0] = attrs.evolve(found[0][0], at=-1), found[0][1]
    return found


def _in_bytes(table: Array, scale: Array, offset: Array | None) -> tuple[Array, Array, Array | None]:
    """Tables rounded to int8, their step given to the scale; tables of small integers stay."""
    if np.array_equal(table, np.rint(table)) and np.abs(table).max() <= LARGEST:
        return table.astype(np.int8), scale, offset
    top = np.abs(table).max(axis=-1, keepdims=True) / np.float32(LARGEST)
    top = np.where(top > 0, top, np.float32(1))
    return np.rint(table / top).astype(np.int8), scale * top, None if offset is None else offset / top


LOWERS = {("com.microsoft", "MatMulNBits"): nbits}
