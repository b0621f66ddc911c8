"""Building an ONNX graph node by node: every node's output is named after the node, every constant after its tensor."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
IR_VERSION = 8


class GraphBuilder:
    """An append-only graph; `save` checks it in full and writes the file."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}

    def constant(self, name: str, values: Any, dtype: Any = None) -> str:
        """Store an initializer; the name if it is already there."""
        if name not in self._constants:
            self._constants[name] = numpy_helper.from_array(np.array(values, dtype, order="C"), name)
        return name

    def node(self, op: str, inputs: Sequence[str], name: str, *, output: str | None = None, **attributes: Any) -> str:
        """Append a node of one output (`<name>_out` unless given); the output's name."""
        output = output or f"{name}_out"
        self._nodes.append(helper.make_node(op, list(inputs), [output], name=name, **attributes))
        return output

    def nodes(self, op: str, inputs: Sequence[str], outputs: Sequence[str], name: str, **attributes: Any) -> None:
        """Append a node of several outputs; an empty output name leaves that output out."""
        self._nodes.append(helper.make_node(op, list(inputs), list(outputs), name=name, **attributes))

    def save(self, path: Path, inputs: dict[str, tuple], outputs: dict[str, tuple]) -> None:
        """Check and write the model. Values of `inputs` and `outputs`: (dtype, shape); a string is a free dimension."""
        graph = helper.make_graph(
            self._nodes, self._name, _values(inputs), _values(outputs), list(self._constants.values())
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name=self._name)
        model.ir_version = IR_VERSION
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, path)


def _values(described: dict[str, tuple]) -> list[onnx.ValueInfoProto]:
    return [helper.make_tensor_value_info(name, dtype, shape) for name, (dtype, shape) in described.items()]


FLOAT, INT32, INT64 = TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64
