"""The account: a line in the ledger for every node, with what was done to it or why it was left."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx_ir as ir

from pumice.ledger import Ledger
from pumice.model import nodes
from pumice.quantize.context import QuantizeContext
from pumice.quantize.observation import Reading
from pumice.quantize.placement import STEP, Placement
from pumice.quantize.rewrite import QuantizedWeights
from pumice.quantize.rounding import NARROW
from pumice.quantize.target import Target

_MODES = {
    "static": "computes with integers, its input's range fixed by calibration",
    "dynamic": "computes with integers, its input's range found while it runs",
    "weight-only": "its weights are stored as integers; it computes in floating point",
}


def account_for_layers(
    readings: Mapping[ir.Node, Reading], weights: Mapping[ir.Node, QuantizedWeights], target: Target, ledger: Ledger
) -> None:
    """A line for every layer."""
    for node, reading in readings.items():
        reason = _MODES[reading.layer.mode]
        if reading.rescaling is not None or reading.running is not None:
            reason += "; input channels rescaled"
        if weights[node].bits < target.weight_bits:
            reason += f"; {NARROW}-bit weights, because pairs of products would saturate in 16 bits on {target.summary}"
        details = {"mode": reading.layer.mode, "bits": weights[node].bits}
        ledger.applied(STEP, node.name or "", node.op_type, reason, **details)


def account_for_the_rest(
    model: ir.Model, placement: Placement, swishes: Collection[ir.Node], context: QuantizeContext
) -> None:
    """A line for every node that is not a layer and has none yet; `swishes` are computed with integers."""
    target, ledger = context.target, context.ledger
    said = {entry.node for entry in ledger.of(STEP)}
    absorbed = set(placement.absorbed.values())
    added = {layer.sum for layer in placement.layers}
    for node in nodes(model):
        name, kind = node.name or "", node.op_type
        if name in said:
            continue
        if node.graph is not model.graph:
            ledger.skipped(STEP, name, kind, "it lies in a control-flow body, which is carried untouched")
        elif (reason := context.excluded(node)) is not None:
            ledger.declined(STEP, name, kind, reason)
        elif node in absorbed:
            ledger.applied(STEP, name, kind, "vanished into the range of the value it writes")
        elif node in added:
            ledger.applied(STEP, name, kind, "is the bias of the matrix product before it")
        elif node in placement.sums:
            ledger.applied(STEP, name, kind, "is computed by the convolution before it, whose other term is integer")
        elif node in swishes:
            ledger.applied(STEP, name, kind, "is computed as a sum and a product of integers")
        elif node in placement.integer_nodes:
            ledger.applied(STEP, name, kind, "passes integers on between quantized neighbours")
        elif kind in target.layers and kind != "Gather":
            ledger.skipped(STEP, name, kind, "its weights are computed while the model runs, if it has any")
        else:
            ledger.skipped(STEP, name, kind, "no integer layer asks for its values")
