"""Every model in the onnx package goes through load, save and simplify with unchanged outputs.

Outputs are compared with those stored beside the model and with those of the original file in onnxruntime, wherever
each exists. A model that onnxruntime cannot open on this machine (an absent locale) runs in ONNX's reference
evaluator; the two that nothing runs are compared by structure.
"""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx.reference import ReferenceEvaluator

from pumice.model import load, save, simplify, size

from .conftest import session

MODELS = sorted((Path(onnx.__file__).parent / "backend/test/data").rglob("*.onnx"))
NOT_RUNNABLE = {"test_gradient_of_add", "test_gradient_of_add_and_mul"}
GROWTH = 16_384
"""Bytes that folded shape arithmetic may add to a model."""


def label(path):
    return path.parent.name if path.name == "model.onnx" else path.stem


def stored_values(path, kind, count):
    files = [path.parent / "test_data_set_0" / f"{kind}_{i}.pb" for i in range(count)]
    return (
        [read_value(file) for file in files] if path.name == "model.onnx" and all(f.exists() for f in files) else None
    )


def read_value(file):
    tensor = onnx.TensorProto()
    try:
        tensor.ParseFromString(file.read_bytes())
        return onnx.numpy_helper.to_array(tensor)
    except Exception:
        sequence = onnx.SequenceProto()
        sequence.ParseFromString(file.read_bytes())
        return onnx.numpy_helper.to_list(sequence)


def random_inputs(proto):
    rng = np.random.default_rng(0)
    weights = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in weights]
    shapes = [[d.dim_value or 1 for d in value.type.tensor_type.shape.dim] for value in inputs]
    return [rng.standard_normal(shape, np.float32) for shape in shapes]


def outputs(path, values):
    try:
        running = session(path)
    except (onnxruntime.capi.onnxruntime_pybind11_state.Fail, NotImplementedError):
        reference = ReferenceEvaluator(str(path))
        return reference.run(None, dict(zip(reference.input_names, values, strict=True)))
    return running.run(None, dict(zip([value.name for value in running.get_inputs()], values, strict=True)))


def original_outputs(path, values):
    """None where onnxruntime has no kernels for the old opset."""
    try:
        running = session(path)
    except (onnxruntime.capi.onnxruntime_pybind11_state.Fail,
            onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented):  # fmt: skip
        return None
    return running.run(None, dict(zip([value.name for value in running.get_inputs()], values, strict=False)))


def assert_equal(actual, expected):
    assert len(actual) == len(expected)
    for a, b in zip(actual, expected, strict=True):
        if isinstance(b, list):
            assert_equal(a, b)
        elif np.asarray(b).dtype.kind in "OSU":
            assert np.asarray(a).tolist() == [
                text.decode() if isinstance(text, bytes) else text for text in np.asarray(b).tolist()
            ]
        else:
            scale = max(1.0, float(np.abs(b).max(initial=0.0)))
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * scale)
            assert a.dtype == b.dtype


@pytest.mark.parametrize("path", MODELS, ids=label)
def test_outputs_survive_loading_saving_and_simplifying(path, tmp_path):
    proto = onnx.load(path)
    weights = {tensor.name for tensor in proto.graph.initializer}
    count = len([value for value in proto.graph.input if value.name not in weights])
    model = load(path)
    save(model, tmp_path / "saved.onnx")
    before = size(model).total
    simplify(model)
    save(model, tmp_path / "simplified.onnx")
    assert size(model).total <= before + GROWTH
    assert [value.name for value in model.graph.outputs] == [value.name for value in proto.graph.output]
    if label(path) in NOT_RUNNABLE:
        assert original_outputs(path, []) is None
        assert [node.op_type for node in model.graph] == [node.op_type for node in proto.graph.node]
        return
    values = stored_values(path, "input", count) or random_inputs(proto)
    known = [stored_values(path, "output", len(proto.graph.output)), original_outputs(path, values)]
    assert any(expected is not None for expected in known)
    for file in ("saved.onnx", "simplified.onnx"):
        actual = outputs(tmp_path / file, values)
        for expected in filter(None, known):
            assert_equal(actual, expected)


def test_the_onnx_package_still_ships_its_models():
    assert len(MODELS) >= 140
    assert set(map(label, MODELS)) >= NOT_RUNNABLE
