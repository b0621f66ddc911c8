"""What the Plan's products take along: normalisation, bias, residual and activation of the nodes that follow them.

    Conv | MatMul | Gemm -> [BatchNormalization | Add, Mul, Div of constants]* -> [Add] -> [activation] -> [Add]
    MatMul -> [Mul, Div by a number] -> [Add] -> Softmax -> MatMul

Constant scales go into the packed weights, constant biases into one vector; both are folded in float64 and rounded
once. Chains are read when a plan is compiled; weights are packed at the first run, once for every image size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from pumice.ops.record import Array, Link, Node, Outputs
from pumice.ops.window import Window

if TYPE_CHECKING:
    from pumice_cpu.nhwc import Finish, Product
    from pumice_cpu.rows import Function

FLOAT = np.dtype(np.float32)
Run = Callable[..., Outputs]
Vector = np.ndarray[Any, Any]
"""float64, one a filter."""
DECLINED = NotImplemented
"""Every node by itself, please."""


@attrs.define
class Tail:
    """What follows the sums of a product with so many filters."""

    filters: int
    axis: int
    """Of the filters among the result's axes, from the end."""
    second: bool = True
    """Whether that is the result's second axis, which a normalisation is of."""
    scale: Vector | None = None
    bias: Vector | None = None
    function: Function | None = None
    parameters: tuple[float, ...] = ()
    low: float = -math.inf
    high: float = math.inf
    residual: int | None = None
    """Which of the arrays given to the chain."""
    late: bool = False
    bounded: bool = False

    @classmethod
    def of(cls, links: Sequence[Link], tail: Tail) -> Tail | None:
        """The tail with all nodes after the first taken in; None if one cannot be."""
        position = len(links[0].constants)
        for link in links[1:]:
            take = _TAKE.get((link.node.domain, link.node.op_type))
            if tail.late or take is None or not take(tail, link, position):
                return None
            position += len(link.constants) - 1
        return tail

    @property
    def linear(self) -> bool:
        """Whether nothing but factors and biases was taken in so far."""
        return self.function is None and not self.bounded and self.residual is None

    def finish(self) -> Finish:
        from pumice_cpu.nhwc import Finish

        bias = None if self.bias is None else self.bias.astype(np.float32)
        return Finish(
            bias=bias, function=self.function, parameters=self.parameters, low=self.low, high=self.high, late=self.late
        )

    def multiply(self, factor: Vector) -> None:
        self.scale = factor if self.scale is None else self.scale * factor
        self.bias = None if self.bias is None else self.bias * factor

    def add(self, vector: Vector) -> None:
        self.bias = vector if self.bias is None else self.bias + vector

    def vector(self, constant: Any) -> Vector | None:
        """A constant with one number for all, or one a filter, as one a filter."""
        if not isinstance(constant, np.ndarray) or constant.dtype != FLOAT:
            return None
        along = constant.ndim >= self.axis and constant.shape[-self.axis] == constant.size == self.filters
        if constant.size != 1 and not along:
            return None
        return np.broadcast_to(constant.reshape(-1).astype(np.float64), (self.filters,))

    def apply(self, function: Function, *parameters: float) -> bool:
        """Take in an activation, the only one."""
        if self.function is not None or self.bounded:
            return False
        self.function, self.parameters = function, parameters
        return True

    def clip(self, low: float, high: float) -> bool:
        if self.function is not None or self.bounded:
            return False
        self.low, self.high, self.bounded = low, high, True
        return True


# --- one node ---------------------------------------------------------------------------------------------------------


def _batch_norm(tail: Tail, link: Link, position: int) -> bool:
    vectors = [None if c is None else tail.vector(_upright(c, tail.axis)) for c in link.constants[1:5]]
    trains = link.node.get("training_mode", 0) or len(link.node.outputs) > 1 or link.node.opset < 9
    if link.at != 0 or trains or not tail.second or not tail.linear or any(v is None for v in vectors):
        return False
    scale, bias, mean, variance = (v for v in vectors if v is not None)
    factor = scale / np.sqrt(variance + link.node.get("epsilon", 1e-5))
    tail.multiply(factor)
    tail.add(bias - mean * factor)
    return True


def _add(tail: Tail, link: Link, position: int) -> bool:
    vector = tail.vector(link.constants[1 - link.at])
    if vector is not None and tail.linear:
        tail.add(vector)
        return True
    if tail.residual is not None:
        return False
    tail.residual, tail.late = position, tail.function is not None or tail.bounded
    return True


def _multiply(tail: Tail, link: Link, position: int) -> bool:
    vector = tail.vector(link.constants[1 - link.at])
    if vector is None or not tail.linear:
        return False
    tail.multiply(vector)
    return True


def _divide(tail: Tail, link: Link, position: int) -> bool:
    vector = tail.vector(link.constants[1])
    if vector is None or link.at != 0 or not tail.linear or not vector.all():
        return False
    tail.multiply(1 / vector)
    return True


def _clip(tail: Tail, link: Link, position: int) -> bool:
    if link.node.opset < 11:
        return tail.clip(link.node.get("min", -math.inf), link.node.get("max", math.inf))
    bounds = [*link.constants[1:], None, None][:2]
    if link.at != 0 or any(b is not None and b.size != 1 for b in bounds):
        return False
    low, high = (None if b is None else float(b.reshape(())) for b in bounds)
    return tail.clip(-math.inf if low is None else low, math.inf if high is None else high)


def _applies(function: Function, *defaults: tuple[str, float]) -> Callable[[Tail, Link, int], bool]:
    return lambda tail, link, position: tail.apply(function, *(link.node.get(name, value) for name, value in defaults))


def _gelu(tail: Tail, link: Link, position: int) -> bool:
    return tail.apply("gelu_tanh" if link.node.get("approximate", "none") == "tanh" else "gelu")


_TAKE: dict[tuple[str, str], Callable[[Tail, Link, int], bool]] = {
    ("", "BatchNormalization"): _batch_norm,
    ("", "Add"): _add,
    ("", "Mul"): _multiply,
    ("", "Div"): _divide,
    ("", "Relu"): lambda tail, link, position: tail.clip(0.0, math.inf),
    ("", "Clip"): _clip,
    ("", "Gelu"): _gelu,
    ("com.microsoft", "Gelu"): _gelu,
    ("com.microsoft", "QuickGelu"): _applies("silu", ("alpha", 1.702)),
    ("", "Swish"): _applies("silu", ("alpha", 1.0)),
    ("", "HardSwish"): _applies("hard_swish"),
    ("", "HardSigmoid"): _applies("hard_sigmoid", ("alpha", 0.2), ("beta", 0.5)),
    ("", "LeakyRelu"): _applies("leaky_relu", ("alpha", 0.01)),
    ("", "Sigmoid"): _applies("sigmoid"),
    ("", "Tanh"): _applies("tanh"),
}


# --- chains -----------------------------------------------------------------------------------------------------------


def convolution(links: Sequence[Link]) -> Run | None:
    """A Conv and what follows it, channels last in memory."""
    node, (w, b) = links[0].node, [*links[0].constants[1:], None][:2]
    if not _is_weight(w) or w.ndim not in (3, 4) or 0 in w.shape:
        return None
    groups, filters = node.get("group", 1), len(w)
    if groups != 1 and (groups != filters or w.shape[1] != 1):
        return None
    tail = _started(links, filters, axis=w.ndim - 1, bias=b)
    return None if tail is None else _convolve(node, w, groups, tail, _constants(links))


def _convolve(node: Node, w: Array, groups: int, tail: Tail, constants: Sequence[tuple[int, Any]]) -> Run:
    made: dict[tuple[int, ...], Any] = {}

    def pack(x: Array) -> tuple[Product, Finish, tuple[int, ...]] | None:
        from pumice_cpu.nhwc import Product

        window = Window.of(node, x.shape[2:], w.shape[2:])
        fits = x.shape[1] == w.shape[1] * groups and min(window.output) > 0 and 0 not in x.shape[1:]
        if not fits:
            return None
        return Product.of_convolution(w, window, groups, tail.scale), tail.finish(), window.output

    def run(*arrays: Any) -> Any:
        from pumice_cpu.nhwc import first

        x = arrays[0]
        if x.ndim != w.ndim or any(arrays[i] is not c for i, c in constants):
            return DECLINED
        key = x.shape[1:]
        if key not in made:
            made[key] = pack(x)
        if made[key] is None:
            return DECLINED
        product, finish, output = made[key]
        residual = None if tail.residual is None else _residual(arrays[tail.residual], (len(x), tail.filters, *output))
        if residual is DECLINED:
            return DECLINED
        return (first(product.image(x, output, finish, residual)),)

    return run


def _residual(array: Any, shape: tuple[int, ...]) -> Any:
    """With channels last; DECLINED if it is no such image."""
    from pumice_cpu.nhwc import last

    if array.shape != shape or array.dtype != FLOAT:
        return DECLINED
    return np.ascontiguousarray(last(array))


def matrix_product(links: Sequence[Link]) -> Run | None:
    """A MatMul or Gemm with a constant second matrix and what follows it, or a whole attention."""
    if links[0].node.op_type == "MatMul" and all(c is None for c in links[0].constants):
        return _attention(links)
    node, (b, c) = links[0].node, [*links[0].constants[1:], None][:2]
    if not _is_weight(b) or b.ndim != 2 or 0 in b.shape or node.get("transA", 0):
        return None
    matrix = b.T if node.get("transB", 0) else b
    tail = Tail(filters=matrix.shape[1], axis=1, second=node.op_type == "Gemm")
    if node.get("alpha", 1.0) != 1:
        tail.multiply(np.full(tail.filters, node.get("alpha", 1.0)))
    if len(links[0].constants) > 2 and node.get("beta", 1.0) != 0:
        bias = tail.vector(c)
        if bias is None:
            return None
        tail.add(bias * node.get("beta", 1.0))
    read = Tail.of(links, tail)
    return None if read is None else _multiply_rows(matrix, read, _constants(links))


def _multiply_rows(b: Array, tail: Tail, constants: Sequence[tuple[int, Any]]) -> Run:
    made: list[tuple[Product, Finish]] = []

    def run(*arrays: Any) -> Any:
        from pumice_cpu.nhwc import Product

        a = arrays[0]
        if a.ndim < 2 or a.size == 0 or a.shape[-1] != b.shape[0] or any(arrays[i] is not c for i, c in constants):
            return DECLINED
        if not made:
            made.append((Product.of_matrix(b, tail.scale), tail.finish()))
        product, finish = made[0]
        shape = (*a.shape[:-1], tail.filters)
        residual = None if tail.residual is None else arrays[tail.residual]
        if residual is not None:
            if residual.shape != shape or residual.dtype != FLOAT:
                return DECLINED
            residual = np.ascontiguousarray(residual)
        y = product.rows(a if a.ndim == 2 else a.reshape(-1, a.shape[-1]), finish, residual)
        return (y.reshape(shape),)

    return run


def _upright(vector: Array, axis: int) -> Array:
    """One number a channel, along that axis from the end."""
    return vector.reshape(-1, *(1,) * (axis - 1))


def _attention(links: Sequence[Link]) -> Run | None:
    """MatMul -> [Mul or Div by a number] -> [Add of a mask] -> Softmax -> MatMul."""
    parts = {link.node.op_type: link for link in links[1:]}
    kinds = [link.node.op_type for link in links[1:]]
    order = [kind for kind in ("Mul", "Div", "Add", "Softmax", "MatMul") if kind in parts]
    if (
        kinds != order
        or {"Mul", "Div"} <= parts.keys()
        or any(link.at for link in links[1:] if link.node.op_type != "Add")
    ):
        return None
    if not {"Softmax", "MatMul"} <= parts.keys():
        return None
    factor = parts.get("Mul") or parts.get("Div")
    number = None if factor is None else Tail(filters=1, axis=1).vector(factor.constants[1])
    if factor is not None and (number is None or number.size != 1 or not number.all()):
        return None
    scale = 1.0 if number is None else float(number[0]) if "Mul" in parts else 1 / float(number[0])
    return _attend(scale, "Add" in parts, parts["Softmax"].node.get("axis", -1), _constants(links))


def _attend(scale: float, masked: bool, axis: int, constants: Sequence[tuple[int, Any]]) -> Run:
    def run(*arrays: Any) -> Any:
        from pumice_cpu.attention import attention

        q, k, v, mask = arrays[0], arrays[1], arrays[-1], arrays[-2] if masked else None
        heads = q.shape[:-2]
        fits = q.ndim in (3, 4) and k.shape[:-2] == v.shape[:-2] == heads and axis in (-1, q.ndim - 1)
        if not fits or 0 in (*q.shape, *k.shape, *v.shape) or any(arrays[i] is not c for i, c in constants):
            return DECLINED
        if q.shape[-1] != k.shape[-2] or k.shape[-1] != v.shape[-2] or any(x.dtype != FLOAT for x in (q, k, v)):
            return DECLINED
        if mask is not None and (mask.dtype != FLOAT or not _repeats(mask.shape, (*q.shape[:-1], k.shape[-1]))):
            return DECLINED
        if q.ndim == 4:
            return (attention(q, k, v, mask, scale=scale),)
        return (attention(q[None], k[None], v[None], mask, scale=scale)[0],)

    return run


def _repeats(shape: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    """Whether NumPy would broadcast an array of a shape to the whole one."""
    return len(shape) <= len(whole) and all(n in (1, m) for n, m in zip(shape[::-1], whole[::-1], strict=False))


def _is_weight(array: Any) -> bool:
    return isinstance(array, np.ndarray) and array.dtype == FLOAT


def _started(links: Sequence[Link], filters: int, axis: int, bias: Any) -> Tail | None:
    tail = Tail(filters=filters, axis=axis)
    if len(links[0].constants) > 2:
        vector = None if bias is None else tail.vector(_upright(bias, axis))
        if vector is None:
            return None
        tail.add(vector)
    return Tail.of(links, tail)


def _constants(links: Sequence[Link]) -> list[tuple[int, Any]]:
    """Among the arrays that the chain is given, those that were folded, and what they must be."""
    given = [c for link in links for position, c in enumerate(link.constants) if position != link.at]
    return [(i, c) for i, c in enumerate(given) if c is not None]
