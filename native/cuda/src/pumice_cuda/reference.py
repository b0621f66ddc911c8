"""What core computes, for what a kernel cannot take: its NumPy code, which runs on CuPy's arrays as well."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pumice.ops.record import Node, Op, Outputs


@cache
def _op(domain: str, op_type: str, opset: int) -> Op:
    from pumice.ops import core_table

    op = core_table().resolve(domain, op_type, opset)
    assert op is not None
    return op


def forward(node: Node, *arrays: Any) -> Outputs:
    """The outputs of a node."""
    call = _op(node.domain, node.op_type, node.opset).forward
    assert call is not None
    return call(node, *arrays)


def gradient(node: Node, inputs: Any, outputs: Any, grads: Any, wanted: Any) -> Any:
    """The gradients of a node's inputs."""
    call = _op(node.domain, node.op_type, node.opset).vjp
    assert call is not None
    return call(node, inputs, outputs, grads, wanted)
