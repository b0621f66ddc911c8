"""Integers stored as codes: numbers of 8-bit integers, half of the bytes, in as many layers as the budget bears."""

import itertools

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import pumice
from pumice.measure import pick_runtime
from pumice.model import constant, infer_shapes, size
from pumice_quant_kmeans import coded
from pumice_quant_kmeans.coded import ENTRIES, pack

TEXT = """g (int64[N,6] i) => (float[N,6,9] y) {
    row = Gather (table, i)  m = MatMul (row, w)  b = Add (m, bias)  a = Relu (b)  y = MatMul (a, v) }"""
SHAPES = {"table": (60, 32), "w": (32, 48), "bias": (48,), "v": (48, 9)}


@pytest.fixture
def network():
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> {TEXT}')
    arrays = {name: (rng.standard_normal(shape) / 6).astype(np.float32) for name, shape in SHAPES.items()}
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in arrays.items())
    for node in proto.graph.node:
        node.name = f"at_{node.output[0]}"
    return infer_shapes(ir.from_proto(proto))


@pytest.fixture
def samples():
    return {"i": np.random.default_rng(1).integers(0, 60, (32, 6))}


def compress(model, data, quantizer="coded", max_drop=1.0, **knobs):
    step = {"use": "quantize", "quantizer": {"name": quantizer, **knobs}, "max_drop": max_drop}
    return pumice.compress(model, data, {"step": [step]}, measure=False)


def integers(model):
    """Arrays of 8-bit integers by shape, looked up where they are stored as codes."""
    found = {}
    for node in model.graph:
        for value in (*node.inputs, *node.outputs):
            held = None if value is None else constant(value)
            if held is not None and held.dtype == np.int8:
                found[held.shape] = held
    return found


def coded_layers(model):
    return sum(value.dtype == ir.DataType.UINT4 for value in model.graph.initializers.values())


def test_codes_take_half_of_the_bytes_of_integers(network, samples):
    usual, found = (size(compress(network, samples, name).model).total for name in ("int8", "coded"))
    weights = sum(int(np.prod(SHAPES[name])) for name in ("table", "w", "v"))
    assert usual - found > 0.4 * weights


def test_layers_compute_with_integers_as_if_nothing_were_coded(network, samples):
    usual, found = (
        pick_runtime("ort").optimized_ops(compress(network, samples, name).model) for name in ("int8", "coded")
    )
    assert found == usual


@pytest.mark.parametrize("runtime", ["ort", "reference"])
def test_the_codes_stand_for_the_integers_that_they_replace(network, samples, runtime, monkeypatch):
    feeds = {"i": samples["i"][:2]}
    found = compress(network, samples).model
    monkeypatch.setattr(coded, "pack", lambda model: 0)
    loose = compress(network, samples).model
    assert (coded_layers(found), coded_layers(loose)) == (3, 0)
    answers = [pick_runtime(runtime).open(model).run(feeds)["y"] for model in (found, loose)]
    np.testing.assert_array_equal(*answers)


def test_a_layer_uses_sixteen_integers_at_most(network, samples, monkeypatch):
    monkeypatch.setattr(coded, "pack", lambda model: 0)
    every = [array for array in integers(compress(network, samples).model).values() if array.size >= coded.FEWEST]
    assert len(every) == 3
    assert all(len(np.unique(array)) <= ENTRIES for array in every)


def test_the_tighter_the_budget_the_fewer_layers_are_coded(network, samples):
    counts = [coded_layers(compress(network, samples, max_drop=drop).model) for drop in (1.0, 0.002, 1e-6)]
    assert counts[0] == 3
    assert counts[-1] == 0
    assert all(more >= fewer for more, fewer in itertools.pairwise(counts))


def test_arrays_of_more_integers_and_small_ones_stay_as_they_are():
    arrays = {"many": np.arange(-128, 128).astype(np.int8), "few": np.zeros(8, np.int8), "fit": np.ones(512, np.int8)}
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 21]> g () => (int8[776] y) { y = Concat <axis=0> (many, few, fit) }'
    )
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in arrays.items())
    model = ir.from_proto(proto)
    assert pack(model) == 1
    assert {"many", "few"} <= model.graph.initializers.keys()
    found = onnx.reference.ReferenceEvaluator(ir.to_proto(model)).run(None, {})[0]
    np.testing.assert_array_equal(found, np.concatenate(list(arrays.values())))


def test_every_run_finds_the_same_bytes(network, samples):
    one, other = (ir.to_proto(compress(network, samples, max_drop=0.005).model) for _ in range(2))
    assert one.SerializeToString(deterministic=True) == other.SerializeToString(deterministic=True)
