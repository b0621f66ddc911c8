"""What reaches onnxruntime: the same numbers, an eighth of the bytes, nothing left to do but the layers themselves."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import pumice
from pumice.measure import pick_runtime
from pumice.model import infer_shapes, size
from pumice.plan import compile_plan

TEXT = """g (float[5,N,65] x, int64[5,N] i) => (float[N,4,14] y) {
    row = Gather (table, i)  s = Add (x, row)  h, last, cell = LSTM <hidden_size=32> (s, w, r)
    f = Squeeze (last, first)  m = MatMul (f, w2)  image = Reshape (m, four)
    v = Conv <pads=[1,1]> (image, w3)  u = Relu (v)  y = ConvTranspose <strides=[2]> (u, w4) }"""
PLAIN = {"weighting": "none", "rounding": "nearest", "refit": False, "centroids": 8}
SHAPES = {"table": (50, 65), "w": (1, 128, 65), "r": (1, 128, 32), "w2": (32, 48), "w3": (6, 8, 3), "w4": (6, 4, 4)}


@pytest.fixture
def network():
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> {TEXT}')
    draws = {name: rng.standard_normal(shape) * shape[-1] ** -0.5 for name, shape in SHAPES.items()}
    arrays = {name: draw.astype(np.float32) for name, draw in draws.items()}
    arrays |= {"first": np.array([0]), "four": np.array([-1, 8, 6])}
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in arrays.items())
    for node in proto.graph.node:
        node.name = f"at_{node.output[0]}"
    return infer_shapes(ir.from_proto(proto))


def feeds(count):
    rng = np.random.default_rng(1)
    return [
        {"x": rng.standard_normal((5, 4, 65)).astype(np.float32), "i": rng.integers(0, 50, (5, 4))}
        for _ in range(count)
    ]


@pytest.fixture
def samples():
    return feeds(8)


def compress(model, data, **knobs):
    step = {"use": "quantize", "quantizer": {"name": "kmeans", "smallest": 1, **knobs}, "max_drop": 1.0}
    return pumice.compress(model, data, {"step": [step]}, measure=False)


@pytest.mark.parametrize("codebook", ["auto", "tensor", "scaled", "channel", "group"])
@pytest.mark.parametrize("knobs", [{}, {"table": "float32"}, {"table": "bfloat16", "centroids": 64}])
def test_onnxruntime_computes_what_the_codes_stand_for(network, samples, codebook, knobs):
    result = compress(network, samples, codebook=codebook, group=24, **knobs)
    expected = compile_plan(result.model).run(samples[0])["y"]
    found = pick_runtime("ort").open(result.model).run(samples[0])["y"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("codebook", ["scaled", "group"])
def test_onnxruntime_widens_the_weights_once_when_it_loads_them(network, samples, codebook):
    result = compress(network, samples, codebook=codebook, table="int8")
    ops = pick_runtime("ort").optimized_ops(result.model)
    assert "GatherElements" not in ops
    assert ops["LSTM"] == 1
    assert (ops["Gather"], ops["Slice"]) == (3, 1)  # the look-up: rows, values, scales; an odd width


def test_codes_are_packed_two_a_byte_and_tables_are_small(network, samples):
    held = size(compress(network, samples, codebook="scaled").model).initializers
    assert held["w/codes"] == 128 * 65 / 2
    assert held["w/table"] == 16
    assert (held["w/scale"], held["w/unit"]) == (128, 4)
    assert "w/shape" not in held
    whole = size(compress(network, samples, codebook="tensor").model).initializers
    assert (whole["w/table"], whole["w/scale"]) == (16, 4)


def test_an_output_without_weights_does_not_coarsen_the_scales_of_the_others(network, samples):
    def lost(**knobs):
        held = compile_plan(compress(network, samples, codebook="scaled", **knobs).model).run(samples[0])["y"]
        return float(np.mean((held - compile_plan(network).run(samples[0])["y"]) ** 2))

    weights = network.graph.initializers["w2"]
    array = 1e-3 * weights.const_value.numpy()
    array[:, 0] = 0.0
    weights.const_value = ir.tensor(array, name="w2")
    assert lost() < 1.5 * lost(table="float32")


def test_tables_and_scales_take_no_more_than_their_share_of_the_codes(network, samples):
    def added(**knobs):
        held = size(compress(network, samples, **knobs).model).initializers
        codes = sum(nbytes for name, nbytes in held.items() if name.endswith("/codes"))
        rest = sum(n for name, n in held.items() if name.rsplit("/")[-1] in ("table", "scale", "unit", "shape"))
        return rest / codes

    shares = [added(overhead=share) for share in (0.0, 0.05, 0.3)]
    assert shares[0] < shares[1] <= 0.05 < shares[2] <= 0.3


def test_finer_codebooks_and_what_is_known_of_the_inputs_lose_less(network, samples):
    exact = [compile_plan(network).run(feeds)["y"] for feeds in samples]

    def noise(**knobs):
        plan = compile_plan(compress(network, samples, **{"centroids": 8, **knobs}).model)
        return np.mean([np.mean((plan.run(feeds)["y"] - y) ** 2) for feeds, y in zip(samples, exact, strict=True)])

    assert noise(codebook="channel", **PLAIN) < noise(codebook="tensor", **PLAIN)
    assert noise(codebook="scaled", weighting="activation") < 0.95 * noise(codebook="scaled", **PLAIN)


def test_the_account_tells_the_size_by_huffmans_code(network, samples):
    assert any("by Huffman's code" in note for note in compress(network, samples).notes)


@pytest.mark.parametrize("table", ["float32", "int8"])
@pytest.mark.parametrize("codebook", ["scaled", "channel"])
def test_centroids_fine_tuned_by_the_gradients_of_their_members_bring_the_outputs_nearer(network, codebook, table):
    samples, noise, codes = feeds(32), [], []
    exact = [compile_plan(network).run(sample)["y"] for sample in samples]
    for steps in (0, 96):
        model = compress(network, samples, codebook=codebook, table=table, tune=steps, **PLAIN).model
        plan = compile_plan(model)
        pairs = [(plan.run(sample)["y"], y) for sample, y in zip(samples, exact, strict=True)]
        noise.append(np.mean([np.mean((found - y) ** 2) / np.var(y) for found, y in pairs]))
        codes.append(model.graph.initializers["w/codes"].const_value.tobytes())
    most = 0.95 if codebook == "channel" else 1.0  # a table for all has little to learn, and never gets worse
    assert noise[1] <= most * noise[0]
    assert codes[1] == codes[0]
