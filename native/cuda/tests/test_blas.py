"""How stacks of matrices lie in memory, as cuBLAS is told."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from pumice_cuda.blas import _layout, stack_stride


@pytest.mark.parametrize(
    ("make", "layout"),
    [
        (lambda: np.zeros((5, 7)), (0, 7)),
        (lambda: np.zeros((7, 5)).T, (1, 5)),
        (lambda: np.zeros((5, 9))[:, :7], (0, 9)),
        (lambda: np.zeros((9, 5)).T[:, 2:], (1, 5)),
        (lambda: np.zeros((10, 7))[::2], (0, 14)),
        (lambda: np.zeros((5, 14))[:, ::2], None),
        (lambda: np.zeros((1, 7)), (0, 7)),
        (lambda: np.zeros((5, 1)), (0, 1)),
        (lambda: np.zeros((5, 7))[::-1], None),
    ],
)
def test_rows_or_columns_must_be_dense(make, layout):
    x = make()
    assert _layout(x.shape, x.strides, x.itemsize) == layout


@settings(deadline=None)
@given(st.lists(st.integers(1, 3), max_size=3), st.lists(st.booleans(), min_size=3, max_size=3))
def test_a_stride_finds_every_matrix_of_a_stack(batch, single):
    own = [1 if one else n for n, one in zip(batch, single, strict=False)]
    x = np.arange(np.prod(own, dtype=int) * 6).reshape(*own, 2, 3)
    stride = stack_stride(x.shape[:-2], x.strides[:-2], batch, x.itemsize)
    whole = np.broadcast_to(x, (*batch, 2, 3)).reshape(-1, 2, 3)
    if stride is None:
        assert x.size < whole.size  # only what is repeated along some axes of several has no one stride
        return
    flat = x.reshape(-1)
    for number, matrix in enumerate(whole):
        np.testing.assert_array_equal(flat[number * stride : number * stride + 6].reshape(2, 3), matrix)
