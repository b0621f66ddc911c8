"""Shape arithmetic that need not be done when the model runs.

    Gather(Shape(x), i)                        a constant, where these dimensions of x are known
    Reshape(x, Concat(2, unknown, 4))          Reshape(x, [2, -1, 4]): what is unknown follows from the size of x
                                               (a Cast of the Concat makes no difference)

Exporters compute the shapes of attention heads from the shape of their input, four to a dozen small nodes a Reshape,
although all but the number of samples is fixed.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pumice.model.graph import add_initializer, attribute, constant, replace_input, replace_value


def fold_known_dimensions(model: ir.Model) -> None:
    """Constants for the selections from a shape that are the same for every input."""
    for node in list(model.graph):
        found = _known_dimensions(node)
        if found is not None and not node.outputs[0].is_graph_output():
            output = node.outputs[0]
            replace_value(output, add_initializer(model, f"{output.name}/constant", found))
            model.graph.remove(node, safe=True)


def infer_unknown_dimensions(model: ir.Model) -> None:
    """Constant shapes for the Reshapes of which one dimension alone is computed when the model runs."""
    for node in list(model.graph):
        shape = _shape_but_for_one(node)
        if shape is not None:
            replace_input(node, 1, add_initializer(model, f"{node.outputs[0].name}/shape", shape))


def _known_dimensions(node: ir.Node) -> NDArray[np.int64] | None:
    if node.op_type != "Gather" or node.domain not in ("", "ai.onnx") or node.inputs[0] is None:
        return None
    shape, chosen = node.inputs[0].producer(), constant(node.inputs[1])
    if shape is None or shape.op_type != "Shape" or shape.inputs[0] is None or chosen is None:
        return None
    measured = shape.inputs[0].shape
    if measured is None:
        return None
    dimensions = list(measured)[attribute(shape, "start", 0) : attribute(shape, "end")]
    if not np.all((chosen >= -len(dimensions)) & (chosen < len(dimensions))):
        return None
    picked = [dimensions[i] for i in chosen.reshape(-1)]
    known = [dimension for dimension in picked if isinstance(dimension, int)]
    return np.array(known, np.int64).reshape(chosen.shape) if len(known) == len(picked) else None


def _shape_but_for_one(node: ir.Node) -> NDArray[np.int64] | None:
    """The shape that a Reshape asks for, -1 for the one dimension that is not constant; None if there are others.

    Zeros, and a -1 of the model's own, mean something else already.
    """
    if node.op_type != "Reshape" or node.domain not in ("", "ai.onnx") or node.inputs[1] is None:
        return None
    concat = node.inputs[1].producer()
    if concat is not None and concat.op_type == "Cast" and concat.inputs[0] is not None:
        concat = concat.inputs[0].producer()
    if concat is None or concat.op_type != "Concat":
        return None
    parts = [constant(part) for part in concat.inputs]
    unknown = [part for part, array in zip(concat.inputs, parts, strict=True) if array is None]
    if len(unknown) != 1 or unknown[0] is None or unknown[0].shape != (1,):
        return None
    dimensions = np.concatenate([[-1] if array is None else array for array in parts])
    return dimensions.astype(np.int64) if np.count_nonzero(dimensions <= 0) == 1 else None
