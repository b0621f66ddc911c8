"""Hard swish from its parts: x * clip(x + 3, 0, 6) / 6 is one operator, HardSwish, since ONNX 14.

Exporters write it as four passes over the tensor, dividing the clip or the product. A runtime that knows the operator
does it in one, one that does not in two (HardSigmoid and a product). The bounds must be exactly these numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from pumice.model.graph import constant

if TYPE_CHECKING:
    from onnxscript.rewriter import RewriteRuleSet

SINCE = 14


def hard_swish_rules() -> RewriteRuleSet:
    """The two forms, whichever way their sums and products are written."""
    from onnxscript.rewriter import RewriteRule, RewriteRuleSet

    def of_product(op: Any, x: Any, three: Any, low: Any, high: Any, six: Any) -> Any:
        return op.Div(op.Mul(x, op.Clip(op.Add(x, three), low, high)), six)

    def of_clip(op: Any, x: Any, three: Any, low: Any, high: Any, six: Any) -> Any:
        return op.Mul(x, op.Div(op.Clip(op.Add(x, three), low, high), six))

    rules = [RewriteRule(form, _named, _is_hard_swish) for form in (of_product, of_clip)]
    return RewriteRuleSet(rules, commute=True)


def _named(op: Any, x: ir.Value, **_: ir.Value) -> Any:
    return op.HardSwish(x)


def _is_hard_swish(
    context: Any, x: ir.Value, three: ir.Value, low: ir.Value, high: ir.Value, six: ir.Value, **_: Any
) -> bool:
    rank = 0 if x.shape is None else x.shape.rank()
    found = [constant(value) for value in (three, low, high, six)]
    known = [array.item() if array is not None and array.size == 1 and array.ndim <= rank else None for array in found]
    return known == [3, 0, 6, 6] and context.model.opset_imports.get("", 0) >= SINCE
