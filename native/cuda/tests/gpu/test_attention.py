"""Attention in one kernel against NumPy in float64, and the chains that it takes over."""

import cupy
import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from pumice.model import add_initializer
from pumice.plan import compile_plan
from pumice_cuda.attention import attention, quantized_attention, takes
from pumice_cuda.placing import OnDevice
from pumice_cuda.quantize import dynamic_quantize
from pumice_cuda.transfers import counting

SHAPES = [
    (2, 3, 128, 128, 64),
    (1, 2, 77, 130, 32),
    (1, 1, 5, 3, 16),
    (2, 2, 100, 70, 128),
    (1, 2, 1, 200, 64),
    (40, 8, 65, 64, 64),
    (24, 12, 100, 130, 64),
    (40, 9, 70, 150, 16),
]
"""Batch, heads, queries, keys, size; blocks of both heights, and keys shared out."""
GRAPH = """<ir_version: 10, opset_import: ["" : 21]>
agraph (float[2, 4, 9, 32] q, float[2, 4, 11, 32] k, float[2, 4, 11, 32] v, float[9, 11] mask) => (float[2, 4, 9, 32] y)
<float root = {5.5}> {
    t = Transpose <perm = [0, 1, 3, 2]> (k)
    s = MatMul(q, t)
    d = Div(s, root)
    m = Add(d, mask)
    p = Softmax <axis = -1> (m)
    y = MatMul(p, v)
}"""
QUANTIZED = (
    GRAPH.removesuffix("}").replace("(float[2, 4, 9, 32] y)", "(uint8[2, 9, 128] levels, float scale, uint8 zero)")
    + """
    t2 = Transpose <perm = [0, 2, 1, 3]> (y)
    r = Reshape(t2, shape)
    f = Mul(r, factor)
    levels, scale, zero = DynamicQuantizeLinear(f)
}"""
)
"""Heads side by side again, and quantized."""


def softmaxed(q, k, v, factor, mask=0.0):
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    scores = q @ k.swapaxes(2, 3) * factor + mask
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return shares / shares.sum(axis=-1, keepdims=True) @ v


def heads(rng, batch, rows, count, size):
    """As they lie after a product and a Transpose: (batch, heads, rows, size) over (batch, rows, heads, size)."""
    x = rng.standard_normal((batch, rows, count, size)).astype(np.float32)
    return x.transpose(0, 2, 1, 3), cupy.asarray(x).transpose(0, 2, 1, 3)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_attention_is_that_of_float64(rng, shape, masked):
    batch, count, queries, keys, size = shape
    (q, on_q), (k, on_k), (v, on_v) = (heads(rng, batch, rows, count, size) for rows in (queries, keys, keys))
    mask = rng.standard_normal((batch, 1, queries, keys)).astype(np.float32)
    mask[rng.random(mask.shape) < 0.3] = -np.inf
    mask[..., 0] = 0.0
    assert takes(on_q, on_k, on_v)
    found = attention(on_q, on_k, on_v, size**-0.5, cupy.asarray(mask) if masked else None)
    want = softmaxed(q, k, v, size**-0.5, mask if masked else 0.0)
    assert np.linalg.norm(cupy.asnumpy(found) - want) < 2e-5 * np.linalg.norm(want)


def test_a_graph_that_spells_it_out_runs_it_and_gives_the_same(rng, monkeypatch):
    from pumice_cuda import attention as module

    called, real = [], module.attention
    monkeypatch.setattr(module, "attention", lambda *given: (called.append(1), real(*given))[1])
    feeds = {
        name: rng.standard_normal(shape).astype(np.float32)
        for name, shape in (("q", (2, 4, 9, 32)), ("k", (2, 4, 11, 32)), ("v", (2, 4, 11, 32)), ("mask", (9, 11)))
    }
    plan = compile_plan(ir.from_proto(onnx.parser.parse_model(GRAPH)), placement=OnDevice())
    found = plan.run({name: cupy.asarray(x) for name, x in feeds.items()})["y"]
    assert called
    want = softmaxed(feeds["q"], feeds["k"], feeds["v"], 1 / 5.5, feeds["mask"])
    np.testing.assert_allclose(cupy.asnumpy(found), want, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_quantized_attention_is_what_quantization_makes_of_it(rng, shape, masked):
    batch, count, queries, keys, size = shape
    (_, q), (_, k), (_, v) = (heads(rng, batch, rows, count, size) for rows in (queries, keys, keys))
    mask = cupy.asarray(rng.standard_normal((batch, 1, queries, keys)).astype(np.float32)) if masked else None
    for columns in (None, cupy.asarray(rng.standard_normal(count * size).astype(np.float32))):
        found = quantized_attention(q, k, v, size**-0.5, mask, columns)
        y = attention(q, k, v, size**-0.5, mask).transpose(0, 2, 1, 3).reshape(batch, queries, count * size)
        for have, want in zip(found, dynamic_quantize(y if columns is None else y * columns), strict=True):
            np.testing.assert_array_equal(cupy.asnumpy(have), cupy.asnumpy(want))


def test_a_graph_that_quantizes_attention_stores_levels_alone(rng):
    model = ir.from_proto(onnx.parser.parse_model(QUANTIZED))
    factor = rng.random(128).astype(np.float32) + 0.5
    given = {value.name: value for node in model.graph for value in node.inputs if value is not None}
    for name, array in (("shape", np.array([0, 0, 128])), ("factor", factor)):
        given[name].replace_all_uses_with(add_initializer(model, f"known/{name}", array))
    feeds = {
        name: rng.standard_normal(shape).astype(np.float32)
        for name, shape in (("q", (2, 4, 9, 32)), ("k", (2, 4, 11, 32)), ("v", (2, 4, 11, 32)), ("mask", (9, 11)))
    }
    plan = compile_plan(model, placement=OnDevice())
    assert len(plan.program.fused) == 2  # the keys' Transpose, and the rest
    with counting() as moved:
        found = plan.run({name: cupy.asarray(x) for name, x in feeds.items()})
    assert moved.out == 0
    y = softmaxed(feeds["q"], feeds["k"], feeds["v"], 1 / 5.5, feeds["mask"])
    y = y.transpose(0, 2, 1, 3).reshape(2, 9, 128) * factor
    scale = (max(y.max(), 0) - min(y.min(), 0)) / 255
    np.testing.assert_allclose(float(found["scale"]), scale, rtol=1e-4)
    levels = np.clip(np.rint(y / scale) + int(found["zero"]), 0, 255)
    assert np.abs(cupy.asnumpy(found["levels"]).astype(int) - levels).max() <= 1


def test_a_row_without_keys_to_see_is_nan_and_others_are_not(rng):
    (_, q), (_, k), (_, v) = (heads(rng, 1, rows, 2, 64) for rows in (40, 90, 90))
    mask = np.zeros((40, 90), np.float32)
    mask[3], mask[7, :64] = -np.inf, -np.inf
    found = cupy.asnumpy(attention(q, k, v, 0.125, cupy.asarray(mask)))
    assert np.isnan(found[:, :, 3]).all()
    assert not np.isnan(np.delete(found, 3, axis=2)).any()


def test_sizes_that_have_no_kernel_are_left_to_single_operators():
    x = cupy.zeros((1, 1, 8, 24), np.float32)
    assert not takes(x, x, x)
    x = cupy.zeros((1, 1, 8, 66), np.float32)[..., 1:65]  # rows begin between multiples of 16 bytes
    assert not takes(x, x, x)
