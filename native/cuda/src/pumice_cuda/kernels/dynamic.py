"""DynamicQuantizeLinear, alone and after what makes its values: a LayerNormalization, factors of the columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pumice.ops.record import Array, Kernel, Link, Node, Outputs
from pumice_cuda import reference
from pumice_cuda.teams import aligned
from pumice_cuda.transfers import on_device


def _quantize(node: Node, x: Array) -> Outputs:
    from pumice_cuda import dynamic, quantize

    if x.size == 0:
        return reference.forward(node, x)
    return dynamic.times(x) if x.ndim and dynamic.takes(x) else quantize.dynamic_quantize(x)


def _ends_in_quantization(chain: Sequence[Link]) -> bool:
    return len(chain) == 2 and chain[1].node.op_type == "DynamicQuantizeLinear"


def _normalised(chain: Sequence[Link]) -> Callable[..., Outputs] | None:
    if not _ends_in_quantization(chain):
        return None
    node = chain[0].node

    def run(x: Array, scale: Array, bias: Array | None = None) -> Any:
        from pumice_cuda import dynamic

        row = x.shape[node.get("axis", -1) :] if node.get("axis", -1) % x.ndim else ()
        vectors = [v for v in (scale, bias) if v is not None]
        if not dynamic.takes(x) or any(not on_device(v) or v.shape != row or v.dtype != np.float32 for v in vectors):
            return NotImplemented
        if not aligned(*vectors):
            return NotImplemented
        return dynamic.layer_norm(x, scale, bias, node.get("epsilon", 1e-5))

    return run


def _multiplied(chain: Sequence[Link]) -> Callable[..., Outputs] | None:
    """By a vector for the last axis."""
    if not _ends_in_quantization(chain):
        return None

    def run(a: Array, b: Array) -> Any:
        from pumice_cuda import dynamic

        if not (on_device(a) and on_device(b)):
            return NotImplemented
        x, factor = (a, b) if a.ndim > b.ndim else (b, a)
        return dynamic.times(x, factor) if x.ndim and dynamic.takes(x, factor) else NotImplemented

    return run


_FUSING: dict[str, Any] = {"run": reference.forward, "rank": 5}
"""By itself another record computes the operator, or core."""

KERNELS = (
    Kernel(op_type="DynamicQuantizeLinear", since=11, run=_quantize, rtol=0.0, atol=0.0),
    Kernel(op_type="LayerNormalization", since=17, fuse=_normalised, rtol=1e-5, atol=1e-5, **_FUSING),
    Kernel(op_type="Mul", fuse=_multiplied, rtol=0.0, atol=0.0, **_FUSING),
)
