"""LSTM and GRU layers against core's NumPy code, through the Plan's records."""

import numpy as np
import pytest

from pumice.ops import core_table
from pumice.ops.record import Node
from pumice_cpu import native
from pumice_cpu.kernels import recurrent

RECORDS = {kernel.op_type: kernel for kernel in recurrent.KERNELS if kernel.part == "forward"}
(GRADIENT,) = [kernel for kernel in recurrent.KERNELS if kernel.part == "vjp"]
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


def agree(op_type, arrays, rtol=1e-5, atol=2e-6, **attributes):
    node = Node(op_type=op_type, opset=22, attributes={"hidden_size": arrays[2].shape[2], **attributes})
    expected = core_table().resolve("", op_type, 22).forward(node, *arrays)
    constants = [None, arrays[1], arrays[2], *arrays[3:]]
    record = RECORDS[op_type]
    for run in (record.run, record.bind(node, constants)):
        for have, want in zip(run(node, *arrays), expected, strict=True):
            assert have.shape == want.shape
            np.testing.assert_allclose(have, want, rtol=rtol, atol=atol)


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


@pytest.mark.parametrize("value", [1.0, np.inf, np.nan])
def test_batches_whose_products_are_split(level, rng, value):
    arrays = inputs(rng, "LSTM", batch=16, states=True)
    arrays[5][0, 3, 2] = value
    with np.errstate(all="ignore"):
        agree("LSTM", arrays, rtol=1e-4, atol=5e-5)


def test_peepholes_look_at_the_cell(level, rng):
    agree("LSTM", inputs(rng, "LSTM", states=True, peepholes=True))


@pytest.mark.parametrize("linear", [0, 1])
def test_a_gru_resets_before_or_after_its_product(level, rng, linear):
    agree("GRU", inputs(rng, "GRU", states=True), linear_before_reset=linear)


@pytest.mark.parametrize("op_type", GATES)
@pytest.mark.parametrize(("batch", "hidden"), [(1, 300), (33, 128)])
def test_threads_do_not_change_a_bit_of_the_layer(rng, op_type, batch, hidden):
    arrays = inputs(rng, op_type, batch=batch, hidden=hidden, directions=2)
    node = Node(op_type=op_type, opset=22, attributes={"hidden_size": hidden, "direction": "bidirectional"})
    results = []
    for threads in (1, 2, 3, 4):
        native.set_threads(threads)
        results.append(RECORDS[op_type].run(node, *arrays))
    native.set_threads(0)
    for result in results[1:]:
        for have, want in zip(result, results[0], strict=True):
            np.testing.assert_array_equal(have, want)


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


@pytest.mark.parametrize("batch", [3, 9])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize(("layout", "states", "lengths"), [(0, True, None), (1, True, None), (0, False, [5, 2, 1])])
def test_the_gradient_agrees_with_the_reference(level, rng, batch, direction, layout, states, lengths):
    directions = 2 if direction == "bidirectional" else 1
    lengths = None if lengths is None else np.resize(lengths, batch).astype(np.int32)
    arrays = inputs(rng, "LSTM", batch=batch, directions=directions, states=states, lengths=lengths)
    if layout:
        arrays = [x if i not in (0, 5, 6) else np.ascontiguousarray(x.swapaxes(0, 1)) for i, x in enumerate(arrays)]
    node = Node(op_type="LSTM", opset=22, attributes={"hidden_size": 19, "direction": direction, "layout": layout})
    op = core_table().resolve("", "LSTM", 22)
    outputs = op.forward(node, *arrays)
    wanted = [x is not None and x.dtype == np.float32 for x in arrays]
    for grads in ([rng.standard_normal(y.shape).astype(np.float32) for y in outputs], [None, *outputs[1:]]):
        found, truth = (vjp(node, arrays, outputs, grads, wanted) for vjp in (GRADIENT.run, op.vjp))
        for have, want, asked in zip(found, truth, wanted, strict=True):
            if asked:
                np.testing.assert_allclose(have, want, rtol=1e-4, atol=1e-4)


def test_threads_do_not_change_a_bit_of_the_gradient(rng):
    arrays = inputs(rng, "LSTM", time=7, batch=33, size=40, hidden=64)
    node = Node(op_type="LSTM", opset=22, attributes={"hidden_size": 64})
    grads = [rng.standard_normal((7, 1, 33, 64)).astype(np.float32), None, None]
    results = []
    for threads in (1, 2, 3, 4):
        native.set_threads(threads)
        results.append(GRADIENT.run(node, arrays, (), grads, [x is not None for x in arrays]))
    native.set_threads(0)
    for result in results[1:]:
        for have, want in zip(result, results[0], strict=True):
            np.testing.assert_array_equal(have, want)
