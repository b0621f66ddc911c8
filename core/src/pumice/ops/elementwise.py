"""Pointwise arithmetic, comparison and logic: y = f(a, b, ...) after NumPy (multidirectional) broadcasting.

The result has the type of the inputs (bool for comparisons). Integer division truncates towards zero as in C; `Mod`
takes the sign of the divisor unless `fmod`; `Pow` has the type of the base. Before opset 7 the second operand
broadcast only if `broadcast` was set, its axes aligned to the first's from `axis` on.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np

from pumice.ops.channels import POINTWISE
from pumice.ops.dtypes import wide
from pumice.ops.gradient import namespace, of_input, of_output, sum_to
from pumice.ops.record import STOP, Array, Arrays, Forward, Node, Op, Outputs, Vjp, Wanted, traffic


def unary(function: Callable[[Any], Any]) -> Forward:
    def forward(node: Node, x: Array) -> Outputs:
        return (function(x),)

    return forward


def binary(function: Callable[[Any, Any], Any]) -> Forward:
    def forward(node: Node, a: Array, b: Array) -> Outputs:
        if node.opset < 7 and "axis" in node.attributes:
            b = aligned(b, node.attributes["axis"], a.ndim)
        return (function(a, b),)

    return forward


def variadic(function: Callable[[Any, Any], Any]) -> Forward:
    def forward(node: Node, *arrays: Array) -> Outputs:
        return (reduce(function, arrays),)

    return forward


def aligned(b: Array, axis: int, rank: int) -> Array:
    """`b` with trailing axes of size one, so that its first axis meets axis `axis` of a rank-`rank` operand."""
    return b.reshape(b.shape + (1,) * (rank - axis % rank - b.ndim))


def divide(a: Array, b: Array) -> Any:
    if a.dtype.kind not in "iu":
        return a / b
    quotient = np.floor_divide(a, b)
    if a.dtype.kind == "u":
        return quotient
    inexact = quotient * b != a
    return quotient + (inexact & ((a < 0) != (b < 0))).astype(a.dtype)


def power(x: Array, y: Array) -> Any:
    if x.dtype.kind == "f" and y.size == 1 and y.ndim <= x.ndim:
        return x ** y.item()  # a Python exponent lets NumPy square, cube and take roots without pow()
    return np.power(x, y).astype(x.dtype)


def _mod(node: Node, a: Array, b: Array) -> Outputs:
    return (np.fmod(a, b) if node.get("fmod", 0) else np.mod(a, b),)


def _bit_shift(node: Node, x: Array, count: Array) -> Outputs:
    """Shifts by the type's width or more give zero (or the sign), where C leaves them undefined."""
    return (np.left_shift(x, count) if node.get("direction") == "LEFT" else np.right_shift(x, count),)


def _mean(node: Node, *arrays: Array) -> Outputs:
    return ((reduce(np.add, arrays) / len(arrays)).astype(arrays[0].dtype),)


def _is_inf(node: Node, x: Array) -> Outputs:
    positive = (x == np.inf) if node.get("detect_positive", 1) else np.zeros_like(x, bool)
    negative = (x == -np.inf) if node.get("detect_negative", 1) else np.zeros_like(x, bool)
    return (positive | negative,)


def erf(x: Array) -> Any:
    on_gpu = namespace(x).__name__ == "cupy"  # it does not hand SciPy's functions to its own, `cupyx`
    special = importlib.import_module("cupyx.scipy.special" if on_gpu else "scipy.special")
    return special.erf(wide(x)).astype(x.dtype)


def _reciprocal(x: Array) -> Any:
    return np.reciprocal(x) if x.dtype.kind == "f" else (1 / x).astype(x.dtype)


def _where(node: Node, condition: Array, x: Array, y: Array) -> Outputs:
    return (np.where(condition, x, y),)


UNARY: tuple[tuple[str, int, Callable[[Any], Any]], ...] = (
    ("Abs", 1, np.abs), ("Neg", 1, np.negative), ("Sign", 9, np.sign), ("Reciprocal", 1, _reciprocal),
    ("Ceil", 1, np.ceil), ("Floor", 1, np.floor), ("Round", 11, np.rint),
    ("Sqrt", 1, np.sqrt), ("Exp", 1, np.exp), ("Log", 1, np.log), ("Erf", 9, erf),
    ("Sin", 7, np.sin), ("Cos", 7, np.cos), ("Tan", 7, np.tan),
    ("Asin", 7, np.arcsin), ("Acos", 7, np.arccos), ("Atan", 7, np.arctan),
    ("Sinh", 9, np.sinh), ("Cosh", 9, np.cosh), ("Asinh", 9, np.arcsinh), ("Acosh", 9, np.arccosh),
    ("Atanh", 9, np.arctanh), ("Not", 1, np.logical_not), ("BitwiseNot", 18, np.invert), ("IsNaN", 9, np.isnan),
)  # fmt: skip

BINARY: tuple[tuple[str, int, Callable[[Any, Any], Any]], ...] = (
    ("Add", 1, np.add), ("Sub", 1, np.subtract), ("Mul", 1, np.multiply), ("Div", 1, divide), ("Pow", 1, power),
    ("And", 1, np.logical_and), ("Or", 1, np.logical_or), ("Xor", 1, np.logical_xor),
    ("Equal", 1, np.equal), ("Greater", 1, np.greater), ("Less", 1, np.less),
    ("GreaterOrEqual", 12, np.greater_equal), ("LessOrEqual", 12, np.less_equal),
    ("BitwiseAnd", 18, np.bitwise_and), ("BitwiseOr", 18, np.bitwise_or), ("BitwiseXor", 18, np.bitwise_xor),
)  # fmt: skip

VARIADIC = (("Max", np.maximum), ("Min", np.minimum), ("Sum", np.add))


# --- gradients --------------------------------------------------------------------------------------------------------

Partial = Callable[[Any, Any, Any, Any], Any]
"""(a, b, y, dy) -> the gradient of an operand before broadcasting is undone."""


def _binary_vjp(left: Partial, right: Partial, *, inputs: tuple[int, ...] = (0, 1), output: bool = False) -> Vjp:
    def run(node: Node, inputs: Arrays, outputs: Arrays, grads: Arrays, wanted: Wanted) -> Arrays:
        a, b = inputs
        c = aligned(b, node.attributes["axis"], a.ndim) if node.opset < 7 and "axis" in node.attributes else b
        da = sum_to(left(a, c, outputs[0], grads[0]), a.shape) if wanted[0] else None
        db = sum_to(right(a, c, outputs[0], grads[0]), c.shape).reshape(b.shape) if wanted[1] else None
        return da, db

    return Vjp(run, inputs=inputs, outputs=(0,) if output else ())


def _log_of_base(a: Any) -> Any:
    """ln a, zero where a power of a does not depend on the exponent to first order or is undefined."""
    return np.log(np.where(a > 0, a, 1))


def _winner_vjp(node: Node, inputs: Arrays, outputs: Arrays, grads: Arrays, wanted: Wanted) -> Arrays:
    """Max and Min: to the operand that equals the result; equals share."""
    shares = [(x == outputs[0]).astype(outputs[0].dtype) for x in inputs]
    each = grads[0] / reduce(np.add, shares)
    return [
        sum_to(each * share, x.shape) if want else None for x, share, want in zip(inputs, shares, wanted, strict=True)
    ]


def _sum_vjp(node: Node, inputs: Arrays, outputs: Arrays, grads: Arrays, wanted: Wanted) -> Arrays:
    each = grads[0] / len(inputs) if node.op_type == "Mean" else grads[0]
    return [sum_to(each, x.shape) if want else None for x, want in zip(inputs, wanted, strict=True)]


def _where_vjp(node: Node, inputs: Arrays, outputs: Arrays, grads: Arrays, wanted: Wanted) -> Arrays:
    condition, x, y = inputs
    dx = sum_to(np.where(condition, grads[0], 0), x.shape) if wanted[1] else None
    return None, dx, sum_to(np.where(condition, 0, grads[0]), y.shape) if wanted[2] else None


_VJPS: dict[str, Vjp] = {
    "Abs": of_input(np.sign),
    "Neg": of_output(lambda y: -1),
    "Reciprocal": of_output(lambda y: -y * y),
    "Sqrt": of_output(lambda y: 0.5 / y),
    "Exp": of_output(lambda y: y),
    "Log": of_input(np.reciprocal),
    "Erf": of_input(lambda x: 2 / math.sqrt(math.pi) * np.exp(-x * x)),
    "Sin": of_input(np.cos),
    "Cos": of_input(lambda x: -np.sin(x)),
    "Tan": of_output(lambda y: 1 + y * y),
    "Asin": of_input(lambda x: 1 / np.sqrt(1 - x * x)),
    "Acos": of_input(lambda x: -1 / np.sqrt(1 - x * x)),
    "Atan": of_input(lambda x: 1 / (1 + x * x)),
    "Sinh": of_input(np.cosh),
    "Cosh": of_input(np.sinh),
    "Asinh": of_input(lambda x: 1 / np.sqrt(x * x + 1)),
    "Acosh": of_input(lambda x: 1 / np.sqrt(x * x - 1)),
    "Atanh": of_input(lambda x: 1 / (1 - x * x)),
    "Add": _binary_vjp(lambda a, b, y, dy: dy, lambda a, b, y, dy: dy, inputs=()),
    "Sub": _binary_vjp(lambda a, b, y, dy: dy, lambda a, b, y, dy: -dy, inputs=()),
    "Mul": _binary_vjp(lambda a, b, y, dy: dy * b, lambda a, b, y, dy: dy * a),
    "Div": _binary_vjp(lambda a, b, y, dy: dy / b, lambda a, b, y, dy: -dy * y / b, inputs=(1,), output=True),
    "Pow": _binary_vjp(
        lambda a, b, y, dy: dy * b * power(a, b - 1), lambda a, b, y, dy: dy * y * _log_of_base(a), output=True
    ),
    "Mod": _binary_vjp(lambda a, b, y, dy: dy, lambda a, b, y, dy: dy * (y - a) / b, output=True),
    "Max": Vjp(_winner_vjp),
    "Min": Vjp(_winner_vjp),
    "Sum": Vjp(_sum_vjp, inputs=(), outputs=()),
    "Mean": Vjp(_sum_vjp, inputs=(), outputs=()),
    "Where": Vjp(_where_vjp, wrt=(1, 2), inputs=(0,), outputs=()),
}
"""Functions that are not listed are constant almost everywhere or return no floating point."""


def _vjp(name: str) -> Vjp:
    return _VJPS.get(name, STOP)


OPS = (
    *(
        Op(name, since=since, forward=unary(function), vjp=_vjp(name), cost=traffic, channels=POINTWISE)
        for name, since, function in UNARY
    ),
    *(
        Op(name, since=since, forward=binary(function), vjp=_vjp(name), cost=traffic, channels=POINTWISE)
        for name, since, function in BINARY
    ),
    *(
        Op(name, forward=variadic(function), vjp=_vjp(name), cost=traffic, channels=POINTWISE)
        for name, function in VARIADIC
    ),
    Op("Mean", forward=_mean, vjp=_vjp("Mean"), cost=traffic, channels=POINTWISE),
    Op("Mod", since=10, forward=_mod, vjp=_vjp("Mod"), cost=traffic, channels=POINTWISE),
    Op("BitShift", since=11, forward=_bit_shift, vjp=_vjp("BitShift"), cost=traffic, channels=POINTWISE),
    Op("IsInf", since=10, forward=_is_inf, vjp=_vjp("IsInf"), cost=traffic, channels=POINTWISE),
    Op("Where", since=9, forward=_where, vjp=_vjp("Where"), cost=traffic, channels=POINTWISE),
)
