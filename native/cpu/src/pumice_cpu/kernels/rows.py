"""Pointwise functions, normalisation, reductions and quantization of the Plan, for float32.

What a kernel cannot take (another type of a second operand, an axis in the middle, an empty array) goes to core's own
NumPy code at run time; so do arrays too small to be worth a call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from pumice.ops.record import Array, Forward, Kernel, Node, Outputs

SMALL = 2048
"""Elements below which NumPy answers sooner than a call into C."""
FLOAT = np.dtype(np.float32)
_BYTES = {np.dtype(np.uint8), np.dtype(np.int8)}
_MICROSOFT = "com.microsoft"


@cache
def _core_forward(domain: str, op_type: str, opset: int) -> Forward:
    from pumice.ops import core_table

    op = core_table().resolve(domain, op_type, opset)
    assert op is not None
    assert op.forward is not None
    return op.forward


def _core(node: Node, *arrays: Any) -> Outputs:
    return _core_forward(node.domain, node.op_type, node.opset)(node, *arrays)


# --- pointwise --------------------------------------------------------------------------------------------------------


def _map(function: Any, *attributes: tuple[str, float]) -> Forward:
    """A map whose parameters are attributes of the node, with their defaults."""

    def forward(node: Node, x: Array) -> Outputs:
        from pumice_cpu.rows import map_elements

        if x.size < SMALL:
            return _core(node, x)
        return (map_elements(function, x, [node.get(name, default) for name, default in attributes]),)

    return forward


def _gelu(node: Node, x: Array) -> Outputs:
    from pumice_cpu.rows import map_elements

    if x.size < SMALL:
        return _core(node, x)
    return (map_elements("gelu_tanh" if node.get("approximate", "none") == "tanh" else "gelu", x),)


def _clip(node: Node, x: Array, low: Array | None = None, high: Array | None = None) -> Outputs:
    from pumice_cpu.rows import map_elements

    if x.size < SMALL:
        return _core(node, x, low, high)
    if node.opset < 11:
        low, high = node.get("min"), node.get("max")
    bounds = [
        -math.inf if low is None else np.asarray(low).item(),
        math.inf if high is None else np.asarray(high).item(),
    ]
    return (map_elements("clip", x, bounds),)


def _binary(operation: Any) -> Forward:
    def forward(node: Node, a: Array, b: Array) -> Outputs:
        from pumice_cpu.rows import binary, mergeable

        small = a.size < SMALL and b.size < SMALL
        if small or b.dtype != FLOAT or not mergeable(a, b):
            return _core(node, a, b)
        return (binary(operation, a, b),)

    return forward


def _broadcasts_freely(node: Node) -> str | None:
    return "operands are aligned by an attribute" if node.opset < 7 and "axis" in node.attributes else None


# --- rows -------------------------------------------------------------------------------------------------------------


def _softmax(logarithm: bool) -> Forward:
    def forward(node: Node, x: Array) -> Outputs:
        from pumice_cpu.rows import softmax

        axis = node.get("axis", -1) % max(x.ndim, 1)
        if x.size == 0 or axis != x.ndim - 1:
            return _core(node, x)
        return (softmax(x, logarithm=logarithm),)

    return forward


def _flat_softmax(logarithm: bool) -> Forward:
    """Before opset 13: one softmax over all axes from `axis` on."""

    def forward(node: Node, x: Array) -> Outputs:
        from pumice_cpu.rows import softmax

        axis = node.get("axis", 1) % max(x.ndim, 1)
        if x.size == 0:
            return _core(node, x)
        rows = np.ascontiguousarray(x).reshape(math.prod(x.shape[:axis]), -1)
        return (softmax(rows, logarithm=logarithm).reshape(x.shape),)

    return forward


def _normalised(node: Node, x: Array, scale: Array, bias: Array | None, rms: bool) -> Outputs | None:
    """(y, mean, inverse), or None where scale or bias do not cover a row."""
    from pumice_cpu.rows import layer_norm

    axis = node.get("axis", -1) % x.ndim
    row = x.shape[axis:]
    fits = all(v is None or (v.shape == row and v.dtype == FLOAT) for v in (scale, bias))
    if x.size == 0 or not fits:
        return None
    wanted = node.wants(1) or node.wants(2)
    y, mean, inverse = layer_norm(
        x, scale, bias, node.get("epsilon", 1e-5), columns=math.prod(row), rms=rms, statistics=wanted
    )
    kept = x.shape[:axis] + (1,) * len(row)
    return (y, *(None if v is None else v.reshape(kept) for v in (mean, inverse)))


def _layer_norm(node: Node, x: Array, scale: Array, bias: Array | None = None) -> Outputs:
    return _normalised(node, x, scale, bias, rms=False) or _core(node, x, scale, bias)


def _rms_norm(node: Node, x: Array, scale: Array) -> Outputs:
    found = _normalised(node, x, scale, None, rms=True)
    return _core(node, x, scale) if found is None else (found[0], found[2])


def _skip_layer_norm(
    node: Node, x: Array, skip: Array, scale: Array, beta: Array | None = None, bias: Array | None = None
) -> Outputs:
    from pumice_cpu.rows import binary

    fits = x.shape == skip.shape and x.size and all(v is None or v.shape == x.shape[-1:] for v in (scale, beta, bias))
    if not fits:
        return _core(node, x, skip, scale, beta, bias)
    total = binary("add", x, skip)
    total = total if bias is None else binary("add", total, bias)
    y, mean, inverse = _normalised(node, total, scale, beta, rms=False) or ()
    return y, mean, inverse, total


def _batch_norm(node: Node, x: Array, *stored: Array) -> Outputs:
    from pumice_cpu.rows import batch_norm, binary

    if x.size < SMALL or x.ndim < 2 or any(v.dtype != FLOAT for v in stored):
        return _core(node, x, *stored)
    scale, bias, mean, var = stored
    if not x.flags.c_contiguous:  # channels last, most likely: rows of channels
        factor, ends = scale / np.sqrt(var + FLOAT.type(node.get("epsilon", 1e-5))), (1,) * (x.ndim - 2)
        shift = bias - mean * factor
        return (binary("add", binary("mul", x, factor.reshape(-1, *ends)), shift.reshape(-1, *ends)),)
    return (batch_norm(x, scale, bias, mean, var, node.get("epsilon", 1e-5)),)


def _infers(node: Node) -> str | None:
    training = node.get("training_mode", 0) or any(node.wants(i) for i in range(1, len(node.outputs)))
    return "it takes statistics of its batch" if training or node.opset < 9 else None


def _reduction(name: Any) -> Forward:
    def forward(node: Node, x: Array, axes: Array | None = None) -> Outputs:
        from pumice.ops.reduction import axes_of
        from pumice_cpu.rows import reduce

        chosen = axes_of(node, x, axes) if x.size >= SMALL else None
        if not chosen or sorted(chosen) != list(range(min(chosen), max(chosen) + 1)):
            return _core(node, x, axes)
        return (reduce(name, x, chosen, keepdims=bool(node.get("keepdims", 1))),)

    return forward


# --- quantization -----------------------------------------------------------------------------------------------------


def _axis_of(node: Node, x: Array, scale: Array) -> int | None:
    return None if scale.size == 1 else node.get("axis", 1)


def _unusual(node: Node, x: Array, scale: Array) -> bool:
    blocked = node.get("block_size", 0) or node.get("precision", 0) or scale.dtype != FLOAT
    return bool(blocked) or x.size < SMALL or (scale.size > 1 and scale.size != x.shape[node.get("axis", 1)])


def _quantize(node: Node, x: Array, scale: Array, zero: Array | None = None) -> Outputs:
    from pumice.ops.dtypes import numpy_dtype
    from pumice_cpu.rows import quantize

    code = node.get("output_dtype", 0)
    dtype = zero.dtype if zero is not None else numpy_dtype(code) if code else np.dtype(np.uint8)
    if dtype not in _BYTES or _unusual(node, x, scale):
        return _core(node, x, scale, zero)
    return (quantize(x, scale, zero, dtype, axis=_axis_of(node, x, scale)),)


def _dequantize(node: Node, q: Array, scale: Array, zero: Array | None = None) -> Outputs:
    from pumice_cpu.rows import dequantize

    if _unusual(node, q, scale) or node.get("output_dtype", 0) not in (0, 1):
        return _core(node, q, scale, zero)
    return (dequantize(q, scale, zero, axis=_axis_of(node, q, scale)),)


def _dynamic_quantize(node: Node, x: Array) -> Outputs:
    """Scale and zero point as core computes them, from the range that C finds."""
    from pumice.ops.quantize import dynamic_parameters
    from pumice_cpu.rows import quantize, value_range

    if x.size < SMALL:
        return _core(node, x)
    scale, zero = dynamic_parameters(np.array(value_range(x), np.float32))
    return quantize(x, scale, zero), scale, zero


def _histogram(node: Node, x: Array) -> Outputs:
    from pumice_cpu.rows import histogram, value_range

    return histogram(x), np.array(value_range(x), np.float32)


# --- records ----------------------------------------------------------------------------------------------------------


def _pointwise() -> Sequence[tuple[str, int, Callable[..., Outputs], dict[str, Any]]]:
    close: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-7}
    return (
        ("Exp", 1, _map("exp"), close), ("Log", 1, _map("log"), close), ("Tanh", 1, _map("tanh"), close),
        ("Sigmoid", 1, _map("sigmoid"), close), ("Erf", 9, _map("erf"), close), ("Sqrt", 1, _map("sqrt"), {}),
        ("Relu", 1, _map("relu"), {}), ("LeakyRelu", 1, _map("leaky_relu", ("alpha", 0.01)), {}),
        ("HardSigmoid", 1, _map("hard_sigmoid", ("alpha", 0.2), ("beta", 0.5)), {}),
        ("HardSwish", 14, _map("hard_swish"), {}), ("Swish", 24, _map("silu", ("alpha", 1.0)), close),
        ("Gelu", 20, _gelu, close), ("Clip", 1, _clip, {}),
    )  # fmt: skip


_QUANTIZED = frozenset({"uint8", "int8"})
_SUMS: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}

KERNELS = (
    *(Kernel(op_type=name, since=since, run=run, **fields) for name, since, run, fields in _pointwise()),
    Kernel(op_type="Gelu", domain=_MICROSOFT, run=_gelu, rtol=1e-6, atol=1e-7),
    Kernel(op_type="QuickGelu", domain=_MICROSOFT, run=_map("silu", ("alpha", 1.702)), rtol=1e-6, atol=1e-7),
    *(
        Kernel(op_type=name, run=_binary(operation), accepts=_broadcasts_freely)
        for name, operation in (("Add", "add"), ("Sub", "sub"), ("Mul", "mul"), ("Div", "div"))
    ),
    *(
        record
        for name, logarithm in (("Softmax", False), ("LogSoftmax", True))
        for record in (
            Kernel(op_type=name, until=12, run=_flat_softmax(logarithm)),
            Kernel(op_type=name, since=13, run=_softmax(logarithm)),
        )
    ),
    Kernel(op_type="LayerNormalization", since=17, run=_layer_norm, **_SUMS),
    Kernel(op_type="RMSNormalization", since=23, run=_rms_norm, **_SUMS),
    Kernel(op_type="SimplifiedLayerNormalization", run=_rms_norm, **_SUMS),
    Kernel(op_type="SkipLayerNormalization", domain=_MICROSOFT, run=_skip_layer_norm, **_SUMS),
    Kernel(op_type="BatchNormalization", run=_batch_norm, accepts=_infers, **_SUMS),
    *(
        Kernel(op_type=f"Reduce{name}", run=_reduction(reduction), **_SUMS)
        for name, reduction in (
            ("Sum", "sum"),
            ("Mean", "mean"),
            ("Max", "max"),
            ("Min", "min"),
            ("SumSquare", "sum_square"),
        )
    ),
    *(
        Kernel(op_type=name, since=since, domain=domain, run=run, dtypes=dtypes, rtol=0.0, atol=0.0)
        for domain, since in (("", 10), (_MICROSOFT, 1))
        for name, run, dtypes in (
            ("QuantizeLinear", _quantize, frozenset({"float32"})),
            ("DequantizeLinear", _dequantize, _QUANTIZED),
        )
    ),
    Kernel(op_type="Histogram", domain="pumice", run=_histogram, rtol=0.0, atol=0.0),
    Kernel(op_type="DynamicQuantizeLinear", since=11, run=_dynamic_quantize, rtol=0.0, atol=0.0),
)
