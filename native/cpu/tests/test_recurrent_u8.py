"""Recurrent layers with 8-bit weights against core's NumPy code, through the Plan's record and by themselves."""

import numpy as np
import pytest

from pumice.ops import core_table
from pumice.ops.record import Node
from pumice_cpu import recurrent_u8
from pumice_cpu.kernels import recurrent

(RECORD,) = [kernel for kernel in recurrent.KERNELS if kernel.op_type == "DynamicQuantizeLSTM"]
LEVELS = ("scalar", "avx2", "avx512", "neon")


def inputs(rng, *, time=5, batch=3, size=6, hidden=19, directions=1, lengths=None, states=False, zeros=False):
    def floats(*shape):
        return (0.5 * rng.standard_normal(shape)).astype(np.float32)

    width = 4 * hidden
    weights = [rng.integers(-127, 128, (directions, k, width)).astype(np.int8) for k in (size, hidden)]
    scales = [(rng.random((directions, width)) * 0.02 / np.sqrt(hidden)).astype(np.float32) for _ in weights]
    points = [rng.integers(-9, 9, (directions, width)).astype(np.int8) * zeros for _ in weights]
    first = [floats(directions, batch, hidden) if states else None for _ in "hc"]
    parameters = [part for pair in zip(scales, points, strict=True) for part in pair]
    return [floats(time, batch, size), *weights, floats(directions, 2 * width), lengths, *first, None, *parameters]


def agree(arrays, **attributes):
    """But for states that fall on the middle between two levels."""
    node = Node(
        op_type="DynamicQuantizeLSTM", domain="com.microsoft", opset=1,
        attributes={"hidden_size": arrays[2].shape[1], **attributes},
    )  # fmt: skip
    expected = core_table().resolve("com.microsoft", "DynamicQuantizeLSTM", 1).forward(node, *arrays)
    for run in (RECORD.run, RECORD.bind(node, [None, *arrays[1:4], None, None, None, *arrays[7:]])):
        for have, want in zip(run(node, *arrays), expected, strict=True):
            assert have.shape == want.shape
            assert np.mean(np.abs(have - want) > 1e-5) < 0.02
            np.testing.assert_allclose(have, want, atol=5e-3)


@pytest.mark.parametrize("hidden", [1, 15, 32, 33, 100])
@pytest.mark.parametrize("batch", [1, 4, 17])
def test_layers_of_any_width(level, gave, rng, hidden, batch):
    agree(inputs(rng, hidden=hidden, batch=batch))
    gave("recurrent_lstm_u8", *LEVELS)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("zeros", [False, True])
def test_directions_states_and_zero_points_of_weights(level, rng, direction, zeros):
    directions = 2 if direction == "bidirectional" else 1
    agree(inputs(rng, directions=directions, states=True, zeros=zeros), direction=direction)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_shorter_sequences_keep_their_state_and_give_zeros(level, rng, direction):
    directions, lengths = 2 if direction == "bidirectional" else 1, np.array([5, 2, 0], np.int32)
    agree(inputs(rng, directions=directions, lengths=lengths, states=True), direction=direction)


def layer(rng, cell, hidden):
    gates = {"lstm": 4, "gru": 3}[cell] * hidden
    w, r = (rng.integers(-127, 128, (k, gates)).astype(np.int8) for k in (8, hidden))
    scale = (rng.random(gates) * 0.02 / np.sqrt(hidden)).astype(np.float32)
    return recurrent_u8.prepare(cell, w, scale, None, r, scale, None), w * scale, r * scale


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_rows_with_ranges_of_their_own_do_not_depend_on_their_batch(level, rng, cell):
    weights, _, _ = layer(rng, cell, 40)
    x = rng.standard_normal((6, 20, 8)).astype(np.float32) * np.geomspace(0.01, 10, 20, dtype=np.float32)[:, None]

    def outputs(rows):
        y = np.empty((6, rows.shape[1], 40), np.float32)
        h, c = np.zeros((2, rows.shape[1], 40), np.float32)
        recurrent_u8.run(weights, rows, y, h, c, by_row=True)
        return y

    whole = outputs(x)
    np.testing.assert_array_equal(outputs(x[:, 7:8]), whole[:, 7:8])
    np.testing.assert_array_equal(outputs(x[:, 3:9]), whole[:, 3:9])


def test_a_gru_with_8_bit_weights_stays_near_the_one_in_floating_point(level, rng):
    weights, w, r = layer(rng, "gru", 40)
    x, bias = rng.standard_normal((9, 3, 8)).astype(np.float32), rng.standard_normal(240).astype(np.float32) * 0.1
    y, h = np.empty((9, 3, 40), np.float32), np.zeros((3, 40), np.float32)
    recurrent_u8.run(weights, x, y, h, bias=bias, by_row=True)
    node = Node(op_type="GRU", opset=22, attributes={"hidden_size": 40, "linear_before_reset": 1})
    reals = [part.T[None].astype(np.float32) for part in (w, r)]
    exact, _ = core_table().resolve("", "GRU", 22).forward(node, x, *reals, bias[None])
    assert np.abs(y - exact[:, 0]).max() < 0.02


def test_threads_share_a_wide_layer_without_changing_it(rng, threads):
    weights, _, _ = layer(rng, "lstm", 480)
    x, y = rng.standard_normal((3, 2, 8)).astype(np.float32), np.empty((2, 3, 2, 480), np.float32)
    for found, count in zip(y, (1, threads), strict=True):
        recurrent_u8.run(weights, x, found, *np.zeros((2, 2, 480), np.float32), threads=count)
    np.testing.assert_array_equal(*y)
