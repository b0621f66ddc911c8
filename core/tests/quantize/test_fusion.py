import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import parser

from pumice.ledger import Ledger
from pumice.model import fingerprint, infer_shapes
from pumice.plan import compile_plan
from pumice.quantize.fusion import fused

HEAD = """
<ir_version: 10, opset_import: ["" : 21]>
g (float[N,4] x) => (float[N,4] y) {
    x_q = QuantizeLinear (x, s, z)
    x_d = DequantizeLinear (x_q, s, z)
    w_d = DequantizeLinear <axis=1> (w, w_s, w_z)
"""
TAIL = """
    h_q = QuantizeLinear (h, s, z)
    y = DequantizeLinear (h_q, s, z)
}"""
CONSTANTS = {
    "s": np.array(1 / 32, np.float32), "t": np.array(1 / 16, np.float32), "z": np.array(128, np.uint8),
    "zero": np.array(0, np.uint8), "w": np.arange(-8, 8, dtype=np.int8).reshape(4, 4),
    "w_s": np.full(4, 1 / 64, np.float32), "w_z": np.zeros(4, np.int8), "axes": np.array([1]),
    "b": np.array([1, 2, 3, 4], np.float32), "b_q": np.array([1, 2, 3, 4], np.int32),
    "right": np.full(4, 1 / 2048, np.float32), "wrong": np.full(4, 1 / 1024, np.float32), "b_z": np.zeros(4, np.int32),
}  # fmt: skip


def graph(middle: str, tail: str = TAIL) -> ir.Model:
    proto = parser.parse_model(HEAD + middle + tail)
    read = {name for node in proto.graph.node for name in node.input}
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(array, name) for name, array in CONSTANTS.items() if name in read
    )
    return infer_shapes(ir.from_proto(proto))


def operators(model):
    return [node.op_type for node in model.graph]


def test_a_product_between_integers_becomes_one_operator_that_computes_the_same():
    model = graph("h = MatMul (x_d, w_d)")
    result = fused(model)
    assert operators(result) == ["QuantizeLinear", "QLinearMatMul", "DequantizeLinear"]
    x = {"x": np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)}
    outputs = ["x_q", "h_q", "y"]
    expected = compile_plan(model, outputs).run(x)  # the scales are powers of two: real arithmetic is exact as well
    for name, array in compile_plan(result, outputs).run(x).items():
        np.testing.assert_array_equal(array, expected[name])


def test_weights_of_four_bits_that_are_widened_count_as_those_of_eight():
    head = HEAD.replace("(w, w_s, w_z)", "(w_8, w_s, w_z)").replace("w_d =", "w_8 = Cast <to=3> (narrow)  w_d =")
    proto = parser.parse_model(head + "h = MatMul (x_d, w_d)" + TAIL)
    held = CONSTANTS | {"narrow": CONSTANTS["w"].astype(ml_dtypes.int4)}
    read = {name for node in proto.graph.node for name in node.input}
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(held[name], name) for name in held if name in read)
    result = fused(infer_shapes(ir.from_proto(proto)))
    assert operators(result) == ["QuantizeLinear", "QLinearMatMul", "DequantizeLinear"]
    x = {"x": np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)}
    (exact,), (found,) = (compile_plan(m).run(x).values() for m in (graph("h = MatMul (x_d, w_d)"), result))
    np.testing.assert_array_equal(found, exact)


def test_the_model_itself_stays_as_it_is():
    model = graph("h = MatMul (x_d, w_d)")
    before = fingerprint(model)
    fused(model)
    assert fingerprint(model) == before


def test_what_nobody_reads_any_more_is_removed():
    result = fused(graph("h = MatMul (x_d, w_d)"))
    assert set(result.graph.initializers) == {"s", "z", "w", "w_s", "w_z"}


def test_a_relu_vanishes_where_the_integers_begin_at_zero():
    tail = "h_q = QuantizeLinear (h, s, zero)  y = DequantizeLinear (h_q, s, zero) }"
    ledger = Ledger()
    result = fused(graph("m = MatMul (x_d, w_d)  h = Relu (m)", tail), ledger)
    assert operators(result) == ["QuantizeLinear", "QLinearMatMul", "DequantizeLinear"]
    assert [entry.verdict for entry in ledger] == ["applied", "applied"]


def test_operators_that_move_values_work_on_the_integers():
    result = fused(graph("h = Transpose <perm=[0,1]> (x_d)"))
    assert operators(result) == ["QuantizeLinear", "Transpose", "DequantizeLinear"]
    assert result.graph[1].outputs[0].dtype == ir.DataType.UINT8


def test_integer_operators_that_are_there_already_are_skipped():
    ledger = Ledger()
    fused(fused(graph("h = MatMul (x_d, w_d)")), ledger)
    assert [entry.reason for entry in ledger.of("export", "skipped")] == ["it is an integer operator already"]


@pytest.mark.parametrize(
    ("middle", "tail", "reason"),
    [
        ("m = Add (x_d, x_d)  h = Relu (m)", TAIL, "its Relu does not end where the integers do"),
        ("h = Gemm (x_d, w_d, b)", TAIL, "its bias is not a 32-bit integer"),
        (
            "b_d = DequantizeLinear <axis=0> (b_q, wrong, b_z)  h = Gemm (x_d, w_d, b_d)",
            TAIL,
            "its bias has another scale than its products",
        ),
        ("h = Softmax (x_d)", TAIL, "there is no integer operator for Softmax"),
        ("r = Abs (x)  h = MatMul (r, w_d)", TAIL, "its input is a real number"),
        ("h = Add (x_d, x)", TAIL, "one of its inputs is a real number, or has several scales"),
        ("h = Add (x_d, x_d)  a = Abs (h)", TAIL, "its result is read as a real number (Abs, QuantizeLinear)"),
        ("y = Add (x_d, x_d)", "}", "its result 'y' leaves the model as a real number"),
        (
            "h = Transpose (x_d)",
            "h_q = QuantizeLinear (h, t, z)  y = DequantizeLinear (h_q, t, z) }",
            "its input and its result have different scales or zero points",
        ),
        (
            "v_d = DequantizeLinear <axis=0> (w, w_s, w_z)  h = MatMul (x_d, v_d)",
            TAIL,
            "the scales of its weights do not belong to its output channels",
        ),
    ],
)
def test_what_has_no_integer_operator_stays_with_its_reason(middle, tail, reason):
    ledger = Ledger()
    model = graph(middle, tail)
    result = fused(model, ledger)
    assert reason in [entry.reason for entry in ledger.of("export", "declined")]
    assert not any(name.startswith(("QLinear", "QGemm")) for name in operators(result))


def test_a_bias_in_the_units_of_the_products_is_added_to_the_sums():
    bias = "b_d = DequantizeLinear <axis=0> (b_q, right, b_z)  h = Gemm (x_d, w_d, b_d)"
    result = fused(graph(bias))
    (gemm,) = (node for node in result.graph if node.op_type == "QGemm")
    assert gemm.inputs[6].name == "b_q"
    assert result.opset_imports["com.microsoft"] == 1
