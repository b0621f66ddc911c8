import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from pumice.plan import compile_plan
from pumice_prune_sparse.products import MATMUL, bound


def product(share, rows=1):
    """A plan of one product, what it is given, and the result."""
    draws = np.random.default_rng(0)
    w = draws.standard_normal((256, 512)).astype(np.float32) * (draws.random((256, 512)) >= share)
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 21]> g (float[N, 256] x) => (float[N, 512] y) { y = MatMul(x, w) }'
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(w, "w"))
    x = draws.standard_normal((rows, 256)).astype(np.float32)
    return compile_plan(ir.from_proto(proto), kernels=[MATMUL]), x, w


@pytest.mark.parametrize("rows", [1, 8, 9])
@pytest.mark.parametrize("share", [0.5, 0.97, 0.99])
def test_a_product_that_skips_zeros_is_the_same_product(share, rows):
    plan, x, w = product(share, rows)
    np.testing.assert_allclose(plan.run({"x": x})["y"], x @ w, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("share", "skips"), [(0.5, False), (0.9, False), (0.96, True)])
def test_zeros_are_skipped_where_that_was_measured_to_win(share, skips):
    assert (bound(None, [None, product(share)[2]]) is not None) is skips


def test_a_matrix_that_is_fed_in_its_place_is_multiplied_by():
    plan, x, w = product(0.97)
    other = np.ones_like(w)
    np.testing.assert_allclose(plan.run({"x": x, "w": other})["y"], x @ other, rtol=1e-4)
