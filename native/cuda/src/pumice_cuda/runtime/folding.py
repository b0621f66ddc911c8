"""What depends on constants alone is computed once, when a model is opened.

`fold_constants` does so before kernels choose their nodes, which take weights that are constants: those of few bits
come as codes behind a Cast, a table, a scale and a Reshape. What integer operators are made from, Q and DQ of 8 bits,
stays. `folded` does so with what is left, on the GPU.
"""

from __future__ import annotations

import attrs
import onnx_ir as ir

from pumice.model import add_initializer, attribute, is_constant, remove_unread, replace_value
from pumice.plan import Plan, compile_plan
from pumice.program import ABSENT, Step, compute, with_lifetimes

SUBGRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
WIDE = frozenset({ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT32})
"""Integers that operators on integers take."""


def fold_constants(model: ir.Model) -> None:
    """Change the model in place."""
    made: set[ir.Value] = set()
    for node in model.graph:
        read = [value for value in node.inputs if value is not None]
        if read and all(value in made or _is_known(value) for value in read) and not _stays(node):
            made.update(node.outputs)
    last = [value for value in made if any(made.isdisjoint(use.node.outputs) for use in value.uses())]
    last = [value for value in last if not value.is_graph_output()]
    if not last:
        return
    program = folded(compile_plan(model, [str(value.name) for value in last], kernels=())).program
    for value, slot in zip(last, program.outputs, strict=True):
        held = program.template[slot]
        assert held is not None
        replace_value(value, add_initializer(model, f"{value.name}/constant", held))
    remove_unread(model)


def _is_known(value: ir.Value) -> bool:
    return is_constant(value) and not value.is_graph_input()


def _stays(node: ir.Node) -> bool:
    """Whether a node is not computed although its inputs are known."""
    if node.op_type == "DequantizeLinear":
        kind = None if node.inputs[0] is None else node.inputs[0].dtype
        return (kind is None or kind in WIDE) and not attribute(node, "block_size", 0)
    has_graphs = any(
        each.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for each in node.attributes.values()
    )
    return has_graphs or "Quantize" in node.op_type or _is_random(node.op_type)


def folded(plan: Plan) -> Plan:
    """The plan without the steps that read constants alone; their results are constants now.

    Feeds must not replace initializers afterwards.
    """
    program = plan.program
    template = list(program.template)
    known = {slot for slot, value in enumerate(template) if value is not None}
    rest: list[Step] = []
    for step in program.fused:
        if not _is_constant(step, known):
            rest.append(step)
            continue
        for slot, value in zip(step.outputs, compute(step, template), strict=False):
            if slot != ABSENT:
                template[slot] = value
                known.add(slot)
    steps = tuple(with_lifetimes(rest, keep={*program.outputs}))
    read = {slot for step in steps for slot in (*step.inputs, *step.captures)} | {*program.outputs}
    kept = tuple(value if slot in read else None for slot, value in enumerate(template))
    return attrs.evolve(plan, program=attrs.evolve(program, steps=steps, fused=steps, template=kept), initializers={})


def _is_constant(step: Step, known: set[int]) -> bool:
    read = [slot for slot in (*step.inputs, *step.captures) if slot != ABSENT]
    return bool(read) and known.issuperset(read) and not _is_random(step.node.op_type)


def _is_random(op_type: str) -> bool:
    return op_type.startswith(("Random", "Bernoulli", "Multinomial"))
