"""Where of bfloat16, for which CuPy's `where` has no kernel and gives float32: the same values, back in their type."""

from __future__ import annotations

from typing import Any

from pumice.ops.record import Array, Kernel, Node, Outputs
from pumice_cuda import reference

CONDITIONS = frozenset({"bool"})


def _where(node: Node, condition: Array, x: Array, y: Array) -> Outputs:
    (chosen,) = reference.forward(node, condition, x, y)
    return (chosen.astype(x.dtype, copy=False),)


def _gradient(node: Node, inputs: Any, outputs: Any, grads: Any, wanted: Any) -> Outputs:
    found = reference.gradient(node, inputs, outputs, grads, wanted)
    return tuple(None if g is None else g.astype(grads[0].dtype, copy=False) for g in found)


KERNELS = (
    Kernel(op_type="Where", dtypes=CONDITIONS, run=_where, rtol=0.0, atol=0.0),
    Kernel(op_type="Where", part="vjp", dtypes=CONDITIONS, run=_gradient, rtol=0.0, atol=0.0),
)
