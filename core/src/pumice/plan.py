"""A plan: a model compiled once into plain callables over numbered slots.

Compilation walks the graph in order and gives every value a slot. Each node becomes a `Step`: a callable, the slots it
reads and writes, and the slots that die with it (their last use), which are freed at once, so that peak memory is what
is alive and no more. Which implementation runs is settled here: the highest-ranked kernel that is available and fits,
NumPy otherwise. Running asks no hook and changes nothing in the plan, so any number of threads may share one.

Slot 0 always holds None and stands for absent optional inputs. Slots of initializers are filled in advance; feeds may
replace them by name, which is how training runs a plan on changed weights. Subgraphs (If, Loop, Scan) are programs of
their own: values of an outer scope that they read are captured, passed by slot like inputs of the node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
import onnx_ir as ir

from pumice.errors import DataError, ModelError, PumiceError, UnsupportedOp, nearest
from pumice.ops import OpTable, core_table
from pumice.ops.record import Array, Arrays, Forward, Kernel, Node, Op, Outputs, Vjp, normal

Tap = Callable[[str, Array], None]
"""Called with the name and value of every value computed, in order; must not change the array."""

ABSENT = 0


@attrs.frozen(eq=False)
class Step:
    """One node, ready to run."""

    node: Node
    op: Op
    call: Forward
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    """Slot of each output; `ABSENT` for one that the node leaves out."""
    captures: tuple[int, ...] = ()
    """Slots of the outer values that the node's subgraphs read, subgraph by subgraph."""
    frees: tuple[int, ...] = ()
    vjp: Callable[..., Any] | None = None
    """The gradient, with the kernels that compute it; None if none is known."""


@attrs.frozen(eq=False)
class Program:
    """The steps of one graph over one set of slots."""

    steps: tuple[Step, ...]
    names: tuple[str, ...]
    """Name of the value in each slot."""
    template: tuple[Any, ...]
    """What each slot holds before a run: constants, else None."""
    inputs: tuple[int, ...]
    captured: tuple[int, ...]
    """Slots to be filled from the outer scope, in the order of the parent step's `captures`."""
    outputs: tuple[int, ...]

    def run(self, filled: Iterable[tuple[int, Any]], tap: Tap | None = None) -> list[Any]:
        slots = list(self.template)
        for slot, value in filled:
            slots[slot] = value
        for step in self.steps:
            for slot, value in zip(step.outputs, compute(step, slots, tap), strict=False):
                if slot != ABSENT:
                    slots[slot] = value
                    if tap is not None and isinstance(value, np.ndarray):
                        tap(self.names[slot], value)
            for slot in step.frees:
                slots[slot] = None
        return [slots[i] for i in self.outputs]


def compute(step: Step, slots: Sequence[Any], tap: Tap | None = None) -> list[Any]:
    """All that a step returns for the values in the slots, scalars as arrays.

    Raises:
        ModelError: it cannot be computed on what it was given.
    """
    node = _bind(step, slots, tap) if step.captures or step.node.attributes.get(_HAS_GRAPHS) else step.node
    arrays = [slots[i] for i in step.inputs]
    try:
        results = step.call(node, *arrays)
    except PumiceError:
        raise
    except (ValueError, IndexError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise _failure(step, arrays, error) from error
    return [
        value if value is None or isinstance(value, list) or _is_array(value) else np.asarray(value)
        for value in results
    ]


def _is_array(value: Any) -> bool:
    """NumPy's, or one of a device that follows its protocols."""
    return isinstance(value, np.ndarray) or hasattr(value, "__array_function__")


@attrs.frozen(eq=False)
class Subgraph:
    """A graph attribute: bound to the values it captures, it runs like a function of its inputs."""

    program: Program
    results: tuple[Input, ...]
    """What the graph declares about its outputs."""
    captured: tuple[Any, ...] = ()
    tap: Tap | None = None

    def run(self, *inputs: Any) -> list[Any]:
        """Outputs of the graph for positional inputs."""
        program = self.program
        pairs = [*zip(program.captured, self.captured, strict=True), *zip(program.inputs, inputs, strict=False)]
        return program.run(pairs, self.tap)


_HAS_GRAPHS = "pumice.graphs"
"""Key among a node's attributes: names of its graph attributes in the order of the step's captures."""


def _bind(step: Step, slots: Sequence[Any], tap: Tap | None) -> Node:
    attributes, at = dict(step.node.attributes), 0
    for key in attributes[_HAS_GRAPHS]:
        count = len(attributes[key].program.captured)
        captured = tuple(slots[i] for i in step.captures[at : at + count])
        attributes[key] = attrs.evolve(attributes[key], captured=captured, tap=tap)
        at += count
    return attrs.evolve(step.node, attributes=attributes)


def _failure(step: Step, arrays: Sequence[Any], error: Exception) -> ModelError:
    shapes = ", ".join(map(_describe, arrays))
    return ModelError(
        f"{step.node} cannot be computed on inputs ({shapes}): {error}; check the shapes fed to the model"
    )


def _describe(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{list(value.shape)}"
    return "absent" if value is None else f"a sequence of {len(value)}"


# --- the public plan --------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Input:
    """What the model says about one of its inputs."""

    name: str
    dtype: np.dtype[Any] | None = None
    shape: tuple[int | str | None, ...] | None = None
    """Numbers are fixed; names and None may be any size. None as a whole: any rank."""
    required: bool = True
    """False where an initializer of the same name is the default."""
    tensor: bool = True
    """False for sequences (lists of arrays) and optional values, which are passed on as they are."""

    def check(self, value: Any) -> None:
        """Raises DataError if the array cannot be this input."""
        if not self.tensor:
            return
        if not _is_array(value):
            raise DataError(f"input '{self.name}' must be a NumPy array, not {type(value).__name__}")
        if (
            self.dtype is not None
            and value.dtype != self.dtype
            and not (self.dtype.kind == "O" and value.dtype.kind in "USTO")
        ):
            raise DataError(
                f"input '{self.name}' must have type {self.dtype} but the data has {value.dtype}; "
                f"convert the data with .astype('{self.dtype}')"
            )
        if self.shape is None:
            return
        fits = len(self.shape) == value.ndim and all(
            not isinstance(want, int) or want == have for want, have in zip(self.shape, value.shape, strict=True)
        )
        if not fits:
            want = ", ".join("?" if d is None else str(d) for d in self.shape)
            raise DataError(f"input '{self.name}' must have shape [{want}] but the data has {list(value.shape)}")


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
    kernels: Iterable[Kernel] = (),
) -> Plan:
    """Compile a model.

    Args:
        model: left unchanged. Local functions are inlined in a copy.
        outputs: values to return, any of the main graph; None means the outputs of the graph. Only nodes that these
            depend on are compiled.
        ops: the operators known; None means core's own.
        kernels: candidates to replace the NumPy implementation.

    Raises:
        UnsupportedOp: a needed operator has no `forward` here.
        ModelError: an output that the graph does not have, or a graph that is not in order.
    """
    if model.functions:
        model = _inlined(model)
    table = _table(ops)
    usable = sorted((k for k in kernels if k.available() is None), key=lambda k: -k.rank)
    compiler = _GraphCompiler(model.graph, {normal(d): v for d, v in model.opset_imports.items()}, table, usable)
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
        return core_table()
    return ops if isinstance(ops, OpTable) else OpTable.merge(("the caller", op) for op in ops)


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

    def __init__(self, graph: ir.Graph, opsets: Mapping[str, int], table: OpTable, kernels: Sequence[Kernel]) -> None:
        self.graph, self.opsets, self.table, self.kernels = graph, opsets, table, kernels
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
                self.template[slot] = _constant(value.const_value)
        steps = [step for node in self._needed(wanted) if (step := self._step(node)) is not None]
        outputs = tuple(self._slot(v) for v in wanted)
        return Program(
            steps=tuple(_with_lifetimes(steps, keep={*outputs})),
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

    def _slot(self, value: ir.Value | None) -> int:
        if value is None or value.name == "":
            return ABSENT
        if value in self.slots:
            return self.slots[value]
        if value.name in self.graph.initializers and value in self.own:
            if value.const_value is None:
                raise ModelError(f"initializer '{value.name}' has no data; load the model together with its data files")
            return self._new_slot(value, _constant(value.const_value))
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
        op, call = self._callable(view, [self.template[slot] for slot in inputs])
        if (domain, node.op_type) == ("", "Constant"):
            self._new_slot(node.outputs[0], *call(view))
            return None
        outputs = tuple(self._new_slot(v) if v.name else ABSENT for v in node.outputs)
        return Step(view, op, call, inputs, outputs, tuple(captures), vjp=self._gradient(view, op))

    def _subgraph(self, graph: ir.Graph) -> tuple[Subgraph, list[ir.Value]]:
        compiler = _GraphCompiler(graph, self.opsets, self.table, self.kernels)
        program = compiler.compile(list(graph.outputs))
        return Subgraph(program, tuple(_input(v, graph) for v in graph.outputs)), compiler.captured

    def _view(self, node: ir.Node, domain: str, programs: Mapping[str, Subgraph]) -> Node:
        attributes = {a.name: _attribute(a) for a in node.attributes.values() if a.name not in programs}
        if programs:
            attributes |= programs
            attributes[_HAS_GRAPHS] = tuple(programs)
        return Node(
            op_type=node.op_type,
            domain=domain,
            name=node.name or "",
            attributes=attributes,
            opset=node.version or self.opsets.get(domain, 1),
            outputs=tuple(v.name or "" for v in node.outputs),
        )

    def _callable(self, node: Node, constants: Sequence[Any]) -> tuple[Op, Forward]:
        op = self.table.resolve(node.domain, node.op_type, node.opset)
        if op is None or op.forward is None:
            raise UnsupportedOp(
                f"operator {node.op_type} of domain {node.domain or 'ai.onnx'}, opset {node.opset}, has no "
                f"implementation here (node '{node.name or node.outputs[0]}'); install a plugin that gives it a "
                f"`forward`, or run the model with another runtime"
            )
        call = op.forward
        for kernel in reversed([k for k in self.kernels if k.part == "forward" and k.fits(node)]):
            call = _guarded(kernel, call, kernel.bind(node, constants) if kernel.bind else kernel.run)
        return op, call

    def _gradient(self, node: Node, op: Op) -> Callable[..., Any] | None:
        call = op.vjp
        if call is not None:
            for kernel in reversed([k for k in self.kernels if k.part == "vjp" and k.fits(node)]):
                call = _guarded_gradient(kernel, call)
        return call


def _guarded(kernel: Kernel, otherwise: Forward, run: Forward) -> Forward:
    """The kernel for the types it handles, whatever comes next for the rest."""
    dtypes = frozenset(np.dtype(name) for name in kernel.dtypes)

    def call(node: Node, *arrays: Any) -> Outputs:
        return run(node, *arrays) if arrays[0].dtype in dtypes else otherwise(node, *arrays)

    return call


def _guarded_gradient(kernel: Kernel, otherwise: Callable[..., Any]) -> Callable[..., Any]:
    """As `_guarded`, for a gradient: it reads what the operator's own reads."""
    run, dtypes = kernel.run, frozenset(np.dtype(name) for name in kernel.dtypes)

    def call(node: Node, inputs: Arrays, *rest: Any) -> Sequence[Any]:
        return run(node, inputs, *rest) if inputs[0].dtype in dtypes else otherwise(node, inputs, *rest)

    return attrs.evolve(otherwise, run=call) if isinstance(otherwise, Vjp) else call


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


def _with_lifetimes(steps: Sequence[Step], keep: set[int]) -> list[Step]:
    """Steps that free each computed value, and each input, after its last use."""
    done, result = {ABSENT, *keep}, []
    for step in reversed(steps):
        touched = dict.fromkeys((*step.inputs, *step.captures, *step.outputs))
        result.append(attrs.evolve(step, frees=tuple(s for s in touched if s not in done)))
        done.update(touched)
    return result[::-1]


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
