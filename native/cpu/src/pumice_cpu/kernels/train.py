"""Training on the Plan: batch normalisation by the statistics of the batch, and gradients of float32.

What a kernel cannot take (a middle axis, a gradient of a statistic, another type of a second operand) goes to core's
own NumPy code at run time; so do arrays too small to be worth a call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from pumice.ops.record import Array, Kernel, Node, Outputs
from pumice.ops.updates import FINITE, FUSED
from pumice.ops.window import Window

SMALL = 2048
"""Elements below which NumPy answers sooner than a call into C."""
LEAST_ROWS = 256
"""That a part of a sum of products has."""
FLOAT = np.dtype(np.float32)
MOST_AXES = 3
BOUNDS = {"uint8": (0, 255), "int8": (-128, 127), "int4": (-8, 7), "uint4": (0, 15)}
_MICROSOFT = "com.microsoft"
Gradient = Callable[..., Any]


@cache
def _op(domain: str, op_type: str, opset: int) -> Any:
    from pumice.ops import core_table

    return core_table().resolve(domain, op_type, opset)


def _core(node: Node, *arguments: Any) -> Any:
    """The gradient as core computes it."""
    return _op(node.domain, node.op_type, node.opset).vjp(node, *arguments)


# --- batch normalisation ----------------------------------------------------------------------------------------------


def _trains(node: Node) -> str | None:
    return None if node.get("training_mode", 0) else "it uses the stored statistics"


def _batch_norm(node: Node, x: Array, scale: Array, bias: Array, mean: Array, var: Array) -> Outputs:
    from pumice_cpu.train import batch_norm

    if x.size < SMALL or x.ndim < 2:
        return tuple(_op("", node.op_type, node.opset).forward(node, x, scale, bias, mean, var))
    momentum = node.get("momentum", 0.9)
    y, batch_mean, batch_var, inverse = batch_norm(x, scale, bias, node.get("epsilon", 1e-5))
    running = (momentum * old + (1 - momentum) * new for old, new in ((mean, batch_mean), (var, batch_var)))
    return (y, *(new.astype(mean.dtype, copy=False) for new in running), batch_mean, inverse)


def _batch_norm_vjp(node: Node, inputs: Any, outputs: Any, grads: Any, wanted: Any) -> Any:
    from pumice_cpu.train import batch_norm_gradient

    x, scale = inputs[:2]
    if not node.get("training_mode", 0) or any(g is not None for g in grads[1:]):
        return _core(node, inputs, outputs, grads, wanted)
    return (*batch_norm_gradient(x, grads[0], scale, *outputs[3:5]), None, None)


# --- pointwise --------------------------------------------------------------------------------------------------------


def _slope(function: Any, *, of_result: bool) -> Gradient:
    def run(node: Node, inputs: Any, outputs: Any, grads: Any, wanted: Any) -> Any:
        from pumice_cpu.train import slope

        return (slope(function, grads[0], outputs[0] if of_result else inputs[0]),)

    return run


def _clip_vjp(node: Node, inputs: Any, outputs: Any, grads: Any, wanted: Any) -> Any:
    from pumice_cpu.train import slope

    if any(wanted[1:]):
        return _core(node, inputs, outputs, grads, wanted)
    low, high = (inputs[i] if i < len(inputs) else None for i in (1, 2))
    if node.opset < 11:
        low, high = node.get("min"), node.get("max")
    bounds = [
        -math.inf if low is None else np.asarray(low).item(),
        math.inf if high is None else np.asarray(high).item(),
    ]
    return (slope("clip", grads[0], inputs[0], bounds), *[None] * (len(inputs) - 1))


def _is_exact(node: Node) -> str | None:
    return None if node.get("approximate", "none") == "none" else "it approximates by tanh"


# --- two operands -----------------------------------------------------------------------------------------------------


def _sum_to(grad: Array, shape: Sequence[int]) -> Array:
    """The sum over what broadcasting repeated."""
    from pumice.ops.gradient import sum_to

    lead = grad.ndim - len(shape)
    if lead > 0 and grad.shape[lead:] == tuple(shape) and grad.size and grad.flags.c_contiguous:
        return _added_up(grad.reshape(math.prod(grad.shape[:lead]), -1)).reshape(shape)
    return np.asarray(sum_to(grad, shape))


def _added_up(rows: Array) -> Array:
    """The sum of all rows: parts of them side by side, then those."""
    from pumice_cpu.rows import reduce

    sums = reduce("sum", rows.reshape(_parts(rows), -1, rows.shape[1]), [1], keepdims=False)
    return sums[0] if len(sums) == 1 else reduce("sum", sums, [0], keepdims=False)


def _parts(rows: Array) -> int:
    """Into how many a long sum over rows is cut, whatever the threads."""
    return next((parts for parts in (8, 4, 2) if len(rows) % parts == 0 and len(rows) >= parts * LEAST_ROWS), 1)


def _fits(dy: Array, *operands: Array) -> bool:
    from pumice_cpu.rows import mergeable

    return all(v.dtype == FLOAT and mergeable(dy, v) for v in operands)


def _add_vjp(node: Node, inputs: Any, outputs: Any, grads: Any, wanted: Any) -> Any:
    return [_sum_to(grads[0], x.shape) if want else None for x, want in zip(inputs, wanted, strict=True)]


def _mul_vjp(node: Node, inputs: Any, outputs: Any, grads: Any, wanted: Any) -> Any:
    from pumice_cpu.rows import binary

    (a, b), dy = inputs, grads[0]
    if not _fits(dy, a, b):
        return _core(node, inputs, outputs, grads, wanted)
    pairs = zip(inputs, (b, a), wanted, strict=True)
    return [_sum_to(binary("mul", dy, other), x.shape) if want else None for x, other, want in pairs]


def _div_vjp(node: Node, inputs: Any, outputs: Any, grads: Any, wanted: Any) -> Any:
    from pumice_cpu.rows import binary

    (a, b), dy = inputs, grads[0]
    if wanted[1] or not _fits(dy, b):
        return _core(node, inputs, outputs, grads, wanted)
    return _sum_to(binary("div", dy, b), a.shape), None


# --- rows -------------------------------------------------------------------------------------------------------------


def _layer_norm_vjp(node: Node, inputs: Any, outputs: Any, grads: Any, wanted: Any) -> Any:
    from pumice_cpu.train import layer_norm_gradient

    x, scale = inputs[:2]
    if any(g is not None for g in grads[1:]) or scale.shape != x.shape[node.get("axis", -1) % x.ndim :]:
        return _core(node, inputs, outputs, grads, wanted)
    return layer_norm_gradient(x, grads[0], scale, node.get("epsilon", 1e-5))[: len(inputs)]


def _softmax_vjp(node: Node, inputs: Any, outputs: Any, grads: Any, wanted: Any) -> Any:
    from pumice_cpu.train import softmax_gradient

    y, dy = outputs[0], grads[0]
    if node.get("axis", -1) % y.ndim != y.ndim - 1:
        return _core(node, inputs, outputs, grads, wanted)
    return (softmax_gradient(y, dy),)


# --- quantization -----------------------------------------------------------------------------------------------------


def _quantize_vjp(node: Node, inputs: Any, outputs: Any, grads: Any, wanted: Any) -> Any:
    from pumice_cpu.train import quantize_gradient

    (x, scale, *zero), dtype = inputs, outputs[0].dtype
    if scale.dtype != FLOAT or dtype.name not in BOUNDS:
        return _core(node, inputs, outputs, grads, wanted)
    offset = zero[0] if zero else None
    dx, dscale = quantize_gradient(x, grads[0], scale, offset, BOUNDS[dtype.name], axis=node.get("axis", 1))
    return [dx, dscale, *[None] * len(zero)]


def _dequantize_vjp(node: Node, inputs: Any, outputs: Any, grads: Any, wanted: Any) -> Any:
    from pumice_cpu.train import dequantize_gradient

    q, scale, *zero = inputs
    if scale.dtype != FLOAT:
        return _core(node, inputs, outputs, grads, wanted)
    dq, dscale = dequantize_gradient(q, grads[0], scale, zero[0] if zero else None, axis=node.get("axis", 1))
    return [dq, dscale, *[None] * len(zero)]


def _is_whole(node: Node) -> str | None:
    return "a scale covers a block" if node.get("block_size", 0) else None


# --- pooling ----------------------------------------------------------------------------------------------------------


def _max_pool_vjp(node: Node, inputs: Any, outputs: Any, grads: Any, wanted: Any) -> Any:
    from pumice_cpu.train import max_pool_gradient

    x = inputs[0]
    window = Window.of(node, x.shape[2:], node.attributes["kernel_shape"])
    if not 0 < x.ndim - 2 <= MOST_AXES or not x.size or min(window.output) < 1:
        return _core(node, inputs, outputs, grads, wanted)
    return (max_pool_gradient(x, outputs[0], grads[0], window),)


# --- matrix products --------------------------------------------------------------------------------------------------


def _product_vjp(a: Array, b: Array, dy: Array, wanted: Sequence[bool]) -> tuple[Array | None, Array | None]:
    """dA = dY B^T and dB = A^T dY; a matrix that the whole stack shares gets one product over all rows."""
    from pumice_cpu.gemm import batched, product

    if b.ndim == 2:
        rows, drows = a.reshape(-1, a.shape[-1]), dy.reshape(-1, dy.shape[-1])
        da = product(drows, b.T).reshape(a.shape) if wanted[0] else None
        return da, product(rows.T, drows) if wanted[1] else None
    da = _sum_to(batched(dy, b.swapaxes(-1, -2)), a.shape) if wanted[0] else None
    return da, _sum_to(batched(a.swapaxes(-1, -2), dy), b.shape) if wanted[1] else None


def _multiplies(*arrays: Array) -> bool:
    return all(v.ndim > 1 and v.size and v.dtype == FLOAT for v in arrays)


def _matmul_vjp(node: Node, inputs: Any, outputs: Any, grads: Any, wanted: Any) -> Any:
    a, b = inputs
    if not _multiplies(a, b):
        return _core(node, inputs, outputs, grads, wanted)
    return _product_vjp(a, b, grads[0], wanted)


def _gemm_vjp(node: Node, inputs: Any, outputs: Any, grads: Any, wanted: Any) -> Any:
    (a, b), dy = inputs[:2], grads[0]
    if not _multiplies(a, b) or node.get("alpha", 1.0) != 1 or node.get("beta", 1.0) != 1:
        return _core(node, inputs, outputs, grads, wanted)
    flips = [bool(node.get(name, 0)) for name in ("transA", "transB")]
    left, right = (v.T if flip else v for v, flip in zip((a, b), flips, strict=True))
    found = [
        d.T if flip and d is not None else d
        for d, flip in zip(_product_vjp(left, right, dy, wanted), flips, strict=True)
    ]
    return found + [_sum_to(dy, c.shape) if want else None for c, want in zip(inputs[2:], wanted[2:], strict=True)]


# --- the update of weights --------------------------------------------------------------------------------------------


def updates() -> None:
    """Let the optimizers of core move NumPy arrays in C."""
    FUSED["numpy"], FINITE["numpy"] = _adaptive, _is_finite


def _adaptive(w: Array, g: Array, p: Array, q: Array, **numbers: float) -> object:
    from pumice_cpu.train import adaptive

    return NotImplemented if w.size < SMALL else adaptive(w, g, p, q, **numbers)


def _is_finite(g: Array) -> bool:
    from pumice_cpu.train import is_finite

    return bool(np.isfinite(g).all()) if g.size < SMALL else is_finite(g)


# --- records ----------------------------------------------------------------------------------------------------------


def _gradient(op_type: str, run: Gradient, **fields: Any) -> Kernel:
    """`run` for a gradient of the first output in float32 that is worth a call."""

    def guarded(node: Node, inputs: Any, outputs: Any, grads: Any, wanted: Any) -> Any:
        dy = grads[0]
        usable = dy is not None and dy.dtype == FLOAT and dy.size >= SMALL
        return (run if usable else _core)(node, inputs, outputs, grads, wanted)

    return Kernel(op_type=op_type, part="vjp", run=guarded, **fields)


_SUMS: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}

KERNELS = (
    Kernel(op_type="BatchNormalization", run=_batch_norm, accepts=_trains, **_SUMS),
    _gradient("BatchNormalization", _batch_norm_vjp, **_SUMS),
    _gradient("LayerNormalization", _layer_norm_vjp, **_SUMS),
    _gradient("Softmax", _softmax_vjp, since=13, **_SUMS),
    _gradient("MaxPool", _max_pool_vjp, rtol=0.0, atol=1e-6),
    _gradient("MatMul", _matmul_vjp, **_SUMS),
    _gradient("Gemm", _gemm_vjp, **_SUMS),
    _gradient("Add", _add_vjp, since=7, **_SUMS),
    _gradient("Mul", _mul_vjp, since=7, **_SUMS),
    _gradient("Div", _div_vjp, since=7, **_SUMS),
    _gradient("Clip", _clip_vjp, rtol=0.0, atol=0.0),
    _gradient("QuantizeLinear", _quantize_vjp, accepts=_is_whole, **_SUMS),
    _gradient("DequantizeLinear", _dequantize_vjp, accepts=_is_whole, dtypes=frozenset({"uint8", "int8"}), **_SUMS),
    _gradient("Gelu", _slope("gelu", of_result=False), accepts=_is_exact, **_SUMS),
    _gradient("Gelu", _slope("gelu", of_result=False), domain=_MICROSOFT, **_SUMS),
    *(
        _gradient(name, _slope(name.lower(), of_result=of_result), **_SUMS)
        for name, of_result in (("Relu", True), ("Sigmoid", True), ("Tanh", True), ("Erf", False))
    ),
)
