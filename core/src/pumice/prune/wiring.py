"""The ties of a whole graph: every operator's channel rule, applied to the shapes and constants of its node.

A *place* is an axis of a named value. What a rule says about ports becomes what a node says about places. Beyond the
rules a place is walled off where somebody outside looks at it: graph inputs and outputs, and control-flow bodies.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs
import onnx_ir as ir

from pumice.model import attribute, constant
from pumice.ops import OpTable
from pumice.ops.channels import Blocked, Cellwise, Channels, Dims, Port, Regroup, Same, Site, Tie
from pumice.ops.record import Node, normal
from pumice.registry import registry


@attrs.frozen
class Place:
    """An axis of a value."""

    value: str
    axis: int | Cellwise

    def __str__(self) -> str:
        axis = self.axis if isinstance(self.axis, int) else f"{self.axis.axis} by {self.axis.cells} cells"
        return f"{self.value}[{axis}]"


@attrs.frozen(eq=False)
class Wired:
    """A node with what its rule says."""

    node: ir.Node
    site: Site
    rule: Channels | None
    ties: tuple[Tie, ...]
    blocked: Mapping[Place, str]
    """Places of the node that may not lose channels, with the reason."""

    def place(self, port: Port) -> Place | None:
        """The place of a port; None where the value is absent."""
        values = self.node.inputs if port.slot >= 0 else self.node.outputs
        at = port.slot if port.slot >= 0 else ~port.slot
        value = values[at] if at < len(values) else None
        return None if value is None or not value.name else Place(value.name, port.axis)


@attrs.frozen(eq=False)
class Wiring:
    """A model whose nodes are wired."""

    model: ir.Model
    nodes: tuple[Wired, ...]
    """In the order of the graph."""
    touching: Mapping[str, tuple[int, ...]]
    """By value, the nodes that write or read it."""
    walls: Mapping[str, str]
    """Values that may not change, with the reason."""
    values: Mapping[str, ir.Value]
    constants: frozenset[str]
    """Values that do not depend on the inputs of the model."""

    @classmethod
    def of(cls, model: ir.Model, ops: OpTable | None = None) -> Wiring:
        nodes = tuple(_wired(node, model, ops or registry().ops) for node in model.graph)
        touching: dict[str, list[int]] = {}
        for number, wired in enumerate(nodes):
            for value in {v.name: v for v in (*wired.node.inputs, *wired.node.outputs) if v is not None}.values():
                touching.setdefault(str(value.name), []).append(number)
        values = {str(v.name): v for v in (*model.graph.inputs, *model.graph.initializers.values())}
        values |= {str(v.name): v for node in model.graph for v in node.outputs}
        return cls(
            model,
            nodes,
            {name: tuple(numbers) for name, numbers in touching.items()},
            dict(_walls(model)),
            values,
            frozenset(_constants(model)),
        )

    def size(self, place: Place) -> int | None:
        """How many positions a place has; None if that is dynamic or unknown."""
        value = self.values.get(place.value)
        sizes = dims(value) or ()
        axis = place.axis if isinstance(place.axis, int) else place.axis.axis
        size = sizes[axis] if axis < len(sizes) else None
        if not isinstance(size, int):
            return None
        return size if isinstance(place.axis, int) else size * place.axis.cells

    def wall(self, place: Place) -> str | None:
        """Why a place may not change, whatever the rules say."""
        if isinstance(place.axis, Cellwise):
            value = self.values[place.value]
            if not value.is_initializer() or len(self.touching[place.value]) > 1:
                return "the filters of a grouped convolution are computed or shared"
        return self.walls.get(place.value)


def _walls(model: ir.Model) -> Iterator[tuple[str, str]]:
    for value in model.graph.inputs:
        if not value.is_initializer():
            yield str(value.name), f"'{value.name}' is an input of the graph"
    for graph in model.graph.subgraphs():
        for node in graph:
            for read in node.inputs:
                if read is not None and read.name and read.graph is not graph:
                    yield read.name, f"'{read.name}' is read inside a control-flow body"
    for value in model.graph.outputs:
        yield str(value.name), f"'{value.name}' is an output of the graph"


def _constants(model: ir.Model) -> Iterator[str]:
    found = {str(name) for name in model.graph.initializers}
    yield from found
    for node in model.graph:
        read = [v for v in node.inputs if v is not None]
        if read and all(v.name in found for v in read):
            new = {str(v.name) for v in node.outputs}
            found |= new
            yield from new


def _wired(node: ir.Node, model: ir.Model, table: OpTable) -> Wired:
    site = _site(node, model)
    op = table.resolve(site.node.domain, site.node.op_type, site.node.opset)
    rule = op.channels if op is not None else None
    rule = rule if rule is None or isinstance(rule, Channels) else Channels(rule)
    ties = tuple(tie for tie in rule.ties(site) if _exists(tie, site)) if rule is not None else ()
    wired = Wired(node, site, rule, ties, {})
    return attrs.evolve(wired, blocked=dict(_blocked(wired)))


def _site(node: ir.Node, model: ir.Model) -> Site:
    domain = normal(node.domain)
    view = Node(
        op_type=node.op_type,
        domain=domain,
        name=node.name or "",
        attributes={name: attribute(node, name) for name, found in node.attributes.items() if _plain(found)},
        opset=node.version or model.opset_imports.get(domain) or model.opset_imports.get(node.domain, 1),
        outputs=tuple(v.name or "" for v in node.outputs),
    )
    return Site(
        node=view,
        inputs=tuple(map(dims, node.inputs)),
        outputs=tuple(map(dims, node.outputs)),
        constant=functools.cache(lambda index: _known(node, index)),
    )


def _plain(found: ir.Attr) -> bool:
    return not found.is_ref() and found.type not in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def _known(node: ir.Node, index: int) -> Any:
    return constant(node.inputs[index]) if index < len(node.inputs) else None


def dims(value: ir.Value | None) -> Dims | None:
    """The sizes of a value as rules read them."""
    if value is None or value.shape is None:
        return None
    sizes = (d if isinstance(d, int) else d.value for d in value.shape)
    return tuple(None if isinstance(d, int) and d < 0 else d for d in sizes)  # some exporters write -1


def _exists(tie: Tie, site: Site) -> bool:
    """Rules may speak of optional inputs and outputs; what is absent has no ties."""

    def present(port: Port) -> bool:
        found = site.dims(port.slot)
        axis = port.axis if isinstance(port.axis, int) else port.axis.axis
        return found is not None and axis < len(found)

    match tie:
        case Same():
            return present(tie.a) and present(tie.b)
        case Regroup():
            return True
        case _:
            return present(tie.port)


def ports(tie: Tie) -> Sequence[Port]:
    """The ports that a tie speaks of."""
    match tie:
        case Same():
            return (tie.a, tie.b)
        case Regroup():
            return tuple(port for port, _, _ in tie.ports)
        case _:
            return (tie.port,)


def _blocked(wired: Wired) -> Iterator[tuple[Place, str]]:
    """What the rule blocks, and what it does not mention."""
    site, name = wired.site, wired.site.node.name or wired.site.node.outputs[0]
    op_type = wired.site.node.op_type
    mentioned = {port.slot: set[int]() for tie in wired.ties for port in ports(tie)}
    for tie in wired.ties:
        for port in ports(tie):
            mentioned[port.slot].add(port.axis if isinstance(port.axis, int) else port.axis.axis)
        if isinstance(tie, Blocked):
            place = wired.place(tie.port)
            if place is not None:
                yield place, f"{tie.reason} (node '{name}')"
    unranked = [
        v.name for v in (*wired.node.inputs, *wired.node.outputs) if v is not None and v.name and v.shape is None
    ]
    for slot in (*range(len(site.inputs)), *(~i for i in range(len(site.outputs)))):
        for axis in range(site.rank(slot)):
            place = wired.place(Port(slot, axis))
            if place is not None and unranked:
                yield place, f"the number of axes of '{unranked[0]}' is not known"
            elif place is not None and axis not in mentioned.get(slot, ()):
                side = f"input {slot}" if slot >= 0 else f"output {~slot}"
                why = f"ties nothing to axis {axis} of its {side}" if wired.rule else "has no channel rule"
                yield place, f"{op_type} {why} (node '{name}')"
