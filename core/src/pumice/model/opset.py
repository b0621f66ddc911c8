"""Opset conversion: one version of every operator for the rest of pumice to know.

ONNX's own converter (`onnx.version_converter`, C++) does it, on the model's skeleton. It was chosen over onnxscript's
by measurement: it converts every model of the onnx package (opset 6 to 12) and every real network tried, bodies of
`If` and `Loop` included, with unchanged outputs, where onnxscript's starts at opset 18. It forgets per-node metadata,
which is put back by output name. A model that it cannot convert keeps its opset; the ledger says so.
"""

from __future__ import annotations

import onnx
import onnx.version_converter
import onnx_ir as ir

from pumice.errors import ModelError
from pumice.ledger import Ledger
from pumice.model.graph import add_initializer, constant, nodes, replace_input, values
from pumice.model.skeleton import through

WORKING_OPSET = 21
"""Models below are converted up to it; models above keep their own."""

OLDEST_OPSET = 11
"""A model below that cannot be converted is refused: the operators of pumice start here."""

OLDEST_IR = 8
"""The oldest file format version written or held in memory; every current runtime reads it."""

NEWEST_IR = 13
"""The newest file format version that deployed runtimes accept."""


def ir_version_for(model: ir.Model) -> int:
    """The oldest file format version that may carry the model's opsets and tensor types.

    Raises:
        ModelError: no version that runtimes accept can carry the model.
    """
    imports = [onnx.helper.make_opsetid(domain, version) for domain, version in model.opset_imports.items()]
    needed = max(OLDEST_IR, onnx.helper.find_min_ir_version_for(imports, ignore_unknown=True), _ir_of_types(model))
    if needed > NEWEST_IR:
        raise ModelError(
            f"the model needs version {needed} of the ONNX file format but runtimes accept at most {NEWEST_IR}: "
            "use an older opset and older data types"
        )
    return needed


_IR_OF_TYPE = {
    9: ("FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ"),
    10: ("INT4", "UINT4"),
    11: ("FLOAT4E2M1",),
    12: ("FLOAT8E8M0",),
    13: ("INT2", "UINT2"),
    14: ("FLOAT6E2M3", "FLOAT6E3M2"),
}
"""The file format version that introduced each data type (the change log of onnx.proto)."""


def _ir_of_types(model: ir.Model) -> int:
    used = {value.dtype.name for value in values(model) if value.dtype is not None}
    return max((version for version, types in _IR_OF_TYPE.items() if used.intersection(types)), default=OLDEST_IR)


def to_working_opset(model: ir.Model, ledger: Ledger, target: int = WORKING_OPSET) -> ir.Model:
    """The model at opset `target` of the default domain, or at its own if that is newer or conversion fails.

    Raises:
        ModelError: the model is below `OLDEST_OPSET` and cannot be converted.
    """
    opset = model.opset_imports[""]
    if opset >= target:
        return model
    if opset < 7:
        _spread_prelu_slopes(model)
    try:
        converted = through(model, lambda proto: onnx.version_converter.convert_version(proto, target))
    except (RuntimeError, onnx.version_converter.ConvertError, onnx.shape_inference.InferenceError) as error:
        reason = str(error).strip().splitlines()[-1]
        if opset < OLDEST_OPSET:
            raise ModelError(
                f"the model uses opset {opset} and cannot be converted to {target} ({reason}): export it with opset 21"
            ) from error
        ledger.declined("load", "model", "", f"the model stays at opset {opset}: converting it failed ({reason})")
        return model
    _restore_metadata(converted, model)
    ledger.note("load", f"converted from opset {opset} to {target}", opset=opset, target=target)
    return converted


def settle_opset(model: ir.Model) -> None:
    """Let the model import the default domain under the one name `""`, whatever the file called it.

    Raises:
        ModelError: nodes of the default domain, but no version of it.
    """
    imports = model.opset_imports
    if "ai.onnx" in imports:
        imports[""] = imports.pop("ai.onnx")
    if "" not in imports:
        if any(node.domain == "" for node in nodes(model)):
            raise ModelError("the model does not say which opset of the default domain it uses: export it again")
        imports[""] = WORKING_OPSET


def _restore_metadata(converted: ir.Model, original: ir.Model) -> None:
    kept = {value.name: node.metadata_props for node in nodes(original) for value in node.outputs}
    for node in nodes(converted):
        for value in node.outputs:
            node.metadata_props.update(kept.get(value.name) or {})


def _spread_prelu_slopes(model: ir.Model) -> None:
    """PRelu before opset 7 reads a slope of shape (channels,) along axis 1, later ones along the last axis.

    ONNX's converter leaves it as it is, which is an error in the runtime or, if the last axis happens to have as many
    items as there are channels, a wrong result.
    """
    for node in nodes(model):
        if node.op_type != "PRelu":
            continue
        source, slope = node.inputs
        held = constant(slope)
        if slope is None or source is None or held is None or held.ndim != 1 or held.size == 1:
            continue
        if source.shape is None:
            raise ModelError(f"PRelu '{node.name}' of an opset before 7 needs the rank of its input: export it again")
        spread = held.reshape(-1, *(1,) * (source.shape.rank() - 2))
        replace_input(node, 1, add_initializer(model, str(slope.name), spread))
