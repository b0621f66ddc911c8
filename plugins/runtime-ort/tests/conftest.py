import numpy as np
import onnx_ir as ir
import pytest
from onnx import parser

from pumice.testing.models import random_feeds, tiny_cnn


@pytest.fixture
def model() -> ir.Model:
    return tiny_cnn()


@pytest.fixture
def feeds() -> dict[str, np.ndarray]:
    return random_feeds(1)[0]


@pytest.fixture
def written():
    """`written("float[N] x", "float[N] y", "y = Abs(x)")`: a model from text."""

    def build(inputs: str, outputs: str, body: str, opset: int = 21) -> ir.Model:
        text = f'<ir_version: 10, opset_import: ["" : {opset}]> g ({inputs}) => ({outputs}) {{ {body} }}'
        return ir.from_proto(parser.parse_model(text))

    return build
