"""What reaches onnxruntime: the same numbers, in fewer bytes, by its low-bit kernels."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import pumice
from pumice.measure import pick_runtime
from pumice.model import infer_shapes, size
from pumice.plan import compile_plan
from pumice_quant_int4 import Int4

TEXT = """g (float[N,64] x, int64[N] i) => (float[N,9] y) {
    row = Gather (table, i)  s = Add (x, row)  a = Gemm <transB=1> (s, w1, b1)  r = Relu (a)  m = MatMul (r, w2)
    c = Add (m, b2)  image = Reshape (c, four)  v = Conv <pads=[1,1,1,1], group=2> (image, w3)  t = Relu (v)
    u = ConvTranspose (t, w4)  f = Flatten (u)  y = MatMul (f, w5) }"""
SHAPES = {"table": (50, 64), "w1": (64, 64), "b1": (64,), "w2": (64, 100), "b2": (100,), "w3": (6, 2, 3, 3),
          "w4": (6, 3, 2, 2), "w5": (108, 9)}  # fmt: skip


@pytest.fixture
def network():
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> {TEXT}')
    draws = {name: rng.standard_normal(shape) * shape[-1] ** -0.5 for name, shape in SHAPES.items()}
    arrays = {name: draw.astype(np.float32) for name, draw in draws.items()}
    arrays["four"] = np.array([-1, 4, 5, 5])
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in arrays.items())
    for node in proto.graph.node:
        node.name = f"at_{node.output[0]}"
    return infer_shapes(ir.from_proto(proto))


@pytest.fixture
def samples():
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((4, 64)).astype(np.float32), "i": rng.integers(0, 50, 4)} for _ in range(16)]


def compress(model, data, **knobs):
    step = {"use": "quantize", "quantizer": {"name": "int4", "block": 32, **knobs}, "max_drop": 1.0}
    return pumice.compress(model, data, {"step": [step]}, measure=False)


@pytest.mark.parametrize("form", ["auto", "dequantize", "nbits"])
@pytest.mark.parametrize("knobs", [{}, {"symmetric": True}, {"block": 0}, {"bits": 8}])
def test_onnxruntime_computes_what_the_codes_stand_for(network, samples, form, knobs):
    result = compress(network, samples, form=form, **knobs)
    plan, session = compile_plan(result.model), pick_runtime("ort").open(result.model)
    expected, found = plan.run(samples[0])["y"], session.run(samples[0])["y"]
    noise = np.mean((found - expected) ** 2) / np.var(expected)
    assert noise < (1e-9 if form == "nbits" and "bits" not in knobs else 1e-3)  # what is fused rounds its input to int8


@pytest.mark.parametrize(("form", "fused"), [("auto", 2), ("nbits", 3)])
def test_matrix_products_run_in_the_low_bit_kernel(network, samples, form, fused):
    """What onnxruntime fuses by itself has a depth that is a multiple of the block: 64, not 108."""
    ops = pick_runtime("ort").optimized_ops(compress(network, samples, form=form).model)
    assert ops["MatMulNBits"] == fused


def test_codes_are_stored_two_a_byte(network, samples):
    result = compress(network, samples)
    held = size(result.model).initializers
    assert held["w1/codes"] == 64 * 64 / 2
    assert held["w3/codes"] == 6 * 2 * 9 / 2
    assert held["table/codes"] == 50 * 64 / 2


def test_compensated_rounding_of_clipped_blocks_beats_the_textbook(network, samples):
    exact = compile_plan(network).run(samples[0])["y"]

    def noise(**knobs):
        plan = compile_plan(compress(network, samples, bits=3, **knobs).model)
        return np.mean((plan.run(samples[0])["y"] - exact) ** 2)

    best, textbook = noise(), noise(scales="minmax", rounding="nearest")
    assert best < 0.6 * textbook
    assert noise(scales="hqq", rounding="nearest") < textbook


def test_an_opset_without_types_of_four_bits_is_refused(network):
    network.opset_imports[""] = 20
    assert "its opset is 20" in Int4().accepts(network)
