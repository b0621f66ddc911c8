"""A plan: a model compiled once into plain callables over numbered slots.

Compilation walks the graph in order and gives every value a slot of a `program`. Each node becomes a step, and which
implementation runs it is settled here (`dispatch`): the highest-ranked kernel that is available and fits, NumPy
otherwise. Kernels may take over several nodes at once (`chains`): a plan holds both its steps one by one, for taps
and gradients, and what runs when nobody looks inside. Running asks no hook and changes nothing in the plan, so any
number of threads may share one.

Feeds may replace the values of initializers by name, which is how training runs a plan on changed weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
import onnx_ir as ir

from pumice.chains import fuse
from pumice.dispatch import gradient, implementation
from pumice.errors import DataError, ModelError, nearest
from pumice.ops import OpTable
from pumice.ops.record import Array, Kernel, Node, Op, Placement, normal
from pumice.program import ABSENT, HAS_GRAPHS, Input, Program, Step, Subgraph, Tap, with_lifetimes


@attrs.frozen(eq=False)
class Plan:
    """The immutable, executable form of a model. Safe to run from several threads at once."""

    program: Program
    inputs: tuple[Input, ...]
    output_names: tuple[str, ...]
    initializers: Mapping[str, int]
    """Slot of every initializer that the plan uses; feeds may replace their values by name."""

    @property
    def steps(self) -> tuple[Step, ...]:
        return self.program.steps

    def run(self, feeds: Mapping[str, Array], *, tap: Tap | None = None) -> dict[str, Array]:
        """The outputs by name.

        An output may share memory with a feed or a constant of the model: copy it before writing to it.

        Raises:
            DataError: an input is missing, unknown, or has the wrong type or shape.
            ModelError: a node cannot be computed on what it was given.
        """
        with np.errstate(all="ignore"):  # infinities and NaN follow IEEE 754, as ONNX says
            values = self.program.run(self.filled(feeds), tap)
        return dict(zip(self.output_names, values, strict=True))

    def filled(self, feeds: Mapping[str, Array]) -> list[tuple[int, Any]]:
        """Slots and values of the feeds, checked."""
        slots = dict(zip((i.name for i in self.inputs), self.program.inputs, strict=True))
        for spec in self.inputs:
            if spec.name in feeds:
                spec.check(feeds[spec.name])
            elif spec.required:
                given = ", ".join(sorted(feeds)) or "nothing"
                raise DataError(f"input '{spec.name}' is missing from the data, which has {given}")
        filled = []
        for name, value in feeds.items():
            slot = slots.get(name, self.initializers.get(name))
            if slot is None:
                raise DataError(f"the model has no input '{name}'{nearest(name, slots)}")
            filled.append((slot, value))
        return filled


def compile_plan(
    model: ir.Model,
    outputs: Sequence[str] | None = None,
    *,
    ops: OpTable | Iterable[Op] | None = None,
    kernels: Iterable[Kernel] | None = None,
    placement: Placement | None = None,
) -> Plan:
    """Compile a model.

    Args:
        model: left unchanged. Local functions are inlined in a copy.
        outputs: values to return, any of the main graph; None means the outputs of the graph. Only nodes that these
            depend on are compiled.
        ops: the operators known; None means all that are installed.
        kernels: candidates to replace the NumPy implementation; None means all that are installed, and () none: the
            reference, which is the definition of truth.
        placement: the device that the plan runs on; None means the CPU.

    Raises:
        UnsupportedOp: a needed operator has no `forward` here.
        ModelError: an output that the graph does not have, or a graph that is not in order.
    """
    if model.functions:
        model = _inlined(model)
    table = _table(ops)
    device = placement.device if placement else "cpu"
    candidates = (k for k in _candidates(kernels) if k.device == device and k.available() is None)
    usable = sorted(candidates, key=lambda k: -k.rank)
    opsets = {normal(d): v for d, v in model.opset_imports.items()}
    compiler = _GraphCompiler(model.graph, opsets, table, usable, placement)
    program = compiler.compile(_wanted(model.graph, outputs))
    initializers = {v.name: s for v, s in compiler.slots.items() if v.name in model.graph.initializers}
    return Plan(
        program=program,
        inputs=tuple(_input(v, model.graph) for v in compiler.graph_inputs),
        output_names=tuple(outputs) if outputs is not None else tuple(str(v.name) for v in model.graph.outputs),
        initializers={str(name): slot for name, slot in initializers.items()},
    )


def _table(ops: OpTable | Iterable[Op] | None) -> OpTable:
    if ops is None:
        from pumice.registry import registry

        return registry().ops
    return ops if isinstance(ops, OpTable) else OpTable.merge(("the caller", op) for op in ops)


def _candidates(kernels: Iterable[Kernel] | None) -> Iterable[Kernel]:
    if kernels is None:
        from pumice.registry import registry

        return registry().kernels
    return kernels


def _inlined(model: ir.Model) -> ir.Model:
    from onnx_ir.passes.common import InlinePass

    copy = model.clone()
    InlinePass()(copy)
    return copy


def _wanted(graph: ir.Graph, outputs: Sequence[str] | None) -> list[ir.Value]:
    if outputs is None:
        return list(graph.outputs)
    values = {v.name: v for v in graph.inputs} | dict(graph.initializers)
    values |= {v.name: v for node in graph for v in node.outputs}
    for name in outputs:
        if name not in values:
            raise ModelError(f"the graph has no value '{name}'{nearest(name, [str(v) for v in values])}")
    return [values[name] for name in outputs]


def _input(value: ir.Value, graph: ir.Graph) -> Input:
    shape = None
    if value.shape is not None:
        shape = tuple(d if isinstance(d, int) else d.value for d in value.shape)
        shape = tuple(None if isinstance(d, int) and d < 0 else d for d in shape)
    return Input(
        name=str(value.name),
        dtype=_dtype(value),
        shape=shape,
        required=value.name not in graph.initializers,
        tensor=value.type is None or isinstance(value.type, ir.TensorType),
    )


def _dtype(value: ir.Value) -> np.dtype[Any] | None:
    if not isinstance(value.type, ir.TensorType) or value.dtype in (None, ir.DataType.UNDEFINED):
        return None
    assert value.dtype is not None
    return np.dtype(value.dtype.numpy())


# --- compilation ------------------------------------------------------------------------------------------------------


class _GraphCompiler:
    """Compiles one graph; a subgraph gets a compiler of its own that records what it captures."""

    def __init__(
        self,
        graph: ir.Graph,
        opsets: Mapping[str, int],
        table: OpTable,
        kernels: Sequence[Kernel],
        placement: Placement | None,
    ) -> None:
        self.graph, self.opsets, self.table, self.kernels, self.placement = graph, opsets, table, kernels, placement
        self.slots: dict[ir.Value, int] = {}
        self.names = [""]
        self.template: list[Any] = [None]
        self.captured: list[ir.Value] = []
        self.own = set(graph.inputs) | set(graph.initializers.values())
        self.own |= {v for node in graph for v in node.outputs}
        self.graph_inputs: list[ir.Value] = []

    def compile(self, wanted: Sequence[ir.Value]) -> Program:
        self.graph_inputs = list(self.graph.inputs)
        inputs = tuple(self._new_slot(v) for v in self.graph_inputs)
        for value, slot in zip(self.graph_inputs, inputs, strict=True):
            if value.const_value is not None:
                self.template[slot] = self._constant(value, _constant(value.const_value))
        steps = [step for node in self._needed(wanted) if (step := self._step(node)) is not None]
        outputs = tuple(self._slot(v) for v in wanted)
        fused = fuse(steps, self.template, {*outputs}, self.kernels, self.table, self.placement)
        return Program(
            steps=tuple(with_lifetimes(steps, keep={*outputs})),
            fused=tuple(with_lifetimes(fused, keep={*outputs})),
            names=tuple(self.names),
            template=tuple(self.template),
            inputs=inputs,
            captured=tuple(self.slots[v] for v in self.captured),
            outputs=outputs,
        )

    def _needed(self, wanted: Sequence[ir.Value]) -> list[ir.Node]:
        """The nodes that the wanted values depend on, in graph order."""
        seen: set[ir.Node] = set()
        pending = [v.producer() for v in wanted if v in self.own]
        while pending:
            node = pending.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            reads = [*node.inputs, *_outer_reads(node)]
            pending.extend(v.producer() for v in reads if v is not None and v in self.own)
        return [node for node in self.graph if node in seen]

    def _new_slot(self, value: ir.Value, content: Any = None) -> int:
        self.slots[value] = len(self.names)
        self.names.append(str(value.name))
        self.template.append(content)
        return self.slots[value]

    def _constant(self, value: ir.Value, array: Array) -> Any:
        return array if self.placement is None else self.placement.constant(value, array)

    def _slot(self, value: ir.Value | None) -> int:
        if value is None or value.name == "":
            return ABSENT
        if value in self.slots:
            return self.slots[value]
        if value.name in self.graph.initializers and value in self.own:
            if value.const_value is None:
                raise ModelError(f"initializer '{value.name}' has no data; load the model together with its data files")
            return self._new_slot(value, self._constant(value, _constant(value.const_value)))
        if value in self.own:
            raise ModelError(f"value '{value.name}' is read before it is computed; sort the graph topologically")
        self.captured.append(value)
        return self._new_slot(value)

    def _step(self, node: ir.Node) -> Step | None:
        domain = normal(node.domain)
        programs: dict[str, Any] = {}
        captures: list[int] = []
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                subgraph, outer = self._subgraph(attribute.as_graph())
                programs[attribute.name] = subgraph
                captures += map(self._slot, outer)
        inputs = tuple(map(self._slot, node.inputs))
        view = self._view(node, domain, programs)
        op, call = implementation(view, [self.template[slot] for slot in inputs], self.table, self.kernels)
        if (domain, node.op_type) == ("", "Constant"):
            self._new_slot(node.outputs[0], self._constant(node.outputs[0], *call(view)))
            return None
        outputs = tuple(self._new_slot(v) if v.name else ABSENT for v in node.outputs)
        vjp = gradient(view, op, self.kernels)
        if self.placement is not None:
            op, call, vjp = self.placement.step(op, call, vjp)
        return Step(view, op, call, inputs, outputs, tuple(captures), vjp=vjp)

    def _subgraph(self, graph: ir.Graph) -> tuple[Subgraph, list[ir.Value]]:
        compiler = _GraphCompiler(graph, self.opsets, self.table, self.kernels, self.placement)
        program = compiler.compile(list(graph.outputs))
        return Subgraph(program, tuple(_input(v, graph) for v in graph.outputs)), compiler.captured

    def _view(self, node: ir.Node, domain: str, programs: Mapping[str, Subgraph]) -> Node:
        attributes = {a.name: _attribute(a) for a in node.attributes.values() if a.name not in programs}
        if programs:
            attributes |= programs
            attributes[HAS_GRAPHS] = tuple(programs)
        return Node(
            op_type=node.op_type,
            domain=domain,
            name=node.name or "",
            attributes=attributes,
            opset=node.version or self.opsets.get(domain, 1),
            outputs=tuple(v.name or "" for v in node.outputs),
        )


def _outer_reads(node: ir.Node) -> Iterable[ir.Value]:
    """Every value that the node's subgraphs mention, at any depth."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            graph = attribute.as_graph()
            yield from graph.outputs
            for inner in graph.all_nodes():
                yield from (v for v in inner.inputs if v is not None)
                yield from (v for g in _graphs(inner) for v in g.outputs)


def _graphs(node: ir.Node) -> list[ir.Graph]:
    return [a.as_graph() for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH]


def _constant(tensor: Any) -> Any:
    array = np.asarray(tensor.numpy())
    if array.dtype.kind in "SU":
        array = array.astype(object)
    array = array.view()
    array.flags.writeable = False
    return array


def _attribute(attribute: ir.Attr) -> Any:
    if attribute.type == ir.AttributeType.TENSOR:
        return _constant(attribute.as_tensor())
    value = attribute.value
    if isinstance(value, ir.DataType):
        return int(value)
    return list(value) if isinstance(value, tuple) else value
