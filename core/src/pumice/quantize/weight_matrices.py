"""Weight matrices: the weights of any layer as rows of inputs, one row an output, and what multiplies them.

    Conv                (groups, outputs, channels * taps)    ConvTranspose   the same, inputs and outputs exchanged
    Gemm, MatMul        (1, outputs, inputs)                  Gather          (1, rows of the table, width)
    LSTM, GRU, RNN      (directions, gates * hidden, inputs) for W, (directions, gates * hidden, hidden) for R

Weights that several nodes read alike are one matrix. Moments of the inputs (see `compensation`) are streamed once for
all that read the same value; what a recurrent layer feeds back is its own output.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import attrs
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pumice.model import attribute, constant, is_constant
from pumice.quantize.compensation import ROWS, WIDEST, Moments, layer_columns
from pumice.quantize.context import QuantizeContext
from pumice.quantize.observation import MOMENT_SAMPLES
from pumice.quantize.placement import standard

RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
PORTION = 1 << 29
"""Bytes of moments held at once (more, if one matrix alone needs more)."""

Move = tuple[Literal["Reshape", "Transpose"], tuple[int, ...]]
"""An operator that moves numbers, with its shape or permutation."""


@attrs.frozen(kw_only=True, eq=False)
class WeightMatrix:
    """One constant, as the nodes that read it alike use it."""

    value: ir.Value
    readers: tuple[tuple[ir.Node, int], ...]
    """Nodes, and which of their inputs it is."""
    shape: tuple[int, int, int]
    """(groups, outputs, k)."""
    to_rows: tuple[Move, ...]
    """From the constant to `shape`."""
    from_rows: tuple[Move, ...]
    """From (groups * outputs, k) to the constant."""

    @property
    def name(self) -> str:
        """Of its first reader, and which input it is."""
        node, index = self.readers[0]
        return f"{node.name}:{index}"

    @property
    def op(self) -> str:
        return self.readers[0][0].op_type

    def rows(self) -> NDArray[np.float64]:
        """The weights, of `shape`."""
        held = constant(self.value)
        assert held is not None
        return moved(held.astype(np.float64), self.to_rows)

    def restored(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Rows of `shape` in the shape of the constant."""
        return moved(rows.reshape(-1, self.shape[2]), self.from_rows)


def moved(array: NDArray[Any], moves: Sequence[Move]) -> NDArray[Any]:
    """The array after each move."""
    for op, argument in moves:
        array = array.reshape(argument) if op == "Reshape" else array.transpose(argument)
    return array


def weight_matrices(nodes: Iterator[ir.Node]) -> list[WeightMatrix]:
    """Every weight in floating point of these nodes, in their order."""
    found: dict[tuple[Any, ...], WeightMatrix] = {}
    for node in nodes:
        for index in _positions(node):
            value = node.inputs[index] if index < len(node.inputs) else None
            if value is None or not is_constant(value) or value.is_graph_input() or value.dtype != ir.DataType.FLOAT:
                continue
            matrix = _matrix(node, index, value, tuple(int(n) for n in value.shape.numpy()) if value.shape else ())
            if matrix is None:
                continue
            key = (value, matrix.shape, matrix.to_rows)
            known = found.get(key)
            found[key] = attrs.evolve(known, readers=(*known.readers, (node, index))) if known else matrix
    return list(found.values())


def _positions(node: ir.Node) -> tuple[int, ...]:
    """The inputs of a node that may hold weights."""
    if not standard(node):
        return ()
    if node.op_type in RECURRENT:
        return (1, 2)
    return {"Conv": (1,), "ConvTranspose": (1,), "Gemm": (1,), "MatMul": (1,), "Gather": (0,)}.get(node.op_type, ())


def _matrix(node: ir.Node, index: int, value: ir.Value, shape: tuple[int, ...]) -> WeightMatrix | None:
    if len(shape) < 2 or 0 in shape:
        return None
    groups = int(attribute(node, "group", 1))
    rows: tuple[int, int, int]
    back: tuple[Move, ...] = (("Reshape", shape),)
    forth: tuple[Move, ...]
    match node.op_type:
        case "Conv":
            rows = (groups, shape[0] // groups, int(np.prod(shape[1:])))
            forth = (("Reshape", rows),)
        case "ConvTranspose":
            inputs, taps = shape[0] // groups, int(np.prod(shape[2:]))
            rows = (groups, shape[1], inputs * taps)
            forth = (("Reshape", (groups, inputs, shape[1], taps)), ("Transpose", (0, 2, 1, 3)), ("Reshape", rows))
            back = (("Reshape", (groups, shape[1], inputs, taps)), ("Transpose", (0, 2, 1, 3)), *back)
        case "Gather":
            if attribute(node, "axis", 0) != 0:
                return None
            rows = (1, shape[0], int(np.prod(shape[1:])))
            forth = (("Reshape", rows),)
        case "Gemm" if attribute(node, "transB", 0):
            rows = (1, shape[0], shape[1])
            forth = (("Reshape", rows),)
        case "Gemm" | "MatMul":
            *batch, k, outputs = shape
            rows = (int(np.prod(batch)), outputs, k)
            swapped = (*range(len(batch)), len(shape) - 1, len(shape) - 2)
            forth = (("Transpose", swapped), ("Reshape", rows))
            back = (("Reshape", (*batch, outputs, k)), ("Transpose", swapped))
        case _:
            rows = (shape[0], shape[1], shape[2])
            forth = ()
    return WeightMatrix(value=value, readers=((node, index),), shape=rows, to_rows=forth, from_rows=back)


# --- what multiplies them ---------------------------------------------------------------------------------------------


def observe_inputs(
    model: ir.Model, matrices: Sequence[WeightMatrix], context: QuantizeContext
) -> dict[WeightMatrix, Moments]:
    """Moments of what multiplies each matrix on the calibration data; none where that is no row of numbers."""
    found: dict[WeightMatrix, Moments] = {}
    for portion in _portions([matrix for matrix in matrices if _sources(matrix)]):
        found |= _observe(model, portion, context)
    return found


How = Literal["rows", "patches", "states"]


@attrs.frozen
class _Source:
    """One value that multiplies a matrix, and how its columns are taken."""

    name: str
    how: How
    node: str = ""
    """Of patches: the convolution, whose shape matters."""


def _sources(matrix: WeightMatrix) -> list[_Source]:
    """None if any of its readers multiplies it with something else, or its moments would be too large."""
    found = []
    for node, index in matrix.readers:
        fed_back = node.op_type in RECURRENT and index == 2
        value = _states(node) if fed_back else node.inputs[0]
        unlike = node.op_type in ("Gather", "ConvTranspose") or attribute(node, "transA", 0)
        batched = node.op_type == "MatMul" and matrix.shape[0] > 1
        if unlike or batched or value is None or not value.name or is_constant(value) or matrix.shape[2] > WIDEST:
            return []
        patches = node.op_type == "Conv"
        how: How = "states" if fed_back else "patches" if patches else "rows"
        found.append(_Source(value.name, how, str(node.name) if patches else ""))
    return found


def _states(node: ir.Node) -> ir.Value | None:
    """What a recurrent layer feeds back: all its states, or the one that it starts from."""
    if node.outputs[0].name:
        return node.outputs[0]
    return node.inputs[5] if len(node.inputs) > 5 else None


def _observe(
    model: ir.Model, matrices: Sequence[WeightMatrix], context: QuantizeContext
) -> dict[WeightMatrix, Moments]:
    sources = {matrix: tuple(_sources(matrix)) for matrix in matrices}
    groups = {matrix: matrix.shape[0] if _by_group(matrix) else 1 for matrix in matrices}
    moments = {sources[matrix]: Moments(groups[matrix], matrix.shape[2], True) for matrix in matrices}
    read_as = {sources[matrix]: matrix for matrix in matrices}
    samples = min(context.samples, MOMENT_SAMPLES)
    most = max(1, ROWS // samples)

    def observe(values: dict[str, NDArray[Any]]) -> None:
        for key, matrix in read_as.items():
            for source, (node, _) in zip(key, matrix.readers, strict=True):
                columns = _columns(source, node, matrix, values[source.name], most)
                moments[key].update(columns, columns)

    context.stream(model, [s.name for key in read_as for s in key], observe, label="inputs of weights", limit=samples)
    return {matrix: moments[sources[matrix]] for matrix in matrices if moments[sources[matrix]].count}


def _by_group(matrix: WeightMatrix) -> bool:
    """Whether every group multiplies inputs of its own."""
    node, index = matrix.readers[0]
    return node.op_type == "Conv" or (node.op_type in RECURRENT and index == 2)


def _columns(source: _Source, node: ir.Node, matrix: WeightMatrix, data: NDArray[Any], most: int) -> NDArray[Any]:
    """(groups, k, positions)."""
    if source.how == "patches":
        shape = matrix.value.shape
        assert shape is not None
        return layer_columns(node, tuple(int(n) for n in shape.numpy()), data, most)
    if source.how == "states":
        axis = data.ndim - 3 + int(bool(attribute(node, "layout", 0)))  # ([time,] directions, batch, hidden)
        data = np.moveaxis(data, axis, 0).reshape(data.shape[axis], -1, data.shape[-1])
    else:
        data = data.reshape(1, -1, data.shape[-1])
    positions = np.unique(np.linspace(0, data.shape[1] - 1, min(most, data.shape[1])).astype(np.int64))
    return data[:, positions].transpose(0, 2, 1)


def _portions(matrices: Sequence[WeightMatrix]) -> Iterator[list[WeightMatrix]]:
    portion: list[WeightMatrix] = []
    held = 0
    for matrix in matrices:
        size = 8 * matrix.shape[2] ** 2 * (matrix.shape[0] if _by_group(matrix) else 1)
        if portion and held + size > PORTION:
            yield portion
            portion, held = [], 0
        portion.append(matrix)
        held += size
    if portion:
        yield portion
