"""Loading: from the many dialects of ONNX files to the one form that the rest of pumice works on.

After `load`: every operator is of one opset, no functions, every constant is an initializer that is not also an input,
nothing is unused, every node and value has a unique name, nodes are in order, and every value has the type and shape
that inference could give it (axes that were dynamic stay so). Names in the file are kept. Bodies of `If`, `Loop` and
`Scan` are converted to the opset and otherwise carried as they are. What was changed is in the ledger. The result is a
function of the bytes read and of nothing else.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes

from pumice.errors import ModelError
from pumice.ledger import Ledger
from pumice.model.checking import check_operators, check_schema, check_weights, check_wiring, inner_nodes
from pumice.model.graph import constant, nodes, values
from pumice.model.opset import OLDEST_IR, settle_opset, to_working_opset
from pumice.model.reading import read
from pumice.model.skeleton import strip
from pumice.model.tensors import materializer, replace_tensors

LEDGER = "pumice.ledger"
"""Where `load` keeps its ledger in `model.meta` when it is not given one."""

DATA_FILES = "pumice.data_files"
"""Where `load` keeps the paths of the files, beside the model's, that its weights are mapped from."""

LONGEST_RANGE = 1_000_000
"""Items of a constant Range that ONNX's inference may write out; it would do so whatever memory that takes."""


def load(path: str | os.PathLike[str], *, ledger: Ledger | None = None) -> ir.Model:
    """Read, check and normalise an ONNX model.

    External data stays memory-mapped, so a model larger than memory can be loaded. What was done goes into `ledger`
    (step `load`), else into a new one in `model.meta["pumice.ledger"]`.

    Raises:
        ModelError: the file cannot be read, is not ONNX, is damaged, or cannot be worked on: one sentence.
    """
    source = Path(path)
    notes = Ledger()
    proto = read(source, notes)
    try:
        model = _normalised(_deserialised(proto), source, notes)
    except (ModelError, ir.serde.SerdeError) as error:
        raise ModelError(f"'{source}': {_sentence(error)}") from error
    if ledger is None:
        model.meta[LEDGER] = notes
    else:
        ledger.extend(notes)
    return model


def _deserialised(proto: onnx.ModelProto) -> ir.Model:
    try:
        return ir.from_proto(proto)
    except Exception as error:  # whatever onnx_ir met
        raise ModelError(_sentence(error)) from error


def _sentence(error: BaseException) -> str:
    """The error's own text if it is ours; onnx_ir's texts hold whole graphs, so there the cause is what counts."""
    if isinstance(error, ModelError):
        return " ".join(str(error).split())
    while error.__cause__ is not None:
        error = error.__cause__
    return f"the graph cannot be built ({' '.join(str(error).split())[:200]}): export the model again"


def _normalised(model: ir.Model, source: Path, ledger: Ledger) -> ir.Model:
    settle_opset(model)
    check_wiring(model)
    files: set[Path] = set()
    materialize = materializer(source, files)
    replace_tensors(model.graph, materialize)
    _sort(model, ledger)
    _name(model, ledger)
    check_operators(model)
    check_schema(model)
    _inline(model, ledger)
    replace_tensors(model.graph, materialize)  # those of the inlined functions
    _pin_initializers(model, ledger)
    _prune(model, ledger)
    model = to_working_opset(model, ledger)
    _lift_constants(model, ledger)
    _resolve_identities(model, ledger)
    _prune(model, ledger)
    _name(model, ledger)
    check_weights(model)
    infer_shapes(model, ledger)
    _report(model, ledger)
    model.meta[DATA_FILES] = frozenset(files)
    return model


def infer_shapes(model: ir.Model, ledger: Ledger | None = None) -> ir.Model:
    """Give every value the type and shape that ONNX's inference can derive, in place; dynamic axes stay dynamic.

    Names must be unique (as `load` leaves them). Returns the same model. If inference fails, nothing is changed and
    `ledger` says so. Values are propagated too (a Reshape's shape), unless a Range would have to be written out for it.
    """
    try:
        proto = onnx.shape_inference.infer_shapes(strip(model)[0], data_prop=not _has_long_range(model))
    except onnx.shape_inference.InferenceError as error:
        if ledger is not None:
            ledger.declined("load", "model", "", f"shapes could not be inferred ({' '.join(str(error).split())})")
        return model
    inferred = {value.name: value for value in values(ir.from_proto(proto))}
    for value in values(model):
        found = inferred.get(value.name)
        if found is not None and found.type is not None:
            value.type, value.shape = found.type, found.shape
    return model


def _has_long_range(model: ir.Model) -> bool:
    """Whether a Range of constants has more than `LONGEST_RANGE` items."""
    for node in nodes(model):
        ends = [constant(value) for value in node.inputs] if node.op_type == "Range" else []
        if len(ends) == 3 and all(end is not None and end.size == 1 for end in ends):
            start, limit, delta = (end.item() for end in ends if end is not None)
            if not delta or abs((limit - start) / delta) > LONGEST_RANGE:
                return True
    return False


def _sort(model: ir.Model, ledger: Ledger) -> None:
    if any(not _in_order(graph) for graph in model.graphs()):
        passes.TopologicalSortPass()(model)
        ledger.note("load", "the nodes were not in order and were sorted")


def _in_order(graph: ir.Graph) -> bool:
    seen: set[ir.Node] = set()
    for node in graph:
        before = (p for inner in (node, *inner_nodes(node)) for p in inner.predecessors())
        if any(p.graph is graph and p not in seen for p in before):
            return False
        seen.add(node)
    return True


def _inline(model: ir.Model, ledger: Ledger) -> None:
    if not model.functions:
        return
    calls = sum(node.op_identifier() in model.functions for node in nodes(model))
    try:
        passes.InlinePass()(model)
    except (ValueError, ir.passes.PassError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise ModelError(f"its functions cannot be inlined ({reason}): export it without local functions") from error
    model.functions.clear()
    check_operators(model)
    ledger.note("load", f"{calls} calls of the model's own functions were inlined")


def _pin_initializers(model: ir.Model, ledger: Ledger) -> None:
    named = [value.name for value in model.graph.inputs if value.is_initializer()]
    if passes.RemoveInitializersFromInputsPass()(model).modified and model.ir_version >= 4:
        shown = ", ".join(f"'{name}'" for name in named[:4]) + (", ..." if len(named) > 4 else "")
        ledger.note("load", f"{len(named)} inputs with a default value became constants: {shown}")
    model.ir_version = max(model.ir_version, OLDEST_IR)  # before IR 4 an initializer had to be an input


def _lift_constants(model: ir.Model, ledger: Ledger) -> None:
    before = sum(node.op_type == "Constant" for node in nodes(model))
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    lifted = before - sum(node.op_type == "Constant" for node in nodes(model))
    if lifted:
        ledger.note("load", f"{lifted} Constant nodes became initializers")


def _resolve_identities(model: ir.Model, ledger: Ledger) -> None:
    """Readers of `Identity(initializer)` read the initializer; an Identity that is an output stays."""
    resolved = 0
    for node in model.graph:
        source = node.inputs[0] if node.op_type == "Identity" and node.domain == "" else None
        if source is not None and source.is_initializer() and not node.outputs[0].is_graph_output():
            node.outputs[0].replace_all_uses_with(source)
            model.graph.remove(node, safe=True)
            resolved += 1
    if resolved:
        ledger.note("load", f"{resolved} Identity nodes of initializers were resolved")


def _prune(model: ir.Model, ledger: Ledger) -> None:
    before = Counter(node.op_type for node in nodes(model))
    passes.RemoveUnusedNodesPass()(model)
    passes.RemoveUnusedOpsetsPass()(model)
    gone = before - Counter(node.op_type for node in nodes(model))
    if gone:
        listed = ", ".join(f"{count} {op}" for op, count in sorted(gone.items()))
        ledger.note("load", f"nodes that contribute to no output were removed: {listed}")


def _name(model: ir.Model, ledger: Ledger) -> None:
    """Unique names for values (bodies included) and, across the whole model, for nodes."""
    before = [node.name for node in nodes(model)] + [value.name for node in nodes(model) for value in node.outputs]
    passes.NameFixPass()(model)
    taken = {node.name for node in nodes(model)}
    seen: set[str] = set()
    for node in nodes(model):
        name, count = node.name or node.op_type, 0
        while name in seen or (count and name in taken):
            count += 1
            name = f"{node.name}_{count}"
        node.name = name
        seen.add(name)
    after = [node.name for node in nodes(model)] + [value.name for node in nodes(model) for value in node.outputs]
    if after != before:
        changed = sum(old != new for old, new in zip(before, after, strict=True))
        ledger.note("load", f"{changed} missing or repeated names were made unique")


def _report(model: ir.Model, ledger: Ledger) -> None:
    kinds = Counter(
        value.dtype.name
        for value in model.graph.initializers.values()
        if value.dtype is not None and value.dtype.is_floating_point()
    )
    unusual = {kind: count for kind, count in sorted(kinds.items()) if kind != "FLOAT"}
    if unusual:
        listed = ", ".join(f"{count} of {kind.lower()}" for kind, count in unusual.items())
        ledger.note("load", f"weights are not all float32: {listed}", dtypes=unusual)
    for node in model.graph:
        if next(inner_nodes(node), None) is not None:
            ledger.skipped("load", node.name or "", node.op_type, "control flow: its bodies are carried as they are")
