"""cuBLAS against NumPy: shapes that broadcast, layouts that are views, types, and recordings."""

import cupy
import numpy as np
import pytest

from pumice_cuda.blas import matmul

SHAPES = [
    ((5, 7), (7, 3)), ((2, 3, 5, 7), (7, 3)), ((2, 3, 5, 7), (3, 7, 4)), ((7,), (7, 3)), ((2, 5, 7), (7,)),
    ((4, 1, 5, 7), (1, 6, 7, 2)), ((1, 33, 65), (65, 1)), ((0, 7), (7, 3)), ((2, 0), (0, 3)), ((129, 257), (257, 130)),
]  # fmt: skip


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("float64", 1e-10), ("float16", 2e-2)])
@pytest.mark.parametrize(("left", "right"), SHAPES)
def test_products_are_those_of_numpy(rng, left, right, dtype, tolerance):
    a, b = (cupy.asarray(rng.normal(size=shape).astype(dtype)) for shape in (left, right))
    want = np.matmul(*(cupy.asnumpy(x).astype(np.float64) for x in (a, b)))
    turned = a if a.ndim == 1 else cupy.ascontiguousarray(a.swapaxes(-1, -2)).swapaxes(-1, -2)
    spaced = cupy.repeat(b, 2, axis=-1)[..., ::2]
    for x, y in ((a, b), (turned, cupy.asfortranarray(b)), (a, spaced)):
        np.testing.assert_allclose(cupy.asnumpy(matmul(x, y)), want, rtol=tolerance, atol=tolerance)


def test_a_result_goes_where_it_is_asked_to(rng):
    a, b = (cupy.asarray(rng.normal(size=(4, 4)).astype(np.float32)) for _ in range(2))
    out = cupy.full((4, 4), np.nan, np.float32)
    assert matmul(a, b, out=out) is out
    np.testing.assert_array_equal(cupy.asnumpy(out), cupy.asnumpy(matmul(a, b)))


def test_a_product_can_be_recorded(rng):
    with cupy.cuda.Stream(non_blocking=True) as stream:  # which waits for no other: all of it is made here
        a, b = (cupy.asarray(rng.normal(size=(64, 64)).astype(np.float32)) for _ in range(2))
        want = matmul(a, b)
        stream.begin_capture()
        y = matmul(a, b)
        graph = stream.end_capture()
        y.fill(np.nan)
        graph.launch(stream)
        stream.synchronize()
    np.testing.assert_array_equal(cupy.asnumpy(y), cupy.asnumpy(want))


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(4, 5\) have no product"):
        matmul(cupy.ones((2, 3), np.float32), cupy.ones((4, 5), np.float32))
