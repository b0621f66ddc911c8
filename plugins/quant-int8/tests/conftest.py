"""A small network of convolutions and data for it."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from pumice.model import infer_shapes

CONV = "Conv <kernel_shape=[3,3], pads=[1,1,1,1]>"
TEXT = f"""g (float[N,1,16,16] image) => (float[N,10] logits) {{
    c1 = {CONV} (image, w1, b1)  r1 = Relu (c1)
    c2 = Conv <kernel_shape=[3,3], pads=[1,1,1,1], group=16> (r1, w2, b2)  r2 = Relu (c2)
    c3 = Conv <kernel_shape=[1,1]> (r2, w3, b3)  s = Add (c3, r1)  r3 = Relu (s)
    m = MaxPool <kernel_shape=[2,2], strides=[2,2]> (r3)
    c4 = {CONV} (m, w4, b4)  r4 = Relu (c4)  p = GlobalAveragePool (r4)  f = Flatten (p)
    logits = Gemm <transB=1> (f, w5, b5) }}"""
SHAPES = {
    "w1": (16, 1, 3, 3), "b1": (16,), "w2": (16, 1, 3, 3), "b2": (16,), "w3": (16, 16, 1, 1), "b3": (16,),
    "w4": (64, 16, 3, 3), "b4": (64,), "w5": (10, 64), "b5": (10,),
}  # fmt: skip


def convolutional():
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> {TEXT}')
    for name, shape in SHAPES.items():
        scale = np.sqrt(2.0 / np.prod(shape[1:])) if len(shape) > 1 else 0.1
        array = (rng.standard_normal(shape) * scale).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    for node in proto.graph.node:
        node.name = f"at_{node.output[0]}"
    return infer_shapes(ir.from_proto(proto))


@pytest.fixture
def network():
    return convolutional()


@pytest.fixture
def images():
    return np.random.default_rng(1).standard_normal((24, 1, 16, 16)).astype(np.float32)
