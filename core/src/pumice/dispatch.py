"""Dispatch: which code computes a node, or its gradient.

Settled once, when a plan is compiled: the highest-ranked kernel that fits, for the types that it handles; the next one
for the rest; NumPy, which handles all, at last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
import numpy as np

from pumice.errors import UnsupportedOp
from pumice.ops import OpTable
from pumice.ops.record import Arrays, Forward, Kernel, Node, Op, Outputs, Vjp


def implementation(
    node: Node, constants: Sequence[Any], table: OpTable, kernels: Sequence[Kernel]
) -> tuple[Op, Forward]:
    """What is known about the node's operator, and what computes the node.

    Args:
        node: the node.
        constants: by input, None where one is not constant.
        table: the operators known.
        kernels: those available, the highest rank first.

    Raises:
        UnsupportedOp: the table has no `forward` for it.
    """
    op = table.resolve(node.domain, node.op_type, node.opset)
    if op is None or op.forward is None:
        raise UnsupportedOp(
            f"operator {node.op_type} of domain {node.domain or 'ai.onnx'}, opset {node.opset}, has no "
            f"implementation here (node '{node.name or node.outputs[0]}'); install a plugin that gives it a "
            f"`forward`, or run the model with another runtime"
        )
    call = op.forward
    for kernel in reversed([k for k in kernels if k.part == "forward" and k.fits(node)]):
        run = kernel.bind(node, constants) if kernel.bind else kernel.run
        call = call if run is None else _guarded(kernel, call, run)
    return op, call


def gradient(node: Node, op: Op, kernels: Sequence[Kernel]) -> Callable[..., Any] | None:
    """What computes the node's gradient; None if none is known."""
    call = op.vjp
    if call is not None:
        for kernel in reversed([k for k in kernels if k.part == "vjp" and k.fits(node)]):
            call = _guarded_gradient(kernel, call)
    return call


def handled(kernel: Kernel) -> frozenset[np.dtype[Any]]:
    """The types of a first input for which the kernel works."""
    return frozenset(np.dtype(name) for name in kernel.dtypes)


def _guarded(kernel: Kernel, otherwise: Forward, run: Forward) -> Forward:
    """The kernel for the types it handles, whatever comes next for the rest."""
    dtypes = handled(kernel)

    def call(node: Node, *arrays: Any) -> Outputs:
        return run(node, *arrays) if arrays[0].dtype in dtypes else otherwise(node, *arrays)

    return call


def _guarded_gradient(kernel: Kernel, otherwise: Callable[..., Any]) -> Callable[..., Any]:
    """As `_guarded`, for a gradient: it reads what the operator's own reads."""
    run, dtypes = kernel.run, handled(kernel)

    def call(node: Node, inputs: Arrays, *rest: Any) -> Sequence[Any]:
        return run(node, inputs, *rest) if inputs[0].dtype in dtypes else otherwise(node, inputs, *rest)

    return attrs.evolve(otherwise, run=call) if isinstance(otherwise, Vjp) else call
