"""LSTM and GRU layers against core's NumPy code, through the Plan's records."""

import numpy as np
import pytest

from pumice.ops import core_table
from pumice.ops.record import Node
from pumice_cpu.kernels import recurrent

RECORDS = {kernel.op_type: kernel for kernel in recurrent.KERNELS}
GATES = {"LSTM": 4, "GRU": 3}
CELL_LEVELS = ("scalar", "avx2", "avx512", "neon")


def inputs(
    rng, op_type, *, time=5, batch=3, size=6, hidden=19, directions=1, lengths=None, states=False, peepholes=False
):
    def floats(*shape):
        return (0.5 * rng.standard_normal(shape)).astype(np.float32)

    gates = GATES[op_type] * hidden
    arrays = [floats(time, batch, size), floats(directions, gates, size), floats(directions, gates, hidden)]
    arrays += [floats(directions, 2 * gates), lengths]
    arrays += [floats(directions, batch, hidden) if states else None]
    if op_type == "LSTM":
        arrays += [floats(directions, batch, hidden) if states else None]
        arrays += [floats(directions, 3 * hidden) if peepholes else None]
    return arrays


def agree(op_type, arrays, **attributes):
    node = Node(op_type=op_type, opset=22, attributes={"hidden_size": arrays[2].shape[2], **attributes})
    expected = core_table().resolve("", op_type, 22).forward(node, *arrays)
    constants = [None, arrays[1], arrays[2], *arrays[3:]]
    record = RECORDS[op_type]
    for run in (record.run, record.bind(node, constants)):
        for have, want in zip(run(node, *arrays), expected, strict=True):
            assert have.shape == want.shape
            np.testing.assert_allclose(have, want, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("op_type", GATES)
@pytest.mark.parametrize("hidden", [1, 15, 16, 33])
@pytest.mark.parametrize("batch", [1, 4])
def test_layers_of_any_width(level, gave, rng, op_type, hidden, batch):
    agree(op_type, inputs(rng, op_type, hidden=hidden, batch=batch))
    gave(f"rows_{op_type.lower()}_cell", *CELL_LEVELS)


@pytest.mark.parametrize("op_type", GATES)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_directions_and_shorter_sequences(level, rng, op_type, direction):
    directions = 2 if direction == "bidirectional" else 1
    lengths = np.array([5, 2, 0], np.int32)
    agree(op_type, inputs(rng, op_type, directions=directions, lengths=lengths, states=True), direction=direction)


@pytest.mark.parametrize("op_type", GATES)
def test_the_batch_may_come_first(rng, op_type):
    arrays = inputs(rng, op_type, states=True)
    arrays[0] = np.ascontiguousarray(arrays[0].swapaxes(0, 1))
    for i in range(5, len(arrays)):
        arrays[i] = arrays[i] if arrays[i] is None or i > 6 else np.ascontiguousarray(arrays[i].swapaxes(0, 1))
    agree(op_type, arrays, layout=1)


def test_peepholes_look_at_the_cell(level, rng):
    agree("LSTM", inputs(rng, "LSTM", states=True, peepholes=True))


@pytest.mark.parametrize("linear", [0, 1])
def test_a_gru_resets_before_or_after_its_product(level, rng, linear):
    agree("GRU", inputs(rng, "GRU", states=True), linear_before_reset=linear)


def test_missing_biases_are_zero(rng):
    arrays = inputs(rng, "LSTM")
    arrays[3] = None
    agree("LSTM", arrays)


def test_what_the_kernels_leave_to_numpy():
    def reason(op_type, **attributes):
        return RECORDS[op_type].accepts(Node(op_type=op_type, attributes={"hidden_size": 3, **attributes}))

    assert reason("LSTM", activations=["Sigmoid", "Tanh", "Relu"]) == "its activations are not the default ones"
    assert reason("GRU", clip=1.0) == "it clips, or couples its gates"
    assert reason("LSTM", activations=["Sigmoid", "Tanh", "Tanh"] * 2) is None
    assert reason("GRU") is None
