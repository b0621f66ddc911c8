"""Products with channels last: every geometry, tails of pixels, channels and filters, whatever the strides."""

import numpy as np
import pytest

from pumice.ops import core_table
from pumice.ops.record import Node
from pumice.ops.window import Window
from pumice_cpu import native, nhwc
from pumice_cpu.rows import map_elements

SPLIT = 2.0**-16
"""Of the sum of |x w|: what splitting operands in two leaves."""
GEOMETRIES = {
    # channels, filters, height, width, kernel, stride, padding, dilation, groups
    "few channels are folded": (3, 16, 20, 31, 7, 2, 3, 1, 1),
    "three by three": (32, 40, 14, 14, 3, 1, 1, 1, 1),
    "strided, odd sizes": (40, 33, 15, 13, 3, 2, 1, 1, 1),
    "strided pointwise": (64, 64, 9, 9, 1, 2, 0, 1, 1),
    "pointwise": (70, 35, 5, 7, 1, 1, 0, 1, 1),
    "windows overlap": (12, 9, 13, 17, 3, 1, 1, 1, 1),
    "windows overlap, two panels": (20, 40, 8, 9, 5, 1, 2, 1, 1),
    "dilated": (20, 30, 12, 12, 3, 1, 2, 2, 1),
    "dilated and strided, few channels": (5, 4, 12, 11, 3, 3, 2, 2, 1),
    "depthwise": (33, 33, 9, 10, 3, 1, 1, 1, 33),
    "depthwise, strided, five by five": (24, 24, 11, 12, 5, 2, 2, 1, 24),
    "one pixel": (48, 8, 1, 1, 3, 1, 1, 1, 1),
}


@pytest.fixture(params=GEOMETRIES.values(), ids=GEOMETRIES.keys())
def conv(request, rng):
    """(images, weights, bias, node)."""
    channels, filters, height, width, kernel, stride, pad, dilation, groups = request.param
    x, b = rng.standard_normal((2, channels, height, width)), rng.standard_normal(filters)
    w = rng.standard_normal((filters, channels // groups, kernel, kernel))
    attributes = {"group": groups, "pads": [pad] * 4, "strides": [stride] * 2, "dilations": [dilation] * 2}
    return *(v.astype(np.float32) for v in (x, w, b)), Node(op_type="Conv", attributes=attributes)


def truth(node, x, w, b):
    (y,) = core_table().resolve("", "Conv", 21).forward(node, *(v.astype(np.float64) for v in (x, w, b)))
    (bound,) = core_table().resolve("", "Conv", 21).forward(node, *(np.abs(v).astype(np.float64) for v in (x, w, b)))
    return y, bound


def packed(node, x, w):
    window = Window.of(node, x.shape[2:], w.shape[2:])
    return nhwc.Product.of_convolution(w, window, node.get("group", 1)), window.output


def test_convolutions_agree_with_float64(conv, level, threads, gave):
    x, w, b, node = conv
    product, output = packed(node, x, w)
    native.set_threads(threads)
    y = nhwc.first(product.image(x, output, nhwc.Finish(bias=b)))
    native.set_threads(0)
    want, bound = truth(node, x, w, b)
    assert (np.abs(y - want) <= (SPLIT + 1e-6) * bound).all()
    if node.get("group", 1) > 1:
        gave("nhwc_depthwise", "scalar", "avx2", "avx512", "neon")
    elif level == "amx":
        gave("nhwc_product", "amx")


def test_strides_and_threads_do_not_change_a_bit(conv, level):
    x, w, b, node = conv
    product, output = packed(node, x, w)
    finish = nhwc.Finish(bias=b, low=0.0)
    want = product.image(x, output, finish)
    turned = nhwc.first(np.ascontiguousarray(nhwc.last(x)))
    for threads in (1, 2, 3, 4):
        native.set_threads(threads)
        np.testing.assert_array_equal(product.image(x, output, finish), want)
        np.testing.assert_array_equal(product.image(turned, output, finish), want)
        np.testing.assert_array_equal(product.image(x[1:], output, finish), want[1:])
    native.set_threads(0)


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 7, 3), (33, 100, 70), (64, 384, 384), (197, 64, 10), (300, 600, 96)])
def test_matrix_products_with_all_that_follows(shape, level, threads, rng):
    m, k, n = shape
    a, b = (rng.standard_normal(s).astype(np.float32) for s in ((m, k), (k, n)))
    bias, scale = (rng.standard_normal(n).astype(np.float32) for _ in range(2))
    residual = rng.standard_normal((m, n)).astype(np.float32)
    product = nhwc.Product.of_matrix(b, scale)
    native.set_threads(threads)
    early = product.rows(a, nhwc.Finish(bias=bias, low=-1.0, high=2.0), residual)
    late = product.rows(np.asfortranarray(a), nhwc.Finish(bias=bias, function="gelu", late=True), residual)
    native.set_threads(0)
    sums = (a.astype(np.float64) @ b) * scale + bias
    close = (SPLIT + 1e-6) * ((np.abs(a) @ np.abs(b)) * np.abs(scale) + np.abs(bias) + np.abs(residual)).max()
    np.testing.assert_allclose(early, np.clip(sums + residual, -1, 2), rtol=0, atol=close)
    want = map_elements("gelu", sums.astype(np.float32)) + residual
    np.testing.assert_allclose(late, want, rtol=1e-6, atol=2 * close)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 3.4e38])
def test_operands_that_cannot_be_split_give_what_float32_does(value, level, rng):
    a, b = (rng.standard_normal(s).astype(np.float32) for s in ((40, 50), (50, 60)))
    for operand in (a, b):
        operand[17, 3] = value
        with np.errstate(all="ignore"):
            np.testing.assert_allclose(nhwc.Product.of_matrix(b).rows(a, nhwc.Finish()), a @ b, rtol=1e-4, atol=1e-4)


def test_infinity_stays_where_its_windows_are(conv, level):
    x, w, b, node = conv
    x[1, 2, 0, 0] = np.inf
    product, output = packed(node, x, w)
    y = nhwc.first(product.image(x, output, nhwc.Finish(bias=b)))
    with np.errstate(all="ignore"):
        (want,) = core_table().resolve("", "Conv", 21).forward(node, x, w, b)
    np.testing.assert_allclose(y, want, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("geometry", [(3, 2, 1, 1), (2, 2, 0, 1), (3, 1, 2, 2), (5, 3, 2, 1)])
def test_maxima_agree_with_the_reference(geometry, level, threads, rng):
    kernel, stride, pad, dilation = geometry
    x = rng.standard_normal((2, 37, 13, 11)).astype(np.float32)
    x[0, 3, 5, 5] = np.nan
    attributes = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [pad] * 4, "dilations": [dilation] * 2}
    node = Node(op_type="MaxPool", attributes=attributes, opset=21)
    window = Window.of(node, x.shape[2:], [kernel] * 2)
    y = nhwc.max_pool(np.ascontiguousarray(nhwc.last(x)), window, threads=threads)
    np.testing.assert_array_equal(nhwc.first(y), core_table().resolve("", "MaxPool", 21).forward(node, x)[0])
