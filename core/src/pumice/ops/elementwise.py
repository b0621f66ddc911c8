"""Pointwise arithmetic, comparison and logic: y = f(a, b, ...) after NumPy (multidirectional) broadcasting.

The result has the type of the inputs (bool for comparisons). Integer division truncates towards zero as in C; `Mod`
takes the sign of the divisor unless `fmod`; `Pow` has the type of the base. Before opset 7 the second operand
broadcast only if `broadcast` was set, its axes aligned to the first's from `axis` on.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np

from pumice.ops.dtypes import wide
from pumice.ops.record import Array, Forward, Node, Op, Outputs, traffic


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
    positive = (x == np.inf) if node.get("detect_positive", 1) else np.zeros(x.shape, bool)
    negative = (x == -np.inf) if node.get("detect_negative", 1) else np.zeros(x.shape, bool)
    return (positive | negative,)


def erf(x: Array) -> Any:
    from scipy import special

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

OPS = (
    *(Op(name, since=since, forward=unary(function), cost=traffic) for name, since, function in UNARY),
    *(Op(name, since=since, forward=binary(function), cost=traffic) for name, since, function in BINARY),
    *(Op(name, forward=variadic(function), cost=traffic) for name, function in VARIADIC),
    Op("Mean", forward=_mean, cost=traffic),
    Op("Mod", since=10, forward=_mod, cost=traffic),
    Op("BitShift", since=11, forward=_bit_shift, cost=traffic),
    Op("IsInf", since=10, forward=_is_inf, cost=traffic),
    Op("Where", since=9, forward=_where, cost=traffic),
)
