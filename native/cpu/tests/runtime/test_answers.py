"""What the native runtime answers: onnxruntime's integers, its real numbers nearly, and the reference's everywhere."""

import numpy as np
import onnx
import pytest
from onnx import parser

from pumice.model import load, save
from pumice.plan import compile_plan
from pumice.testing.runtime import RuntimeContract
from pumice_cpu.runtime.compiler import REFERENCE
from pumice_cpu.runtime.strategy import NativeRuntime


class TestNative(RuntimeContract):
    strategy = NativeRuntime
    atol = 5e-5
    """Products of split operands: 2^-16 of the sum of |x w|."""


def opened(path, **options):
    return NativeRuntime().open(path, **options)


def kinds(session, feeds):
    return [i.kind for i in session.compiled(feeds).executable.instructions]


@pytest.mark.parametrize("batch", [1, 3])
def test_a_quantized_network_answers_bit_for_bit_as_onnxruntime(
    quantized_cnn, onnxruntime_says, given_images, batch, threads
):
    feeds = given_images(batch)
    ours = opened(quantized_cnn, threads=threads).run(feeds)
    for name, array in onnxruntime_says(quantized_cnn, feeds).items():
        np.testing.assert_array_equal(ours[name], array)


def test_every_integer_inside_is_onnxruntimes(quantized_cnn, given_images):
    import onnxruntime

    model = onnx.load(quantized_cnn)
    names = [node.output[0] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    feeds = given_images(2)
    theirs = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(
        names, feeds
    )
    ours = opened(quantized_cnn, outputs=names).run(feeds)
    for name, array in zip(names, theirs, strict=True):
        np.testing.assert_array_equal(ours[name], array, err_msg=name)


def test_a_quantized_network_runs_natively_throughout(quantized_cnn, given_images):
    assert REFERENCE not in kinds(opened(quantized_cnn), given_images(1))


def test_residuals_are_added_in_the_convolution_by_fast_mode_within_one_level(quantized_cnn, given_images):
    model, feeds = load(quantized_cnn), given_images(2)
    (node,) = [node for node in model.graph if node.op_type == "Add"]
    while node.op_type != "QuantizeLinear":
        (node,) = [use.node for use in node.outputs[0].uses()]
    name = str(node.outputs[0].name)
    exact, fast = (NativeRuntime(mode=mode).open(model, outputs=[name]) for mode in ("exact", "fast"))
    levels = [session.run(feeds)[name].astype(np.int32) for session in (exact, fast)]
    assert np.abs(levels[0] - levels[1]).max() <= 1
    assert "add_u8" not in {*kinds(exact, feeds), *kinds(fast, feeds)}


def test_a_float_network_answers_as_onnxruntime(cnn, onnxruntime_says, given_images):
    feeds = given_images(2)
    session = opened(cnn)
    np.testing.assert_allclose(session.run(feeds)["y"], onnxruntime_says(cnn, feeds)["y"], rtol=1e-4, atol=5e-5)
    assert set(kinds(session, feeds)) <= {"nhwc", "pool_nhwc", "pool_f32", "reduce", "transpose", "copy", "gemm"}


QUANTIZING = """<ir_version: 8, opset_import: ["": 17]>
net (float[1, 64, 9, 9] x) => (uint8[1, 32, 9, 9] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w) y = QuantizeLinear(a, s, z)
}"""


def test_levels_are_made_of_sums_of_operands_that_are_not_split(onnxruntime_says, rng, tmp_path):
    weights = {
        "w": rng.standard_normal((32, 64, 3, 3)).astype(np.float32), "s": np.float32(0.5), "z": np.array(128, np.uint8)
    }  # fmt: skip
    path = tmp_path / "net.onnx"
    save(with_weights(QUANTIZING, weights), path)
    feeds = {"x": rng.standard_normal((1, 64, 9, 9)).astype(np.float32)}
    sums = {mode: NativeRuntime(mode=mode).open(path, outputs=["a", "y"]).run(feeds)["a"] for mode in ("exact", "fast")}
    truth = compile_plan(load(path), ["a"], kernels=()).run(feeds)["a"]
    assert np.abs(sums["exact"] - truth).max() < 2e-6 * np.abs(truth).max()
    np.testing.assert_allclose(sums["fast"], truth, atol=1e-3)
    np.testing.assert_array_equal(opened(path).run(feeds)["y"], onnxruntime_says(path, feeds)["y"])


@pytest.mark.parametrize("shape", [(1, 7), (2, 16), (1, 1)])
def test_a_transformer_answers_as_onnxruntime_at_every_length(
    transformer, quantized_transformer, onnxruntime_says, given_tokens, shape
):
    feeds = given_tokens(*shape)
    for path, tolerance in ((transformer, 1e-5), (quantized_transformer, 1e-4)):
        session = opened(path)
        np.testing.assert_allclose(
            session.run(feeds)["y"], onnxruntime_says(path, feeds)["y"], rtol=1e-4, atol=tolerance
        )
        assert REFERENCE not in kinds(session, feeds)


def test_fast_mode_follows_the_float_transformer_more_closely(
    transformer, quantized_transformer, onnxruntime_says, given_tokens
):
    feeds = given_tokens(2, 16)
    truth = onnxruntime_says(transformer, feeds)["y"]
    exact, fast = (NativeRuntime(mode=mode).open(quantized_transformer).run(feeds)["y"] for mode in ("exact", "fast"))
    assert np.abs(fast - truth).mean() < np.abs(exact - truth).mean()


def test_attention_copies_nothing(transformer, given_tokens):
    assert "transpose" not in kinds(opened(transformer), given_tokens(2, 16))


RECURRENT = """<ir_version: 8, opset_import: ["": 17]>
recurrent (float[T, N, 5] x, int32[N] lengths) => (float[T, 2, N, 8] y, float[2, N, 8] h) {
    y, h = %s <hidden_size = 8, direction = "bidirectional"%s> (x, w, r, b, lengths)
}"""


@pytest.mark.parametrize(
    ("op", "gates", "more"), [("LSTM", 4, ""), ("GRU", 3, ", linear_before_reset = 1"), ("GRU", 3, "")]
)
def test_recurrent_layers_answer_as_the_reference(op, gates, more, rng):
    weights = [rng.standard_normal(shape).astype(np.float32) * 0.3 for shape in
               ((2, gates * 8, 5), (2, gates * 8, 8), (2, 2 * gates * 8))]  # fmt: skip
    model = with_weights(RECURRENT % (op, more), dict(zip("wrb", weights, strict=True)))
    feeds = {"x": rng.standard_normal((6, 3, 5)).astype(np.float32), "lengths": np.array([6, 2, 4], np.int32)}
    ours, truth = opened(model).run(feeds), compile_plan(model, kernels=()).run(feeds)
    for name in ("y", "h"):
        np.testing.assert_allclose(ours[name], truth[name], rtol=1e-5, atol=1e-6)


def with_weights(text, weights):
    proto = parser.parse_model(text)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in weights.items())
    return in_memory(proto)


def in_memory(proto):
    import onnx_ir as ir

    return ir.from_proto(proto)


def parsed(text):
    return in_memory(parser.parse_model(text))


FALLING_BACK = """<ir_version: 8, opset_import: ["": 17]>
net (float[N, 4] x) => (float[N, 4] y) { a = Relu(x) b = Softplus(a) y = Tanh(b) }"""


def test_an_operator_without_a_native_function_runs_on_the_reference_and_is_named(rng):
    model = parsed(FALLING_BACK)
    feeds = {"x": rng.standard_normal((3, 4)).astype(np.float32)}
    session = opened(model)
    np.testing.assert_allclose(session.run(feeds)["y"], compile_plan(model, kernels=()).run(feeds)["y"], rtol=1e-5)
    (line,) = session.ledger(feeds).of("native", "declined")
    assert line.op == "Softplus"
    assert 0 < line.details["share"] < 1


VARYING = """<ir_version: 8, opset_import: ["": 17]>
net (float[N] x) => (int64[1, M] places, float[N] y) { places = NonZero(x) y = Relu(x) }"""


def test_shapes_that_follow_from_data_are_found_at_every_run():
    session = opened(parsed(VARYING))
    for values in ([0.0, 1.0, -2.0], [0.0, 0.0, 3.0], [0.0, 0.0, 0.0]):
        found = session.run({"x": np.array(values, np.float32)})
        assert found["places"].tolist() == [np.flatnonzero(values).tolist()]
        assert found["y"].tolist() == np.maximum(values, 0).tolist()


OUTPUTS = """<ir_version: 8, opset_import: ["": 17]>
net (float[2, 3] x) => (float[2, 3] same, float[3, 2] turned, float[2, 3] y, float[6] flat, int64[2] shape) {
    same = Identity(x) turned = Transpose(x) y = Relu(x)
    minus = Constant <value_ints = [-1]> () flat = Reshape(y, minus) shape = Shape(x)
}"""


def test_outputs_that_share_memory_inside_are_handed_out_apart(rng):
    model = parsed(OUTPUTS)
    x = rng.standard_normal((2, 3)).astype(np.float32)
    found = opened(model).run({"x": x})
    np.testing.assert_array_equal(found["same"], x)
    np.testing.assert_array_equal(found["turned"], x.T)
    np.testing.assert_array_equal(found["flat"], np.maximum(x, 0).reshape(-1))
    assert found["shape"].tolist() == [2, 3]
    arrays = [found[name] for name in ("same", "turned", "y", "flat")]
    assert not any(np.may_share_memory(a, b) for a in arrays for b in [x, *arrays] if a is not b)


MOVES = """<ir_version: 8, opset_import: ["": 17]>
net (float[2, 3, 4, 5] x) => (float[A, B, C, D] y) {
    starts = Constant <value_ints = [1, 0]> () ends = Constant <value_ints = [3, 5]> ()
    axes = Constant <value_ints = [1, 3]> ()
    steps = Constant <value_ints = [1, 2]> ()
    part = Slice(x, starts, ends, axes, steps) turned = Transpose <perm = [0, 2, 3, 1]> (part)
    left, right = Split <axis = 1> (turned) sum = Sub(left, right) y = Concat <axis = 3> (sum, left, right)
}"""


def test_views_of_views_are_read_where_they_lie(rng):
    model = parsed(MOVES)
    feeds = {"x": rng.standard_normal((2, 3, 4, 5)).astype(np.float32)}
    np.testing.assert_array_equal(opened(model).run(feeds)["y"], compile_plan(model, kernels=()).run(feeds)["y"])


JOINED = """<ir_version: 8, opset_import: ["": 17]>
net (float[1, 3, 4] x) => (float[1, 4, 4] y) { y = Concat <axis = 1> (first, x) }"""


def test_an_axis_of_one_element_does_not_mislead_a_concatenation(rng):
    x = rng.standard_normal((1, 3, 4)).astype(np.float32)
    first = np.broadcast_to(rng.standard_normal(4).astype(np.float32), (1, 1, 4))
    found = opened(with_weights(JOINED, {"first": first})).run({"x": x})["y"]
    np.testing.assert_array_equal(found, np.concatenate([first, x], axis=1))


DENSE = """<ir_version: 8, opset_import: ["": 17]>
net (float[N, 24, 5, 6] x) => (float[N, C, 5, 6] y) {
    a = Conv(x, w) b = HardSwish(a) c = Concat <axis = 1> (x, b) d = Conv <group = 32, pads = [1, 1, 1, 1]> (c, v)
    e = Relu(d) f = Conv(c, u) g = Tanh(x) h = Tanh(g) y = Concat <axis = 1> (e, f, c, h, g, f)
}"""


@pytest.mark.parametrize("batch", [1, 2])
def test_parts_are_written_where_they_are_joined(batch, rng):
    shapes = {"w": (8, 24, 1, 1), "v": (32, 1, 3, 3), "u": (3, 32, 1, 1)}
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    model, feeds = with_weights(DENSE, weights), {"x": rng.standard_normal((batch, 24, 5, 6)).astype(np.float32)}
    session = opened(model)
    np.testing.assert_allclose(session.run(feeds)["y"], compile_plan(model, kernels=()).run(feeds)["y"], atol=1e-3)
    instructions = session.compiled(feeds).executable.instructions
    assert [i.fields["epilogue"]["y_step"] for i in instructions if i.kind == "nhwc"] == [32, 118, 0]


JOINED_FLAT = """<ir_version: 8, opset_import: ["": 17]>
net (float[1, 8] x) => (float[1, 20] y) {
    from = Constant <value_ints = [4]> () to = Constant <value_ints = [8]> () axes = Constant <value_ints = [1]> ()
    part = Slice(x, from, to, axes) a = Tanh(part) b = Exp(x) c = Relu(b) y = Concat <axis = 1> (a, c, b)
}"""


def test_parts_side_by_side_need_no_copies(rng):
    model, feeds = parsed(JOINED_FLAT), {"x": rng.standard_normal((1, 8)).astype(np.float32)}
    session = opened(model)
    np.testing.assert_allclose(session.run(feeds)["y"], compile_plan(model, kernels=()).run(feeds)["y"], rtol=1e-5)
    assert kinds(session, feeds) == ["map", "map", "map", "copy"]


def single(node, ranks):
    """A model of one node."""
    sizes = ", ".join("ABC"[:ranks])
    return parsed(f'<ir_version: 8, opset_import: ["": 18]> net (float[{sizes}] x) => ({node}')


@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("last", [0, 1])
def test_the_place_of_an_extreme_is_numpys_among_equals_and_nan(op, axis, last, rng):
    model = single(f"int64[D, E, F] y) {{ y = {op} <axis = {axis}, select_last_index = {last}> (x) }}", 3)
    x = rng.integers(0, 3, (4, 5, 6)).astype(np.float32)
    x[rng.random(x.shape) < 0.1] = np.nan
    session = opened(model)
    np.testing.assert_array_equal(session.run({"x": x})["y"], compile_plan(model, kernels=()).run({"x": x})["y"])
    assert kinds(session, {"x": x}) == ["extreme_index"]


@pytest.mark.parametrize("mode", ["reflect", "edge", "wrap"])
@pytest.mark.parametrize("pads", [[0, 2, 0, 3], [3, 0, 1, 0], [0, -1, 0, 2]])
def test_an_axis_padded_with_its_own_elements_is_gathered(mode, pads, rng):
    text = f"float[D, E] y) {{ p = Constant <value_ints = {pads}> () y = Pad <mode = '{mode}'> (x, p) }}"
    model, feeds = single(text.replace("'", '"'), 2), {"x": rng.standard_normal((5, 6)).astype(np.float32)}
    session = opened(model)
    np.testing.assert_array_equal(session.run(feeds)["y"], compile_plan(model, kernels=()).run(feeds)["y"])
    assert kinds(session, feeds) == ["gather"]


def test_an_axis_that_padding_only_shifts_is_not_left_as_it_was(rng):
    text = 'float[D, E] y) { p = Constant <value_ints = [1, 2, -1, 3]> () y = Pad <mode = "reflect"> (x, p) }'
    model, feeds = single(text, 2), {"x": rng.standard_normal((5, 6)).astype(np.float32)}
    np.testing.assert_array_equal(opened(model).run(feeds)["y"], compile_plan(model, kernels=()).run(feeds)["y"])


def test_the_example_agrees_with_the_reference(quantized_cnn, given_images):
    """Integers through the whole of core's own definition, too."""
    from pumice.quantize.fusion import fused

    feeds = given_images(1)
    truth = compile_plan(fused(load(quantized_cnn)), kernels=()).run(feeds)["y"]
    np.testing.assert_allclose(opened(quantized_cnn).run(feeds)["y"], truth, rtol=1e-6, atol=1e-6)
