import itertools

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings, strategies as st
from onnx.reference import ReferenceEvaluator

from pumice.quantize.compensation import Moments, compensated_rounding, layer_columns, round_weights
from pumice.quantize.parameters import symmetric_per_channel

GEMM = ir.node("Gemm", [], attributes={"transB": 1})


def compensated(weights, scale, second, limit):
    """Integers of one group."""
    return compensated_rounding(weights[None], scale[None], second[None], limit)[0]


def problem(seed, outputs=4, k=6, rows=200):
    """Weights, their scales and H of correlated inputs."""
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal((rows, k)) @ rng.standard_normal((k, k))
    weights = rng.standard_normal((outputs, k))
    return weights, np.abs(weights).max(axis=1) / 7, inputs.T @ inputs / rows + 0.01 * np.eye(k)


def error(weights, integers, scale, second):
    difference = weights - integers * scale[:, None]
    return float(np.trace(difference @ second @ difference.T))


@settings(deadline=None)  # the first call imports SciPy
@given(st.integers(0, 10_000))
def test_compensated_rounding_disturbs_the_output_less_than_rounding_to_the_nearest(seed):
    weights, scale, second = problem(seed, outputs=8)
    nearest = np.rint(weights / scale[:, None])
    found = compensated(weights, scale, second, 7)
    assert error(weights, found, scale, second) <= error(weights, nearest, scale, second) + 1e-9


@given(st.integers(0, 10_000))
def test_integers_are_of_the_levels_there_are_and_make_up_for_what_these_lack(seed):
    weights, scale, second = problem(seed, outputs=8)
    allowed = np.array([-7, -3, 0, 2, 7], np.int8)
    fed, nearest = (
        compensated_rounding(weights[None], scale[None], known, 7, allowed)[0] for known in (second[None], None)
    )
    assert set(np.unique(np.stack([fed, nearest]))) <= set(allowed.tolist())
    assert error(weights, fed, scale, second) <= error(weights, nearest, scale, second) + 1e-9


def test_on_average_it_disturbs_the_output_much_less():
    ratios = []
    for seed in range(30):
        weights, scale, second = problem(seed, k=32, outputs=16)
        nearest = np.rint(weights / scale[:, None])
        found = compensated(weights, scale, second, 7)
        ratios.append(error(weights, found, scale, second) / error(weights, nearest, scale, second))
    assert np.mean(ratios) < 0.6


def test_on_tiny_layers_it_closes_most_of_the_gap_to_the_best_of_all_roundings():
    closed, steps = [], np.array(list(itertools.product(range(-5, 7), repeat=4)))
    for seed in range(30):
        weights, scale, second = problem(seed, outputs=1, k=4)
        floor = np.floor(weights / scale[:, None])
        every = weights - (floor + steps) * scale[:, None]
        best = np.einsum("sk,kl,sl->s", every, second, every, optimize=True).min()
        nearest = error(weights, np.rint(weights / scale[:, None]), scale, second)
        found = error(weights, compensated(weights, scale, second, 127), scale, second)
        assert best - 1e-9 <= found <= nearest + 1e-9
        if nearest > 1.01 * best:
            closed.append((nearest - found) / (nearest - best))
    assert np.mean(closed) > 0.6


def test_inputs_without_correlation_are_rounded_to_the_nearest():
    weights, scale, _ = problem(0)
    found = compensated(weights, scale, np.diag([5.0, 4.0, 3.0, 2.0, 1.0, 6.0]), 7)
    np.testing.assert_array_equal(found, np.rint(weights / scale[:, None]))


def test_integers_stay_inside_the_limit():
    weights, scale, second = problem(1, k=40)
    assert np.abs(compensated(weights, scale / 4, second, 7)).max() == 7


def moments_of(inputs, groups=1):
    moments = Moments(groups, inputs.shape[-1], second=True)
    columns = inputs.transpose(0, 2, 1)
    moments.update(columns, columns)
    return moments


@pytest.mark.parametrize("inputs", [
    np.zeros((1, 50, 6), np.float32),
    np.ones((1, 50, 6), np.float32),
    np.full((1, 50, 6), 1e4, np.float32) + np.random.default_rng(0).standard_normal((1, 50, 6)).astype(np.float32),
    np.repeat(np.random.default_rng(0).standard_normal((1, 50, 1)), 6, axis=2).astype(np.float32),
    np.random.default_rng(0).standard_normal((1, 1, 6)).astype(np.float32),
], ids=["silent", "constant", "far from zero", "all the same", "one row"])  # fmt: skip
def test_degenerate_inputs_can_be_compensated_for(inputs):
    weights = problem(0)[0]
    params = symmetric_per_channel(weights, 0)
    found = round_weights(GEMM, weights, 0, params, moments_of(inputs), limit=127, compensate=True, correct_bias=True)
    assert np.abs(found.integers * params.scale[:, None] - weights).max() < 30 * params.scale.max()


def test_the_bias_takes_up_the_mean_error():
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((4, 6))
    inputs = (rng.standard_normal((1, 500, 6)) + 3.0).astype(np.float32)
    params = symmetric_per_channel(weights, 0, bits=4)
    found = round_weights(GEMM, weights, 0, params, moments_of(inputs), limit=7, compensate=True, correct_bias=True)
    exact = inputs[0] @ weights.T
    rounded = inputs[0] @ (found.integers * params.scale[:, None]).T + found.shift
    np.testing.assert_allclose(rounded.mean(axis=0), exact.mean(axis=0), atol=1e-4)


def test_moments_do_not_depend_on_how_rows_are_portioned():
    rows = np.random.default_rng(0).standard_normal((2, 5, 64)).astype(np.float32)
    whole, parts = Moments(2, 5, second=True), Moments(2, 5, second=True)
    whole.update(rows, rows)
    for start in range(0, 64, 16):
        parts.update(rows[..., start : start + 16], rows[..., start : start + 16])
    assert parts.count == whole.count
    np.testing.assert_allclose(parts.second_moments(), whole.second_moments(), rtol=1e-4, atol=1e-5)


# --- patches ----------------------------------------------------------------------------------------------------------


def convolution(rank, x, w, **attributes):
    """By ONNX's reference, and the node."""
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], **attributes)
    typed = [onnx.helper.make_tensor_value_info(name, 1, [None] * (rank + 2)) for name in "xwy"]
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "g", typed[:2], typed[2:]), opset_imports=[onnx.helper.make_opsetid("", 21)]
    )
    (y,) = ReferenceEvaluator(model).run(None, {"x": x, "w": w})
    return y, ir.from_proto(model).graph[0]


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 3), st.sampled_from([1, 2, 4]), st.booleans())
def test_patches_times_weights_are_the_convolution(data, rank, groups, explicit):
    each = lambda low, high: [data.draw(st.integers(low, high)) for _ in range(rank)]
    rng = np.random.default_rng(data.draw(st.integers(0, 100)))
    kernel, attributes = each(1, 3), {"group": groups, "strides": each(1, 3)}
    if explicit:
        attributes |= {"dilations": each(1, 2), "pads": [*each(0, 2), *each(0, 2)]}
    else:
        attributes["auto_pad"] = data.draw(st.sampled_from(["SAME_UPPER", "SAME_LOWER", "VALID"]))
    x = rng.standard_normal((2, 4, *each(5, 7))).astype(np.float32)
    w = rng.standard_normal((4, 4 // groups, *kernel)).astype(np.float32)
    expected, node = convolution(rank, x, w, kernel_shape=kernel, **attributes)
    columns = layer_columns(node, w.shape, x, None)
    found = np.einsum("gkp,gok->gop", columns, w.reshape(groups, 4 // groups, -1))
    expected = expected.reshape(2, groups, 4 // groups, -1).transpose(1, 2, 0, 3).reshape(groups, 4 // groups, -1)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_integers_are_padded_with_their_zero_point():
    node = ir.node("Conv", [], attributes={"pads": [1, 1]})
    columns = layer_columns(node, (1, 1, 3), np.full((1, 1, 2), 9, np.uint8), None, padding=7)
    assert columns.dtype == np.uint8
    assert columns.tolist() == [[[7, 9], [9, 9], [9, 7]]]


def test_rows_are_spread_evenly_over_the_positions():
    columns = layer_columns(GEMM, (4, 1), np.arange(100, dtype=np.float32)[:, None], 4)
    assert columns[0, 0].tolist() == [0, 33, 66, 99]
    node = ir.node("Conv", [])
    columns = layer_columns(node, (1, 1, 1), np.arange(100, dtype=np.float32).reshape(1, 1, 100), 4)
    assert columns[0, 0].tolist() == [0, 33, 66, 99]


def test_an_image_smaller_than_the_kernel_has_no_rows():
    assert layer_columns(ir.node("Conv", []), (1, 1, 5), np.ones((1, 1, 3), np.float32), None).shape == (1, 5, 0)
