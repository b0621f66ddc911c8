"""Identities that hold for every input, checked on random ones."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from pumice.ops import Node, core_table

MICROSOFT = "com.microsoft"
seeds = st.integers(0, 2**31)


def run(op_type, *inputs, domain="", opset=21, outputs=1, **attributes):
    op = core_table().resolve(domain, op_type, opset)
    names = tuple("abcd"[:outputs])
    node = Node(op_type=op_type, domain=domain, opset=opset, attributes=attributes, outputs=names)
    with np.errstate(all="ignore"):
        return op.forward(node, *inputs)


@st.composite
def convolutions(draw):
    """Shapes and attributes of a convolution with at least one output."""
    size = [draw(st.integers(4, 9)) for _ in range(draw(st.integers(1, 2)))]
    rank, groups = len(size), draw(st.sampled_from([1, 2, 4]))
    kernel = [draw(st.integers(1, 3)) for _ in range(rank)]
    attributes = {
        "group": groups,
        "strides": [draw(st.integers(1, 3)) for _ in range(rank)],
        "dilations": [draw(st.integers(1, 2)) for _ in range(rank)],
        "pads": [draw(st.integers(0, 2)) for _ in range(2 * rank)],
    }
    x_shape = (2, 4, *size)
    w_shape = (8, 4 // groups, *kernel)
    return x_shape, w_shape, attributes


def naive_convolution(x, w, attributes):
    """Sums over windows in int64, straight from the definition."""
    rank, groups = x.ndim - 2, attributes["group"]
    pads = attributes["pads"]
    x = np.pad(x, [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)])
    strides, dilations = attributes["strides"], attributes["dilations"]
    extent = [d * (k - 1) + 1 for d, k in zip(dilations, w.shape[2:], strict=True)]
    output = [(n - e) // s + 1 for n, e, s in zip(x.shape[2:], extent, strides, strict=True)]
    y = np.zeros((len(x), len(w), *output), np.int64)
    for place in np.ndindex(*output):
        window = tuple(slice(p * s, p * s + e, d) for p, s, e, d in zip(place, strides, extent, dilations, strict=True))
        for m in range(len(w)):
            g = m // (len(w) // groups)
            channels = slice(g * w.shape[1], (g + 1) * w.shape[1])
            y[(slice(None), m, *place)] = (x[(slice(None), channels, *window)] * w[m]).sum(axis=tuple(range(1, x.ndim)))
    return y


@settings(max_examples=60, deadline=None)
@given(convolutions(), seeds)
def test_integer_convolution_is_exact(case, seed):
    x_shape, w_shape, attributes = case
    rng = np.random.default_rng(seed)
    x, w = rng.integers(0, 256, x_shape).astype(np.uint8), rng.integers(-128, 128, w_shape).astype(np.int8)
    (y,) = run("ConvInteger", x, w, np.uint8(7), np.int8(-3), **attributes)
    np.testing.assert_array_equal(y, naive_convolution(x.astype(np.int64) - 7, w.astype(np.int64) + 3, attributes))


@settings(max_examples=60, deadline=None)
@given(convolutions(), seeds)
def test_transposed_convolution_is_the_adjoint(case, seed):
    x_shape, w_shape, attributes = case
    rng = np.random.default_rng(seed)
    x, w = rng.standard_normal(x_shape), rng.standard_normal(w_shape)
    (y,) = run("Conv", x, w, **attributes)
    v = rng.standard_normal(y.shape)
    rank = len(x_shape) - 2
    spans = zip(y.shape[2:], w_shape[2:], *(attributes[k] for k in ("strides", "dilations")), x_shape[2:], strict=True)
    pads = zip(attributes["pads"][:rank], attributes["pads"][rank:], strict=True)
    missing = [n - ((o - 1) * s + d * (k - 1) + 1 - sum(p)) for (o, k, s, d, n), p in zip(spans, pads, strict=True)]
    (u,) = run("ConvTranspose", v, w, output_padding=missing, **attributes)
    assert u.shape == x.shape
    assert (y * v).sum() == pytest.approx((x * u).sum(), abs=1e-9)


@given(seeds, st.sampled_from(["uint8", "int8", "uint16", "int16"]), st.floats(1e-3, 10))
def test_quantization_errs_by_half_a_step_inside_the_range(seed, kind, scale):
    rng = np.random.default_rng(seed)
    limits = np.iinfo(kind)
    zero, scale = np.array(rng.integers(limits.min, limits.max), kind), np.float32(scale)
    low, high = (float(scale) * (v - int(zero)) for v in (limits.min, limits.max))
    x = rng.uniform(low, high, 50).astype(np.float32)
    (q,) = run("QuantizeLinear", x, scale, zero)
    (back,) = run("DequantizeLinear", q, scale, zero)
    assert np.abs(back - x).max() <= 0.5 * scale * (1 + 1e-3) + 1e-6 * np.abs(x).max()


def test_quantization_rounds_half_to_even_and_saturates():
    x = np.float32([0.5, 1.5, 2.5, -0.5, -1.5, 300, -300])
    (q,) = run("QuantizeLinear", x, np.float32(1), np.int8(0))
    assert q.tolist() == [0, 2, 2, 0, -2, 127, -128]


def test_a_quantized_sum_is_computed_in_the_order_of_onnxruntime():
    """These levels are among the few that other orders of the same formula round differently."""
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 256, (2, 5000)).astype(np.uint8)
    (y,) = run("QLinearAdd", a, np.float32(0.021), np.uint8(13), b, np.float32(0.033), np.uint8(13), np.float32(0.047),
               np.uint8(13), domain=MICROSOFT)  # fmt: skip
    exact = (21 * (a.astype(int) - 13) + 33 * (b.astype(int) - 13)) / 47 + 13
    decided = np.abs(exact - np.floor(exact) - 0.5) > 1e-4
    np.testing.assert_array_equal(y[decided], np.clip(np.rint(exact), 0, 255)[decided])


@settings(max_examples=30, deadline=None)
@given(seeds, st.sampled_from([2, 4, 8]), st.booleans())
def test_a_product_with_packed_weights_equals_one_with_unpacked(seed, bits, zeros):
    rng = np.random.default_rng(seed)
    depth, width, block = 40, 5, 16
    blocks, per_byte = -(-depth // block), 8 // bits
    levels = rng.integers(0, 2**bits, (width, blocks * block))
    points = rng.integers(0, 2**bits, (width, blocks)) if zeros else np.full((width, blocks), 2 ** (bits - 1))
    scales, a = rng.random((width, blocks)).astype(np.float32), rng.standard_normal((3, depth)).astype(np.float32)

    def packed(fields):
        fields = np.pad(fields, [(0, 0), (0, -fields.shape[1] % per_byte)]).reshape(len(fields), -1, per_byte)
        return (fields << np.arange(0, 8, bits)).sum(axis=2).astype(np.uint8)

    weights = (levels.reshape(width, blocks, block) - points[..., None]) * scales[..., None]
    weights = weights.reshape(width, -1)[:, :depth]
    (y,) = run("MatMulNBits", a, packed(levels).reshape(width, blocks, -1), scales.reshape(-1),
               packed(points).reshape(-1) if zeros else None,
               domain=MICROSOFT, K=depth, N=width, bits=bits, block_size=block)  # fmt: skip
    np.testing.assert_allclose(y, a @ weights.T, rtol=1e-4, atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(seeds, st.booleans())
def test_quantized_products_agree_with_exact_rationals(seed, transposed):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 256, (4, 300)).astype(np.uint8), rng.integers(-128, 128, (300, 6)).astype(np.int8)
    sums = (a.astype(np.int64) - 100) @ (b.astype(np.int64) - 2)
    wanted = np.clip(np.rint(sums / 2**12) + 9, 0, 255)  # scales that are powers of two make the multiplier exact
    quarter, step = np.float32(0.25), np.float32(2.0**8)
    (y,) = run("QLinearMatMul", a, quarter, np.uint8(100), b, quarter, np.int8(2), step, np.uint8(9))
    np.testing.assert_array_equal(y, wanted)
    right = b.T if transposed else b
    (y,) = run("QGemm", a, quarter, np.uint8(100), right, quarter, np.int8(2), None, step, np.uint8(9),
               domain=MICROSOFT, transB=int(transposed))  # fmt: skip
    np.testing.assert_array_equal(y, wanted)
    np.testing.assert_array_equal(run("MatMulInteger", a, b, np.uint8(100), np.int8(2))[0], sums)


@given(st.integers(-12, 12), st.integers(-12, 12), st.sampled_from([1, 2, 3, -1, -2]), st.integers(0, 6))
def test_slices_are_pythons(start, end, step, size):
    x = np.arange(size)
    (y,) = run("Slice", x, *(np.array([v]) for v in (start, end, 0, step)))
    lowest = -(size + 1)  # for a negative step ONNX clamps the end to before the first element, as Python's None does
    stop = None if step < 0 and end < lowest + 1 else end
    np.testing.assert_array_equal(y, x[start:stop:step])


@given(seeds, st.integers(1, 3), st.sampled_from(["DCR", "CRD"]))
def test_space_to_depth_undoes_depth_to_space(seed, block, mode):
    x = np.random.default_rng(seed).standard_normal((2, 2 * block**2, 3, 4))
    (y,) = run("DepthToSpace", x, blocksize=block, mode=mode)
    (back,) = run("SpaceToDepth", y, blocksize=block, mode=mode, opset=28)
    np.testing.assert_array_equal(back, x)


@given(seeds)
def test_scattering_what_was_gathered_changes_nothing(seed):
    rng = np.random.default_rng(seed)
    x, indices = rng.standard_normal((5, 4)), rng.integers(-5, 5, (3, 4))
    (picked,) = run("GatherElements", x, indices, axis=0)
    np.testing.assert_array_equal(run("ScatterElements", x, indices, picked, axis=0)[0], x)


@settings(max_examples=30, deadline=None)
@given(seeds, st.sampled_from(["LSTM", "GRU", "RNN"]))
def test_a_reversed_network_is_the_forward_one_on_reversed_time(seed, op_type):
    rng = np.random.default_rng(seed)
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op_type]
    x = rng.standard_normal((6, 2, 3))
    weights = (rng.standard_normal((1, gates * 4, 3)), rng.standard_normal((1, gates * 4, 4)))
    forward, last = run(op_type, x, *weights, hidden_size=4)[:2]
    backward, first = run(op_type, x[::-1], *weights, hidden_size=4, direction="reverse")[:2]
    np.testing.assert_allclose(forward, backward[::-1], atol=1e-12)
    np.testing.assert_allclose(last, first, atol=1e-12)


def test_short_sequences_keep_their_last_state_and_output_zeros():
    rng = np.random.default_rng(0)
    x, w, r = rng.standard_normal((6, 2, 3)), rng.standard_normal((1, 16, 3)), rng.standard_normal((1, 16, 4))
    y, h, _ = run("LSTM", x, w, r, None, np.array([6, 3], np.int32), hidden_size=4)
    short, h_short, _ = run("LSTM", x[:3, 1:], w, r, hidden_size=4)
    np.testing.assert_allclose(y[:3, :, 1:], short)
    np.testing.assert_allclose(h[:, 1:], h_short)
    assert not y[3:, :, 1].any()


def test_large_batches_are_convolved_in_chunks_with_the_same_result(monkeypatch):
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((7, 3, 8, 8)), rng.standard_normal((4, 3, 3, 3))
    (whole,) = run("Conv", x, w)
    monkeypatch.setattr("pumice.ops.conv.CHUNK", 2 * 27 * 36)
    np.testing.assert_array_equal(run("Conv", x, w)[0], whole)
