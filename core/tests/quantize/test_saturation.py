import numpy as np
import onnx_ir as ir
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as arrays
from onnx import helper, numpy_helper

from pumice.ops import Node, core_table
from pumice.plan import compile_plan
from pumice.quantize.saturation import pair_saturation, saturating_kernels, saturation_error

EXTREME = st.one_of(st.sampled_from([-128, -127, 64, 65, 127]), st.integers(-128, 127))
BRIGHT = st.one_of(st.sampled_from([0, 128, 129, 255]), st.integers(0, 255))


@st.composite
def products(draw):
    """Activations (positions, k) and weights (outputs, k)."""
    depth, positions, outputs = (draw(st.integers(1, high)) for high in (9, 4, 4))
    rows = draw(arrays.arrays(np.uint8, (positions, depth), elements=BRIGHT))
    return rows, draw(arrays.arrays(np.int8, (outputs, depth), elements=EXTREME))


def saturated(row, weights):
    """One sum as the instruction makes it, and how many of its pairs saturated."""
    total, count = 0, 0
    for k in range(0, len(row), 2):
        pair = sum(int(a) * int(w) for a, w in zip(row[k : k + 2], weights[k : k + 2], strict=True))
        total += min(max(pair, -32768), 32767)
        count += not -32768 <= pair <= 32767
    return total, count


def by_hand(rows, weights):
    return np.array([[saturated(row, column) for column in weights] for row in rows])


@given(products())
def test_it_counts_the_pairs_that_a_scalar_loop_counts(operands):
    assert pair_saturation(*operands) == by_hand(*operands)[..., 1].sum()


@given(products())
def test_the_error_is_the_scalar_sum_less_the_exact_one(operands):
    rows, weights = operands
    exact = rows.astype(int) @ weights.astype(int).T
    np.testing.assert_array_equal(exact + saturation_error(rows, weights), by_hand(rows, weights)[..., 0])


@given(products())
def test_weights_of_seven_bits_never_saturate(operands):
    rows, weights = operands
    assert pair_saturation(rows, np.clip(weights, -64, 64)) == 0


def test_chunks_do_not_change_the_count(monkeypatch):
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 256, (50, 32)).astype(np.uint8)
    weights = rng.integers(-127, 128, (16, 32)).astype(np.int8)
    whole = pair_saturation(rows, weights)
    monkeypatch.setattr("pumice.quantize.saturation.CHUNK", 7)
    assert pair_saturation(rows, weights) == whole > 0


def run(op_type, inputs, domain="", saturating=True, **attributes):
    """Output of one node whose inputs are constants."""
    names = [f"i{n}" if array is not None else "" for n, array in enumerate(inputs)]
    node = helper.make_node(op_type, names, ["y"], domain=domain, **attributes)
    held = [numpy_helper.from_array(np.asarray(a), n) for n, a in zip(names, inputs, strict=True) if a is not None]
    graph = helper.make_graph([node], "g", [], [helper.make_empty_tensor_value_info("y")], held)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=10))
    return compile_plan(model, kernels=saturating_kernels() if saturating else ()).run({})["y"]


def bright(*shape, seed=0):
    return np.random.default_rng(seed).integers(100, 256, shape).astype(np.uint8)


def strong(*shape, seed=1):
    return np.random.default_rng(seed).integers(40, 128, shape).astype(np.int8)


def scale(value):
    return np.array(value, np.float32)


ZERO = np.array(7, np.uint8)


def test_a_matrix_product_saturates_along_its_inner_axis():
    a, b = bright(2, 3, 6), strong(6, 5)
    sums = by_hand(a.reshape(6, 6), b.T)[..., 0].reshape(2, 3, 5)
    expected = sums - 7 * b.astype(int).sum(axis=0)
    np.testing.assert_array_equal(run("MatMulInteger", [a, b, ZERO]), expected)
    assert (run("MatMulInteger", [a, b, ZERO], saturating=False) != expected).any()


def test_signed_activations_saturate_after_their_shift_by_128():
    a, b = bright(3, 6), strong(6, 5)
    signed = (a.astype(int) - 128).astype(np.int8)
    found = run("MatMulInteger", [signed, b, np.array(7 - 128, np.int8)])
    np.testing.assert_array_equal(found, run("MatMulInteger", [a, b, ZERO]))


def test_unsigned_weights_do_not_saturate():
    a, b = bright(3, 6), strong(6, 5).view(np.uint8)
    np.testing.assert_array_equal(run("MatMulInteger", [a, b]), run("MatMulInteger", [a, b], saturating=False))


def test_every_form_of_a_matrix_product_saturates_alike():
    a, b = bright(3, 6), strong(6, 5)
    sums = run("MatMulInteger", [a, b, ZERO, np.array(0, np.int8)]).astype(np.float32)
    none, low = np.array(0, np.int8), np.array(3, np.uint8)
    left, right = [a, scale(0.5), ZERO], [b, scale(0.25), none]
    np.testing.assert_array_equal(
        run("MatMulIntegerToFloat", [a, b, scale(0.5), scale(0.25), ZERO, none], "com.microsoft"), sums * 0.125
    )
    np.testing.assert_array_equal(run("QGemm", [*left, *right], "com.microsoft"), sums * 0.125)
    rounded = np.clip(np.rint(sums / 512) + 3, 0, 255)
    np.testing.assert_array_equal(run("QLinearMatMul", [*left, *right, scale(64), low]), rounded)
    transposed = [*left, b.T.copy(), *right[1:], None, scale(64), low]
    np.testing.assert_array_equal(run("QGemm", transposed, "com.microsoft", transB=1), rounded)


def convolution(x, w, saturating=True, **attributes):
    """Sums of QLinearConv in steps of 1024, from a zero point of 128."""
    inputs = [x, scale(1), ZERO, w, scale(1), np.array(0, np.int8), scale(1024), np.array(128, np.uint8)]
    return run("QLinearConv", inputs, saturating=saturating, **attributes)


def test_a_convolution_saturates_pairs_of_neighbouring_channels_tap_by_tap():
    x, w = bright(1, 3, 2, 4), strong(5, 3, 2, 2) * np.array([1, -1, 1, -1, 1], np.int8).reshape(5, 1, 1, 1)
    padded = np.pad(x[0], ((0, 0), (1, 1), (1, 1)), constant_values=7)
    expected = np.empty((5, 3, 5))
    for out, row, column in np.ndindex(expected.shape):
        window = padded[:, row : row + 2, column : column + 2].transpose(1, 2, 0).ravel()
        total = saturated(window, w[out].transpose(1, 2, 0).ravel())[0] - 7 * int(w[out].astype(int).sum())
        expected[out, row, column] = np.clip(np.rint(total / 1024) + 128, 0, 255)
    np.testing.assert_array_equal(convolution(x, w, pads=[1, 1, 1, 1])[0], expected)
    assert (convolution(x, w, pads=[1, 1, 1, 1], saturating=False)[0] != expected).any()


def test_groups_saturate_each_on_their_own():
    x, w = bright(1, 4, 3, 3), strong(6, 2, 2, 2)
    halves = [convolution(x[:, 2 * g : 2 * g + 2], w[3 * g : 3 * g + 3]) for g in (0, 1)]
    np.testing.assert_array_equal(convolution(x, w, group=2), np.concatenate(halves, axis=1))


def test_depthwise_convolutions_do_not_saturate():
    x, w = bright(1, 4, 3, 3), strong(4, 1, 2, 2)
    np.testing.assert_array_equal(convolution(x, w, group=4), convolution(x, w, group=4, saturating=False))


def test_where_nothing_saturates_the_kernels_compute_what_the_plan_computes():
    x, w = bright(2, 3, 5, 5), np.clip(strong(4, 3, 3, 3), -64, 64)
    attributes = dict(pads=[1, 0, 1, 2], strides=[2, 1], dilations=[1, 2])
    np.testing.assert_array_equal(convolution(x, w, **attributes), convolution(x, w, saturating=False, **attributes))


def test_kernels_name_operators_that_the_plan_has():
    for kernel in saturating_kernels():
        node = Node(op_type=kernel.op_type, domain=kernel.domain, opset=21)
        op = core_table().resolve(kernel.domain, kernel.op_type, 21)
        assert kernel.fits(node)
        assert op is not None
        assert op.forward is not None
