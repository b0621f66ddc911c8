"""Reconstruction: layer after layer, the rounding that keeps what the layer computes, by gradient.

A block is one layer and the activation that alone reads it, as a model of its own. Its targets are what the original
computes; its inputs are captured anew from the model in which all earlier layers are rounded already.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from pumice.autograd import Tape
from pumice.errors import UnsupportedOp
from pumice.model import clone, consumers, is_constant
from pumice.plan import compile_plan
from pumice.quantize.context import QuantizeContext
from pumice.quantize.grids import AffineGrid, spread
from pumice.quantize.weight_matrices import WeightMatrix, moved, weight_matrices
from pumice.quantize.weight_only import Rounded
from pumice.registry import registry

if TYPE_CHECKING:
    from pumice.quantize.storage import Shelf
    from pumice_quant_adaround import AdaRound

Array = NDArray[Any]
Batch = tuple[dict[str, Array], Array]
"""What a block reads, and what it should compute."""
STRETCH, SHIFT = 1.2, -0.1
"""Of the sigmoid, so that it reaches 0 and 1."""
BETAS = 20.0, 2.0
"""Exponent of the regulariser, at the end of the warm-up and at the end."""
WARM_UP = 0.2
"""Share of the steps without a regulariser."""
DECAYS = 0.9, 0.999
ACTIVATIONS = frozenset({"Relu", "Clip", "LeakyRelu", "Sigmoid", "Tanh", "HardSwish", "HardSigmoid", "Gelu", "Elu"})


class _Known(dict[str, Rounded]):
    """Matrices whose rounding was learned, by name."""


@attrs.frozen(eq=False)
class LearnedScheme:
    """What was learned, for `store_weights`; matrices that no gradient reaches get the nearest values."""

    knobs: AdaRound
    known: Mapping[str, Rounded]

    @classmethod
    def learned(cls, model: ir.Model, knobs: AdaRound, context: QuantizeContext) -> LearnedScheme:
        """Learn every matrix that was not learned in an earlier attempt; drafts do not learn."""
        known = context.recall(_Known)
        if not context.draft and not known:
            known.update(_Learner(_lifted(model), knobs, context).run())
        return cls(knobs, {} if context.draft else known)

    @property
    def signature(self) -> str:
        return str(self.knobs)

    @property
    def observes(self) -> bool:
        """For the bias, which takes up the mean of what is left."""
        return True

    def rounded(self, matrix: WeightMatrix, second: NDArray[np.float64] | None) -> Rounded:
        if matrix.name in self.known:
            return self.known[matrix.name]
        weights = matrix.rows()
        grid = grid_of(self.knobs, matrix, weights)
        return Rounded(grid, grid.codes(weights))

    def shelve(self, rounded: Rounded, shelf: Shelf) -> None:
        assert isinstance(rounded.grid, AffineGrid)
        shelf.affine(rounded.grid, rounded.codes, "auto")

    def describe(self, rounded: Rounded) -> str:
        return f"as {self.knobs.bits}-bit integers, their rounding learned"


def grid_of(knobs: AdaRound, matrix: WeightMatrix, weights: Array) -> AffineGrid:
    """Of the extremes of each block; rows of a table have one scale."""
    k = matrix.shape[2]
    block = k if matrix.op == "Gather" or not knobs.block else min(knobs.block, k)
    return AffineGrid.covering(weights, bits=knobs.bits, block=block, symmetric=knobs.symmetric)


def _lifted(model: ir.Model) -> ir.Model:
    lifted = clone(model)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(lifted)
    return lifted


# --- one rounding -----------------------------------------------------------------------------------------------------


@attrs.define(eq=False)
class SoftRounding:
    """The weights of one matrix as a function of v, with the state of Adam."""

    matrix: WeightMatrix
    grid: AffineGrid
    floor: Array
    """floor(w / s) + z, (groups, outputs, k)."""
    v: Array
    first: Array
    second: Array

    @classmethod
    def of(cls, matrix: WeightMatrix, grid: AffineGrid) -> SoftRounding:
        """Where h(v) is the fraction that rounding takes away: the weights begin as they are."""
        k = matrix.shape[2]
        levels = matrix.rows() / spread(grid.scale, grid.block, k) + spread(grid.zero, grid.block, k)
        floor = np.floor(levels)
        share = np.clip((levels - floor - SHIFT) / STRETCH, 1e-6, 1 - 1e-6)
        v = np.log(share / (1 - share))
        return cls(matrix, grid, floor, v, np.zeros_like(v), np.zeros_like(v))

    @property
    def up(self) -> Array:
        """h(v)."""
        return np.asarray(np.clip(STRETCH / (1.0 + np.exp(-self.v)) + SHIFT, 0.0, 1.0))

    def weights(self, up: Array) -> Array:
        """For shares (or decisions) of rounding up, in the shape of the constant."""
        codes = np.clip(self.floor + up, self.grid.low, self.grid.high)
        return self.matrix.restored(self.grid.values(codes)).astype(np.float32)

    def nearest(self) -> Array:
        """What the grid holds nearest to the weights, in the shape of the constant."""
        codes = self.grid.codes(self.matrix.rows())
        return self.matrix.restored(self.grid.values(codes)).astype(np.float32)

    def codes(self) -> Array:
        decided = self.floor + (self.up >= 0.5)
        return np.asarray(np.clip(decided, self.grid.low, self.grid.high), np.int16)

    def step(self, gradient: Array, knobs: AdaRound, count: int) -> None:
        """One step of Adam along the gradient of the weights and that of the regulariser."""
        sigmoid, up = 1.0 / (1.0 + np.exp(-self.v)), self.up
        rows = moved(gradient.astype(np.float64), self.matrix.to_rows).reshape(self.matrix.shape)
        level = self.floor + up
        free = (up > 0) & (up < 1) & (level >= self.grid.low) & (level <= self.grid.high)
        along = rows * spread(self.grid.scale, self.grid.block, self.matrix.shape[2])
        along = along + knobs.regularisation * _pull(up, count / knobs.steps)
        slope = along * free * STRETCH * sigmoid * (1.0 - sigmoid)
        b1, b2 = DECAYS
        self.first += (1 - b1) * (slope - self.first)
        self.second += (1 - b2) * (slope**2 - self.second)
        mean, square = self.first / (1 - b1 ** (count + 1)), self.second / (1 - b2 ** (count + 1))
        self.v -= knobs.rate * mean / (np.sqrt(square) + 1e-12)


def _pull(up: Array, progress: float) -> Array | float:
    """Gradient of sum (1 - |2 h - 1|^beta), as a mean over the weights; none in the warm-up."""
    if progress < WARM_UP:
        return 0.0
    beta = BETAS[0] + (BETAS[1] - BETAS[0]) * (progress - WARM_UP) / (1.0 - WARM_UP)
    centred = 2.0 * up - 1.0
    return np.asarray(-2.0 * beta * np.sign(centred) * np.abs(centred) ** (beta - 1.0)) / up.size


# --- layer after layer ------------------------------------------------------------------------------------------------


@attrs.define(eq=False)
class _Learner:
    model: ir.Model
    knobs: AdaRound
    context: QuantizeContext
    done: dict[str, Array] = attrs.field(factory=dict)
    """Rounded constants by name."""

    def run(self) -> dict[str, Rounded]:
        found: dict[str, Rounded] = {}
        matrices: dict[ir.Node, list[WeightMatrix]] = {}
        for matrix in weight_matrices(iter(self.model.graph)):
            if int(np.prod(matrix.shape)) >= self.knobs.smallest and self._learnable(matrix):
                matrices.setdefault(matrix.readers[0][0], []).append(matrix)
        with self.context.progress.task("learn rounding", len(matrices)) as advance:
            for node, own in matrices.items():
                for soft in self._block(node, own):
                    found[soft.matrix.name] = Rounded(soft.grid, soft.codes())
                    self.done[str(soft.matrix.value.name)] = soft.weights(soft.up >= 0.5)
                advance()
        return found

    def _learnable(self, matrix: WeightMatrix) -> bool:
        """Weights of one reader that is in use; those of tables are looked up, not multiplied."""
        return (
            len(matrix.readers) == 1 and matrix.op != "Gather" and self.context.excluded(matrix.readers[0][0]) is None
        )

    def _block(self, node: ir.Node, matrices: Sequence[WeightMatrix]) -> list[SoftRounding]:
        block = Block.of(node, self.model)
        softs = [SoftRounding.of(m, grid_of(self.knobs, m, m.rows())) for m in matrices]
        names = [str(m.value.name) for m in matrices]
        try:
            tape = Tape(block.plan(), names)
        except UnsupportedOp:
            return []
        batches = _joined(self._captured(block), self.knobs.batch, node)
        random = np.random.default_rng(self.context.seed)
        scale = sum(float(np.sum(np.square(target, dtype=np.float64))) for _, target in batches) / len(batches)
        for count in range(self.knobs.steps):
            feeds, target = batches[int(random.integers(len(batches)))]
            outputs, pull = tape.forward({**feeds, **self._weights(softs, soft=True)})
            gradients = pull({block.output: (2.0 / max(scale, 1e-30)) * (outputs[block.output] - target)})
            for soft, name in zip(softs, names, strict=True):
                soft.step(gradients[name], self.knobs, count)
        return softs if self._helps(softs, block, batches) else []

    def _helps(self, softs: Sequence[SoftRounding], block: Block, batches: Sequence[Batch]) -> bool:
        """Whether what was learned keeps the output closer than the nearest values do."""
        plan, errors = block.plan(), []
        nearest = {str(s.matrix.value.name): s.nearest() for s in softs}
        for weights in (self._weights(softs, soft=False), nearest):
            lost = (plan.run({**feeds, **weights})[block.output] - target for feeds, target in batches)
            errors.append(sum(float(np.sum(np.square(each, dtype=np.float64))) for each in lost))
        return errors[0] < errors[1]

    @staticmethod
    def _weights(softs: Sequence[SoftRounding], *, soft: bool) -> dict[str, Array]:
        return {str(s.matrix.value.name): s.weights(s.up if soft else s.up >= 0.5) for s in softs}

    def _captured(self, block: Block) -> Iterator[Batch]:
        """(inputs in the model rounded so far, output in the original), sample by sample."""
        rounded = clone(self.model)
        for name, array in self.done.items():
            rounded.graph.initializers[name].const_value = ir.tensor(array, name=name)
        inputs = {value.name for value in self.model.graph.inputs}
        taps = [name for name in block.inputs if name not in inputs]
        after = self.context.runtime.open(rounded, outputs=taps) if taps else None
        before = self.context.runtime.open(clone(self.model), outputs=[block.output])
        for feeds in self.context.feeds(self.knobs.samples):
            seen = {**feeds, **(after.run(feeds) if after else {})}
            yield {name: seen[name] for name in block.inputs}, before.run(feeds)[block.output]


@attrs.frozen(eq=False)
class Block:
    """A layer and the activation that alone reads it, as a model."""

    model: ir.Model
    inputs: tuple[str, ...]
    output: str

    @classmethod
    def of(cls, node: ir.Node, model: ir.Model) -> Block:
        nodes = [node]
        readers = consumers(node.outputs[0])
        if len(readers) == 1 and readers[0].op_type in ACTIVATIONS and not node.outputs[0].is_graph_output():
            nodes.append(readers[0])
        values: dict[ir.Value, ir.Value] = {}
        copies = [_copied(each, values) for each in nodes]
        own = {value for copy in copies for value in copy.outputs}
        read = [value for value in values.values() if value not in own]
        inputs = [value for value in read if value.const_value is None]
        output = next(value for value in copies[-1].outputs if value.name)
        graph = ir.Graph(
            inputs,
            [output],
            nodes=copies,
            initializers=[value for value in read if value.const_value is not None],
            opset_imports=dict(model.opset_imports),
            name="block",
        )
        block = ir.Model(graph, ir_version=model.ir_version)
        return cls(block, tuple(str(value.name) for value in inputs), str(output.name))

    def plan(self) -> Any:
        return compile_plan(self.model, ops=registry().ops, kernels=registry().kernels)


def _copied(node: ir.Node, values: dict[ir.Value, ir.Value]) -> ir.Node:
    """The node with values of its own; `values` maps those of the model to them."""
    for value in filter(None, node.inputs):
        if value not in values:
            held = ir.convenience.get_const_tensor(value) if is_constant(value) else None
            values[value] = ir.Value(name=value.name, type=value.type, shape=value.shape, const_value=held)
    inputs = [None if value is None else values[value] for value in node.inputs]
    made = ir.Node(
        node.domain, node.op_type, inputs, list(node.attributes.values()), num_outputs=len(node.outputs), name=node.name
    )
    for old, new in zip(node.outputs, made.outputs, strict=True):
        new.name, new.type, new.shape = old.name, old.type, old.shape
        values[old] = new
    return made


def _joined(captured: Iterator[Batch], count: int, node: ir.Node) -> list[Batch]:
    """Samples as batches along the first axis, where they have one and are alike."""
    samples = list(captured)
    batched = node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul") and len(samples[0][0]) == 1
    alike = len({array.shape[1:] for feeds, _ in samples for array in feeds.values()}) == 1
    if not batched or not alike:
        return samples
    groups = [samples[start : start + count] for start in range(0, len(samples), count)]
    return [
        (
            {name: np.concatenate([feeds[name] for feeds, _ in group]) for name in group[0][0]},
            np.concatenate([target for _, target in group]),
        )
        for group in groups
    ]
