"""Simplification: the same function with fewer nodes.

onnxscript's optimizer does constant folding, and with it drops what does nothing: Dropout, a Cast to the same type, a
Reshape or Expand to the same shape. Its rewriter removes pairs that cancel, one rule at a time so that the ledger can
say which rule removed which node. `affine` folds normalisations and biases. What is *not* applied, though available:
rules that trade a named operator for a general one (Flatten to Reshape, Slice pairs to Split), which cost the later
steps the knowledge of what a node means.

Folding is bounded: a node is evaluated only if its result is at most `FREE` bytes or no larger than the constants it
makes unnecessary, so weights stored compressed, behind a Cast or a DequantizeLinear, stay compressed.
Results are those of ONNX's reference evaluator: equal to a runtime's up to rounding.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir
import onnx_ir.passes.common as passes

from pumice.ledger import Ledger
from pumice.model.affine import fold_affines
from pumice.model.common_factor import common_factor_rules
from pumice.model.graph import forget_names, nodes, replace_value, values
from pumice.model.hard_swish import hard_swish_rules
from pumice.model.loading import infer_shapes
from pumice.model.shape_arithmetic import fold_known_dimensions, infer_unknown_dimensions
from pumice.model.tensors import chunks

if TYPE_CHECKING:
    from onnxscript.rewriter import RewriteRule

FREE = 1024
"""Bytes that a folded constant may always take."""

SHARE_FROM = 1024
"""Bytes from which equal matrices and kernels are merged; vectors (biases, shapes) stay apart, to be edited apart."""

_ROUNDS = 8

_ONE_AT_A_TIME = threading.Lock()
"""onnxscript's rules are objects of the whole process and keep what they match in themselves."""

_NEVER_FOLDED = frozenset({
    "ConstantOfShape", "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear",
    "RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli",
})  # fmt: skip


def simplify(model: ir.Model, ledger: Ledger | None = None, *, fold: bool = True) -> bool:
    """Simplify the model in place; True if anything changed. Each node removed has a line in the ledger.

    With `fold` off, layers keep the normalisations and biases that follow them, equal weights stay apart, and lengths
    stay computed: a model under training needs them, one that generates runs on fewer positions than it declares.
    """
    ledger = Ledger() if ledger is None else ledger
    changed = False
    for _ in range(_ROUNDS):
        if not _round(model, ledger, fold=fold):
            break
        changed = True
        _clean(model)
        infer_shapes(model)
    return (fold and _share_equal_initializers(model, ledger)) or changed


def _round(model: ir.Model, ledger: Ledger, *, fold: bool) -> bool:
    from onnxscript.rewriter import RewritePass

    changed = _apply(model, _drop_identities, "it hands its input on", ledger)
    with _ONE_AT_A_TIME:
        changed |= _apply(model, _fold_constants, "constant folding", ledger)
        if fold:
            changed |= _apply(model, fold_known_dimensions, "these dimensions are known", ledger)
        changed |= _apply(model, infer_unknown_dimensions, "the shape follows from the size", ledger)
        for reason, chosen in _rules():
            changed |= _apply(model, RewritePass(chosen), reason, ledger)
    return (fold and fold_affines(model, ledger)) or changed


def _fold_constants(model: ir.Model) -> None:
    from onnxscript.optimizer import fold_constants

    limit = 2**31  # `_worth_folding` alone decides
    fold_constants(model, input_size_limit=limit, output_size_limit=limit, should_fold=_worth_folding)


def _apply(model: ir.Model, rewrite: Callable[[ir.Model], object], reason: str, ledger: Ledger) -> bool:
    """Run one rewrite; each node it removed has a ledger line, each replacement the name of the node it replaces."""
    before = {node: node.name or "" for node in nodes(model)}
    producers = {value.name: name for node, name in before.items() for value in node.outputs}
    rewrite(model)
    _drop_identities(model)
    passes.RemoveUnusedNodesPass()(model)
    after = set(nodes(model))
    replaced = set()
    for node in after - before.keys():
        node.name = producers.get(node.outputs[0].name, node.name)
        replaced.add(node.name)
    removed = [node for node in before if node not in after]
    for node in removed:
        verb = "rewritten" if before[node] in replaced else "removed"
        ledger.applied("simplify", before[node], node.op_type, f"{verb}: {reason}")
    return bool(removed) or len(after) > len(before)


def _drop_identities(model: ir.Model) -> None:
    """Let readers of an Identity of the main graph read its input; one that only names an input as an output stays."""
    for node in model.graph:
        if node.op_type != "Identity" or node.domain != "" or node.inputs[0] is None:
            continue
        source, output = node.inputs[0], node.outputs[0]
        if not output.is_graph_output() or (source.producer() is not None and not source.is_graph_output()):
            replace_value(output, source)
            model.graph.remove(node, safe=True)


def _rules() -> Iterator[tuple[str, Sequence[RewriteRule]]]:
    """The rewrite rules applied, in order, each with the words that the ledger uses for it."""
    from onnxscript.rewriter.rules import common as rules

    yield "arithmetic with a neutral constant", (
        *rules.mul_by_1_rule.commute(), *rules.add_0_rule.commute(), rules.sub_0_rule, rules.div_by_1_rule,
    )  # fmt: skip
    yield "a cast of a cast", (rules.cast_cast_rule,)
    yield "transposes that do nothing or cancel", (rules.no_op_transpose_rule, rules.transpose_transpose_rule)
    yield "a reshape of a reshape", (rules.reshape_reshape_rule,)
    yield "an unsqueeze of an unsqueeze", (rules.unsqueeze_unsqueeze_rule,)
    yield "activations that absorb each other", (
        rules.successive_relu_rule, rules.successive_clip_rule, rules.successive_relu_clip_rule,
        rules.successive_clip_relu_rule,
    )  # fmt: skip
    yield "padding moved into the convolution", (rules.fuse_pad_into_conv_rule,)
    yield "hard swish in one operator", hard_swish_rules().rules
    yield "a common factor taken out of a sum", common_factor_rules().rules


def _worth_folding(node: ir.Node) -> bool:
    """Whether to evaluate a node whose inputs are all constant. (onnxscript evaluates nodes of one output only.)"""
    made = _bytes_of(node.outputs[0]) if len(node.outputs) == 1 else None
    if made is None or node.op_type in _NEVER_FOLDED:
        return False
    freed = sum(
        value.const_value.nbytes
        for value in {v for v in node.inputs if v is not None}
        if value.const_value is not None and all(use.node is node for use in value.uses())
    )
    return made <= max(FREE, freed)


def _bytes_of(value: ir.Value) -> int | None:
    if value.dtype is None or value.shape is None or not value.shape.is_static():
        return None
    return math.ceil(math.prod(value.shape.numpy()) * value.dtype.bitwidth / 8)


def _share_equal_initializers(model: ir.Model, ledger: Ledger) -> bool:
    first: dict[tuple[object, ...], ir.Value] = {}
    shared = 0
    for value in tuple(model.graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or tensor.nbytes < SHARE_FROM or len(tensor.shape.numpy()) < 2 or value.is_graph_output():
            continue
        digest = hashlib.sha256()
        for piece in chunks(tensor):
            digest.update(piece)
        kept = first.setdefault((tensor.dtype, tuple(tensor.shape.numpy()), digest.digest()), value)
        if kept is not value:
            value.replace_all_uses_with(kept)
            del model.graph.initializers[value.name or ""]
            ledger.applied("simplify", value.name or "", "", f"shares the equal initializer '{kept.name}'")
            shared += 1
    return bool(shared)


def _clean(model: ir.Model) -> None:
    """Drop what is unused now, and the marks that the rewriter leaves on nodes."""
    passes.RemoveUnusedNodesPass()(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes.RemoveUnusedOpsetsPass()(model)
    passes.NameFixPass()(model)
    forget_names(model)
    marked: list[ir.Node | ir.Value] = [*nodes(model), *values(model)]
    for props in (each.metadata_props for each in marked):
        for key in [key for key in props if key.startswith("pkg.onnxscript")]:
            del props[key]
