"""Gradients of softmax, normalisation and GELU of the Plan, each in one or two passes.

What a kernel cannot take (an axis in the middle, an empty array, a scale that covers no row) goes to core's code.
"""

from __future__ import annotations

import math
from typing import Any

from pumice.ops.record import Kernel, Node
from pumice_cuda import reference

FLOATS = frozenset({"float32", "float16", "bfloat16"})
_MICROSOFT = "com.microsoft"


def _softmax(logarithm: bool) -> Any:
    def run(node: Node, inputs: Any, outputs: Any, grads: Any, wanted: Any) -> Any:
        from pumice_cuda.gradients import softmax

        y, flat = outputs[0], node.opset < 13  # before opset 13 one softmax over all axes from `axis` on
        axis = node.get("axis", 1 if flat else -1) % max(y.ndim, 1)
        if not y.size or not y.ndim or not (flat or axis == y.ndim - 1):
            return reference.gradient(node, inputs, outputs, grads, wanted)
        rows = (math.prod(y.shape[:axis]), -1)
        return (softmax(y.reshape(rows), grads[0].reshape(rows), logarithm=logarithm).reshape(y.shape),)

    return run


def _norm(rms: bool) -> Any:
    def run(node: Node, inputs: Any, outputs: Any, grads: Any, wanted: Any) -> Any:
        from pumice_cuda.gradients import layer_norm

        x, scale, *bias = inputs
        row = x.shape[node.get("axis", -1) % x.ndim :]
        only_y = grads[0] is not None and all(g is None for g in grads[1:])
        fits = all(v is None or (v.shape == row and v.dtype == x.dtype) for v in (scale, *bias))
        if not x.size or not only_y or not fits:
            return reference.gradient(node, inputs, outputs, grads, wanted)
        return layer_norm(x, grads[0], scale, node.get("epsilon", 1e-5), rms=rms)[: len(inputs)]

    return run


def _gelu(node: Node, inputs: Any, outputs: Any, grads: Any, wanted: Any) -> Any:
    from pumice_cuda.gradients import map_elements

    return (map_elements("gelu_tanh" if node.get("approximate", "none") == "tanh" else "gelu", inputs[0], grads[0]),)


_CLOSE: dict[str, Any] = {"part": "vjp", "rtol": 1e-4, "atol": 1e-4, "dtypes": FLOATS}

KERNELS = (
    Kernel(op_type="Softmax", run=_softmax(False), **_CLOSE),
    Kernel(op_type="LogSoftmax", run=_softmax(True), **_CLOSE),
    Kernel(op_type="LayerNormalization", since=17, run=_norm(False), **_CLOSE),
    Kernel(op_type="RMSNormalization", since=23, run=_norm(True), **_CLOSE),
    Kernel(op_type="SimplifiedLayerNormalization", run=_norm(True), **_CLOSE),
    Kernel(op_type="Gelu", since=20, run=_gelu, **_CLOSE),
    Kernel(op_type="Gelu", domain=_MICROSOFT, run=_gelu, **_CLOSE),
)
