"""Activations: pointwise functions of one tensor, whose shape and type they keep.

Parameters (alpha, beta, gamma, bias) are attributes with ONNX's defaults. Functions that saturate are written so that
a large |x| gives the limit, not NaN. Narrow floats are computed in float32 and rounded once at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from pumice.ops.dtypes import wide
from pumice.ops.elementwise import aligned, erf
from pumice.ops.record import Array, Forward, Node, Op, OpCost, Outputs, Shape, elements, traffic


def sigmoid(x: Array) -> Any:
    """1 / (1 + exp(-x))"""
    return 1 / (1 + np.exp(-x))


def softplus(x: Array) -> Any:
    """log(1 + exp(x)), without overflow"""
    return np.logaddexp(x, np.zeros((), x.dtype))


def relu(x: Array) -> Any:
    return np.maximum(x, np.zeros((), x.dtype))


def leaky_relu(x: Array, alpha: float = 0.01) -> Any:
    return np.where(x < 0, alpha * x, x)


def elu(x: Array, alpha: float = 1.0) -> Any:
    """The identity above zero, alpha (exp(x) - 1) below."""
    return np.where(x < 0, alpha * np.expm1(np.minimum(x, 0)), x)


def celu(x: Array, alpha: float = 1.0) -> Any:
    return relu(x) + np.minimum(0, alpha * np.expm1(x / alpha))


def selu(x: Array, alpha: float = 1.67326319217681884765625, gamma: float = 1.05070102214813232421875) -> Any:
    return gamma * elu(x, alpha)


def hard_sigmoid(x: Array, alpha: float = 0.2, beta: float = 0.5) -> Any:
    return np.clip(alpha * x + beta, 0, 1)


def hard_swish(x: Array) -> Any:
    return x * hard_sigmoid(x, 1 / 6, 0.5)


def mish(x: Array) -> Any:
    return x * np.tanh(softplus(x))


def softsign(x: Array) -> Any:
    return x / (1 + np.abs(x))


def swish(x: Array, alpha: float = 1.0) -> Any:
    return x * sigmoid(alpha * x)


def thresholded_relu(x: Array, alpha: float = 1.0) -> Any:
    return np.where(x > alpha, x, np.zeros((), x.dtype))


def shrink(x: Array, bias: float = 0.0, lambd: float = 0.5) -> Any:
    return np.where(x < -lambd, x + bias, np.where(x > lambd, x - bias, 0)).astype(x.dtype)


def gelu(x: Array, approximate: str = "none") -> Any:
    """Phi(x) x, with Phi the normal distribution, or its approximation by tanh."""
    if approximate == "tanh":
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))
    return 0.5 * x * (1 + erf(x / math.sqrt(2)))


def activation(function: Callable[..., Any]) -> Forward:
    """`function(x, **attributes)` computed wide and rounded to the type of x."""

    def forward(node: Node, x: Array) -> Outputs:
        parameters = {k: v for k, v in node.attributes.items() if k != "consumed_inputs"}
        return (np.asarray(function(wide(x), **parameters)).astype(x.dtype, copy=False),)

    return forward


def _clip(node: Node, x: Array, low: Array | None = None, high: Array | None = None) -> Outputs:
    if node.opset < 11:
        low, high = node.get("min"), node.get("max")
    y = x
    if low is not None:
        y = np.maximum(y, np.asarray(low, x.dtype))
    if high is not None:
        y = np.minimum(y, np.asarray(high, x.dtype))
    return (y,)


def _prelu(node: Node, x: Array, slope: Array) -> Outputs:
    if node.opset < 7 and slope.ndim == 1:
        slope = aligned(slope, 1, x.ndim)
    return (np.where(x < 0, slope * x, x),)


def _dropout(node: Node, x: Array, ratio: Array | None = None, training: Array | None = None) -> Outputs:
    """The identity outside training; in training a mask drawn from the node's seed, the rest scaled up."""
    drop = 0.5 if ratio is None else float(ratio)
    if training is None or not bool(training) or drop == 0:
        return x, np.ones(x.shape, bool)
    mask = np.random.RandomState(node.get("seed", 0)).uniform(0, 1, x.shape) >= drop
    return (x * mask * (1 / (1 - drop))).astype(x.dtype), mask


def _swiglu(node: Node, a: Array, b: Array) -> Outputs:
    return ((swish(wide(a), node.get("alpha", 1.0)).astype(a.dtype) * b).astype(a.dtype),)


def _prelu_cost(node: Node, inputs: Any, outputs: Any) -> OpCost:
    slope: Shape = inputs[1]
    return OpCost(params=elements(slope), bytes=traffic(node, inputs, outputs).bytes)


def _quick_gelu(x: Array, alpha: float = 1.702) -> Any:
    return x * sigmoid(alpha * x)


TABLE: tuple[tuple[str, int, Callable[..., Any]], ...] = (
    ("Relu", 1, relu), ("LeakyRelu", 1, leaky_relu), ("ThresholdedRelu", 10, thresholded_relu), ("Elu", 1, elu),
    ("Celu", 12, celu), ("Selu", 1, selu), ("Sigmoid", 1, sigmoid), ("HardSigmoid", 1, hard_sigmoid),
    ("HardSwish", 14, hard_swish), ("Tanh", 1, np.tanh), ("Softplus", 1, softplus), ("Softsign", 1, softsign),
    ("Mish", 18, mish), ("Gelu", 20, gelu), ("Swish", 24, swish), ("Shrink", 9, shrink),
)  # fmt: skip

OPS = (
    *(Op(name, since=since, forward=activation(function), cost=traffic) for name, since, function in TABLE),
    Op("Clip", forward=_clip, cost=traffic),
    Op("PRelu", forward=_prelu, cost=_prelu_cost),
    Op("Dropout", forward=_dropout, cost=traffic),
    Op("SwiGLU", since=28, forward=_swiglu, cost=traffic),
    Op("Gelu", domain="com.microsoft", forward=activation(gelu), cost=traffic),
    Op("QuickGelu", domain="com.microsoft", forward=activation(_quick_gelu), cost=traffic),
)
