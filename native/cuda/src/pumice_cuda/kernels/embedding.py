"""Gather of rows: from a quantized table with Cast to float32 and Mul by the scale of each, and its gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pumice.ops.record import Kernel, Link, Node, Outputs
from pumice_cuda import reference
from pumice_cuda.transfers import on_device

FLOAT = 1
"""ONNX's number of float32."""


def _embedding(chain: Sequence[Link]) -> Callable[..., Outputs] | None:
    if [link.node.op_type for link in chain[1:]] != ["Cast", "Mul"] or chain[1].at != 0:
        return None
    if chain[0].node.get("axis", 0) != 0 or chain[1].node.get("to") != FLOAT:
        return None

    def run(table: Any, index: Any, factor: Any) -> Any:
        from pumice_cuda import embedding

        if not on_device(index) or not on_device(factor) or not index.size or not embedding.takes(table, index, factor):
            return NotImplemented
        return (embedding.embed(table, index, factor),)

    return run


def _gradient(node: Node, inputs: Any, outputs: Any, grads: Any, wanted: Any) -> Any:
    import cupy

    from pumice_cuda import embedding

    (table, index), dy = inputs, grads[0]
    if not on_device(index) and np.ndim(index) == 0:  # one entry, known on the CPU
        found = cupy.zeros(table.shape, dy.dtype)
        found[(slice(None),) * (node.get("axis", 0) % table.ndim) + (int(index),)] = dy
        return found, None
    if node.get("axis", 0) != 0 or not on_device(index) or not embedding.takes_gradient(index, dy):
        return reference.gradient(node, inputs, outputs, grads, wanted)
    found = embedding.gradient(index, dy.reshape(index.size, -1), len(table))
    return found.reshape(table.shape), None


KERNELS = (
    Kernel(
        op_type="Gather", part="vjp", run=_gradient, dtypes=frozenset({"float32", "float16", "bfloat16"}), rtol=1e-5,
        atol=1e-5,
    ),
    Kernel(
        op_type="Gather", run=reference.forward, fuse=_embedding, rank=5, dtypes=frozenset({"int8", "uint8"}), rtol=0.0,
        atol=0.0,
    ),
)  # fmt: skip
