"""Pruning, training and quantizing together: what one step did, the next ones keep, and the file remembers."""

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

import pumice
from pumice.model import constant, infer_shapes, load, nodes, weight_of
from pumice.prune import kept_indices
from pumice.registry import registry
from pumice.strategy import Runtime

GRAPH = """
<ir_version: 10, opset_import: ["" : 21]>
bars (float[N, 1, 8, 8] x) => (float[N, 2] y) {
    c = Conv<kernel_shape=[3, 3], pads=[1, 1, 1, 1]>(x, w)
    n = BatchNormalization(c, scale, bias, mean, var)
    r = Relu(n)
    d = Conv<kernel_shape=[3, 3], pads=[1, 1, 1, 1]>(r, v)
    e = Add(d, r)
    q = Relu(e)
    p = GlobalAveragePool(q)
    f = Flatten(p)
    h = Gemm(f, u, a)
    g = Relu(h)
    y = Gemm(g, t, b)
}"""


def network():
    draw = np.random.default_rng(0).standard_normal
    weights = {
        "w": draw((16, 1, 3, 3)) / 2, "scale": np.ones(16), "bias": np.zeros(16), "mean": np.zeros(16),
        "var": np.ones(16), "v": draw((16, 16, 3, 3)) / 12, "u": draw((16, 12)) / 4, "a": np.zeros(12),
        "t": draw((12, 2)) / 3, "b": np.zeros(2),
    }  # fmt: skip
    proto = onnx.parser.parse_model(GRAPH)
    for number, node in enumerate(proto.graph.node):
        node.name = f"{node.op_type}_{number}"
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items())
    return infer_shapes(ir.from_proto(proto))


def bars(count, seed):
    """Upright or lying bars in noise."""
    draws = np.random.default_rng(seed)
    labels = draws.integers(0, 2, count)
    x = draws.normal(0, 0.3, (count, 1, 8, 8)).astype(np.float32)
    for picture, label, at in zip(x, labels, draws.integers(1, 7, count), strict=True):
        picture[0, :, at] += label
        picture[0, at, :] += 1 - label
    return {"x": x, "labels": labels}


TRAIN = {"use": "train", "epochs": 4, "batch": 32, "lr": 0.02}
PRUNE = {"use": "prune", "ratio": 0.5, "multiple": 1}
INT8 = {"use": "quantize", "quantizer": "int8", "max_drop": 1.0}


def compress(*steps, model=None):
    data, test = bars(640, 0), bars(300, 1)
    return pumice.compress(model or network(), data, {"step": list(steps)}, test=test, measure=False)


def top1(result):
    return result.measurements.after.evaluation.scores["top1"].mean


@pytest.fixture(scope="module")
def trained():
    return compress(TRAIN).model


@pytest.fixture(scope="module")
def small(trained):
    return compress({**PRUNE, "recover": "least-squares"}, {**TRAIN, "epochs": 2}, INT8, model=trained)


def test_a_pruned_trained_and_quantized_network_is_still_right(small):
    assert top1(small) > 0.9
    assert any(v.dtype == ir.DataType.INT8 for v in small.model.graph.initializers.values())


def test_the_saved_file_remembers_which_channels_it_kept(small, tmp_path):
    (path, *_) = small.save(tmp_path / "small.onnx")
    kept = kept_indices(load(path))
    assert len(kept["w"][0]) == 8
    assert len(kept["u"][1]) == 6
    x = bars(16, 2)["x"]
    assert registry().make(Runtime, "ort").open(path).run({"x": x})["y"].shape == (16, 2)


def test_a_second_pruning_remembers_the_first(trained):
    once = compress(PRUNE, {**TRAIN, "epochs": 1}, model=trained)
    twice = compress(PRUNE, {**TRAIN, "epochs": 1}, PRUNE, {**TRAIN, "epochs": 1}, model=trained)
    first, second = (kept_indices(result.model)["w"][0] for result in (once, twice))
    assert (len(first), len(second)) == (8, 4)
    assert set(second) < set(first)


def test_single_zeros_survive_training_and_integers(trained):
    sparse = {"use": "sparsify", "pattern": "2:4", "sparsifier": "sparsegpt"}
    floats = compress(sparse, {**TRAIN, "epochs": 1}, model=trained)
    zeros = {node.name: constant(weight_of(node)) == 0 for node in nodes(floats.model) if weight_of(node) is not None}
    assert zeros["Conv_3"].mean() == 0.5
    integers = compress(sparse, {**TRAIN, "epochs": 1}, INT8, model=trained)
    (held,) = [
        constant(v) for v in integers.model.graph.initializers.values()
        if v.dtype == ir.DataType.INT8 and v.const_value.size == zeros["Conv_3"].size
    ]  # fmt: skip
    assert not held.reshape(zeros["Conv_3"].shape)[zeros["Conv_3"]].any()


def test_auto_and_combined_choose_by_measuring(trained):
    for scorer in ("auto", {"name": "combined", "tries": 2}):
        result = compress({**PRUNE, "scorer": scorer}, model=trained)
        tried = [entry for entry in result.ledger.of("prune") if entry.reason.startswith("tried")]
        assert len(tried) >= 6
        losses = {entry.verdict: entry.details["loss"] for entry in tried}
        assert losses["applied"] == min(entry.details["loss"] for entry in tried)
