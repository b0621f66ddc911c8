"""Products by weights of four bits that the graph widens: the Plan multiplies by the codes, and never widens them.

    Cast(codes) -> Gather(table, .) [* a scale an output] [transposed]           -> MatMul | Gemm [-> Add of a constant]
    Cast(codes) -> GatherElements(tables, .) -> Reshape [* a scale] [transposed] -> MatMul | Gemm
    DequantizeLinear(codes, scales, zero points)                                 -> MatMul | Gemm [-> Add of a constant]

Sums are those of float32. Codes are decoded row by row of the data, which pays for a few rows: for more, the weights
are widened once. What is no such chain, or has no kernel for its blocks, is widened node by node.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
import numpy as np

from pumice.ops.record import Array, Link, Outputs

Run = Callable[..., Outputs]
DECLINED = NotImplemented
FOUR_BITS = frozenset({"uint4", "int4"})
ENTRIES, FEW_ROWS = 16, 4


@attrs.define
class Stored:
    """Codes of weights as the chain has them so far, and how a table makes them numbers."""

    codes: Array
    """0 to 15: (outputs, k), or (k, outputs) once `turned`."""
    table: int | Array
    """Where the chain is given the table, or the table itself."""
    scale: int | Array | None = None
    """A scale an output, or one for all; (blocks, outputs) where `group` inputs share one, as `offset`. As `table`."""
    offset: Array | None = None
    group: int | None = None
    turned: bool = False

    def arranged(
        self, table: Array, given: Array | None = None
    ) -> tuple[Array, Array, Array, Array | None, int | None]:
        """Codes, table, scale, offset and group, as `lowbit.pack` takes them; `given` is the scale of a chain's."""
        codes = self.codes if self.turned else self.codes.T
        entries = np.asarray(table, np.float32).reshape(-1, table.shape[-1])
        padded = np.pad(entries, ((0, 0), (0, ENTRIES - entries.shape[1])))
        known = given if isinstance(self.scale, int) else self.scale
        each = np.ones(1, np.float32) if known is None else known
        scale = each.T if self.group else np.broadcast_to(each.reshape(-1, 1), (codes.shape[1], 1))
        offset = None if self.offset is None else self.offset.T if self.group else self.offset.reshape(-1, 1)
        return codes, padded[0] if len(padded) == 1 else padded, scale, offset, self.group

    def widened(self, table: Array, given: Array | None = None) -> Array:
        """(k, outputs) in float32."""
        codes, entries, scale, offset, group = self.arranged(table, given)
        found = entries[codes] if entries.ndim == 1 else np.take_along_axis(entries.T, codes, axis=0)
        spread = len(codes) if group is None else group
        parameters = [p.T.repeat(spread, axis=0)[: len(codes)] for p in (scale, offset) if p is not None]
        return np.asarray((found - parameters[1] if offset is not None else found) * parameters[0], np.float32)


def stored_product(links: Sequence[Link]) -> Run | None:
    """A chain from the codes to the product, and to the bias that follows it."""
    found = stored_weights(links)
    if found is None:
        return None
    stored, rest = found
    if not rest or not _is_product(stored, rest[0]) or len(rest) > 2:
        return None
    bias = _bias(rest, stored)
    return None if bias is DECLINED else _multiply(links, len(links) - len(rest), stored, bias)


def stored_weights(links: Sequence[Link]) -> tuple[Stored, Sequence[Link]] | None:
    """Weights that a chain widens, and what of the chain is left."""
    start = {"DequantizeLinear": _dequantized, "Gather": _indexed}.get(links[0].node.op_type, _looked_up)
    started = start(links)
    if started is None:
        return None
    stored, rest = started
    while rest and rest[0].node.op_type in _SHAPES:
        if not _SHAPES[rest[0].node.op_type](stored, rest[0], _given(links[: len(links) - len(rest)])):
            return None
        rest = rest[1:]
    return stored, rest


def _given(links: Sequence[Link]) -> int:
    """How many arrays a chain is given before its next node."""
    return sum(len(link.constants) - (link.at >= 0) for link in links)


def _codes(array: Any) -> Array | None:
    if not isinstance(array, np.ndarray) or array.dtype.name not in FOUR_BITS or array.size == 0:
        return None
    return (array.astype(np.int8) + (8 if array.dtype.name == "int4" else 0)).astype(np.uint8)


def _looked_up(links: Sequence[Link]) -> tuple[Stored, Sequence[Link]] | None:
    if links[0].node.op_type != "Cast" or len(links) < 3 or links[1].at != 1:
        return None
    codes = _codes(links[0].constants[0])
    if codes is None or links[0].constants[0].dtype.name != "uint4":
        return None
    look_up = links[1].node
    if look_up.op_type == "Gather" and look_up.get("axis", 0) == 0 and codes.ndim == 2:
        return Stored(codes, 1), links[2:]
    by_output = look_up.op_type == "GatherElements" and look_up.get("axis", 0) == 2 and codes.ndim == 3
    if not by_output or codes.shape[1] != 1 or links[2].node.op_type != "Reshape":
        return None
    shape = links[2].constants[1]
    if shape is None or list(shape) not in ([-1, codes.shape[2]], [len(codes), codes.shape[2]]):
        return None
    return Stored(codes[:, 0], 1), links[3:]


def _indexed(links: Sequence[Link]) -> tuple[Stored, Sequence[Link]] | None:
    """Gather(table, codes), both constant, the codes of a wider type."""
    table, codes = links[0].constants
    if table is None or codes is None or codes.ndim != 2 or links[0].node.get("axis", 0) != 0 or table.ndim != 1:
        return None
    if codes.size == 0 or codes.min() < 0 or codes.max() >= ENTRIES:
        return None
    return Stored(codes.astype(np.uint8), table), links[1:]


def _dequantized(links: Sequence[Link]) -> tuple[Stored, Sequence[Link]] | None:
    given, node = links[0].constants, links[0].node
    codes, scale = _codes(given[0]), given[1]
    if codes is None or codes.ndim != 2 or not isinstance(scale, np.ndarray) or scale.dtype != np.float32:
        return None
    zeros = given[2] if len(given) > 2 else None
    if len(given) > 2 and not isinstance(zeros, np.ndarray):
        return None
    signed = given[0].dtype.name == "int4"
    middle = np.zeros(scale.shape, np.float32) if zeros is None else zeros.astype(np.float32)
    stored = Stored(codes, np.arange(ENTRIES, dtype=np.float32), scale, middle + (8 if signed else 0), turned=True)
    block, axis = node.get("block_size", 0), node.get("axis", 1) % 2
    if scale.ndim == 2 and axis == 0 and (block in (32, 64) or (block and block % 128 == 0)):
        stored.group = block
    elif scale.ndim != 1 or axis != 1:
        return None
    return stored, links[1:]


def _scaled(stored: Stored, link: Link, given: int) -> bool:
    scale = link.constants[1 - link.at]
    if stored.scale is not None or stored.turned or (scale is not None and not _fits(stored, scale)):
        return False
    stored.scale = given if scale is None else scale.astype(np.float32)
    return True


def _fits(stored: Stored, scale: Array) -> bool:
    """Whether it is a scale an output, or one for all."""
    return scale.shape == (len(stored.codes.T if stored.turned else stored.codes), 1) or scale.shape == (1,)


def _transposed(stored: Stored, link: Link, _given: int) -> bool:
    if link.node.get("perm", [1, 0]) != [1, 0]:
        return False
    stored.codes, stored.turned = stored.codes.T, not stored.turned
    return not stored.group


_SHAPES: dict[str, Callable[[Stored, Link, int], bool]] = {"Mul": _scaled, "Transpose": _transposed}


def _is_product(stored: Stored, link: Link) -> bool:
    node = link.node
    if link.at != 1 or link.constants[0] is not None:
        return False
    if node.op_type == "MatMul":
        return stored.turned
    plain = node.get("alpha", 1.0) == 1 and node.get("beta", 1.0) == 1 and not node.get("transA", 0)
    return node.op_type == "Gemm" and plain and bool(node.get("transB", 0)) != stored.turned


def _bias(links: Sequence[Link], stored: Stored) -> Any:
    """Of a product's own bias and a constant that is added; None without any, DECLINED where it is none."""
    width = stored.codes.shape[1] if stored.turned else len(stored.codes)
    terms = list(links[0].constants[2:])
    if len(links) > 1:
        if links[1].node.op_type != "Add":
            return DECLINED
        terms.append(links[1].constants[1 - links[1].at])
    for term in terms:
        if not isinstance(term, np.ndarray) or term.dtype != np.float32 or term.size not in (1, width) or term.ndim > 1:
            return DECLINED
    return np.sum([np.broadcast_to(term, (width,)) for term in terms], axis=0, dtype=np.float32) if terms else None


def _multiply(links: Sequence[Link], at: int, stored: Stored, bias: Array | None) -> Run:
    """`at` is the product's place in the chain."""
    given = [[c for i, c in enumerate(link.constants) if i != link.at] for link in links]
    before = sum(map(len, given[:at]))
    known = [(i, c) for i, c in enumerate(c for part in given for c in part) if c is not None]
    kept: dict[str, tuple[Array, Array | None, Any]] = {}

    def run(*arrays: Any) -> Any:
        from pumice_cpu import gemm, lowbit

        a = arrays[before]
        if a.dtype != np.float32 or a.ndim < 2 or a.size == 0 or any(arrays[i] is not c for i, c in known):
            return DECLINED
        table = arrays[stored.table] if isinstance(stored.table, int) else stored.table
        scale = arrays[stored.scale] if isinstance(stored.scale, int) else None
        if scale is not None and not _fits(stored, scale):
            return DECLINED
        form = "codes" if a.size // a.shape[-1] <= FEW_ROWS else "numbers"
        if form not in kept or not (_same(kept[form][0], table) and _same(kept[form][1], scale)):
            kept[form] = np.array(table), None if scale is None else np.array(scale), packed(table, scale, form)
        if form == "codes":
            return (lowbit.matmul(a, kept[form][2], bias),)
        rows = np.ascontiguousarray(a).reshape(-1, a.shape[-1])
        return (gemm.gemm(rows, kept[form][2], gemm.Epilogue(bias=bias)).reshape(*a.shape[:-1], -1),)

    def packed(table: Array, given: Array | None, form: str) -> Any:
        from pumice_cpu import gemm, lowbit

        if form == "numbers":
            return gemm.pack(stored.widened(table, given))
        codes, entries, scale, offset, group = stored.arranged(table, given)
        return lowbit.pack(codes, entries, scale, offset, group=group, table_type="float32")

    return run


def _same(before: Array | None, now: Array | None) -> bool:
    return before is now is None or (before is not None and now is not None and np.array_equal(before, now))
