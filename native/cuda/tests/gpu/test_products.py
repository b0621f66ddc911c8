"""Products of float32 against float64."""

import cupy
import numpy as np
import pytest

from pumice_cuda.products import Right, product


@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (3, 5, 7), (33, 100, 130), (1600, 1024, 256), (2, 4096, 1001)])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("ready", [Right.of, lambda b: Right(b, None)], ids=["here", "by cuBLAS"])
def test_products_are_as_close_as_sums_of_float32(rng, m, n, k, biased, ready):
    a, b = rng.standard_normal((m, k)).astype(np.float32), rng.standard_normal((n, k)).astype(np.float32)
    bias = rng.standard_normal(n).astype(np.float32) if biased else None
    found = product(cupy.asarray(a), ready(cupy.asarray(b)), None if bias is None else cupy.asarray(bias))
    exact = a.astype(np.float64) @ b.T.astype(np.float64) + (0 if bias is None else bias)
    assert (np.abs(cupy.asnumpy(found) - exact) <= 1e-5 * (np.abs(a).astype(np.float64) @ np.abs(b).T + 1)).all()
