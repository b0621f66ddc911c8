"""Softmax, normalisation, GELU and reductions of the Plan, for float32, float16 and bfloat16.

What a kernel cannot take (an axis in the middle, an empty array, a scale that covers no row) goes to core's code.
"""

from __future__ import annotations

import math
from typing import Any

from pumice.ops.record import Array, Forward, Kernel, Node, Outputs
from pumice_cuda import reference

FLOATS = frozenset({"float32", "float16", "bfloat16"})
_MICROSOFT = "com.microsoft"


def _softmax(logarithm: bool) -> Forward:
    def run(node: Node, x: Array) -> Outputs:
        from pumice_cuda.rows import softmax

        if x.size == 0 or node.get("axis", -1) % max(x.ndim, 1) != x.ndim - 1:
            return reference.forward(node, x)
        return (softmax(x, logarithm=logarithm),)

    return run


def _flat_softmax(logarithm: bool) -> Forward:
    """Before opset 13: one softmax over all axes from `axis` on."""

    def run(node: Node, x: Array) -> Outputs:
        from pumice_cuda.rows import softmax

        axis = node.get("axis", 1) % max(x.ndim, 1)
        if x.size == 0:
            return reference.forward(node, x)
        return (softmax(x.reshape(math.prod(x.shape[:axis]), -1), logarithm=logarithm).reshape(x.shape),)

    return run


def _normalised(node: Node, x: Array, scale: Array, bias: Array | None, **how: Any) -> Any:
    """(y, mean, inverse, total), or None where scale or bias do not cover a row."""
    from pumice_cuda.rows import layer_norm

    axis = node.get("axis", -1) % x.ndim
    row = x.shape[axis:]
    fits = all(v is None or (v.shape == row and v.dtype == x.dtype) for v in (scale, bias))
    if x.size == 0 or not fits:
        return None
    wanted = node.wants(1) or node.wants(2)
    y, mean, inverse, total = layer_norm(
        x, scale, bias, node.get("epsilon", 1e-5), columns=math.prod(row), statistics=wanted, **how
    )
    kept = x.shape[:axis] + (1,) * len(row)
    return (y, *(None if v is None else v.reshape(kept) for v in (mean, inverse)), total)


def _layer_norm(node: Node, x: Array, scale: Array, bias: Array | None = None) -> Outputs:
    found = _normalised(node, x, scale, bias)
    return reference.forward(node, x, scale, bias) if found is None else found[:3]


def _rms_norm(node: Node, x: Array, scale: Array) -> Outputs:
    found = _normalised(node, x, scale, None, rms=True)
    return reference.forward(node, x, scale) if found is None else (found[0], found[2])


def _skip_layer_norm(
    node: Node, x: Array, skip: Array, scale: Array, beta: Array | None = None, bias: Array | None = None
) -> Outputs:
    fits = x.shape == skip.shape and (bias is None or bias.shape == x.shape[-1:])
    found = _normalised(node, x, scale, beta, skip=skip, skip_bias=bias, total=True) if fits else None
    return reference.forward(node, x, skip, scale, beta, bias) if found is None else found


def _map(function: Any) -> Forward:
    def run(node: Node, x: Array) -> Outputs:
        from pumice_cuda.rows import map_elements

        return (map_elements(function, x),)

    return run


def _gelu(node: Node, x: Array) -> Outputs:
    from pumice_cuda.rows import map_elements

    return (map_elements("gelu_tanh" if node.get("approximate", "none") == "tanh" else "gelu", x),)


def _is_silu(node: Node) -> str | None:
    return None if node.get("alpha", 1.0) == 1 else "its slope is not 1"


def _reduction(name: Any) -> Forward:
    def run(node: Node, x: Array, axes: Array | None = None) -> Outputs:
        from pumice.ops.reduction import axes_of
        from pumice_cuda.rows import reduce

        chosen = axes_of(node, x, axes) if x.size else None
        if not chosen:
            return reference.forward(node, x, axes)
        return (reduce(name, x, chosen, keepdims=bool(node.get("keepdims", 1))),)

    return run


_CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5, "dtypes": FLOATS}

KERNELS = (
    *(
        record
        for name, logarithm in (("Softmax", False), ("LogSoftmax", True))
        for record in (
            Kernel(op_type=name, until=12, run=_flat_softmax(logarithm), **_CLOSE),
            Kernel(op_type=name, since=13, run=_softmax(logarithm), **_CLOSE),
        )
    ),
    Kernel(op_type="LayerNormalization", since=17, run=_layer_norm, **_CLOSE),
    Kernel(op_type="RMSNormalization", since=23, run=_rms_norm, **_CLOSE),
    Kernel(op_type="SimplifiedLayerNormalization", run=_rms_norm, **_CLOSE),
    Kernel(op_type="SkipLayerNormalization", domain=_MICROSOFT, run=_skip_layer_norm, **_CLOSE),
    Kernel(op_type="Gelu", since=20, run=_gelu, **_CLOSE),
    Kernel(op_type="Gelu", domain=_MICROSOFT, run=_gelu, **_CLOSE),
    Kernel(op_type="Swish", since=24, run=_map("silu"), accepts=_is_silu, **_CLOSE),
    *(
        Kernel(op_type=f"Reduce{name}", run=_reduction(reduction), **_CLOSE)
        for name, reduction in (
            ("Sum", "sum"),
            ("Mean", "mean"),
            ("Max", "max"),
            ("Min", "min"),
            ("SumSquare", "sum_square"),
        )
    ),
)
