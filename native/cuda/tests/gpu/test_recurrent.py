"""LSTM and GRU layers against core's NumPy code in float64."""

import cupy
import numpy as np
import pytest

from pumice.ops import core_table
from pumice.ops.record import Node
from pumice_cuda import recurrent
from pumice_cuda.kernels.recurrent import KERNELS

SHAPES = [
    (5, 1, 7, 256),
    (9, 3, 16, 33),
    (4, 40, 8, 100),
    (3, 2, 5, 1),
    (6, 2, 40, 300),
    (5, 40, 16, 512),
    (4, 2, 8, 700),
    (3, 2, 8, 1100),
    (7, 70, 12, 64),
    (50, 32, 64, 256),
]
"""Steps, batch, inputs, units."""
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def parameters(rng, gates, shape):
    time, batch, inputs, hidden = shape
    sizes = {
        "x": (time, batch, inputs), "w": (gates * hidden, inputs), "r": (gates * hidden, hidden),
        "bias": (2 * gates * hidden,), "h": (batch, hidden), "c": (batch, hidden), "peepholes": (3 * hidden,),
    }  # fmt: skip
    spread = {"w": inputs**-0.5, "r": hidden**-0.5}
    return {name: (rng.standard_normal(s) * spread.get(name, 1)).astype(np.float32) for name, s in sizes.items()}


def core(op, p, lengths, reverse, *states, **attributes):
    """Y (time, batch, hidden) and the last states, in float64."""
    direction = "reverse" if reverse else "forward"
    node = Node(op_type=op, attributes={"hidden_size": p["h"].shape[1], "direction": direction, **attributes}, opset=22)
    wide = {name: None if v is None else v.astype(np.float64) for name, v in p.items()}
    given = [wide["w"], wide["r"], wide["bias"]]
    inputs = [wide["x"], *(None if v is None else v[None] for v in given), lengths]
    inputs += [None if wide[s] is None else wide[s][None] for s in states]
    y, *ends = core_table().resolve("", op, 22).forward(node, *inputs)
    return y[:, 0], *(end[0] for end in ends)


def run(cell, p, lengths, reverse):
    time, batch, _ = p["x"].shape
    d = {name: None if v is None else cupy.asarray(v) for name, v in p.items()}
    whole = cupy.full((time, 2, batch, p["h"].shape[1]), np.nan, np.float32)
    y, h, c = whole[:, 1], d["h"].copy(), d["c"].copy()
    more = {"peepholes": d["peepholes"]} if cell == "lstm" else {}
    lengths = None if lengths is None else cupy.asarray(lengths)
    weights = recurrent.prepare(cell, d["w"], d["r"])
    state = (h, c) if cell == "lstm" else (h,)
    recurrent.run(weights, d["x"], y, *state, bias=d["bias"], lengths=lengths, reverse=reverse, **more)
    assert cupy.isnan(whole[:, 0]).all()
    return [cupy.asnumpy(v) for v in (y, *state)]


def close(found, expected):
    for have, want in zip(found, expected, strict=True):
        np.testing.assert_allclose(have, want, rtol=1e-4, atol=2e-5)


EIGHT_BITS = [
    (6, 2, 9, 16), (20, 5, 33, 128), (9, 17, 5, 33), (5, 40, 16, 300), (7, 64, 12, 320), (5, 66, 8, 64), (4, 3, 8, 321),
    (4, 2, 8, 512), (4, 1, 8, 1100),
]  # fmt: skip
"""Units and rows that one cluster takes, up to 320 and 64, and more."""


@pytest.mark.parametrize("shape", EIGHT_BITS, ids=str)
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("everything", [False, True], ids=["plain", "all inputs"])
def test_an_lstm_of_8_bits_rounds_its_state_as_core_does(rng, shape, directions, everything):
    node, given = of_8_bits(rng, shape, directions, everything)
    on_gpu = [None if v is None else cupy.asarray(v) for v in given]
    (record,) = (k for k in KERNELS if k.op_type == node.op_type)
    run = record.bind(node, [None, *on_gpu[1:]])
    assert (run is None) == (shape[-1] > 1056)
    want = core_table().resolve(node.domain, node.op_type, 1).forward(node, *given)
    for have, value in zip(run(node, *on_gpu) if run else (), want, strict=run is not None):
        np.testing.assert_allclose(cupy.asnumpy(have), value, rtol=0, atol=4e-3)  # a value past a tie is a level off


def of_8_bits(rng, shape, directions, everything):
    """A DynamicQuantizeLSTM and its inputs; all of them are lengths, first states, peepholes and zero points, too."""
    time, batch, inputs, hidden = shape
    kind = "bidirectional" if directions == 2 else "forward"
    node = Node(
        op_type="DynamicQuantizeLSTM", domain="com.microsoft", outputs=("y", "h", "c"),
        attributes={"hidden_size": hidden, "direction": kind},
    )  # fmt: skip
    w, r = (rng.integers(-120, 128, (directions, n, 4 * hidden)).astype(np.int8) for n in (inputs, hidden))
    scales = [rng.uniform(0.5, 1, (directions, 4 * hidden)).astype(np.float32) / 128 / n**0.5 for n in (inputs, hidden)]
    x, bias, h, c, holes = (
        rng.standard_normal(size).astype(np.float32)
        for size in (
            (time, batch, inputs), (directions, 8 * hidden), *[(directions, batch, hidden)] * 2,
            (directions, 3 * hidden),
        )
    )  # fmt: skip
    zero = np.zeros((directions, 4 * hidden), np.int8)
    if not everything:
        return node, [x, w, r, bias, *[None] * 4, scales[0], zero, scales[1], zero]
    lengths = rng.integers(0, time + 1, batch).astype(np.int32)
    return node, [x, w, r, bias, lengths, h, c, holes, scales[0], zero + 3, scales[1][:, 0], zero[:, 0]]


@pytest.mark.parametrize("batch", [3, 70])
def test_weights_with_zero_points_are_multiplied_as_what_they_stand_for(rng, batch):
    node, given = of_8_bits(rng, (5, batch, 8, 40), 1, everything=False)
    given[11] = rng.integers(-9, 10, given[11].shape).astype(np.int8)
    on_gpu = [None if v is None else cupy.asarray(v) for v in given]
    (record,) = (k for k in KERNELS if k.op_type == node.op_type)
    want = core_table().resolve(node.domain, node.op_type, 1).forward(node, *given)
    for have, value in zip(record.bind(node, [None, *on_gpu[1:]])(node, *on_gpu), want, strict=True):
        np.testing.assert_allclose(cupy.asnumpy(have), value, rtol=0, atol=4e-3)


@shapes
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("ends", [False, True])
def test_lstm_is_that_of_float64(rng, shape, reverse, ends):
    p = parameters(rng, 4, shape)
    lengths = rng.integers(0, shape[0] + 1, shape[1]).astype(np.int32) if ends else None
    if not ends:
        p["peepholes"] = p["bias"] = None
    close(run("lstm", p, lengths, reverse), core("LSTM", p, lengths, reverse, "h", "c", "peepholes"))


@shapes
@pytest.mark.parametrize("reverse", [False, True])
def test_gru_with_linear_before_reset_is_that_of_float64(rng, shape, reverse):
    p = parameters(rng, 3, shape)
    lengths = rng.integers(0, shape[0] + 1, shape[1]).astype(np.int32)
    close(run("gru", p, lengths, reverse), core("GRU", p, lengths, reverse, "h", linear_before_reset=1))


def test_a_recorded_layer_can_be_replayed_on_new_input(rng):
    p = parameters(rng, 4, (6, 2, 8, 64))
    pool, stream = cupy.cuda.MemoryPool(), cupy.cuda.Stream(non_blocking=True)

    def layer():
        h[...], c[...] = d["h"], d["c"]
        recurrent.run(weights, d["x"], y, h, c, bias=d["bias"])

    with cupy.cuda.using_allocator(pool.malloc), stream:  # it waits for no other, so what it reads is made on it
        d = {name: cupy.asarray(v) for name, v in p.items()}
        weights = recurrent.prepare("lstm", d["w"], d["r"])
        y, h, c = cupy.empty((6, 2, 64), np.float32), d["h"].copy(), d["c"].copy()
        layer()
        stream.synchronize()
        stream.begin_capture()
        layer()
        graph = stream.end_capture()
        p["x"] = rng.standard_normal(p["x"].shape).astype(np.float32)
        d["x"].set(p["x"])
        graph.launch(stream)
        stream.synchronize()
        found = [cupy.asnumpy(v) for v in (y, h, c)]
    p["peepholes"] = None
    close(found, core("LSTM", p, None, False, "h", "c", "peepholes"))
