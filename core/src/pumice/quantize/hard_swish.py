"""Hard swish between integers: x clip(x + 3, 0, 6) / 6 as a sum and a product of integers.

    h = sat(rint((x + 3) / (6 / 255)))      the lowest and the highest integer are where the clip ends
    y = x (h / 255)                         read with another scale, the same integers have been divided by six

A runtime without a kernel of integers for HardSwish takes four passes over real numbers for it; these are two over
bytes. The rounding of h moves y by half of 3 / 255 at most (x at the end of the clip, where it is largest): this must
be little beside the half step by which y itself is rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir

from pumice.model import consumers
from pumice.quantize.channel_scaling import Rescaling
from pumice.quantize.parameters import QuantParams
from pumice.quantize.placement import Placement, standard

CLIP = 6.0
MIDDLE = 3.0
HARMLESS = 0.25
"""Share of the rounding of y that the rounding of h may have."""


def hard_swishes_between_integers(
    model: ir.Model,
    placement: Placement,
    parameters: Mapping[int, QuantParams],
    factors: Mapping[int, Rescaling],
    excluded: Callable[[ir.Node], str | None],
) -> frozenset[ir.Node]:
    """The hard swishes that read and write integers of one scale for all channels, and have steps large enough."""

    def has_one_scale(value: ir.Value | None) -> bool:
        return value in placement.space_of and placement.space_of[value] not in factors

    def has_large_steps(value: ir.Value) -> bool:
        params = parameters[placement.space_of[value]]
        low, high = params.limits
        return MIDDLE / (high - low) <= HARMLESS * float(params.scale)

    found = set()
    for node in model.graph:
        if node.op_type != "HardSwish" or not standard(node) or excluded(node):
            continue
        source, output = node.inputs[0], node.outputs[0]
        written = source in placement.writes_integers and has_one_scale(source)
        read = not output.is_graph_output() and placement.integer_nodes.issuperset(consumers(output))
        if written and read and has_one_scale(output) and has_large_steps(output):
            found.add(node)
    return frozenset(found)
