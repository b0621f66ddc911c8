"""Quantization of the Plan: Q and DQ for 8 bits, Relu before Q in one pass, and the gradients of Q and DQ.

Blocks of scales, other types and empty arrays go to core's code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pumice.ops.record import Array, Kernel, Link, Node, Outputs
from pumice_cuda import reference

FLOATS, BYTES = frozenset({"float32", "float16"}), frozenset({"uint8", "int8"})
BOUNDS = {"uint8": (0, 255), "int8": (-128, 127), "int4": (-8, 7), "uint4": (0, 15)}
_MICROSOFT = "com.microsoft"


def _axis(node: Node, scale: Array) -> int | None:
    return None if scale.size == 1 else node.get("axis", 1)


def _plain(node: Node, x: Array, scale: Array) -> bool:
    """One float32 scale, or one for each place of the axis."""
    single = scale.dtype == np.float32 and not node.get("precision", 0) and x.size > 0
    return single and (scale.size == 1 or scale.size == x.shape[node.get("axis", 1)])


def _stored_type(node: Node, zero: Array | None) -> np.dtype[Any]:
    from pumice.ops.dtypes import numpy_dtype

    code = node.get("output_dtype", 0)
    return zero.dtype if zero is not None else numpy_dtype(code) if code else np.dtype(np.uint8)


def _quantize(node: Node, x: Array, scale: Array, zero: Array | None = None) -> Outputs:
    from pumice_cuda.quantize import quantize

    kind = _stored_type(node, zero)
    if kind.name not in BYTES or not _plain(node, x, scale):
        return reference.forward(node, x, scale, zero)
    return (quantize(x, scale, zero, kind, axis=_axis(node, scale)),)


def _dequantize(node: Node, q: Array, scale: Array, zero: Array | None = None) -> Outputs:
    from pumice_cuda.quantize import dequantize

    if not _plain(node, q, scale) or node.get("output_dtype", 0) not in (0, 1):
        return reference.forward(node, q, scale, zero)
    return (dequantize(q, scale, zero, axis=_axis(node, scale)),)


def _is_whole(node: Node) -> str | None:
    return "a scale covers a block" if node.get("block_size", 0) else None


def _relu_quantize(chain: Sequence[Link]) -> Callable[..., Outputs] | None:
    """Relu and QuantizeLinear as one, where the zero point is a constant and one for all."""
    if len(chain) != 2 or chain[1].node.op_type != "QuantizeLinear" or chain[1].at != 0:
        return None
    node, constants = chain[1].node, (*chain[1].constants, None, None)[:3]
    known = constants[2]
    if _is_whole(node) or (known is not None and known.size != 1):
        return None
    least = 0 if known is None else int(known.reshape(()))

    def run(x: Array, scale: Array, zero: Array | None = None) -> Any:
        from pumice_cuda.quantize import quantize

        kind = _stored_type(node, zero)
        if x.dtype.name not in FLOATS or kind.name not in BYTES or not _plain(node, x, scale) or zero is not known:
            return NotImplemented
        return (quantize(x, scale, zero, kind, axis=_axis(node, scale), low=least),)

    return run


# --- gradients --------------------------------------------------------------------------------------------------------


def _quantize_vjp(node: Node, inputs: Any, outputs: Any, grads: Any, wanted: Any) -> Any:
    from pumice_cuda.quantize import quantize_gradient

    (x, scale, *zero), bounds, dq = inputs, BOUNDS.get(outputs[0].dtype.name), grads[0]
    if dq is None or dq.dtype != x.dtype or bounds is None or not _plain(node, x, scale):
        return reference.gradient(node, inputs, outputs, grads, wanted)
    dx, dscale = quantize_gradient(x, dq, scale, zero[0] if zero else None, bounds, axis=_axis(node, scale))
    return [dx, dscale.reshape(scale.shape), *[None] * len(zero)]


def _dequantize_vjp(node: Node, inputs: Any, outputs: Any, grads: Any, wanted: Any) -> Any:
    from pumice_cuda.quantize import dequantize_gradient

    (q, scale, *zero), dy = inputs, grads[0]
    if dy is None or dy.dtype != np.float32 or not _plain(node, q, scale):
        return reference.gradient(node, inputs, outputs, grads, wanted)
    dq, dscale = dequantize_gradient(q, dy, scale, zero[0] if zero else None, axis=_axis(node, scale))
    return [dq, dscale.reshape(scale.shape), *[None] * len(zero)]


_EXACT: dict[str, Any] = {"rtol": 0.0, "atol": 0.0}
_SUMS: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}

KERNELS = (
    *(
        Kernel(op_type=name, since=since, domain=domain, run=run, dtypes=dtypes, accepts=_is_whole, **_EXACT)
        for domain, since in (("", 10), (_MICROSOFT, 1))
        for name, run, dtypes in (("QuantizeLinear", _quantize, FLOATS), ("DequantizeLinear", _dequantize, BYTES))
    ),
    Kernel(op_type="Relu", run=reference.forward, fuse=_relu_quantize, dtypes=FLOATS, **_EXACT),
    Kernel(op_type="QuantizeLinear", part="vjp", run=_quantize_vjp, accepts=_is_whole, **_SUMS),
    Kernel(op_type="DequantizeLinear", part="vjp", run=_dequantize_vjp, accepts=_is_whole, dtypes=BYTES, **_SUMS),
)
