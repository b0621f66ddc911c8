"""Gradients of rows and elements against core's own in float64, for every type, at odd sizes and out of alignment."""

import cupy
import numpy as np
import pytest

from pumice.ops import core_table
from pumice.ops.gradient import sum_to
from pumice.ops.record import Node
from pumice_cuda import gradients, rows
from pumice_cuda.kernels import all_kernels
from pumice_cuda.placing import OnDevice

CLOSE = {"float32": 2e-6, "float16": 2e-3, "bfloat16": 1.6e-2}
SHAPES = [(3, 1), (7, 5), (5, 128), (4, 768), (3, 1001), (2, 8192), (2, 3, 4099), (2, 33_000), (1, 70_003)]
types = pytest.mark.parametrize("dtype", CLOSE)
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def node_of(op, opset=23, **attributes):
    return Node(op_type=op, opset=opset, attributes=attributes, outputs=("y", "mean", "inverse"))


def core(node, part="forward"):
    return getattr(core_table().resolve("", node.op_type, node.opset), part)


def wide(x):
    return cupy.asnumpy(x).astype(np.float64)


def wanted(node, inputs, outputs, *grads):
    """Core's gradients in float64, of arrays of either kind."""
    arrays = [[None if x is None else wide(x) for x in group] for group in (inputs, outputs, grads)]
    return core(node, "vjp")(node, *arrays, [True] * len(inputs))


def of_the_plan(node, inputs, outputs, *grads):
    """What the Plan's kernel for the node's gradient gives."""
    (kernel,) = (k for k in all_kernels() if k.part == "vjp" and k.fits(node))
    return [cupy.asnumpy(g) for g in kernel.run(node, inputs, outputs, grads, [True] * len(inputs))]


@types
@shapes
@pytest.mark.parametrize("logarithm", [False, True])
def test_softmax(drawn, error, shape, dtype, logarithm):
    node = node_of("LogSoftmax" if logarithm else "Softmax")
    x, dy = drawn(shape, dtype), drawn(shape, dtype)
    y = cupy.asarray(core(node)(node, wide(x))[0]).astype(dtype)
    (want,) = wanted(node, (x,), (y,), dy)
    found = gradients.softmax(y, dy, logarithm=logarithm)
    assert found.dtype == y.dtype
    np.testing.assert_allclose(
        wide(found), want, rtol=2 * CLOSE[dtype], atol=2 * CLOSE[dtype] * max(1, abs(want).max())
    )


@types
@pytest.mark.parametrize("shape", [*SHAPES[1:], (700, 264), (3, 301, 1024)], ids=str)
@pytest.mark.parametrize("rms", [False, True])
def test_normalisation(drawn, error, shape, dtype, rms):
    node = node_of("RMSNormalization" if rms else "LayerNormalization", epsilon=1e-3)
    x, dy, scale = drawn(shape, dtype), drawn(shape, dtype), drawn(shape[-1:], dtype)
    found = gradients.layer_norm(x, dy, scale, 1e-3, rms=rms)
    want = wanted(node, (x, scale) if rms else (x, scale, scale), (), dy)
    for have, expected in zip(found, want, strict=not rms):
        assert have.dtype == x.dtype
        assert error(have, cupy.asarray(expected)) < CLOSE[dtype]


@types
@pytest.mark.parametrize("size", [1, 7, 4096, 10_001])
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu(drawn, error, dtype, size, approximate):
    node = node_of("Gelu", approximate=approximate)
    x, dy = 3 * drawn(size, "float32"), drawn(size, dtype)
    (want,) = wanted(node, (x.astype(dtype),), (), dy)
    found = gradients.map_elements("gelu" if approximate == "none" else "gelu_tanh", x.astype(dtype), dy)
    assert error(found, cupy.asarray(want)) < CLOSE[dtype]


@types
def test_what_lies_out_of_alignment_is_read_in_place(drawn, error, dtype):
    y, dy = (drawn(4097, dtype)[1:].reshape(4, 1024) for _ in range(2))
    (want,) = wanted(node_of("Softmax"), (y,), (y,), dy)
    assert error(gradients.softmax(y, dy), cupy.asarray(want)) < CLOSE[dtype]


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("opset", [11, 13])
def test_the_plan_takes_any_axis(drawn, axis, opset):
    node = node_of("Softmax", opset, axis=axis)
    y, dy = drawn((3, 5, 7), "float32"), drawn((3, 5, 7), "float32")
    (found,), (want,) = of_the_plan(node, [y], [y], dy), wanted(node, (y,), (y,), dy)
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)


def test_the_plan_hands_on_gradients_of_mean_and_deviation(drawn):
    node, x, dy = node_of("LayerNormalization"), drawn((4, 6), "float32"), drawn((4, 6), "float32")
    scale, dinverse = drawn(6, "float32"), drawn((4, 1), "float32")
    found, want = ((f(node, [x, scale], [], dy, None, dinverse)) for f in (of_the_plan, wanted))
    for have, expected in zip(found, want, strict=True):
        np.testing.assert_allclose(have, expected, rtol=1e-4, atol=1e-5)


@types
def test_what_was_broadcast_is_summed_by_our_kernels(drawn, error, dtype, monkeypatch):
    OnDevice()
    calls, reduce = [], rows.reduce
    monkeypatch.setattr(rows, "reduce", lambda *a, **k: calls.append(a) or reduce(*a, **k))
    grad = drawn((5, 33, 40), dtype)
    for shape in ((40,), (33, 40), (33, 1), (5, 1, 40)):
        found = sum_to(grad, shape)
        assert found.shape == shape
        assert error(found, cupy.asarray(sum_to(wide(grad), shape))) < CLOSE[dtype]
    assert len(calls) == 4


def test_what_does_not_fit_is_refused():
    x = cupy.zeros((3, 4), np.float32)
    with pytest.raises(ValueError, match=r"a gradient of float32\[3, 5\] does not fit float32\[3, 4\]"):
        gradients.softmax(x, cupy.zeros((3, 5), np.float32))
    with pytest.raises(ValueError, match=r"scale is float32\[5\] and x float32\[3, 4\]"):
        gradients.layer_norm(x, x, cupy.zeros(5, np.float32), 1e-5)
