"""Each wrong input gives one sentence that names what is wrong, and leaves nothing behind."""

import contextlib

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from onnx import TensorProto, helper

from pumice.errors import ModelError
from pumice.ledger import Ledger
from pumice.model import check, load

from .conftest import parsed

RELU = "g (float[2] x) => (float[2] y) { y = Relu(x) }"
LINEAR = "g (float[2,2] x) => (float[2,2] y) { y = MatMul(x, w) }"


def refusal(path):
    with pytest.raises(ModelError) as caught:
        load(path)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    return text


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"\x89PNG\r\n\x1a\n" + bytes(64), "begins with b'\\x89PNG"),
        (b"import torch\n" * 9, "not a readable ONNX model"),
        (bytes(range(256)) * 4, "not a readable ONNX model"),
        (b"\x08\x0a", "not a readable ONNX model"),
        (parsed(RELU).SerializeToString()[:-9], "truncated"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_onnx_is_named(tmp_path, content, says):
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    assert says in refusal(path)


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path):
    assert "does not exist" in refusal(tmp_path / "absent.onnx")
    assert "is a folder" in refusal(tmp_path)


ONE = "g (float[2] x) => (float[2] y) "
GRAPHS = {
    "unknown operator": (ONE + "{ y = Rely(x) }", "'Rely', which ONNX does not define; did you mean"),
    "unknown domain": (ONE + "{ y = acme.Magic(x) }", "unknown domain 'acme'"),
    "removed operator": (
        "g (float[1,1,2,2] x, float[4] s) => (float[1,1,4,4] y) { y = Upsample(x, s) }",
        "opset 21 of 'ai.onnx' does not have",
    ),
    "undefined input": (ONE + "{ y = Add(x, z) }", "reads 'z', which nothing produces"),
    "output nobody makes": ("g (float[2] x) => (float[2] q) { y = Relu(x) }", "output 'q' is not produced"),
    "cycle": (ONE + "{ y = Add(x, b)  b = Relu(y) }", "cycle through 'Add_0' -> 'Relu_0'"),
    "no outputs": ("g (float[2] x) => () { y = Relu(x) }", "has no outputs"),
    "two nodes, one name": (ONE + "{ y = Relu(x)  y = Neg(x) }", "'y' is defined twice"),
    "an input as an output": ("g (float[2] x) => (float[2] x) { x = Neg(x) }", "'x' is defined twice"),
    "unknown attribute": (ONE + "{ y = Relu<slope = 1.0>(x) }", "checker: Unrecognized attribute: slope"),
}


@pytest.mark.parametrize("case", GRAPHS)
def test_a_graph_that_cannot_run_is_refused(stored, case):
    text, says = GRAPHS[case]
    assert says in refusal(stored(text, domains=["acme"]))


def test_an_opset_that_runtimes_do_not_know_is_refused(stored):
    assert "uses opset 27" in refusal(stored(RELU, opset=27))


def test_a_model_without_an_opset_is_refused(stored):
    proto = parsed(RELU)
    proto.opset_import[0].domain = "ai.onnx.ml"
    assert "does not say which opset" in refusal(stored(proto))


def with_weight(tensor, proto=None):
    proto = proto or parsed(LINEAR)
    proto.graph.initializer.append(tensor)
    return proto


def raw(dims, content, name="w"):
    return TensorProto(name=name, data_type=TensorProto.FLOAT, dims=dims, raw_data=content)


@pytest.mark.parametrize(
    ("tensor", "says"),
    [
        (raw([2, 2], bytes(12)), "tensor 'w' of shape [2, 2] needs 16 bytes but holds 12"),
        (raw([500_000, 500_000], bytes(16)), "needs 1000000000000 bytes but holds 16"),
        (raw([-2, 2], bytes(16)), "impossible shape"),
        (TensorProto(name="w", data_type=1, dims=[2, 2], float_data=[1.0]), "needs 4 items but holds 1"),
        (TensorProto(name="w", data_type=99, dims=[1], raw_data=b"1"), "unknown data type 99"),
        (raw([2, 2], np.array([1, np.nan, np.nan, np.inf], "<f4").tobytes()), "'w' holds 2 NaN and 1 infinite"),
    ],
)  # fmt: skip
def test_a_damaged_weight_is_named(stored, tensor, says):
    assert says in refusal(stored(with_weight(tensor)))


def test_infinities_are_ordinary_outside_layers(stored):
    mask = np.array([[0, -np.inf], [0, 0]], np.float32)
    path = stored("g (float[2,2] x) => (float[2,2] y) { y = Add(x, m) }", m=mask)
    assert load(path).graph.initializers["m"].const_value.numpy()[0, 1] == -np.inf


def external(location, length=16, offset=0):
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2, 2], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, "offset": offset, "length": length}.items():
        tensor.external_data.add(key=key, value=str(value))
    return with_weight(tensor)


@pytest.mark.parametrize(
    ("location", "length", "says"),
    [
        ("absent.bin", 16, "external data file"),
        ("short.bin", 16, "is 8 bytes long but tensor 'w' needs bytes 0 to 16"),
        ("short.bin", 8, "needs 16 bytes but the model says that 8 are stored"),
        ("../outside.bin", 16, "outside the model's folder"),
        ("/etc/passwd", 16, "outside the model's folder"),
        ("link.bin", 16, "outside the model's folder"),
        ("empty.bin", 16, "cannot be read"),
    ],
)  # fmt: skip
def test_external_data_is_checked_before_it_is_read(tmp_path, location, length, says):
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "short.bin").write_bytes(bytes(8))
    (folder / "empty.bin").touch()
    (tmp_path / "outside.bin").write_bytes(bytes(16))
    (folder / "link.bin").symlink_to(tmp_path / "outside.bin")
    path = folder / "m.onnx"
    path.write_bytes(external(location, length).SerializeToString())
    assert says in refusal(path)


def test_a_sparse_weight_too_large_to_be_dense_is_refused_by_name(stored):
    proto = parsed(LINEAR)
    proto.graph.sparse_initializer.append(sparse([1 << 20, 1 << 20], [3]))
    assert "sparse tensor 'w'" in refusal(stored(proto))


def test_a_small_sparse_weight_is_made_dense(stored, run):
    proto = parsed(LINEAR)
    proto.graph.sparse_initializer.append(sparse([2, 2], [3]))
    ledger = Ledger()
    model = load(stored(proto), ledger=ledger)
    assert run(model, x=np.ones((2, 2), np.float32))[0].tolist() == [[0, 5], [0, 5]]
    assert any("made dense" in entry.reason for entry in ledger)


def sparse(dims, indices):
    values = onnx.numpy_helper.from_array(np.full(len(indices), 5, np.float32), "w")
    return helper.make_sparse_tensor(values, onnx.numpy_helper.from_array(np.array(indices, np.int64), "i"), dims)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_float_types_load_and_are_reported(stored, dtype):
    text = LINEAR.replace("float[", {"float16": "float16[", "float64": "double["}[dtype])
    ledger = Ledger()
    model = load(stored(text, w=np.eye(2, dtype=dtype)), ledger=ledger)
    assert model.graph.outputs[0].dtype.numpy() == dtype
    assert any("not all float32" in entry.reason for entry in ledger)


def test_zero_sized_dimensions_are_legal(stored, run):
    text = "g (float[2,3] x) => (float[2,3] y) { y = Concat<axis = 0>(x, e) }"
    path = stored(text, e=np.zeros((0, 3), np.float32))
    assert run(load(path), x=np.ones((2, 3), np.float32))[0].shape == (2, 3)


def test_check_refuses_a_model_edited_into_nonsense(stored):
    model = load(stored(RELU))
    check(model)
    model.graph[0].op_type = "Relo"
    with pytest.raises(ModelError, match="did you mean 'Relu'"):
        check(model)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_byte_is_a_refusal_or_another_model_but_never_a_crash(tmp_path, data):
    proto = parsed("g (float[2,2] x) => (float[2,2] y) { t = MatMul(x, w)  y = Squeeze<axes = [0]>(t) }", opset=11)
    content = bytearray(with_weight(raw([2, 2], bytes(16)), proto).SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with contextlib.suppress(ModelError):
        check(load(path))
