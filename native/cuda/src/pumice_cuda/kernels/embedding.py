"""An embedding from a quantized table: Gather of its rows, Cast to float32, Mul by the scale of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pumice.ops.record import Kernel, Link, Outputs
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


KERNELS = (
    Kernel(
        op_type="Gather", run=reference.forward, fuse=_embedding, rank=5, dtypes=frozenset({"int8", "uint8"}), rtol=0.0,
        atol=0.0,
    ),
)  # fmt: skip
