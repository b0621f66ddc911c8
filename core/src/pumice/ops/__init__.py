"""Operators: one frozen `Op` record each, one module per family.

`core_ops()` yields the records of every family; core's own plugin contributes them through the same hook as anybody's.
"""

from collections.abc import Iterator
from functools import cache
from importlib import import_module

from pumice.ops.record import Kernel, Node, Op, OpCost, OpTable

__all__ = ["Kernel", "Node", "Op", "OpCost", "OpTable", "core_ops", "core_table"]

FAMILIES = (
    "elementwise", "activation", "cast", "conv", "pool", "norm", "reduction", "softmax", "loss", "matmul", "shape",
    "creation", "gather_scatter", "selection", "resize", "sampling", "attention", "recurrent", "quantize", "integer",
    "quantized_functions", "quantized_recurrent", "spectral", "control", "sequence", "calibration",
)  # fmt: skip


def core_ops() -> Iterator[Op]:
    """Every operator that core implements."""
    for family in FAMILIES:
        yield from import_module(f"pumice.ops.{family}").OPS


@cache
def core_table() -> OpTable:
    """Core's operators alone, merged."""
    return OpTable.merge(("pumice", op) for op in core_ops())
