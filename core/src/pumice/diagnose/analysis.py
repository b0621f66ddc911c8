"""Analysis of one model: where its bytes and its work are, and what would be worth compressing.

Work is counted in multiply-accumulates by the operators' own cost records, on the shapes of one sample: those of the
given feeds, or of dynamic axes set to 1 when there are none (said in `assumed`). Where the runtime offers a profile,
the time of each node is measured too. Expectations are arithmetic on these counts, not promises: `compress` measures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pumice.diagnose import prospects
from pumice.model import attribute, clone, constant, infer_shapes, is_constant, nodes, size, weight_of
from pumice.ops import Node, OpCost
from pumice.registry import registry

if TYPE_CHECKING:
    from pumice.strategy import Runtime

EMBEDDINGS = frozenset({"Gather"})
RECURRENT = frozenset({"LSTM", "GRU", "RNN"})


@attrs.frozen(kw_only=True)
class NodeCost:
    """One node of the model."""

    node: str
    op: str
    macs: int
    """Multiply-accumulates for one sample; 0 where shapes are unknown."""
    traffic: int
    """Bytes read and written if everything passes through memory once as float32; 0 where shapes are unknown."""
    weight_bytes: int


@attrs.frozen(kw_only=True)
class NodeTime:
    """One node as the runtime ran it: it may be several nodes of the model, fused, under a name of the runtime's."""

    node: str
    op: str
    seconds: float


@attrs.frozen(kw_only=True)
class Analysis:
    """What is in a model."""

    name: str
    opset: int
    ir_version: int
    producer: str
    inputs: Mapping[str, str]
    """Type and shape by name, e.g. `FLOAT[N,3,224,224]`."""
    outputs: Mapping[str, str]
    dynamic_axes: tuple[str, ...]
    """`input:axis` for every axis without a fixed length."""
    operators: Mapping[str, int]
    """How many nodes there are of each type, most first."""
    parameters: int
    weight_bytes: int
    weight_types: Mapping[str, int]
    """Bytes by element type."""
    macs: int
    costs: tuple[NodeCost, ...]
    """Every node, in the model's order."""
    times: tuple[NodeTime, ...]
    """The runtime's profile of one sample, the slowest first; empty if none was taken."""
    assumed: str
    """How the shapes were had; empty if they are fixed."""
    advice: tuple[str, ...]
    """What would be worth compressing and why, the most useful first."""

    def to_json(self) -> dict[str, Any]:
        return attrs.asdict(self)


def analyse(
    model: ir.Model, feeds: Mapping[str, NDArray[Any]] | None = None, runtime: Runtime | None = None
) -> Analysis:
    """Analyse a loaded model (left unchanged).

    Args:
        model: as `pumice.load` gives it.
        feeds: one sample, whose shapes are then used.
        runtime: profiles the nodes if there are feeds and it has a method `profile(model, feeds)` that returns triples
            of node, operator and microseconds.
    """
    shaped, assumed = _with_fixed_inputs(model, feeds)
    weights = size(model)
    costs = tuple(
        NodeCost(
            node=node.name or "",
            op=node.op_type,
            macs=(cost := _cost(node, shaped)).macs,
            traffic=cost.bytes,
            weight_bytes=weights.nodes.get(node.name or "", 0),
        )
        for node in nodes(shaped)
    )
    times = _profile(model, feeds, runtime)
    tensors = [v.const_value for g in model.graphs() for v in g.initializers.values() if v.const_value is not None]
    types: Counter[str] = Counter()
    for tensor in tensors:
        types[tensor.dtype.name] += tensor.nbytes
    return Analysis(
        name=model.graph.name or "",
        opset=model.opset_imports.get("", 0),
        ir_version=model.ir_version,
        producer=" ".join(filter(None, (model.producer_name, model.producer_version))),
        inputs={v.name or "": _signature(v) for v in model.graph.inputs},
        outputs={v.name or "": _signature(v) for v in model.graph.outputs},
        dynamic_axes=tuple(_dynamic_axes(model)),
        operators=dict(sorted(Counter(n.op_type for n in nodes(model)).items(), key=lambda item: (-item[1], item[0]))),
        parameters=sum(t.size for t in tensors if t.dtype.is_floating_point() or t.dtype.bitwidth <= 8),
        weight_bytes=weights.total,
        weight_types=dict(types.most_common()),
        macs=sum(cost.macs for cost in costs),
        costs=costs,
        times=times,
        assumed=assumed,
        advice=tuple(_advice(model, costs, times, weights.total, lambda other: _macs(other, feeds))),
    )


# --- shapes and costs -------------------------------------------------------------------------------------------------


def _with_fixed_inputs(model: ir.Model, feeds: Mapping[str, NDArray[Any]] | None) -> tuple[ir.Model, str]:
    """A copy whose inputs have the shapes of one sample, all other shapes inferred from them."""
    fixed, assumed = clone(model), []
    for value in fixed.graph.inputs:
        given = None if feeds is None else feeds.get(value.name or "")
        if given is not None:
            value.shape = ir.Shape(given.shape)
        elif value.shape is not None and not all(isinstance(d, int) for d in value.shape):
            value.shape = ir.Shape([d if isinstance(d, int) else 1 for d in value.shape])
            assumed.append(value.name)
    for value in (v for node in nodes(fixed) for v in node.outputs):
        if not value.is_graph_output():
            value.shape = None
    for value in fixed.graph.outputs:
        if value.shape is not None:
            value.shape = ir.Shape([d if isinstance(d, int) else None for d in value.shape])
    shown = ", ".join(f"'{name}'" for name in assumed)
    return infer_shapes(fixed), f"dynamic axes of {shown} count as 1; give --data for real shapes" if assumed else ""


def _macs(model: ir.Model, feeds: Mapping[str, NDArray[Any]] | None) -> dict[str, int]:
    shaped, _ = _with_fixed_inputs(model, feeds)
    return {node.name or "": _cost(node, shaped).macs for node in nodes(shaped)}


def _cost(node: ir.Node, model: ir.Model) -> OpCost:
    opset = model.opset_imports.get(node.domain, 1)
    op = registry().ops.resolve(node.domain, node.op_type, opset)
    shapes = [[_fixed_shape(v) for v in side] for side in (node.inputs, node.outputs)]
    known = all(
        s is not None
        for side, values in zip(shapes, (node.inputs, node.outputs), strict=True)
        for s, v in zip(side, values, strict=True)
        if v is not None
    )
    if op is None or op.cost is None or not known:
        return OpCost()
    plain = {name: attribute(node, name) for name, a in node.attributes.items() if a.type != ir.AttributeType.GRAPH}
    outputs = tuple(v.name or "" for v in node.outputs)
    view = Node(
        op_type=node.op_type, domain=node.domain, name=node.name or "", attributes=plain, opset=opset, outputs=outputs
    )
    return op.cost(view, *shapes)


def _fixed_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    if value is None or value.shape is None:
        return None
    dims = tuple(d for d in value.shape if isinstance(d, int))
    return dims if len(dims) == len(value.shape) else None


def _profile(
    model: ir.Model, feeds: Mapping[str, NDArray[Any]] | None, runtime: Runtime | None
) -> tuple[NodeTime, ...]:
    profile = getattr(runtime, "profile", None)
    if profile is None or feeds is None:
        return ()
    times = [NodeTime(node=node, op=op, seconds=micros * 1e-6) for node, op, micros in profile(clone(model), feeds)]
    return tuple(sorted(times, key=lambda time: (-time.seconds, time.node)))


def _signature(value: ir.Value) -> str:
    kind = value.dtype.name if value.dtype is not None else "?"
    shape = "" if value.shape is None else ",".join("?" if str(d) == "None" else str(d) for d in value.shape)
    return f"{kind}[{shape}]" if value.shape is not None else kind


def _dynamic_axes(model: ir.Model) -> list[str]:
    return [
        f"{value.name}:{axis}"
        for value in model.graph.inputs
        for axis, dim in enumerate(value.shape or ())
        if not isinstance(dim, int)
    ]


# --- what would be worth doing ----------------------------------------------------------------------------------------


def _advice(
    model: ir.Model,
    costs: tuple[NodeCost, ...],
    times: tuple[NodeTime, ...],
    total: int,
    macs_of: Callable[[ir.Model], Mapping[str, int]],
) -> list[str]:
    finders = (_already_quantized, _quantizable, _embeddings, _recurrent, _not_float32, _dead_channels)
    quantized, *found = [finder(model, costs, total) for finder in finders]
    found = [quantized] if quantized else [*found, prospects.pruning(model, macs_of), prospects.sensitivity(model)]
    shares = {(t.node, t.op): t.seconds for t in times} or {(c.node, c.op): float(c.macs) for c in costs}
    found.append(_hot_spots(shares, "time" if times else "multiply-accumulates"))
    return [sentence for sentence in found if sentence]


def _already_quantized(model: ir.Model, costs: tuple[NodeCost, ...], total: int) -> str:
    found = sum(
        c.op in ("QuantizeLinear", "DequantizeLinear", "QLinearConv", "MatMulInteger", "MatMulNBits") for c in costs
    )
    if not found:
        return ""
    return (
        f"The model is quantized already ({found} quantization nodes): start from its floating-point original instead."
    )


def _quantizable(model: ir.Model, costs: tuple[NodeCost, ...], total: int) -> str:
    from pumice.quantize.target import Target

    rules = Target.named("ort-cpu").layers
    layers = [n for n in nodes(model) if n.op_type in rules and n.op_type not in EMBEDDINGS and _float32_bytes(n)]
    held = sum({id(weight_of(n)): _float32_bytes(n) for n in layers}.values())
    if not layers or held < 0.05 * total:
        return ""
    names = {n.name for n in layers}
    all_macs = sum(c.macs for c in costs)
    share = sum(c.macs for c in costs if c.node in names) / all_macs if all_macs else 0.0
    work = f" and {share:.0%} of the multiply-accumulates" if share else ""
    after = total - held * 3 / 4
    smaller = f"{total / max(after, 1):.1f}x smaller"
    return (
        f"INT8 quantization: {_kinds(layers)} hold {held / max(total, 1):.0%} of the bytes{work}; as 8-bit integers "
        f"the weights would take about {_bytes(after)} instead of {_bytes(total)} ({smaller})"
        f"{_depthwise(layers)}. What it costs is measured, and layers that cost too much are given back."
    )


def _depthwise(layers: list[ir.Node]) -> str:
    count = sum(n.op_type == "Conv" and attribute(n, "group", 1) > 1 for n in layers)
    return (
        f"; {count} of the convolutions are grouped or depthwise, which gain less speed and lose more precision"
        if count
        else ""
    )


def _embeddings(model: ir.Model, costs: tuple[NodeCost, ...], total: int) -> str:
    tables = [n for n in nodes(model) if n.op_type in EMBEDDINGS and _float32_bytes(n) > 0.05 * total]
    held = sum({id(weight_of(n)): _float32_bytes(n) for n in tables}.values())
    if not tables:
        return ""
    return (
        f"Embedding tables: {_named(tables)} hold {held / total:.0%} of the bytes and do no arithmetic; integer rows "
        f"(quantizing weights only) would save {_bytes(held * 3 / 4)} and change no speed."
    )


def _recurrent(model: ir.Model, costs: tuple[NodeCost, ...], total: int) -> str:
    from pumice.quantize.target import Target

    modes = Target.named("ort-cpu").recurrent
    layers = [n for n in nodes(model) if n.op_type in RECURRENT and _float32_bytes(n)]
    advice = (
        (True, "compute with 8-bit weights on ort-cpu: a quarter of that, and faster."),
        (False, "have no integer kernel on ort-cpu: expect little from quantization there."),
    )
    found = []
    for has_kernel, what in advice:
        concerned = [n for n in layers if (modes[n.op_type] == "dynamic") is has_kernel]
        held = sum(size(model).nodes.get(n.name or "", 0) for n in concerned)
        if concerned:
            found.append(
                f"Recurrent layers: {_named(concerned)} hold {held / max(total, 1):.0%} of the bytes and {what}"
            )
    return " ".join(found)


def _not_float32(model: ir.Model, costs: tuple[NodeCost, ...], total: int) -> str:
    doubles = [v for v in model.graph.initializers.values() if v.dtype == ir.DataType.DOUBLE]
    held = sum(v.const_value.nbytes for v in doubles if v.const_value is not None)
    if held <= 0.05 * total:
        return ""
    return f"float64: {_bytes(held)} of weights are float64, which no runtime needs: export the model in float32 first."


def _dead_channels(model: ir.Model, costs: tuple[NodeCost, ...], total: int) -> str:
    """Filters that are all zero compute nothing."""
    dead, layers = 0, []
    for node in nodes(model):
        weight = constant(weight_of(node)) if node.op_type in ("Conv", "Gemm") else None
        if weight is None or weight.ndim < 2 or weight.size > 1 << 24:
            continue
        if node.op_type == "Gemm" and not attribute(node, "transB", 0):
            weight = weight.T
        zero = int(np.count_nonzero(~weight.reshape(len(weight), -1).any(axis=1)))
        if zero:
            dead += zero
            layers.append(node)
    return f"Pruning: {dead} filters of {_named(layers)} are all zero and can go without any loss." if dead else ""


def _hot_spots(shares: Mapping[tuple[str, str], float], what: str) -> str:
    """The few nodes that take most of it."""
    everything = sum(shares.values())
    if not everything or len(shares) < 4:
        return ""
    top = sorted(shares, key=lambda key: (-shares[key], key))[: max(1, min(3, len(shares) // 4))]
    share = sum(shares[key] for key in top) / everything
    if share < 0.3:
        return ""
    names = ", ".join(f"'{node}' ({op})" for node, op in top)
    return f"Hot spots: {names} take {share:.0%} of the {what}; what speeds these up speeds up the model."


def _float32_bytes(node: ir.Node) -> int:
    weight = weight_of(node)
    if weight is None or weight.dtype != ir.DataType.FLOAT or not is_constant(weight) or weight.const_value is None:
        return 0
    return weight.const_value.nbytes


def _kinds(layers: list[ir.Node]) -> str:
    counts = Counter(n.op_type for n in layers).most_common()
    return " and ".join(f"{count} {op} {'layer' if count == 1 else 'layers'}" for op, count in counts)


def _named(layers: list[ir.Node]) -> str:
    shown = ", ".join(f"'{n.name}'" for n in layers[:3])
    return f"{shown} and {len(layers) - 3} more" if len(layers) > 3 else shown


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
