"""Surgery: positions taken out of every member of the groups, and what nodes say about themselves made true again.

    initializers     sliced along every axis that loses positions
    attributes       group counts, hidden sizes, numbers of heads: by the operators' own edits
    target shapes    new numbers where they are constants, else `Where` lays them over what the graph computes
    Shape            goes on telling the sizes of the whole model, since a scale or an offset may be made of them
    metadata         which indices of the original each initializer kept; a second removal composes with the first

The result has its sizes inferred anew, and they must be those that the removal implies.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pumice.errors import ModelError
from pumice.model import add_initializer, clone, constant, fresh_name, infer_shapes, remove_unread, replace_input
from pumice.ops.channels import Cellwise, Edit, Port
from pumice.prune.groups import Cuts, Mask
from pumice.prune.wiring import Wired, Wiring

KEPT = "pumice.kept"
"""Metadata key: JSON `{initializer: {axis: [indices of the original]}}`."""


def remove(wiring: Wiring, cuts: Cuts) -> ir.Model:
    """The model without the positions cut; the wired one is left unchanged.

    Raises:
        ModelError: a place would be left empty, or the sizes that follow contradict each other.
    """
    for place, mask in cuts.items():
        if mask.all():
            raise ModelError(f"nothing of axis {place.axis} of '{place.value}' would be left: prune fewer channels")
    model = clone(wiring.model)
    edits = [(node, _edit(wired, cuts)) for node, wired in zip(list(model.graph), wiring.nodes, strict=True)]
    _record(model, cuts)
    _slice(model, cuts)
    for node, edit in edits:
        if edit is not None:
            _apply(model, node, edit)
    remove_unread(model)
    return _checked(infer_shapes(model), wiring, cuts)


def kept_indices(model: ir.Model) -> dict[str, dict[int, list[int]]]:
    """Of every initializer that lost channels, by axis, the indices of the original that it kept."""
    held = json.loads(model.metadata_props.get(KEPT, "{}"))
    return {name: {int(axis): indices for axis, indices in axes.items()} for name, axes in held.items()}


def _edit(wired: Wired, cuts: Cuts) -> Edit | None:
    def kept(port: Port) -> Mask | None:
        place = wired.place(port)
        return ~cuts[place] if place is not None and place in cuts else None

    touched = any(p.value in _names(wired.node) for p in cuts)
    return wired.rule.edit(wired.site, kept) if touched and wired.rule is not None and wired.rule.edit else None


def _names(node: ir.Node) -> set[str]:
    return {str(v.name) for v in (*node.inputs, *node.outputs) if v is not None}


# --- weights ----------------------------------------------------------------------------------------------------------


def take(array: NDArray[Any], cuts: Mapping[int | Cellwise, Mask]) -> NDArray[Any]:
    """An array without the positions cut: first cell by cell, while the cells are whole, then axis by axis."""
    for axis, mask in sorted(cuts.items(), key=lambda item: isinstance(item[0], int)):
        if isinstance(axis, Cellwise):
            rows = np.split(array, axis.cells, axis=0)
            keep = ~mask.reshape(axis.cells, -1)
            array = np.concatenate([np.compress(k, row, axis.axis) for k, row in zip(keep, rows, strict=True)])
        else:
            array = np.compress(~mask, array, axis)
    return np.ascontiguousarray(array)


def _slice(model: ir.Model, cuts: Cuts) -> None:
    by_value: dict[str, dict[int | Cellwise, Mask]] = {}
    for place, mask in cuts.items():
        by_value.setdefault(place.value, {})[place.axis] = mask
    for name, axes in by_value.items():
        value = model.graph.initializers.get(name)
        if value is not None:
            array = constant(value)
            assert array is not None
            value.const_value = ir.tensor(take(array, axes), name=name, dtype=value.dtype)
            value.shape = ir.Shape(value.const_value.shape.numpy())
    for node in model.graph:
        for result in node.outputs:
            if result.name in by_value and result.shape is not None:
                sizes = list(result.shape)
                for axis, mask in by_value[result.name].items():
                    assert isinstance(axis, int)
                    sizes[axis] = int((~mask).sum())
                result.shape = ir.Shape(sizes)


def _record(model: ir.Model, cuts: Cuts) -> None:
    held = kept_indices(model)
    for place, mask in cuts.items():
        if place.value in model.graph.initializers and isinstance(place.axis, int):
            axes = held.setdefault(place.value, {})
            before = axes.get(place.axis, list(range(len(mask))))
            axes[place.axis] = [before[i] for i in np.flatnonzero(~mask).tolist()]
    model.metadata_props[KEPT] = json.dumps(held, sort_keys=True, separators=(",", ":"))


# --- nodes ------------------------------------------------------------------------------------------------------------


def _apply(model: ir.Model, node: ir.Node, edit: Edit) -> None:
    for index, array in edit.inputs.items():
        old = node.inputs[index] if index < len(node.inputs) else None
        if old is not None and old.dtype is not None:
            array = array.astype(old.dtype.numpy())
        replace_input(node, index, add_initializer(model, f"{node.name}.{index}", array))
    for index, elements in edit.vectors.items():
        if elements:
            replace_input(node, index, _with_elements(model, node, node.inputs[index], elements))
    if edit.frozen:
        _freeze(model, node, edit.frozen)
    if edit.op_type is not None:
        node.op_type = edit.op_type
        node.resize_inputs(2)
    for name, value in edit.attributes.items():
        if value is None:
            node.attributes.pop(name, None)
        else:
            node.attributes[name] = ir.AttrInt64s(name, value) if isinstance(value, list) else ir.AttrInt64(name, value)


def _with_elements(model: ir.Model, node: ir.Node, vector: ir.Value | None, elements: Mapping[int, int]) -> ir.Value:
    """The vector of sizes that a node reads, with some elements replaced."""
    assert vector is not None
    array = constant(vector)
    if array is not None:
        changed = array.copy()
        changed[list(elements)] = list(elements.values())
        return add_initializer(model, str(vector.name), changed)
    overlay = _overlay(model, vector, elements, str(node.name))
    assert node.graph is not None
    node.graph.insert_before(node, overlay)
    return overlay.outputs[0]


def _freeze(model: ir.Model, node: ir.Node, elements: Mapping[int, int]) -> None:
    """Let everything that reads a shape read the old sizes."""
    shape = node.outputs[0]
    readers = list(shape.uses())
    overlay = _overlay(model, shape, elements, str(node.name))
    for use in readers:
        use.node.replace_input_with(use.idx, overlay.outputs[0])
    assert node.graph is not None
    node.graph.insert_after(node, overlay)


def _overlay(model: ir.Model, vector: ir.Value, elements: Mapping[int, int], name: str) -> ir.Node:
    """`Where` that puts numbers in place of some elements of a computed vector."""
    length = vector.shape[0] if vector.shape is not None and len(vector.shape) == 1 else None
    if not isinstance(length, int):
        raise ModelError(f"the sizes that node '{name}' reads have no known number; export the model with fixed ranks")
    dtype = vector.dtype or ir.DataType.INT64
    mask, numbers = np.zeros(length, bool), np.zeros(length, dtype.numpy())
    mask[list(elements)], numbers[list(elements)] = True, list(elements.values())
    inputs = [add_initializer(model, f"{name}.kept", mask), add_initializer(model, f"{name}.sizes", numbers), vector]
    result = ir.Value(name=fresh_name(model, f"{name}.target"), shape=ir.Shape([length]), type=ir.TensorType(dtype))
    return ir.Node("", "Where", inputs, outputs=[result], name=fresh_name(model, f"{name}.overlay"))


def _checked(model: ir.Model, wiring: Wiring, cuts: Cuts) -> ir.Model:
    """The pruned model, if inference agrees with the removal about every size."""
    values = {str(v.name): v for node in model.graph for v in node.outputs}
    for place, mask in cuts.items():
        value = values.get(place.value)
        size = value.shape[place.axis] if value is not None and value.shape and isinstance(place.axis, int) else None
        if isinstance(size, int) and size != int((~mask).sum()):
            raise ModelError(
                f"'{place.value}' would have {size} positions along axis {place.axis}, but {int((~mask).sum())} are "
                "kept: a node on its way changes sizes in a way that pruning cannot follow; protect that layer"
            )
    return model
