"""Recurrent networks in integers: the same in onnxruntime and in the plan, for any lengths, and no drift."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import pumice
from pumice.measure import pick_runtime
from pumice.model import infer_shapes, size
from pumice.plan import compile_plan

HIDDEN = 24
STACK = """g (float[T,N,16] x, int32[N] lengths) => (float[T,1,N,24] y, float[N,8] z) {
    a, ah, ac = LSTM <hidden_size=24, direction="bidirectional"> (x, w1, r1, b1, lengths)
    t = Transpose <perm=[0,2,1,3]> (a)  s = Reshape (t, flat)
    y, yh, yc = LSTM <hidden_size=24> (s, w2, r2, b2, lengths)
    h = Squeeze (yh, first)  z = MatMul (h, v) }"""
GRU = """g (float[T,N,16] x) => (float[N,8] z) {
    y, yh = GRU <hidden_size=24, linear_before_reset=1> (x, w, r)  h = Squeeze (yh, first)  z = MatMul (h, v) }"""
SHAPES = {
    "w1": (2, 96, 16), "r1": (2, 96, 24), "b1": (2, 192), "w2": (1, 96, 48), "r2": (1, 96, 24), "b2": (1, 192),
    "w": (1, 72, 16), "r": (1, 72, 24), "v": (24, 8),
}  # fmt: skip


def build(text):
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> {text}')
    read = {name for node in proto.graph.node for name in node.input}
    for name in sorted(SHAPES.keys() & read):
        array = (rng.standard_normal(SHAPES[name]) * 2.0 * SHAPES[name][-1] ** -0.5).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    constants = {"first": np.array([0]), "flat": np.array([0, 0, 48])}
    for name in sorted(constants.keys() & read):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(constants[name], name))
    for node in proto.graph.node:
        node.name = f"at_{node.output[0]}"
    return infer_shapes(ir.from_proto(proto))


def sequences(count=6, steps=30, seed=1, lengths=True):
    rng = np.random.default_rng(seed)
    feeds = [{"x": rng.standard_normal((steps, 4, 16)).astype(np.float32)} for _ in range(count)]
    for feed in feeds if lengths else ():
        feed["lengths"] = rng.integers(5, steps + 1, 4).astype(np.int32)
    return feeds


def compress(model, data, **knobs):
    step = {"use": "quantize", "quantizer": {"name": "dynamic", **knobs}, "max_drop": 1.0}
    return pumice.compress(model, data, {"step": [step]}, measure=False)


def noise(found, exact):
    return float(np.mean((found - exact) ** 2) / np.var(exact))


@pytest.fixture
def stack():
    return build(STACK)


def test_stacked_and_bidirectional_layers_become_integer_layers_of_onnxruntime(stack):
    result = compress(stack, sequences())
    assert pick_runtime("ort").optimized_ops(result.model)["DynamicQuantizeLSTM"] == 2
    assert size(result.model).total < 0.35 * size(stack).total
    lines = {entry.node: entry.details.get("mode") for entry in result.ledger.of("quantize", "applied")}
    assert lines == {"at_a": "dynamic", "at_y": "dynamic", "at_z": "dynamic"}


@pytest.mark.parametrize(("uneven", "scales"), [(1.0, (2,)), (100.0, (2, 96))])
def test_an_integer_layer_has_one_scale_a_direction_unless_its_outputs_are_very_uneven(stack, uneven, scales):
    """onnxruntime multiplies by scales an output at every step."""
    value = next(node for node in stack.graph if node.op_type == "LSTM").inputs[2]
    weights = value.const_value.numpy().copy()
    weights[:, 0] *= uneven
    value.const_value = ir.tensor(weights, name=value.name)
    (first, _) = (n for n in compress(stack, sequences()).model.graph if n.op_type == "DynamicQuantizeLSTM")
    of_w, _, of_r, _ = (tuple(value.const_value.shape) for value in first.inputs[8:])
    assert (of_w, of_r) == ((2,), scales)


@pytest.mark.parametrize(("lengths", "most"), [(False, 1e-9), (True, 1e-3)])
def test_the_plan_computes_what_onnxruntime_computes(stack, lengths, most):
    """With lengths, onnxruntime takes the range of the state over something else: that is not documented."""
    model = compress(stack, sequences()).model
    session, plan = pick_runtime("ort").open(model, threads=1), compile_plan(model)
    for feeds in sequences(3, seed=5):
        feeds = feeds if lengths else {**feeds, "lengths": np.full(4, 30, np.int32)}
        expected, found = session.run(feeds), plan.run(feeds)
        for name, array in expected.items():
            assert noise(found[name], array) < most


def test_outputs_stay_close_and_beyond_the_end_of_a_sequence_they_are_zero(stack):
    result = compress(stack, sequences())
    for feeds in sequences(3, steps=60, seed=7):
        exact, found = (pick_runtime("ort").open(model).run(feeds) for model in (stack, result.model))
        assert noise(found["y"], exact["y"]) < 2e-3
        for row, length in enumerate(feeds["lengths"]):
            assert not found["y"][length:, :, row].any()


def test_a_gru_stores_its_weights_as_integers_and_says_why_it_computes_in_floating_point():
    model = build(GRU)
    data = sequences(lengths=False)
    result = compress(model, data)
    (line,) = [entry for entry in result.ledger.of("quantize") if entry.node == "at_y"]
    assert "no integer operator for GRU" in line.reason
    assert size(result.model).total < 0.35 * size(model).total
    exact, found = (pick_runtime("ort").open(m).run(data[0])["z"] for m in (model, result.model))
    assert noise(found, exact) < 2e-3


@pytest.mark.parametrize("linear", [0, 1])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("lengths", [False, True])
def test_a_gru_spelt_out_in_integers_computes_what_the_gru_does(linear, direction, lengths):
    count = 2 if direction == "bidirectional" else 1
    given = (", int32[N] lengths", "lengths") if lengths else ("", "")
    proto = onnx.parser.parse_model(f"""<ir_version: 10, opset_import: ["" : 21]>
        g (float[T,N,16] x{given[0]}, float[{count},N,24] h) => (float[T,{count},N,24] y, float[{count},N,24] yh) {{
        y, yh = GRU <hidden_size=24, linear_before_reset={linear}, direction="{direction}">
            (x, w, r, b, {given[1]}, h) }}""")
    draws = np.random.default_rng(0)
    for name, shape in {"w": (count, 72, 16), "r": (count, 72, 24), "b": (count, 144)}.items():
        array = (draws.standard_normal(shape) / 4).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    proto.graph.node[0].name = "gru"
    model = infer_shapes(ir.from_proto(proto))
    data = [
        {**feed, "h": draws.standard_normal((count, 4, 24)).astype(np.float32)}
        for feed in sequences(4, lengths=lengths)
    ]
    result = compress(model, data, gru="spelt")
    assert "GRU" not in {node.op_type for node in result.model.graph}
    assert size(result.model).total < 0.4 * size(model).total
    (line,) = [entry for entry in result.ledger.of("quantize") if entry.node == "gru"]
    assert line.details["mode"] == "dynamic"
    for runtime in ("ort", "plan"):
        exact, found = (pick_runtime(runtime).open(m).run(data[0]) for m in (model, result.model))
        for name, array in exact.items():
            assert noise(found[name], array) < 2e-3


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_weights_that_an_unrolled_loop_shares_are_stored_once(kind):
    gates, state = (96, "c") if kind == "LSTM" else (72, "")
    more = f", {state}1" if state else ""
    text = f"""g (float[T,N,16] x) => (float[1,N,24] z) {{
        y1, h1{more} = {kind} <hidden_size=24> (x, w, r)
        y2, z{more.replace("1", "2")} = {kind} <hidden_size=24> (x, w, r, , , h1) }}"""
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> {text}')
    draws = np.random.default_rng(0)
    for name, shape in {"w": (1, gates, 16), "r": (1, gates, 24)}.items():
        array = (draws.standard_normal(shape) / 4).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    for node in proto.graph.node:
        node.name = f"at_{node.output[0]}"
    model = infer_shapes(ir.from_proto(proto))
    assert size(compress(model, sequences(lengths=False)).model).total < 0.35 * size(model).total


def test_recurrent_layers_can_be_left_alone(stack):
    result = compress(stack, sequences(), recurrent=False)
    assert {node.op_type for node in result.model.graph} >= {"LSTM"}


def test_a_state_with_one_range_fixed_by_calibration_loses_far_more():
    """The same layer, its state rounded to the range that short sequences showed: what dynamic ranges are for."""
    from pumice.ops.quantize import dynamic_parameters
    from pumice.quantize.parameters import affine

    rng = np.random.default_rng(0)
    recurrent = rng.standard_normal((HIDDEN, HIDDEN)) / np.sqrt(HIDDEN)
    inputs = rng.standard_normal((400, HIDDEN)) * np.linspace(0.1, 3.0, 400)[:, None]  # louder than what calibrated

    def run(rounded):
        state, states = np.zeros(HIDDEN, np.float32), []
        for x in inputs:
            state = np.arcsinh(recurrent @ rounded(state) + x).astype(np.float32)
            states.append(state)
        return np.array(states)

    def by_its_own_range(state):
        scale, zero = dynamic_parameters(state)
        return (np.clip(np.rint(state / scale) + zero, 0, 255) - zero) * scale

    exact = run(lambda state: state)
    fixed = affine(float(exact[:40].min()), float(exact[:40].max()), np.uint8)
    assert noise(run(fixed.round_trip), exact) > 100 * noise(run(by_its_own_range), exact)
