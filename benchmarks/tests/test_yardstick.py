import numpy as np
import onnx
import pytest
from onnx import parser
from yardstick import apart, nudged, onnxruntime_itself

from pumice.model import load

TEXT = """
<ir_version: 10, opset_import: ["" : 21]>
network (float[N,8] x) => (float[N,32] y, int64[2] size) {
    product = MatMul (x, w)
    moved = Add (product, half)
    quantized, scale, zero = DynamicQuantizeLinear (moved)
    y = DequantizeLinear (quantized, scale, zero)
    size = Shape (x)
}"""


@pytest.fixture
def network(tmp_path):
    held = {"w": np.random.default_rng(0).standard_normal((8, 32)), "half": np.array([0.5])}
    proto = parser.parse_model(TEXT)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(x.astype(np.float32), name) for name, x in held.items())
    onnx.save(proto, tmp_path / "network.onnx")
    return tmp_path / "network.onnx"


def weight(model, name):
    return model.graph.initializers[name].const_value.numpy()


def test_last_bits_of_weights_are_other_ones_and_small_constants_what_they_were(network):
    was, now = load(network), nudged(network, 0)
    np.testing.assert_array_max_ulp(weight(now, "w"), weight(was, "w"), 2)
    assert 0.5 < (weight(now, "w") != weight(was, "w")).mean() < 0.8
    assert weight(now, "w").dtype == np.float32
    assert weight(now, "half") == 0.5


def test_a_last_bit_becomes_a_step_where_a_number_lies_half_way(network):
    feed = {"x": np.random.default_rng(1).standard_normal((65536, 8)).astype(np.float32)}
    step = 1 / 128
    assert step / 4 < onnxruntime_itself(network, [feed]) < step * 2


def test_the_largest_difference_is_relative_to_the_largest_value_and_of_real_numbers():
    wanted = {"a": np.array([1.0, -4.0]), "n": np.array([3]), "none": np.zeros(0)}
    assert apart({"a": np.array([1.0, -3.0]), "n": np.array([9]), "none": np.zeros(0)}, wanted) == 0.25
