"""How a session behaves: callers at once, shapes that change, memory that is given, memory that stays flat."""

import gc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx_ir as ir
import psutil
import pytest
from onnx import parser

from pumice.errors import DataError, PumiceError
from pumice.model import load
from pumice_cpu.runtime.strategy import NativeRuntime


@pytest.fixture
def session(quantized_cnn):
    return NativeRuntime().open(quantized_cnn)


def test_four_callers_at_once_get_their_own_answers_a_thousand_times_each_in_steady_memory(session, given_images):
    feeds = [given_images(1, seed) for seed in range(4)]
    alone = [session.run(feed)["y"] for feed in feeds]

    def call(caller, times):
        return all(np.array_equal(session.run(feeds[caller])["y"], alone[caller]) for _ in range(times))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(call, range(4), [50] * 4))
        before = resident()
        assert all(pool.map(call, range(4), [1000] * 4))
    assert resident() - before < 4 << 20


def test_each_shape_is_compiled_once(session, given_images):
    first = [session.compiled(given_images(batch)) for batch in (1, 2, 1)]
    assert first[0] is first[2] is not first[1]


def test_weights_are_packed_once_for_all_lengths(quantized_transformer, given_tokens):
    session = NativeRuntime().open(quantized_transformer)
    session.run(given_tokens(1, 5))
    packed = dict(session.packer.made)
    session.run(given_tokens(1, 9))
    assert session.packer.made == packed


def test_outputs_are_written_where_the_caller_says(session, given_images):
    room = np.zeros((2, 10), np.float32)
    found = session.run(given_images(2), out={"y": room})
    assert found["y"] is room
    np.testing.assert_array_equal(room, session.run(given_images(2))["y"])


@pytest.mark.parametrize(
    "room", [np.zeros((2, 9), np.float32), np.zeros((2, 10)), np.zeros((2, 20), np.float32)[:, ::2]]
)
def test_an_output_array_that_does_not_fit_is_refused(session, given_images, room):
    with pytest.raises(DataError, match="output 'y'"):
        session.run(given_images(2), out={"y": room})


def test_inputs_of_any_layout_are_taken_and_left_alone(session, given_images):
    feeds = given_images(2)
    turned = {"x": np.asfortranarray(feeds["x"])}
    before = turned["x"].copy()
    np.testing.assert_array_equal(session.run(turned)["y"], session.run(feeds)["y"])
    np.testing.assert_array_equal(turned["x"], before)


@pytest.mark.parametrize(
    "feeds", [{}, {"x": np.zeros((1, 3, 33, 31), np.float32)}, {"x": np.zeros((1, 3, 33, 30))}, {"z": np.zeros(1)}]
)
def test_feeds_that_do_not_fit_are_refused_in_a_sentence(session, given_images, feeds):
    session.run(given_images(1))
    with pytest.raises(PumiceError, match=r"input '"):
        session.run(feeds)


def test_an_index_out_of_range_is_refused(transformer, given_tokens):
    session = NativeRuntime().open(transformer)
    feeds = given_tokens(1, 4)
    session.run(feeds)
    with pytest.raises(PumiceError, match="out of range"):
        session.run({**feeds, "tokens": np.full((1, 4), 50)})


def test_the_profile_tells_every_instruction(session, given_images):
    lines = session.profile(given_images(1))
    assert [line.op for line in lines].count("QLinearConv") == 5
    assert all(line.microseconds > 0 for line in lines)


def resident():
    gc.collect()
    return psutil.Process().memory_info().rss


def test_opening_running_and_dropping_leaks_nothing(quantized_cnn, given_images):
    model, feeds = load(quantized_cnn), given_images(1)

    def cycle(times):
        for _ in range(times):
            NativeRuntime().open(model, threads=1).run(feeds)
        return resident()

    before = cycle(10)
    assert cycle(30) - before < 4 << 20


SMALL = """<ir_version: 8, opset_import: ["": 17]>
net (float[N, 2, 4, 4] x) => (float[N, 2, 4, 4] y) {
    w = Constant <value = float[2, 2, 1, 1] {1, 2, 3, 4}> () a = Conv(x, w) y = Relu(a)
}"""


def test_ten_thousand_programs_compiled_run_and_freed_leave_memory_flat():
    session = NativeRuntime().open(ir.from_proto(parser.parse_model(SMALL)), threads=1)
    feeds = {"x": np.ones((1, 2, 4, 4), np.float32)}

    def cycle(times):
        for _ in range(times):
            session.programs.clear()
            session.packer.made.clear()
            assert session.run(feeds)["y"][0, :, 0, 0].tolist() == [3.0, 7.0]
        return resident()

    before = cycle(1000)
    assert cycle(9000) - before < 2 << 20


def test_an_output_asked_for_twice_is_given_once(quantized_cnn, given_images):
    found = NativeRuntime().open(quantized_cnn, outputs=["y", "y"]).run(given_images(1))
    assert list(found) == ["y"]
    np.testing.assert_array_equal(found["y"], NativeRuntime().open(quantized_cnn).run(given_images(1))["y"])


def test_an_input_can_be_an_output_as_well(quantized_cnn, given_images):
    feed = given_images(1)
    (name,) = feed
    found = NativeRuntime().open(quantized_cnn, outputs=["y", name]).run(feed)
    np.testing.assert_array_equal(found[name], feed[name])
    np.testing.assert_array_equal(found["y"], NativeRuntime().open(quantized_cnn).run(feed)["y"])
