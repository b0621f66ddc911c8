import re

import attrs
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, strategies as st

from pumice.model import constant, fingerprint
from pumice.plan import compile_plan
from pumice.quantize.parameters import QuantParams, affine, symmetric_per_channel
from pumice.quantize.rounding import room_for_bias
from pumice.quantize.target import Target

CONV = "Conv <kernel_shape=[3,3], pads=[1,1,1,1]>"
NET = f"""(float[N,3,6,6] x) => (float[N,5] y) {{
    a = {CONV} (x, w, b)  r = Relu (a)  c = {CONV} (r, v)  s = Add (c, r)  p = GlobalAveragePool (s)
    f = Flatten (p)  y = Gemm <transB=1> (f, u, d) }}"""
WEIGHTS = {"w": (8, 3, 3, 3), "b": (8,), "v": (8, 8, 3, 3), "u": (5, 8), "d": (5,)}
TARGETS = ["ort-cpu", "ort-cpu-no-vnni", "openvino", "tensorrt"]


def operators(model):
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("opset", [13, 17, 19, 21, 23])
def test_the_result_is_valid_and_close_at_every_opset(lab, target, opset):
    model, feeds = lab.build(NET, opset, **WEIGHTS), lab.normal(1, 3, 6, 6)
    result, _ = lab.quantized(model, feeds, target)
    assert lab.noise_db(lab.outputs(model, feeds), lab.outputs(result, feeds)) > 25


@pytest.mark.parametrize("target", TARGETS)
def test_the_plan_and_the_unoptimized_runtime_compute_the_same_as_the_optimized_one(lab, target):
    model, feeds = lab.build(NET, **WEIGHTS), lab.normal(1, 3, 6, 6)
    result, _ = lab.quantized(model, feeds, target)
    optimized = lab.outputs(result, feeds)
    plan = compile_plan(result)
    ours = np.concatenate([plan.run(feed)["y"] for feed in feeds])
    for found in (ours, lab.outputs(result, feeds, optimize=False)):
        np.testing.assert_allclose(found, optimized, atol=0.05 * np.abs(optimized).max())


def test_the_model_itself_stays_as_it_is(lab):
    model = lab.build(NET, **WEIGHTS)
    before = fingerprint(model)
    lab.quantized(model, lab.normal(1, 3, 6, 6))
    assert fingerprint(model) == before


def test_names_are_kept(lab):
    model = lab.build(NET, **WEIGHTS)
    result, _ = lab.quantized(model, lab.normal(1, 3, 6, 6))
    kept = {"at_a", "at_c", "at_p", "at_f", "at_y"}
    assert kept <= {node.name for node in result.graph}
    assert [v.name for v in (*result.graph.inputs, *result.graph.outputs)] == ["x", "y"]
    every = [v.name for node in result.graph for v in node.outputs] + list(result.graph.initializers)
    assert len(set(every)) == len(every)
    made = {node.name for node in result.graph} - {node.name for node in model.graph}
    assert all(re.fullmatch(r"q/\d+", name) for name in made)  # never that of a node which the original had, and lost
    stored = result.graph.initializers.keys() - model.graph.initializers.keys()
    assert all(re.fullmatch(r"q/\d+", name) for name in stored)  # short: names are bytes, too


def test_no_floating_point_weights_are_left(lab):
    result, _ = lab.quantized(lab.build(NET, **WEIGHTS), lab.normal(1, 3, 6, 6), smallest=1)
    large = [v for v in result.graph.initializers.values() if v.const_value.size >= 24 and v.dtype == ir.DataType.FLOAT]
    assert large == []


def test_names_with_spaces_and_slashes_survive(lab):
    model = lab.build(NET, **WEIGHTS)
    for node in model.graph:
        node.name = f"block 1/{node.name}//[0]"
        node.outputs[0].name = (
            node.outputs[0].name if node.outputs[0].is_graph_output() else f"a b/{node.outputs[0].name}:0"
        )
    result, ledger = lab.quantized(model, lab.normal(1, 3, 6, 6))
    assert {"block 1/at_a//[0]", "block 1/at_y//[0]"} <= {node.name for node in result.graph}
    assert {entry.node for entry in ledger} == {node.name for node in model.graph}


def test_layers_that_share_weights_share_their_integers(lab):
    text = "(float[N,8] x) => (float[N,8] y, float[N,8] z) { y = MatMul (x, w)  z = MatMul (x, w) }"
    for modes in (("static",), ("dynamic",), ()):
        result, _ = lab.quantized(lab.build(text, w=(8, 8)), lab.normal(4, 8), modes=modes)
        matrices = [v for v in result.graph.initializers.values() if v.const_value.size == 64]
        assert len(matrices) == 1


@pytest.mark.parametrize("target", TARGETS)
def test_nodes_that_are_no_layers_can_be_excluded(lab, target):
    model, feeds = lab.build(NET, **WEIGHTS), lab.normal(1, 3, 6, 6)
    result, ledger = lab.quantized(model, feeds, target, exclude=("at_s", "at_r", "at_p"))
    assert {entry.node for entry in ledger if entry.verdict == "declined"} >= {"at_s", "at_r", "at_p"}
    by_name = {node.name: node for node in result.graph}
    for name in ("at_s", "at_p"):
        assert not any(reader.op_type == "QuantizeLinear" for reader in by_name[name].outputs[0].consumers())
    assert by_name["at_r"].op_type == "Relu"


@pytest.mark.parametrize(
    ("sum_of", "shape", "sums"),
    [("m, b", (32,), 1), ("b, m", (1, 1, 32), 1), ("m, b", (4, 32), 2), ("m, b", (1,), 2), ("m, m", (32,), 2)],
)
def test_the_sum_after_a_matrix_product_is_its_bias(lab, sum_of, shape, sums):
    text = f"(float[N,4,8] x) => (float[N,4,32] y) {{ m = MatMul (x, w)  s = Add ({sum_of})  y = Tanh (s) }}"
    model, feeds = lab.build(text, w=(8, 32), b=shape), lab.normal(1, 4, 8)
    result, ledger = lab.quantized(model, feeds)
    assert operators(result).count("Add") == sums
    assert lab.noise_db(lab.outputs(model, feeds), lab.outputs(result, feeds)) > 30
    (line,) = (entry for entry in ledger if entry.node == "at_s")
    assert ("is the bias" in line.reason) == (sums == 1)


def test_a_sum_that_is_excluded_stays_apart(lab):
    text = "(float[N,4,8] x) => (float[N,4,32] y) { m = MatMul (x, w)  s = Add (m, b)  y = Tanh (s) }"
    result, _ = lab.quantized(lab.build(text, w=(8, 32), b=(32,)), lab.normal(1, 4, 8), exclude=("at_s",))
    assert [node.op_type for node in result.graph if node.name == "at_s"] == ["Add"]
    assert operators(result).count("Add") == 2


def test_the_weights_of_an_unrolled_loop_are_stored_once(lab):
    text = """(float[N,8] x) => (float[N,8] y) {
        a = MatMul (x, w)  b = Tanh (a)  c = MatMul (b, w)  d = Tanh (c)  y = MatMul (d, w) }"""
    model, gains = lab.build(text, w=(8, 8)), np.float32([9, 1, 1, 1, 1, 1, 1, 1])
    feeds = [{"x": feed["x"] * gains} for feed in lab.normal(40, 8)]
    result, _ = lab.quantized(model, feeds)
    assert operators(result).count("MatMulInteger") == 3
    assert sum(v.const_value.size == 64 for v in result.graph.initializers.values()) == 1
    assert lab.noise_db(lab.outputs(model, feeds), lab.outputs(result, feeds)) > 25


def test_layers_that_share_weights_but_not_their_inputs_range_are_right_both(lab):
    text = f"(float[N,8,6,6] x) => (float[N,8,6,6] y) {{ a = {CONV} (x, w)  r = Relu (a)  y = {CONV} (r, w) }}"
    model, feeds = lab.build(text, w=(8, 8, 3, 3)), lab.normal(1, 8, 6, 6)
    result, _ = lab.quantized(model, feeds)
    assert lab.noise_db(lab.outputs(model, feeds), lab.outputs(result, feeds)) > 25


def test_a_table_that_is_also_a_projection_is_quantized_for_both(lab):
    text = "(int64[N] i) => (float[N,50] y) { e = Gather (w, i)  h = Tanh (e)  y = Gemm <transB=1> (h, w) }"
    model, feeds = lab.build(text, w=(50, 16)), [{"i": np.arange(50)}]
    result, _ = lab.quantized(model, feeds)
    assert not any(
        v.const_value.size == 800 and v.dtype == ir.DataType.FLOAT for v in result.graph.initializers.values()
    )
    assert lab.noise_db(lab.outputs(model, feeds), lab.outputs(result, feeds)) > 25


def test_a_convolution_without_a_bias_gets_one_that_takes_up_the_mean_error(lab):
    text = f"(float[N,8,6,6] x) => (float[N,8,6,6] y) {{ y = {CONV} (x, w) }}"
    result, _ = lab.quantized(lab.build(text, w=(8, 8, 3, 3)), lab.normal(1, 8, 6, 6))
    (layer,) = (node for node in result.graph if node.op_type == "Conv")
    assert layer.inputs[2].producer().op_type == "DequantizeLinear"
    assert (
        len(
            lab.quantized(lab.build(text, w=(8, 8, 3, 3)), lab.normal(1, 8, 6, 6), correct_bias=False)[0]
            .graph[-3]
            .inputs
        )
        <= 3
    )


@given(st.floats(-1e24, 1e24), st.floats(1e-19, 1e3), st.floats(1e-30, 1e3))
def test_an_integer_bias_and_its_sums_cannot_overflow(bias, source, largest):
    params = symmetric_per_channel(np.array([[largest, -largest / 3]]), 0)
    reading = QuantParams(np.array(source, np.float32), np.array(0, np.uint8))
    scale = float(room_for_bias(params, np.array([bias]), reading).scale[0])
    unit = np.float32(source) * np.float32(scale)
    assert unit >= np.finfo(np.float32).tiny
    assert abs(bias) / float(unit) <= 2**30 * 1.001


@pytest.mark.parametrize("size", [1e6, -1e9, 1e20, 1e30])
def test_a_huge_bias_does_not_wrap_around(lab, size):
    text = f"(float[N,8,6,6] x) => (float[N,8,6,6] y) {{ y = {CONV} (x, w, b) }}"
    bias = np.linspace(-0.1, 0.1, 8).astype(np.float32)
    bias[3] = size
    model, feeds = lab.build(text, w=(8, 8, 3, 3), b=bias), lab.normal(1, 8, 6, 6)
    result, _ = lab.quantized(model, feeds)
    exact, found = (lab.outputs(m, feeds).reshape(-1, 8, 36)[:, 3] for m in (model, result))
    np.testing.assert_allclose(found, exact, rtol=0.02)


def test_tiny_activations_keep_their_biases(lab):
    text = f"(float[N,8,6,6] x) => (float[N,8,6,6] y) {{ y = {CONV} (x, w, b) }}"
    model = lab.build(text, w=(8, 8, 3, 3), b=np.ones(8, np.float32))
    feeds = [{"x": feed["x"] * np.float32(1e-25)} for feed in lab.normal(1, 8, 6, 6)]
    result, _ = lab.quantized(model, feeds)
    np.testing.assert_allclose(lab.outputs(result, feeds), 1.0, rtol=0.01)


def test_an_input_that_is_always_zero_has_a_result(lab):
    text = f"(float[N,8,6,6] x) => (float[N,8,6,6] y) {{ y = {CONV} (x, w, b) }}"
    model, feeds = (
        lab.build(text, w=(8, 8, 3, 3), b=np.arange(8, dtype=np.float32)),
        [{"x": np.zeros((1, 8, 6, 6), np.float32)}] * 3,
    )
    result, _ = lab.quantized(model, feeds)
    np.testing.assert_allclose(lab.outputs(result, feeds), lab.outputs(model, feeds), atol=0.02)


def test_a_value_given_out_as_quantized_keeps_its_name_type_and_shape(lab):
    text = f"(float[N,8,6,6] x) => (float[N,8,6,6] r) {{ a = {CONV} (x, w)  r = Relu (a) }}"
    result, _ = lab.quantized(lab.build(text, w=(8, 8, 3, 3)), lab.normal(1, 8, 6, 6))
    (output,) = result.graph.outputs
    assert (output.name, output.dtype, len(output.shape)) == ("r", ir.DataType.FLOAT, 4)
    assert output.producer().op_type == "DequantizeLinear"


def test_biases_are_real_numbers_where_the_target_wants_them(lab):
    for target, kind in (("tensorrt", ir.DataType.FLOAT), ("ort-cpu", ir.DataType.INT32)):
        result, _ = lab.quantized(lab.build(NET, **WEIGHTS), lab.normal(1, 3, 6, 6), target)
        (layer,) = (node for node in result.graph if node.name == "at_a")
        bias = layer.inputs[2]
        assert (bias if bias.producer() is None else bias.producer().inputs[0]).dtype == kind


def test_tensorrt_gets_signed_activations_around_zero(lab):
    result, _ = lab.quantized(lab.build(NET, **WEIGHTS), lab.normal(1, 3, 6, 6), "tensorrt")
    quantizers = [node for node in result.graph if node.op_type == "QuantizeLinear"]
    assert quantizers
    for node in quantizers:
        zero = constant(node.inputs[2])
        assert (zero.dtype, int(zero)) == (np.int8, 0)
    assert "DynamicQuantizeLinear" not in operators(result)


@pytest.mark.parametrize("per_channel", [True, False])
def test_weights_have_one_scale_a_channel_or_one_in_all(lab, per_channel):
    target = attrs.evolve(Target.named("ort-cpu"), per_channel=per_channel)
    model, feeds = lab.build(NET, **WEIGHTS), lab.normal(1, 3, 6, 6)
    result, _ = lab.quantized(model, feeds, target)
    (layer,) = (node for node in result.graph if node.name == "at_a")
    assert constant(layer.inputs[1].producer().inputs[1]).size == (8 if per_channel else 1)
    assert lab.noise_db(lab.outputs(model, feeds), lab.outputs(result, feeds)) > 20


def test_zeros_are_written_only_where_a_kernel_asks_for_them(lab):
    result, _ = lab.quantized(lab.build(NET, **WEIGHTS), lab.normal(1, 3, 6, 6), modes=("static",), smallest=1)
    weights = {(node.op_type, node.inputs[1].producer()) for node in result.graph if node.op_type in ("Conv", "Gemm")}
    found = {(kind, len(stored.inputs)) for kind, stored in weights if stored is not None}
    assert found == {("Conv", 2), ("Gemm", 3)}


def test_parameters_that_are_equal_are_stored_once(lab):
    text = f"""(float[N,8,6,6] x) => (float[N,8,3,3] y) {{
        a = {CONV} (x, w)  r = Relu (a)  m = MaxPool <kernel_shape=[2,2], strides=[2,2]> (r)  y = {CONV} (m, v) }}"""
    result, _ = lab.quantized(lab.build(text, w=(8, 8, 3, 3), v=(8, 8, 3, 3)), lab.normal(1, 8, 6, 6))
    quantizers = {node.inputs[0].name: node for node in result.graph if node.op_type == "QuantizeLinear"}
    assert quantizers["a"].inputs[1] is quantizers["m"].inputs[1]


def test_the_range_reaches_from_the_calibrator_to_the_file(lab):
    text = f"(float[N,8,6,6] x) => (float[N,8,6,6] y) {{ y = {CONV} (x, w) }}"
    feeds = lab.normal(1, 8, 6, 6)
    result, _ = lab.quantized(lab.build(text, w=(8, 8, 3, 3)), feeds, equalize=False)
    everything = np.concatenate([feed["x"] for feed in feeds])
    expected = affine(everything.min(), everything.max(), np.uint8)
    (first,) = (node for node in result.graph if node.op_type == "QuantizeLinear" and node.inputs[0].name == "x")
    assert constant(first.inputs[1]) == expected.scale
    assert constant(first.inputs[2]) == expected.zero_point
