"""What follows the sums of a product or a convolution of floats, read off a chain: an epilogue, and a residual.

    Conv | MatMul | Gemm -> [BatchNormalization | Add, Mul, Div of constants]* -> [Add] -> [Relu | Clip | Gelu | Swish]

Constant factors and terms of the columns become one vector each, folded in float64 and rounded once, when the chain
first runs. The residual is added, and the activation applied, in float32 as the sums are stored.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import attrs
import numpy as np

from pumice.ops.record import Link
from pumice_cuda.constants import Once
from pumice_cuda.epilogue import Epilogue

FLOATS = frozenset({"float32", "float16", "bfloat16"})
CLIP_OF_INPUTS = 11
"""Opset from which the bounds of a Clip are inputs."""
STORED_STATISTICS = 9
"""Opset from which a BatchNormalization is that of inference unless it says otherwise."""

Vector = Any
"""float64 on the GPU, (columns,) or (1,)."""
Fold = Callable[[Vector, Vector], tuple[Vector, Vector]]
"""What factors and terms become."""
Activation = Literal["none", "clip", "gelu", "silu"]


@attrs.define(eq=False)
class Tail:
    """What follows the sums of a node with so many columns (of a convolution: channels)."""

    columns: int
    axis: int
    """Of the columns among the result's axes, from the end."""
    flat: bool = True
    """Whether the columns are the result's second axis."""
    rank: int = 0
    """Axes that the result has at least, so that no constant gives it more."""
    folds: list[Fold] = attrs.field(factory=list)
    residual: int | None = None
    """Which of the arrays given to the chain."""
    activation: Activation = "none"
    low: float = -math.inf
    high: float = math.inf
    _constants: list[tuple[int, Any]] = attrs.field(factory=list, init=False)
    _made: Once[Epilogue] | None = attrs.field(default=None, init=False)

    def read(self, links: Sequence[Link], output: str) -> bool:
        """Take in all nodes after the first, for results of a type; False if one cannot be."""
        position = len(links[0].constants)
        for link in links[1:]:
            take = _TAKE.get((link.node.domain, link.node.op_type))
            if self.activation != "none" or take is None or not take(self, link, position):
                return False
            position += len(link.constants) - 1
        given = [c for link in links for i, c in enumerate(link.constants) if i != link.at]
        self._constants = [(i, c) for i, c in enumerate(given) if c is not None]
        self._made = Once(functools.partial(self._epilogue, output))
        return True

    def epilogue(self, arrays: Sequence[Any], shape: tuple[int, ...]) -> Epilogue | None:
        """For the arrays given to the chain and a result of a shape; None if they are not what was read.

        A residual is given as it comes, to be laid out as the result is.
        """
        if len(shape) < self.rank or any(arrays[i] is not c for i, c in self._constants):
            return None
        assert self._made is not None
        made = self._made()
        if self.residual is None:
            return made
        residual = arrays[self.residual]
        fits = residual.shape == shape and residual.dtype.name == made.output
        return attrs.evolve(made, residual=residual) if fits else None

    def multiply(self, constant: Any) -> None:
        self.folds.append(lambda factor, term: (factor * _wide(constant), term * _wide(constant)))

    def divide(self, constant: Any) -> None:
        self.folds.append(lambda factor, term: (factor / _wide(constant), term / _wide(constant)))

    def add(self, constant: Any, times: float = 1.0) -> None:
        self.folds.append(lambda factor, term: (factor, term + times * _wide(constant)))

    def covers(self, constant: Any) -> bool:
        """Whether a constant is one float for all, or one for each column; it is noted how many axes it has."""
        if constant is None or constant.dtype.name not in FLOATS:
            return False
        along = constant.ndim >= self.axis and constant.shape[-self.axis] == constant.size == self.columns
        self.rank = max(self.rank, constant.ndim)
        return bool(constant.size == 1 or along)

    @property
    def linear(self) -> bool:
        """Whether nothing but factors and terms was taken in so far."""
        return self.residual is None and self.activation == "none"

    def _epilogue(self, output: str) -> Epilogue:
        factor, term = np.float64(1), np.float64(0)
        for fold in self.folds:
            factor, term = fold(factor, term)
        return Epilogue(
            output=output, scale=self._vector(factor), bias=self._vector(term), activation=self.activation,
            low=self.low, high=self.high,
        )  # fmt: skip

    def _vector(self, values: Vector) -> Any:
        """One float32 for each column; None where nothing was folded."""
        import cupy

        if isinstance(values, np.generic):
            return None
        return cupy.ascontiguousarray(cupy.broadcast_to(values, (self.columns,)).astype(np.float32))


def _wide(constant: Any) -> Vector:
    import cupy

    return cupy.asarray(constant, dtype=np.float64).reshape(-1)


# --- one node ---------------------------------------------------------------------------------------------------------


def _batch_norm(tail: Tail, link: Link, position: int) -> bool:
    scale, bias, mean, variance = vectors = link.constants[1:5]
    node, shape = link.node, (tail.columns,)
    trains = node.get("training_mode", 0) or len(node.outputs) > 1 or node.opset < STORED_STATISTICS
    fits = all(v is not None and v.shape == shape and v.dtype.name in FLOATS for v in vectors)
    if link.at != 0 or trains or not tail.flat or not tail.linear or not fits:
        return False
    epsilon = node.get("epsilon", 1e-5)

    def fold(factor: Vector, term: Vector) -> tuple[Vector, Vector]:
        own = _wide(scale) / np.sqrt(_wide(variance) + epsilon)
        return factor * own, (term - _wide(mean)) * own + _wide(bias)

    tail.folds.append(fold)
    return True


def _add(tail: Tail, link: Link, position: int) -> bool:
    other = link.constants[1 - link.at]
    if tail.linear and tail.covers(other):
        tail.add(other)
        return True
    if tail.residual is not None:
        return False
    tail.residual = position
    return True


def _multiply(tail: Tail, link: Link, position: int) -> bool:
    other = link.constants[1 - link.at]
    if not tail.linear or not tail.covers(other):
        return False
    tail.multiply(other)
    return True


def _divide(tail: Tail, link: Link, position: int) -> bool:
    if link.at != 0 or not tail.linear or not tail.covers(link.constants[1]):
        return False
    tail.divide(link.constants[1])
    return True


def _relu(tail: Tail, link: Link, position: int) -> bool:
    tail.activation, tail.low = "clip", 0.0
    return True


def _clip(tail: Tail, link: Link, position: int) -> bool:
    bounds: Sequence[Any] = [link.node.get("min"), link.node.get("max")]
    if link.node.opset >= CLIP_OF_INPUTS:
        known = link.constants[1:]
        if link.at != 0 or any(b is None or b.size != 1 for b in known):
            return False
        bounds = [*(float(b.reshape(())) for b in known), None, None]
    tail.activation = "clip"
    tail.low, tail.high = (e if b is None else b for b, e in zip(bounds, (-math.inf, math.inf), strict=False))
    return True


def _gelu(tail: Tail, link: Link, position: int) -> bool:
    tail.activation = "gelu"
    return bool(link.node.get("approximate", "none") == "none")


def _swish(tail: Tail, link: Link, position: int) -> bool:
    tail.activation = "silu"
    return bool(link.node.get("alpha", 1.0) == 1)


_TAKE: Mapping[tuple[str, str], Callable[[Tail, Link, int], bool]] = {
    ("", "BatchNormalization"): _batch_norm,
    ("", "Add"): _add,
    ("", "Mul"): _multiply,
    ("", "Div"): _divide,
    ("", "Relu"): _relu,
    ("", "Clip"): _clip,
    ("", "Gelu"): _gelu,
    ("com.microsoft", "Gelu"): _gelu,
    ("", "Swish"): _swish,
}
