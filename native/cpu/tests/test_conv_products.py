"""Convolutions as products of their weights where they lie, against core's, and windows against their adjoint."""

import numpy as np
import pytest

from pumice.ops import core_table
from pumice.ops.record import Node
from pumice.ops.window import Window
from pumice_cpu import conv_products
from pumice_cpu.kernels import conv

# channels, filters, image, kernel, attributes
CASES = [
    (70, 40, (6, 7), (3, 3), {"pads": [1, 1, 1, 1]}),
    (33, 65, (6, 7), (1, 1), {}),
    (33, 20, (7, 6), (1, 1), {"strides": [2, 2]}),
    (5, 9, (9, 8), (3, 2), {"strides": [2, 1], "pads": [2, 0, 0, 1], "dilations": [1, 2]}),
    (3, 4, (11,), (5,), {"pads": [4, 0]}),
    (4, 3, (3, 4, 5), (2, 3, 2), {"strides": [1, 2, 1], "pads": [0, 1, 0, 1, 0, 1]}),
    (2, 2, (2, 2), (5, 5), {"pads": [3, 3, 3, 3]}),
]
cases = pytest.mark.parametrize("case", CASES, ids=lambda c: "x".join(map(str, (*c[:2], *c[3]))))


def drawn(rng, case, batch=3):
    channels, filters, size, kernel, attributes = case
    node = Node(op_type="Conv", domain="", opset=21, attributes={"kernel_shape": list(kernel), **attributes})
    x, w = (rng.standard_normal(s).astype(np.float32) for s in ((batch, channels, *size), (filters, channels, *kernel)))
    return node, x, w, Window.of(node, size, kernel)


def close(have, want):
    assert have.shape == want.shape
    np.testing.assert_allclose(have, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())


@cases
def test_the_convolution_and_its_gradients_are_those_of_core(level, rng, case):
    node, x, w, window = drawn(rng, case)
    op = core_table().resolve("", "Conv", 21)
    (y,) = op.forward(node, x, w)
    dy = rng.standard_normal(y.shape).astype(np.float32)
    dx, dw = op.vjp(node, [x, w], [y], [dy], [True, True])
    close(conv_products.convolve(x, w, window), y)
    close(conv_products.input_gradient(w, dy, window), dx)
    close(conv_products.weight_gradient(x, dy, window), dw)


@cases
def test_adding_up_windows_is_the_adjoint_of_taking_them(rng, case):
    _, x, _, window = drawn(rng, case)
    x = np.rint(9 * x)  # sums of integers are exact
    taken = conv_products.columns(x, window)
    other = np.rint(9 * rng.standard_normal(taken.shape)).astype(np.float32)
    added = conv_products.from_columns(other, len(x), x.shape[1], window)
    assert np.vdot(taken.astype(np.float64), other) == np.vdot(x.astype(np.float64), added)


def test_weights_that_are_fed_are_multiplied_and_those_of_the_plan_packed(rng, monkeypatch):
    node, x, w, _ = drawn(rng, CASES[0], batch=1)
    (kernel,) = [k for k in conv.KERNELS if k.op_type == "Conv" and k.part == "forward"]
    run, calls = kernel.bind(node, [None, w]), []
    convolve = conv_products.convolve
    monkeypatch.setattr(conv_products, "convolve", lambda *args: calls.append(args) or convolve(*args))
    b = rng.standard_normal(len(w)).astype(np.float32)
    (packed,) = run(node, x, w, b)
    assert not calls
    (multiplied,) = run(node, x, w.copy(), b)
    assert calls
    close(multiplied, packed)
