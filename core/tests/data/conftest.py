"""Small models, written as text."""

from collections.abc import Callable

import onnx_ir as ir
import pytest
from onnx import parser


@pytest.fixture
def model_of() -> Callable[..., ir.Model]:
    """`model_of("float[N,3] x", "float[N,3] y")`: a model of these inputs whose first output is the first input."""

    def build(inputs: str, outputs: str = "") -> ir.Model:
        first = inputs.split(",  ", maxsplit=1)[0].split()
        outputs = outputs or f"{first[0]} out"
        name = outputs.split()[-1]
        text = (
            f'<ir_version: 10, opset_import: ["" : 21]> g ({inputs}) => ({outputs}) {{ {name} = Identity({first[1]}) }}'
        )
        return ir.from_proto(parser.parse_model(text))

    return build
