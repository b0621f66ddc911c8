"""Attention in one kernel against NumPy in float64, and the chains that it takes over."""

import cupy
import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from pumice.plan import compile_plan
from pumice_cuda.attention import attention, takes
from pumice_cuda.placing import OnDevice

SHAPES = [
    (2, 3, 128, 128, 64),
    (1, 2, 77, 130, 32),
    (1, 1, 5, 3, 16),
    (2, 2, 100, 70, 128),
    (1, 2, 1, 200, 64),
    (40, 8, 65, 64, 64),
]
"""Batch, heads, queries, keys, size."""
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


def test_sizes_that_have_no_kernel_are_left_to_single_operators():
    x = cupy.zeros((1, 1, 8, 24), np.float32)
    assert not takes(x, x, x)
    x = cupy.zeros((1, 1, 8, 66), np.float32)[..., 1:65]  # rows begin between multiples of 16 bytes
    assert not takes(x, x, x)
