"""Models written as ONNX text: the shortest way to say a graph."""

import onnx.parser
import onnx_ir as ir
import pytest


@pytest.fixture
def model():
    """Parses the text of a graph into an `ir.Model` of opset 21."""

    def parse(graph, opset=21):
        text = f'<ir_version: 10, opset_import: ["" : {opset}, "my.domain" : 1]>\n{graph}'
        return ir.from_proto(onnx.parser.parse_model(text))

    return parse
