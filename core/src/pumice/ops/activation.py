"""Activations: pointwise functions of one tensor, whose shape and type they keep.

Parameters (alpha, beta, gamma, bias) are attributes with ONNX's defaults. Functions that saturate are written so that
a large |x| gives the limit, not NaN. Narrow floats are computed in float32 and rounded once at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from pumice.ops.channels import POINTWISE, UNARY, Channels, Same, Site, Tie, into, out, pointwise_ties
from pumice.ops.dtypes import wide
from pumice.ops.elementwise import aligned, erf
from pumice.ops.gradient import namespace, of_input, of_output, sum_to
from pumice.ops.record import Array, Arrays, Forward, Node, Op, OpCost, Outputs, Shape, Vjp, Wanted, elements, traffic


def sigmoid(x: Array) -> Any:
    """1 / (1 + exp(-x))"""
    y = np.exp(-x)
    y += 1
    return 1 / y


def softplus(x: Array) -> Any:
    """log(1 + exp(x)), without overflow"""
    return np.logaddexp(x, namespace(x).zeros((), x.dtype))


def relu(x: Array) -> Any:
    return np.maximum(x, 0)


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
    return np.where(x > alpha, x, namespace(x).zeros((), x.dtype))


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
        return (function(wide(x), **parameters).astype(x.dtype, copy=False),)

    return forward


def _clip(node: Node, x: Array, low: Array | None = None, high: Array | None = None) -> Outputs:
    if node.opset < 11:
        low, high = node.get("min"), node.get("max")
    y = x
    if low is not None:
        y = np.maximum(y, np.asarray(low, x.dtype).reshape(-1)[0])
    if high is not None:
        y = np.minimum(y, np.asarray(high, x.dtype).reshape(-1)[0])
    return (y,)


def _prelu(node: Node, x: Array, slope: Array) -> Outputs:
    if node.opset < 7 and slope.ndim == 1:
        slope = aligned(slope, 1, x.ndim)
    return (np.where(x < 0, slope * x, x),)


def _dropout(node: Node, x: Array, ratio: Array | None = None, training: Array | None = None) -> Outputs:
    """The identity outside training; in training a mask drawn from the node's seed, the rest scaled up."""
    drop = 0.5 if ratio is None else float(ratio)
    if training is None or not bool(training) or drop == 0:
        return x, np.ones_like(x, bool)
    mask = np.random.RandomState(node.get("seed", 0)).uniform(0, 1, x.shape) >= drop
    return (x * mask * (1 / (1 - drop))).astype(x.dtype), mask


def _swiglu(node: Node, a: Array, b: Array) -> Outputs:
    return ((swish(wide(a), node.get("alpha", 1.0)).astype(a.dtype) * b).astype(a.dtype),)


def _prelu_cost(node: Node, inputs: Any, outputs: Any) -> OpCost:
    slope: Shape = inputs[1]
    return OpCost(params=elements(slope), bytes=traffic(node, inputs, outputs).bytes)


def _quick_gelu(x: Array, alpha: float = 1.702) -> Any:
    return x * sigmoid(alpha * x)


# --- gradients --------------------------------------------------------------------------------------------------------


def _swish_slope(x: Any, alpha: float = 1.0) -> Any:
    s = sigmoid(alpha * x)
    return s * (1 + alpha * x * (1 - s))


def _mish_slope(x: Any) -> Any:
    t = np.tanh(softplus(x))
    return t + x * sigmoid(x) * (1 - t * t)


def _gelu_slope(x: Any, approximate: str = "none") -> Any:
    if approximate == "tanh":
        root = math.sqrt(2 / math.pi)
        t = np.tanh(root * (x + 0.044715 * x * x * x))
        return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * root * (1 + 3 * 0.044715 * x * x)
    return 0.5 * (1 + erf(x / math.sqrt(2))) + x * np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def _selu_slope(x: Any, alpha: float = 1.67326319217681884765625, gamma: float = 1.05070102214813232421875) -> Any:
    return gamma * np.where(x < 0, alpha * np.exp(np.minimum(x, 0)), 1)


def _hard_sigmoid_slope(x: Any, alpha: float = 0.2, beta: float = 0.5) -> Any:
    return alpha * ((alpha * x + beta > 0) & (alpha * x + beta < 1))


def _hard_swish_slope(x: Any) -> Any:
    return np.where(x <= -3, 0, np.where(x >= 3, 1, x / 3 + 0.5))


SLOPES: dict[str, Callable[..., Any]] = {
    "LeakyRelu": lambda x, alpha=0.01: np.where(x < 0, alpha, 1),
    "ThresholdedRelu": lambda x, alpha=1.0: x > alpha,
    "Elu": lambda x, alpha=1.0: np.where(x < 0, alpha * np.exp(np.minimum(x, 0)), 1),
    "Celu": lambda x, alpha=1.0: np.where(x < 0, np.exp(np.minimum(x, 0) / alpha), 1),
    "Selu": _selu_slope,
    "HardSigmoid": _hard_sigmoid_slope,
    "HardSwish": _hard_swish_slope,
    "Softplus": sigmoid,
    "Softsign": lambda x: 1 / np.square(1 + np.abs(x)),
    "Mish": _mish_slope,
    "Gelu": _gelu_slope,
    "Swish": _swish_slope,
    "Shrink": lambda x, bias=0.0, lambd=0.5: np.abs(x) > lambd,
    "QuickGelu": lambda x, alpha=1.702: _swish_slope(x, alpha),
}
"""f'(x), with the parameters of f."""

SLOPES_BY_RESULT: dict[str, Callable[..., Any]] = {
    "Relu": lambda y: y > 0,
    "Sigmoid": lambda y: y * (1 - y),
    "Tanh": lambda y: 1 - y * y,
}
"""f' as a function of y = f(x): the input need not be kept."""

_VJPS = {name: of_input(slope) for name, slope in SLOPES.items()} | {
    name: of_output(slope) for name, slope in SLOPES_BY_RESULT.items()
}


def _clip_vjp(node: Node, inputs: Arrays, outputs: Arrays, grads: Arrays, wanted: Wanted) -> Arrays:
    """To the input where it is the result, else to the bound that is."""
    x, dy = inputs[0], grads[0]
    low, high = (inputs[i] if i < len(inputs) else None for i in (1, 2))
    if node.opset < 11:
        low, high = node.get("min"), node.get("max")
    below = np.zeros_like(x, dtype=bool) if low is None else x < low
    above = np.zeros_like(x, dtype=bool) if high is None else (x if low is None else np.maximum(x, low)) > high
    parts = (dy * ~(above | below), dy * (below & ~above), dy * above)
    return [
        sum_to(part, value.shape) if want and value is not None else None
        for part, value, want in zip(parts, inputs, wanted, strict=False)
    ]


def _prelu_vjp(node: Node, inputs: Arrays, outputs: Arrays, grads: Arrays, wanted: Wanted) -> Arrays:
    x, slope = inputs
    wide_slope = aligned(slope, 1, x.ndim) if node.opset < 7 and slope.ndim == 1 else slope
    below = x < 0
    dx = np.where(below, wide_slope, 1) * grads[0] if wanted[0] else None
    return dx, sum_to(np.where(below, x, 0) * grads[0], wide_slope.shape).reshape(slope.shape) if wanted[1] else None


def _dropout_vjp(node: Node, inputs: Arrays, outputs: Arrays, grads: Arrays, wanted: Wanted) -> Arrays:
    training = inputs[2] if len(inputs) > 2 else None
    if training is None or not bool(training):
        return [grads[0], *[None] * (len(inputs) - 1)]
    drop = 0.5 if inputs[1] is None else float(inputs[1])
    return [grads[0] * outputs[1] / (1 - drop) if drop else grads[0], None, None]


def _swiglu_vjp(node: Node, inputs: Arrays, outputs: Arrays, grads: Arrays, wanted: Wanted) -> Arrays:
    (a, b), alpha = inputs, node.get("alpha", 1.0)
    return grads[0] * b * _swish_slope(a, alpha), grads[0] * swish(a, alpha)


TABLE: tuple[tuple[str, int, Callable[..., Any]], ...] = (
    ("Relu", 1, relu), ("LeakyRelu", 1, leaky_relu), ("ThresholdedRelu", 10, thresholded_relu), ("Elu", 1, elu),
    ("Celu", 12, celu), ("Selu", 1, selu), ("Sigmoid", 1, sigmoid), ("HardSigmoid", 1, hard_sigmoid),
    ("HardSwish", 14, hard_swish), ("Tanh", 1, np.tanh), ("Softplus", 1, softplus), ("Softsign", 1, softsign),
    ("Mish", 18, mish), ("Gelu", 20, gelu), ("Swish", 24, swish), ("Shrink", 9, shrink),
)  # fmt: skip

# --- channels ---------------------------------------------------------------------------------------------------------


def _prelu_ties(site: Site) -> Iterator[Tie]:
    """Before opset 7 a vector of slopes lay on axis 1 whatever the rank."""
    yield from pointwise_ties(site, (0,))
    if site.node.opset < 7 and site.rank(1) == 1 and site.size(1, 0) == site.size(0, 1):
        yield Same(into(1, 0), out(0, 1))
    else:
        yield from pointwise_ties(site, (1,))


OPS = (
    *(
        Op(name, since=since, forward=activation(function), vjp=_VJPS[name], cost=traffic, channels=UNARY)
        for name, since, function in TABLE
    ),
    Op("Clip", forward=_clip, vjp=Vjp(_clip_vjp, outputs=()), cost=traffic, channels=UNARY),
    Op("PRelu", forward=_prelu, vjp=Vjp(_prelu_vjp, outputs=()), cost=_prelu_cost, channels=Channels(_prelu_ties)),
    Op(
        "Dropout",
        forward=_dropout,
        vjp=Vjp(_dropout_vjp, wrt=(0,), inputs=(1, 2), outputs=(1,)),
        cost=traffic,
        channels=UNARY,
    ),
    Op("SwiGLU", since=28, forward=_swiglu, vjp=Vjp(_swiglu_vjp, outputs=()), cost=traffic, channels=POINTWISE),
    Op("Gelu", domain="com.microsoft", forward=activation(gelu), vjp=_VJPS["Gelu"], cost=traffic, channels=UNARY),
    Op(
        "QuickGelu",
        domain="com.microsoft",
        forward=activation(_quick_gelu),
        vjp=_VJPS["QuickGelu"],
        cost=traffic,
        channels=UNARY,
    ),
)
