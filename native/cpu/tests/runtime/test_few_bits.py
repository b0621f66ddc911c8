"""Weights of four and eight bits: exact mode equals the reference, fast mode stays near it and runs on levels."""

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import parser

from pumice.plan import compile_plan
from pumice_cpu.runtime.lower.recurrent import JOINT_BATCH
from pumice_cpu.runtime.strategy import NativeRuntime


def model(text, weights):
    proto = parser.parse_model(text)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in weights.items())
    return ir.from_proto(proto)


def answers(found, feeds, mode):
    session = NativeRuntime(mode=mode).open(found, threads=2)
    return session.run(feeds)["y"], [i.kind for i in session.compiled(feeds).executable.instructions]


NBITS = """<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]>
net (float[N, 70] x) => (float[N, 24] y) {
    %s = com.microsoft.MatMulNBits <K = 70, N = 24, bits = 4, block_size = 32> (x, codes, scales%s)
    %s
}"""


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_blocks_of_four_bits(rng, zeros, bias):
    weights = {
        "codes": rng.integers(0, 256, (24, 3, 16)).astype(np.uint8),
        "scales": rng.random(72).astype(np.float32),
        "zeros": rng.integers(0, 256, 48).astype(np.uint8),
        "bias": rng.standard_normal(24).astype(np.float32),
    }
    text = NBITS % ("p" if bias else "y", ", zeros" if zeros else "", "y = Add(p, bias)" if bias else "")
    found = model(text, {name: w for name, w in weights.items() if f" {name}" in text})
    feeds = {"x": rng.standard_normal((5, 70)).astype(np.float32)}
    truth = compile_plan(found, kernels=()).run(feeds)["y"]
    exact, kinds = answers(found, feeds, "exact")
    assert kinds == ["lowbit"]
    np.testing.assert_allclose(exact, truth, rtol=1e-4, atol=1e-3)
    fast, _ = answers(found, feeds, "fast")
    assert np.abs(fast - truth).max() < 0.02 * np.abs(truth).max()


WIDENED = {
    "levels of a unit": """i = Cast<to=6>(codes) v = Gather(table, i) l = Cast<to=1>(levels) s = Mul(l, unit)
        m = Mul(v, s) w = Transpose<perm=[1,0]>(m)""",
    "a scale an output": "i = Cast<to=6>(codes) v = Gather(table, i) m = Mul(v, scale) w = Transpose<perm=[1,0]>(m)",
    "a table an output": """i = Cast<to=6>(blocks) v = GatherElements<axis=2>(tables, i) r = Reshape(v, rows)
        w = Transpose<perm=[1,0]>(r)""",
    "affine": "w = DequantizeLinear<axis=0, block_size=32>(upright, steps, points)",
}


@pytest.mark.parametrize("form", WIDENED)
def test_four_bit_weights_that_the_graph_widens_are_multiplied_as_codes(rng, form):
    codes = rng.integers(0, 16, (24, 64)).astype(np.uint8)
    weights = {
        "codes": codes.astype(ml_dtypes.uint4),
        "blocks": codes[:, None].astype(ml_dtypes.uint4),
        "upright": codes.T.astype(ml_dtypes.uint4),
        "table": np.sort(rng.standard_normal(16)).astype(np.float32),
        "tables": rng.standard_normal((24, 1, 16)).astype(np.float32),
        "rows": np.array([-1, 64]),
        "scale": rng.random((24, 1)).astype(np.float32) + 0.5,
        "levels": rng.integers(128, 256, (24, 1)).astype(np.uint8),
        "unit": np.full(1, 0.01, np.float32),
        "steps": rng.random((2, 24)).astype(np.float32) + 0.5,
        "points": rng.integers(6, 10, (2, 24)).astype(np.uint8).astype(ml_dtypes.uint4),
    }
    text = f"""<ir_version: 10, opset_import: ["": 21]> net (float[N, 64] x) => (float[N, 24] y) {{
        {WIDENED[form]} y = MatMul(x, w) }}"""
    proto = parser.parse_model(text)
    found = ir.from_proto(proto)
    inputs = {v.name: v for node in found.graph for v in node.inputs if v is not None}
    for name in sorted(weights.keys() & inputs.keys()):
        inputs[name].const_value = ir.tensor(weights[name], name=name)
        found.graph.register_initializer(inputs[name])
    feeds = {"x": rng.standard_normal((4, 64)).astype(np.float32)}
    truth = compile_plan(found, kernels=()).run(feeds)["y"]
    for mode, tolerance in (("exact", 1e-5), ("fast", 0.03)):
        found_y, kinds = answers(found, feeds, mode)
        assert kinds == ["lowbit"]
        assert np.abs(found_y - truth).max() < tolerance * np.abs(truth).max()


CODEBOOK = """<ir_version: 8, opset_import: ["": 17]>
net (float[N, 70] x) => (float[N, 24] y) {
    values = Gather(table, codes) rows = Mul(values, scale) w = Transpose <perm = [1, 0]> (rows)
    p = MatMul(x, w) y = Add(p, bias)
}"""


def test_a_codebook_that_the_graph_spells_out_is_never_widened(rng):
    weights = {
        "table": np.sort(rng.standard_normal(16)).astype(np.float32),
        "codes": rng.integers(0, 16, (24, 70)).astype(np.int32),
        "scale": rng.random((24, 1)).astype(np.float32) + 0.5,
        "bias": rng.standard_normal(24).astype(np.float32),
    }
    found, feeds = model(CODEBOOK, weights), {"x": rng.standard_normal((4, 70)).astype(np.float32)}
    truth = compile_plan(found, kernels=()).run(feeds)["y"]
    for mode, tolerance in (("exact", 1e-5), ("fast", 0.02)):
        found_y, kinds = answers(found, feeds, mode)
        assert kinds == ["lowbit"]
        assert np.abs(found_y - truth).max() < tolerance * np.abs(truth).max()


GRU = """<ir_version: 8, opset_import: ["": 17]>
net (float[T, N, 12] x, int32[N] lengths) => (float[T, 2, N, 16] y, float[2, N, 16] h) {
    wr = Cast <to = 1> (w) wm = Mul(wr, ws) wf = Reshape(wm, shape_w)
    rr = Cast <to = 1> (r) rm = Mul(rr, rs) rf = Reshape(rm, shape_r)
    y, h = GRU <hidden_size = 16, direction = "bidirectional", linear_before_reset = 1> (x, wf, rf, b, lengths)
}"""


def test_a_gru_with_8_bit_weights_computes_with_integers_in_fast_mode_whatever_the_lengths(rng):
    weights = {
        "w": rng.integers(-127, 128, (96, 1, 12)).astype(np.int8),
        "r": rng.integers(-127, 128, (96, 1, 16)).astype(np.int8),
        "b": rng.standard_normal((2, 96)).astype(np.float32) * 0.1,
        "ws": (rng.random((96, 1, 1)) * 0.003).astype(np.float32),
        "rs": (rng.random((96, 1, 1)) * 0.003).astype(np.float32),
        "shape_w": np.array([2, 48, 12]),
        "shape_r": np.array([2, 48, 16]),
    }
    found = model(GRU, weights)
    feeds = {"x": rng.standard_normal((7, 3, 12)).astype(np.float32), "lengths": np.array([7, 2, 5], np.int32)}
    truth = compile_plan(found, kernels=()).run(feeds)
    for mode, kind, tolerance in (("exact", "recurrent", 1e-5), ("fast", "recurrent_u8", 0.02)):
        session = NativeRuntime(mode=mode).open(found)
        ours = session.run(feeds)
        assert kind in [i.kind for i in session.compiled(feeds).executable.instructions]
        for name in truth:
            np.testing.assert_allclose(ours[name], truth[name], atol=tolerance)


LSTM = """<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]>
net (float[T, N, 12] x%s) => (float[T, 2, N, 16] y, float[2, N, 16] h, float[2, N, 16] c) {
    y, h, c = com.microsoft.DynamicQuantizeLSTM <hidden_size = 16, direction = "bidirectional">
        (x, w, r, b, %s, , , , ws, wz, rs, rz)
}"""


@pytest.mark.parametrize("lengths", [None, [7, 2, 5]])
@pytest.mark.parametrize("batch", [1, 3, JOINT_BATCH])
def test_an_lstm_with_8_bit_weights(rng, batch, lengths):
    weights = {
        "w": rng.integers(-127, 128, (2, 12, 64)).astype(np.int8),
        "r": rng.integers(-127, 128, (2, 16, 64)).astype(np.int8),
        "b": rng.standard_normal((2, 128)).astype(np.float32) * 0.1,
        "ws": (rng.random((2, 64)) * 0.003).astype(np.float32),
        "rs": (rng.random((2, 64)) * 0.003).astype(np.float32),
        "wz": np.zeros((2, 64), np.int8),
        "rz": np.zeros((2, 64), np.int8),
    }
    feeds = {"x": rng.standard_normal((7, batch, 12)).astype(np.float32)}
    found = model(LSTM % (("", "") if lengths is None else (", int32[N] lengths", "lengths")), weights)
    if lengths is not None:
        feeds["lengths"] = np.resize(np.array(lengths, np.int32), batch)
    truth = compile_plan(found, kernels=()).run(feeds)
    for mode, tolerance in (("exact", 1e-4), ("fast", 0.02)):
        session = NativeRuntime(mode=mode).open(found)
        ours = session.run(feeds)
        kind = "recurrent_u8" if batch < JOINT_BATCH else "recurrent_levels"
        assert kind in [i.kind for i in session.compiled(feeds).executable.instructions]
        for name in truth:
            np.testing.assert_allclose(ours[name], truth[name], atol=tolerance)
