"""Programs in files: the same answers, and a clear refusal of whatever is not whole and for this build."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx import parser

from pumice.errors import PumiceError
from pumice_cpu.runtime import stored
from pumice_cpu.runtime.strategy import NativeRuntime


@pytest.fixture
def program(quantized_cnn, given_images, tmp_path):
    """A saved program for two pictures, and its answers."""
    session, feeds, path = NativeRuntime().open(quantized_cnn), given_images(2), tmp_path / "net.program"
    session.save(feeds, path)
    return path, feeds, session.run(feeds)


def refusal(path):
    with pytest.raises(PumiceError) as caught:
        NativeRuntime().open(path)
    return str(caught.value)


def test_a_stored_program_answers_as_the_session_that_wrote_it(program):
    path, feeds, answers = program
    session = NativeRuntime().open(path, threads=2)
    for _ in range(2):
        np.testing.assert_array_equal(session.run(feeds)["y"], answers["y"])
    assert path.name in session.description


def test_a_stored_float_network_answers_the_same(cnn, given_images, tmp_path):
    session, feeds, path = NativeRuntime().open(cnn), given_images(2), tmp_path / "net.program"
    session.save(feeds, path)
    np.testing.assert_array_equal(NativeRuntime().open(path).run(feeds)["y"], session.run(feeds)["y"])


def test_a_stored_transformer_answers_the_same(quantized_transformer, given_tokens, tmp_path):
    session, feeds, path = NativeRuntime().open(quantized_transformer), given_tokens(2, 9), tmp_path / "net.program"
    session.save(feeds, path)
    np.testing.assert_array_equal(NativeRuntime().open(path).run(feeds)["y"], session.run(feeds)["y"])


def test_the_same_program_gives_the_same_bytes(quantized_cnn, given_images, program):
    path, feeds, _ = program
    again = path.with_name("again.program")
    NativeRuntime().open(quantized_cnn).save(feeds, again)
    assert again.read_bytes() == path.read_bytes()


def test_a_truncated_program_is_refused_wherever_it_ends(program):
    path, *_ = program
    whole = path.read_bytes()
    for end in (8, 23, 24, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:end])
        assert "damaged" in refusal(path)


def test_a_program_of_another_build_is_refused(program, monkeypatch):
    path, *_ = program
    monkeypatch.setattr(stored, "build", lambda: "00000000 scalar")
    assert "compile the model again" in refusal(path)


def test_a_foreign_file_is_refused(tmp_path):
    path = tmp_path / "foreign"
    path.write_bytes(b"something else altogether, and long enough")
    assert "foreign" in refusal(path)


def test_other_shapes_than_those_it_was_compiled_for_are_refused(program, given_images):
    path, *_ = program
    with pytest.raises(PumiceError, match="compile the model for these shapes"):
        NativeRuntime().open(path).run(given_images(1))


WITH_REFERENCE = """<ir_version: 8, opset_import: ["": 17]>
net (float[N, 6] x) => (float[N, 6] y, int64[2, M] places, float[2] constant) {
    a = Relu(x) axis = Constant <value_int = 1> () b = CumSum <reverse = 1> (a, axis) c = Softplus(b)
    y = Tanh(c) places = NonZero(x) constant = Constant <value_floats = [1.0, 2.0]> ()
}"""
WITH_GRAPHS = """<ir_version: 8, opset_import: ["": 17]>
net (float[N] x, bool b) => (float[N] y) {
    y = If (b) <then_branch = one () => (float[N] z) { z = Relu(x) },
                else_branch = two () => (float[N] z) { z = Tanh(x) }>
}"""


def parsed(text):
    return NativeRuntime().open(ir.from_proto(parser.parse_model(text)))


def test_a_program_with_reference_kernels_answers_the_same(tmp_path, rng):
    session, feeds = parsed(WITH_REFERENCE), {"x": rng.standard_normal((3, 6)).astype(np.float32)}
    session.save(feeds, tmp_path / "net.program")
    opened = NativeRuntime().open(tmp_path / "net.program")
    for _ in range(2):
        want, have = session.run(feeds), opened.run(feeds)
        assert list(have) == list(want)
        for name, array in want.items():
            np.testing.assert_array_equal(have[name], array)
        feeds = {"x": np.maximum(feeds["x"], 0)}


def test_a_program_with_graphs_of_its_own_is_not_stored(tmp_path):
    session = parsed(WITH_GRAPHS)
    with pytest.raises(PumiceError, match="If runs on a reference kernel"):
        session.save({"x": np.ones(3, np.float32), "b": np.array(True)}, tmp_path / "net.program")
    assert list(tmp_path.iterdir()) == []
