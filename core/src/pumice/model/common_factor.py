"""The common factor of a sum: x + x h = x (1 + h), where h is one number a channel, or otherwise smaller than x.

A squeeze-and-excitation gate with a residual connection is written as a product and a sum, two passes over x. Taken
out, the factor costs one; the sum is one of few numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx_ir as ir

if TYPE_CHECKING:
    from onnxscript.rewriter import RewriteRuleSet


def common_factor_rules() -> RewriteRuleSet:
    """Whichever way the sum and the product are written."""
    from onnxscript.rewriter import RewriteRule, RewriteRuleSet

    def written(op: Any, x: Any, h: Any) -> Any:
        return op.Add(x, op.Mul(x, h))

    return RewriteRuleSet([RewriteRule(written, _factored, _is_smaller)], commute=True)


def _factored(op: Any, x: ir.Value, h: ir.Value, **_: Any) -> Any:
    return op.Mul(x, op.Add(h, op.Constant(value_float=1.0)))


def _is_smaller(context: Any, x: ir.Value, h: ir.Value, **_: Any) -> bool:
    return x.dtype == ir.DataType.FLOAT and is_broadcast(h, x)


def is_broadcast(h: ir.Value, x: ir.Value) -> bool:
    """Whether h, of the same rank, is repeated along an axis of x, and x along none of h."""
    if x.shape is None or h.shape is None or x.shape.rank() != h.shape.rank():
        return False
    pairs = list(zip(x.shape, h.shape, strict=True))
    return all(of_h in (1, of_x) for of_x, of_h in pairs) and any(of_h == 1 != of_x for of_x, of_h in pairs)
