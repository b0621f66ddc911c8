"""Attention: odd sizes, any strides, masks of every shape that repeats, the same bits with any number of threads."""

import numpy as np
import pytest

from pumice_cpu.attention import attention

SIZES = [
    (1, 1, 1, 1, 1, 1),
    (2, 3, 5, 7, 4, 6),
    (1, 2, 33, 40, 32, 32),
    (1, 12, 64, 64, 32, 32),
    (1, 1, 130, 97, 17, 33),
]


def operands(rng, batch, heads, queries, keys, depth, width):
    def drawn(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    q = drawn(batch, queries, heads, depth).transpose(0, 2, 1, 3)
    k = drawn(batch, keys, heads, depth).transpose(0, 2, 3, 1)
    return q, k, drawn(batch, keys, heads, width).transpose(0, 2, 1, 3)


def truth(q, k, v, mask, scale):
    scores = q.astype(np.float64) @ k * scale + (0 if mask is None else mask)
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return shares / shares.sum(axis=-1, keepdims=True) @ v


@pytest.mark.parametrize("sizes", SIZES)
def test_results_agree_with_float64(sizes, level, threads, rng):
    q, k, v = operands(rng, *sizes)
    batch, heads, queries, keys = sizes[:4]
    for shape in (None, (batch, 1, 1, keys), (heads, queries, keys), (1, keys)):
        mask = None if shape is None else rng.standard_normal(shape).astype(np.float32)
        for key in (k, np.ascontiguousarray(k)):
            y = attention(q, key, v, mask, scale=0.3, threads=threads)
            np.testing.assert_allclose(y, truth(q, key, v, mask, np.float32(0.3)), rtol=1e-5, atol=2e-6)


def test_threads_do_not_change_a_bit(level, rng):
    q, k, v = operands(rng, *SIZES[-1])
    want = attention(q, k, v, threads=1)
    for threads in (2, 3, 4):
        np.testing.assert_array_equal(attention(q, k, v, threads=threads), want)


def test_keys_that_are_masked_out_have_no_share(level, rng):
    q, k, v = operands(rng, 1, 2, 5, 9, 8, 8)
    mask = np.where(np.arange(9) < 4, 0, -np.inf).astype(np.float32)
    np.testing.assert_allclose(attention(q, k, v, mask), attention(q, k[..., :4], v[:, :, :4]), rtol=1e-6, atol=1e-6)
