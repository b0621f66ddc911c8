"""One layer at a time: what a layer of the compressed model makes of exactly what the original's layer reads.

The nodes that compute a layer's output from values that the original knows too are copied, with these values as inputs.
All copies together are one model, which runs on what the original computed: the error that earlier layers pass on is
not in it. Where channels of such a value were rescaled, the original's is scaled alike first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs
import onnx_ir as ir
from numpy.typing import NDArray

from pumice.diagnose.pairing import Pair
from pumice.diagnose.rescaling import Gain, without_gain
from pumice.model import is_constant

if TYPE_CHECKING:
    from pumice.strategy import Runtime, Session

Array = NDArray[Any]
PREFIX = "exact/"


@attrs.frozen(eq=False)
class Isolated:
    """Copies of layers, each computed from exact values."""

    model: ir.Model
    inputs: Mapping[str, str]
    """Names, in both models, of the values that they read, with the operator of a layer that does."""
    outputs: Mapping[int, str]
    """Names of their outputs in `model`, by the number of the pair; pairs that could not be isolated are missing."""

    @classmethod
    def of(cls, pairs: Mapping[int, Pair], original: ir.Model, compressed: ir.Model) -> Isolated:
        """The isolated layers of some pairs."""
        computed = [*original.graph.inputs, *(value for node in original.graph for value in node.outputs)]
        copier = _Copier({value.name or "" for value in computed}, compressed)
        found = {number: copier.layer(number, pair) for number, pair in pairs.items()}
        outputs = {number: value for number, value in found.items() if value is not None}
        graph = ir.Graph(
            list(copier.exact.values()),
            list(outputs.values()),
            nodes=copier.nodes,
            initializers=list(copier.constants.values()),
            opset_imports=dict(compressed.opset_imports),
            name="isolated",
        )
        model = ir.Model(graph, ir_version=compressed.ir_version)
        return cls(model, copier.readers, {number: value.name or "" for number, value in outputs.items()})

    def open(self, runtime: Runtime) -> Session | None:
        return runtime.open(self.model) if self.outputs else None

    def feeds(self, exact: Mapping[str, Array], gains: Mapping[str, Gain]) -> dict[str, Array]:
        """What the original computed, by name, as inputs; what was rescaled as it is stored."""
        return {
            f"{PREFIX}{name}": without_gain(exact[name], gains.get(name), op).astype(exact[name].dtype)
            for name, op in self.inputs.items()
        }


class _Unknown(Exception):
    """A value that cannot be had from what the original computed."""


@attrs.frozen(eq=False)
class _Layer:
    """A layer that is being copied."""

    number: int
    op: str
    written: frozenset[str]
    """Names of what it writes: not to be had from the original."""
    copied: dict[ir.Value, ir.Value] = attrs.field(factory=dict)


@attrs.define(eq=False)
class _Copier:
    known: set[str]
    compressed: ir.Model
    exact: dict[str, ir.Value] = attrs.field(factory=dict)
    readers: dict[str, str] = attrs.field(factory=dict)
    constants: dict[str, ir.Value] = attrs.field(factory=dict)
    nodes: list[ir.Node] = attrs.field(factory=list)

    def layer(self, number: int, pair: Pair) -> ir.Value | None:
        """The copied output of one layer, or None."""
        written = (pair.output_before, pair.output_after, *pair.before.outputs, *pair.after.outputs)
        layer = _Layer(number, pair.before.op_type, frozenset(value.name or "" for value in written))
        before = len(self.nodes)
        try:
            result = self._value(pair.output_after, layer)
        except _Unknown:
            del self.nodes[before:]
            return None
        return result if len(self.nodes) > before else None

    def _value(self, value: ir.Value, layer: _Layer) -> ir.Value:
        name = value.name or ""
        if value in layer.copied:
            return layer.copied[value]
        if is_constant(value):
            return self.constants.get(name) or self._constant(value)
        if name in self.known and name not in layer.written:
            self.readers.setdefault(name, layer.op)
            return self.exact.setdefault(name, ir.Value(name=f"{PREFIX}{name}", type=value.type, shape=value.shape))
        return self._computed(value, layer)

    def _constant(self, value: ir.Value) -> ir.Value:
        tensor = ir.convenience.get_const_tensor(value)
        assert tensor is not None
        made = ir.Value(
            name=value.name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy()), const_value=tensor
        )
        self.constants[value.name or ""] = made
        return made

    def _computed(self, value: ir.Value, layer: _Layer) -> ir.Value:
        node = value.producer()
        if node is None or _has_body(node):
            raise _Unknown
        inputs = [None if given is None else self._value(given, layer) for given in node.inputs]
        made = ir.Node(
            node.domain,
            node.op_type,
            inputs,
            list(node.attributes.values()),
            num_outputs=len(node.outputs),
            name=f"{layer.number}/{node.name}",
        )
        for old, new in zip(node.outputs, made.outputs, strict=True):
            new.name = f"{layer.number}/{old.name}" if old.name else ""
            new.type, new.shape = old.type, old.shape
            layer.copied[old] = new
        self.nodes.append(made)
        return layer.copied[value]


def _has_body(node: ir.Node) -> bool:
    bodies = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return any(attribute.type in bodies for attribute in node.attributes.values())
