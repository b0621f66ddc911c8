"""Storage: weights of few bits in ONNX, as nodes that widen them.

    products    DequantizeLinear(codes (k, n)) -> MatMul          a runtime with low-bit kernels fuses this
                MatMulNBits(x, codes)                             says the same outright, in the domain com.microsoft
    others      (Cast(codes) - zero) * scale -> Reshape            constant: a runtime widens it once, when it loads
    codebooks   Gather(table, Cast(codes)) * scale -> Transpose   the same; the codes lie in the shape of the weights
    look-ups    Gather(rows of bytes, index) -> two codes a byte  only the rows that are used are widened

Codes of up to four bits are packed two a byte. DequantizeLinear is used for the others as well where it is asked for:
files then hold nothing else, but onnxruntime runs it with every inference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import attrs
import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pumice.model import add_initializer, attribute, fresh_name, replace_input
from pumice.quantize.grids import AffineGrid, CodebookGrid
from pumice.quantize.weight_matrices import Move, WeightMatrix

Form = Literal["auto", "dequantize", "nbits"]
TableType = Literal["float32", "bfloat16", "int8"]
MS = "com.microsoft"
LEVELS = 255
"""Of scales in 8 bits."""
FEWEST_NBITS = 16
"""Least block of MatMulNBits; blocks are powers of two."""


@attrs.frozen(eq=False)
class Shelf:
    """Puts the weights of one matrix into a model, for some of its readers; the graph is to be sorted afterwards."""

    model: ir.Model
    matrix: WeightMatrix
    readers: Sequence[tuple[ir.Node, int]]

    # -- affine --

    def affine(self, grid: AffineGrid, codes: NDArray[Any], form: Form) -> None:
        """Store codes of shape (groups, outputs, k) and let the readers read what they stand for."""
        if self.matrix.op == "Gather":
            scale = self._stored("scale", grid.scale.reshape(-1, 1).astype(np.float32))
            self._looked_up(codes - grid.low, scale, offset=grid.zero - grid.low)
        elif form == "nbits" and self._is_product() and _fits_nbits(grid, self.matrix.shape[2]):
            self._nbits(grid, codes)
        elif self._is_product():
            self._dequantized_product(grid, codes)
        else:
            widened = self._dequantized(grid, codes) if form != "auto" else self._scaled(grid, codes)
            self._read(self._moved(widened))

    def _is_product(self) -> bool:
        return self.matrix.op in ("MatMul", "Gemm") and self.matrix.shape[0] == 1

    def _dequantized_product(self, grid: AffineGrid, codes: NDArray[Any]) -> None:
        """Codes as (k, outputs), which is how MatMul reads them; a Gemm of the transpose becomes one of the matrix."""
        value = self._dequantize(grid, codes[0].T, 0, grid.scale[0].T, grid.zero[0].T)
        self._read(value)
        for node, _ in self.readers:
            if attribute(node, "transB", 0):
                node.attributes["transB"] = ir.AttrInt64("transB", 0)

    def _dequantized(self, grid: AffineGrid, codes: NDArray[Any]) -> ir.Value:
        blocks = grid.scale.shape[2]
        scale, zero = grid.scale.reshape(-1, blocks), grid.zero.reshape(-1, blocks)
        return self._dequantize(grid, codes.reshape(-1, codes.shape[2]), 1, scale, zero)

    def _dequantize(
        self, grid: AffineGrid, codes: NDArray[Any], axis: int, scale: NDArray[Any], zero: NDArray[Any]
    ) -> ir.Value:
        """Matrices all; blocks lie along `axis`."""
        scales = _single(scale, axis).astype(np.float32)
        inputs = [self._stored("codes", _packed(codes, grid)), self._stored("scale", scales)]
        if not grid.signed:
            inputs.append(self._stored("zero_point", _packed(_single(zero, axis), grid)))
        single = scale.shape[axis] == 1
        along = {"axis": 1 - axis} if single else {"axis": axis, "block_size": grid.block}
        return self._node("DequantizeLinear", inputs, "dequantize", **along)

    def _scaled(self, grid: AffineGrid, codes: NDArray[Any]) -> ir.Value:
        """(codes - zero) * scale, by operators that runtimes fold."""
        rows, k, blocks = codes.shape[0] * codes.shape[1], codes.shape[2], grid.scale.shape[2]
        padded = np.pad(codes.reshape(rows, k), ((0, 0), (0, -k % grid.block if blocks > 1 else 0)))
        parts = padded.reshape(rows, blocks, -1)
        value = self._cast(self._stored("codes", _packed(parts, grid)), ir.DataType.FLOAT)
        if not grid.signed:
            zero = self._stored("zero_point", _packed(grid.zero.reshape(rows, blocks, 1), grid))
            value = self._node("Sub", [value, self._cast(zero, ir.DataType.FLOAT)], "centred")
        scale = self._stored("scale", grid.scale.reshape(rows, blocks, 1).astype(np.float32))
        return self._rows(self._node("Mul", [value, scale], "scaled"), padded.shape[1])

    def _nbits(self, grid: AffineGrid, codes: NDArray[Any]) -> None:
        outputs, k = self.matrix.shape[1:]
        block = grid.block if grid.scale.shape[2] > 1 else _power_above(k)
        padded = np.pad(codes[0] - grid.low, ((0, 0), (0, -k % block))).astype(np.uint8)
        inputs = [self._stored("codes", _nibbles(padded).reshape(outputs, -1, block // 2))]
        inputs.append(self._stored("scale", grid.scale[0].astype(np.float32).ravel()))
        inputs.append(self._stored("zero_points", _nibbles((grid.zero[0] - grid.low).astype(np.uint8)).ravel()))
        self.model.opset_imports.setdefault(MS, 1)
        for node, _ in self.readers:
            bias = node.inputs[2] if len(node.inputs) > 2 else None
            extra = [] if bias is None else [None, bias]
            made = ir.node(
                "MatMulNBits",
                [node.inputs[0], *inputs, *extra],
                domain=MS,
                attributes={"K": k, "N": outputs, "bits": 4, "block_size": block},
            )
            _take_place(self.model, node, made)

    # -- codebooks --

    def codebook(self, grid: CodebookGrid, codes: NDArray[Any], table_type: TableType) -> None:
        """As `affine`. Scales are of the table's type; those of an int8 table are levels, 1 to 255, of one unit."""
        rows, k = codes.shape[0] * codes.shape[1], codes.shape[2]
        table, shared = self._table(grid, table_type), grid.table.size == grid.entries
        if self.matrix.op == "Gather" and shared:
            scale = self._real_scale(grid.scale.reshape(rows, 1), table_type)
            self._looked_up(codes, scale, table=table.reshape(-1))
            return
        at_rest = self.matrix.from_rows[0][1] if shared and len(self.matrix.from_rows) == 1 else (rows, k)
        packed = _packed_indices(codes.reshape(at_rest), grid.entries)
        if shared:
            index = self._cast(self._stored("codes", packed), ir.DataType.INT32)
            value = self._node("Gather", [self._real_table(table.reshape(-1)), index], "values")
        else:
            value = self._looked_up_by_block(grid, packed, table)
        if not np.all(grid.scale == 1.0):
            scale = self._real_scale(grid.scale.reshape(_rows_of(at_rest, rows)), table_type)
            value = self._node("Mul", [value, scale], "scaled")
        self._read(self._moved(value) if at_rest == (rows, k) else value)

    def _looked_up_by_block(self, grid: CodebookGrid, codes: NDArray[Any], table: NDArray[Any]) -> ir.Value:
        rows, k = codes.shape
        blocks = table.shape[2]
        padded = np.pad(codes, ((0, 0), (0, -k % grid.block if blocks > 1 else 0))).reshape(rows, blocks, -1)
        index = self._cast(self._stored("codes", padded), ir.DataType.INT32)
        real = self._real_table(np.ascontiguousarray(table.reshape(rows, blocks, -1)))
        found = self._node("GatherElements", [real, index], "values", axis=2)
        return self._rows(found, blocks * padded.shape[2])

    @staticmethod
    def _table(grid: CodebookGrid, table_type: TableType) -> NDArray[Any]:
        if table_type == "int8":
            return grid.table.astype(np.int8)
        return grid.table.astype(np.float32 if table_type == "float32" else ml_dtypes.bfloat16)

    def _real_table(self, table: NDArray[Any]) -> ir.Value:
        stored = self._stored("table", table)
        return stored if table.dtype == np.float32 else self._cast(stored, ir.DataType.FLOAT)

    def _real_scale(self, scale: NDArray[Any], table_type: TableType) -> ir.Value:
        """A single number where all are alike."""
        single = scale.astype(np.float32)
        if np.all(single == single.flat[0]):
            return self._stored("scale", single.flat[:1])
        if table_type == "float32":
            return self._stored("scale", single)
        if table_type == "bfloat16":
            return self._cast(self._stored("scale", single.astype(ml_dtypes.bfloat16)), ir.DataType.FLOAT)
        levels, unit = scale_levels(scale)
        real = self._cast(self._stored("scale", levels), ir.DataType.FLOAT)
        return self._node("Mul", [real, self._stored("unit", unit)], "scales")

    # -- narrow floating point --

    def narrow_floats(self, values: NDArray[Any]) -> None:
        """Numbers of 16 bits, shape (groups, outputs, k), widened when the model is loaded."""
        stored = self._stored("narrow", self.matrix.restored(values))
        self._read(self._cast(stored, ir.DataType.FLOAT))

    # -- look-ups --

    def _looked_up(
        self,
        codes: NDArray[Any],
        scale: ir.Value,
        *,
        offset: NDArray[Any] | None = None,
        table: NDArray[Any] | None = None,
    ) -> None:
        """Rows of bytes, chosen by the index. The low halves of its bytes are the first half of a row.

        Codes are then indices into `table`, or numbers less an offset a row; `scale` is one for all, or (rows, 1).
        """
        rows, width = codes.shape[1], codes.shape[2]
        narrow = int(codes.max(initial=0)) < 16
        flat = np.pad(codes[0], ((0, 0), (0, width % 2))).astype(np.uint8)
        half = flat.shape[1] // 2
        stored = self._stored("codes", flat[:, :half] | flat[:, half:] << 4 if narrow else codes[0].astype(np.uint8))
        offsets = None if offset is None else self._stored("offset", offset.reshape(rows, 1).astype(np.float32))
        real = None if table is None else self._real_table(table)
        for node, _ in self.readers:
            index = node.inputs[1]
            value = self._node("Gather", [stored, index], "rows", axis=0)
            if narrow:
                value = self._unpacked(value, width)
            if real is not None:
                value = self._node("Gather", [real, self._cast(value, ir.DataType.INT32)], "values")
            else:
                value = self._cast(value, ir.DataType.FLOAT)
            if offsets is not None:
                value = self._node("Sub", [value, self._node("Gather", [offsets, index], "offsets", axis=0)], "centred")
            single = scale.const_value is not None and scale.const_value.size == 1
            factor = scale if single else self._node("Gather", [scale, index], "scales", axis=0)
            _take_place(self.model, node, ir.node("Mul", [value, factor]))

    def _unpacked(self, bytes_: ir.Value, width: int) -> ir.Value:
        low = self._node("BitwiseAnd", [bytes_, self._stored("mask", np.asarray(15, np.uint8))], "low")
        four = self._stored("shift", np.asarray(4, np.uint8))
        high = self._node("BitShift", [bytes_, four], "high", direction="RIGHT")
        both = self._node("Concat", [low, high], "unpacked", axis=-1)
        return both if width % 2 == 0 else self._first(both, width, -1)

    # -- nodes --

    def _rows(self, value: ir.Value, width: int) -> ir.Value:
        """(rows, blocks, block) as (rows, k)."""
        k = self.matrix.shape[2]
        shape = self._stored("shape", np.array([-1, width], np.int64))
        value = self._node("Reshape", [value, shape], "rows")
        return value if width == k else self._first(value, k, 1)

    def _first(self, value: ir.Value, count: int, axis: int) -> ir.Value:
        ends = [
            self._stored(what, np.array([n], np.int64)) for what, n in (("from", 0), ("to", count), ("along", axis))
        ]
        return self._node("Slice", [value, *ends], "cut")

    def _moved(self, value: ir.Value) -> ir.Value:
        moves: Sequence[Move] = self.matrix.from_rows
        for op, argument in moves:
            if op == "Transpose":
                value = self._node("Transpose", [value], "transpose", perm=list(argument))
            elif argument != (self.matrix.shape[0] * self.matrix.shape[1], self.matrix.shape[2]):
                value = self._node("Reshape", [value, self._stored("shape", np.array(argument, np.int64))], "shaped")
        return value

    def _read(self, value: ir.Value) -> None:
        value.shape, value.type = self.matrix.value.shape, self.matrix.value.type
        for node, index in self.readers:
            replace_input(node, index, value)

    def _cast(self, value: ir.Value, to: ir.DataType) -> ir.Value:
        return self._node("Cast", [value], "cast", to=int(to))

    def _stored(self, what: str, array: NDArray[Any]) -> ir.Value:
        return add_initializer(self.model, f"{self.matrix.value.name}/{what}", np.ascontiguousarray(array))

    def _node(self, op: str, inputs: Sequence[ir.Value | None], what: str, **attributes: Any) -> ir.Value:
        made = ir.node(op, inputs, attributes=attributes)
        made.name = fresh_name(self.model, f"{self.matrix.value.name}/{what}")
        made.outputs[0].name = fresh_name(self.model, f"{made.name}_out")
        self.model.graph.append(made)
        return made.outputs[0]


def scale_levels(scale: NDArray[Any]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Scales as multiples of a unit, 1 to 255, rounded up, so that no weight leaves its range."""
    unit = np.asarray(scale.max() / LEVELS, np.float32)
    return np.clip(np.ceil(scale / unit - 1e-3), 1, LEVELS).astype(np.uint8), unit


def _rows_of(shape: Sequence[int], rows: int) -> tuple[int, ...]:
    """The shape of one number a row, for weights of a shape whose first axes are the rows."""
    leading = next(n for n in range(len(shape) + 1) if math.prod(shape[:n]) == rows)
    return (*shape[:leading], *[1] * (len(shape) - leading))


def _take_place(model: ir.Model, node: ir.Node, made: ir.Node) -> None:
    """`made` computes what `node` did, under its names."""
    old, new = node.outputs[0], made.outputs[0]
    model.graph.append(made)
    made.name, new.shape, new.type = node.name, old.shape, old.type
    name, old.name = old.name, fresh_name(model, f"{old.name}/replaced")
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    new.name = name
    node.name = fresh_name(model, f"{node.name}/replaced")
    model.graph.remove(node, safe=True)


def _fits_nbits(grid: AffineGrid, k: int) -> bool:
    block = grid.block if grid.scale.shape[2] > 1 else _power_above(k)
    return grid.high - grid.low < 16 and block >= FEWEST_NBITS and block & (block - 1) == 0


def _power_above(k: int) -> int:
    return max(FEWEST_NBITS, 1 << (k - 1).bit_length())


def _single(parameter: NDArray[Any], axis: int) -> NDArray[Any]:
    """Parameters of one block are a vector."""
    return parameter.squeeze(axis) if parameter.shape[axis] == 1 else parameter


def _packed(codes: NDArray[Any], grid: AffineGrid) -> NDArray[Any]:
    """In the narrowest type that holds all codes of the grid; scales are left to the caller."""
    narrow = grid.high - grid.low < 16
    wide, four = (np.int8, ml_dtypes.int4) if grid.signed else (np.uint8, ml_dtypes.uint4)
    return codes.astype(wide).astype(four) if narrow else codes.astype(wide)


def _packed_indices(codes: NDArray[Any], entries: int) -> NDArray[Any]:
    return codes.astype(np.uint8).astype(ml_dtypes.uint4) if entries <= 16 else codes.astype(np.uint8)


def _nibbles(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Two a byte along the last axis, the lower first."""
    even = np.pad(codes, ((0, 0), (0, codes.shape[-1] % 2)))
    return np.asarray(even[:, ::2] | even[:, 1::2] << 4)
