"""Float convolution and its gradients at every level against core in float64."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from pumice.ops import core_table
from pumice.ops.record import Node
from pumice.ops.window import Window
from pumice_cpu.conv_f32 import ConvF32, weight_gradient
from pumice_cpu.native import NativeError

LEVELS = ("scalar", "avx2", "avx512", "neon")
OP = core_table().resolve("", "Conv", 21)
CASES = {
    "pointwise": (37, 65, (9, 30), (1, 1), {}),
    "pointwise, stride 2, batch": (16, 24, (9, 9), (1, 1), {"strides": [2, 2], "batch": 3}),
    "3x3": (9, 20, (17, 31), (3, 3), {"pads": [1, 1, 1, 1]}),
    "3x3, stride 2": (5, 33, (19, 21), (3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "uneven padding and strides": (4, 9, (17, 18), (3, 2), {"strides": [3, 1], "pads": [0, 1, 2, 0]}),
    "5x5, dilation 2": (4, 9, (19, 20), (5, 5), {"dilations": [2, 2], "pads": [4, 4, 4, 4]}),
    "7x7 of three channels": (3, 16, (29, 29), (7, 7), {"strides": [2, 2], "pads": [3, 3, 3, 3]}),
    "small image": (33, 40, (7, 7), (3, 3), {"pads": [1, 1, 1, 1], "batch": 2}),
    "small image without common runs": (12, 40, (5, 8), (3, 3), {"pads": [1, 1, 1, 1]}),
    "small image, groups": (24, 48, (8, 8), (3, 3), {"group": 2}),
    "groups": (12, 24, (17, 17), (3, 3), {"group": 3, "pads": [1, 1, 1, 1]}),
    "one axis": (24, 9, (70,), (5,), {"strides": [2], "pads": [2, 2]}),
    "three axes": (3, 10, (5, 7, 9), (3, 3, 3), {"strides": [1, 2, 1], "pads": [1] * 6}),
    "depthwise 3x3": (6, 6, (30, 41), (3, 3), {"group": 6, "pads": [1, 1, 1, 1], "batch": 2}),
    "depthwise 5x5, stride 2": (6, 6, (20, 37), (5, 5), {"group": 6, "strides": [2, 2], "pads": [2, 2, 2, 2]}),
    "depthwise, stride 3": (6, 6, (20, 37), (3, 3), {"group": 6, "strides": [3, 3]}),
    "depthwise with a multiplier": (5, 10, (9, 9), (3, 3), {"group": 5, "pads": [1, 1, 1, 1]}),
}


class Layer:
    """A random convolution."""

    def __init__(self, rng, channels, filters, size, kernel, attributes):
        attributes = dict(attributes)
        batch = attributes.pop("batch", 1)
        self.groups = attributes.get("group", 1)
        self.node = Node(op_type="Conv", attributes=attributes, opset=21)
        self.window = Window.of(self.node, size, kernel)
        self.x = rng.standard_normal((batch, channels, *size)).astype(np.float32)
        self.w = rng.standard_normal((filters, channels // self.groups, *kernel)).astype(np.float32)
        self.b = rng.standard_normal(filters).astype(np.float32)
        self.dy = rng.standard_normal((batch, filters, *self.window.output)).astype(np.float32)

    def wide(self):
        return [a.astype(np.float64) for a in (self.x, self.w, self.b)]

    def result(self):
        return OP.forward(self.node, *self.wide())[0]

    def gradients(self):
        return OP.vjp(self.node, self.wide(), [None], [self.dy.astype(np.float64)], [True, True, True])

    def adjoint(self):
        w = self.window
        turned = Window(
            size=w.output, kernel=w.kernel, strides=w.strides, dilations=w.dilations, before=w.before, after=w.after,
            output=w.size,
        )  # fmt: skip
        return ConvF32(self.w, turned, groups=self.groups, transposed=True)


def close(have, want):
    assert have.dtype == np.float32
    np.testing.assert_allclose(have, want, rtol=0, atol=2e-6 * np.abs(want).max())


@pytest.mark.parametrize("name", CASES)
def test_results_agree_with_core(rng, level, threads, name):
    layer = Layer(rng, *CASES[name][:4], CASES[name][4])
    close(ConvF32(layer.w, layer.window, groups=layer.groups)(layer.x, layer.b, threads=threads), layer.result())


@pytest.mark.parametrize("name", CASES)
def test_gradients_agree_with_core(rng, level, threads, name):
    layer = Layer(rng, *CASES[name][:4], CASES[name][4])
    dx, dw, _ = layer.gradients()
    close(layer.adjoint()(layer.dy, threads=threads), dx)
    close(weight_gradient(layer.x, layer.dy, layer.window, groups=layer.groups, threads=threads), dw)


@pytest.mark.parametrize(
    ("name", "slot"),
    [("3x3", "conv_f32_tile"), ("small image", "conv_f32_runs_tile"), ("depthwise 3x3", "conv_f32_depthwise")],
)
def test_the_code_that_ran_is_that_of_the_level(rng, level, gave, name, slot):
    layer = Layer(rng, *CASES[name][:4], CASES[name][4])
    ConvF32(layer.w, layer.window, groups=layer.groups)(layer.x)
    gave(slot, *LEVELS)


@pytest.mark.parametrize("name", ["3x3", "small image", "depthwise 3x3", "groups"])
def test_residual_and_bounds(rng, level, name):
    layer = Layer(rng, *CASES[name][:4], CASES[name][4])
    conv = ConvF32(layer.w, layer.window, groups=layer.groups)
    want = np.clip(conv(layer.x, layer.b) + layer.dy, np.float32(-0.5), np.float32(1.0))
    np.testing.assert_array_equal(conv(layer.x, layer.b, residual=layer.dy, low=-0.5, high=1.0), want)


@pytest.mark.parametrize("name", ["pointwise", "3x3", "small image", "depthwise 3x3"])
def test_nan_and_infinity_stay_where_their_windows_are(rng, level, name):
    layer = Layer(rng, *CASES[name][:4], CASES[name][4])
    layer.x[0, 0, 1, 1], layer.x[0, 1, 3, 3] = np.nan, np.inf
    have = ConvF32(layer.w, layer.window, groups=layer.groups)(layer.x)
    want = OP.forward(layer.node, layer.x, layer.w)[0]
    np.testing.assert_array_equal(np.isfinite(have), np.isfinite(want))


@pytest.mark.parametrize("offset", [1, 5])
def test_pointers_need_no_alignment(rng, level, misaligned, offset):
    layer = Layer(rng, *CASES["pointwise"][:4], {})
    close(ConvF32(layer.w, layer.window)(misaligned(layer.x, offset)), layer.result() - layer.wide()[2][:, None, None])


def test_the_same_bytes_come_out_whatever_the_threads(rng, level):
    for name in ("3x3", "small image", "depthwise 3x3", "7x7 of three channels"):
        layer = Layer(rng, *CASES[name][:4], CASES[name][4])
        conv = ConvF32(layer.w, layer.window, groups=layer.groups)
        results = {conv(layer.x, layer.b, threads=n).tobytes() for n in (1, 2, 3, 4)}
        gradients = {
            weight_gradient(layer.x, layer.dy, layer.window, groups=layer.groups, threads=n).tobytes() for n in (1, 3)
        }
        assert len(results) == len(gradients) == 1


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_shape_agrees_at_the_best_level(data):
    number = lambda low, high: data.draw(st.integers(low, high))
    groups, kernel = number(1, 3), (number(1, 4), number(1, 4))
    attributes = {"group": groups, "strides": [number(1, 3), number(1, 3)], "pads": [number(0, 2) for _ in range(4)]}
    rng = np.random.default_rng(number(0, 99))
    size = (number(5, 30), number(5, 30))
    layer = Layer(rng, groups * number(1, 12), groups * number(1, 40), size, kernel, attributes)
    close(ConvF32(layer.w, layer.window, groups=groups)(layer.x, layer.b, threads=2), layer.result())
    close(layer.adjoint()(layer.dy, threads=2), layer.gradients()[0])


def test_what_does_not_fit_is_refused(rng):
    layer = Layer(rng, *CASES["3x3"][:4], CASES["3x3"][4])
    with pytest.raises(NativeError, match=r"takes \(batch, 9, \(17, 31\)\)"):
        ConvF32(layer.w, layer.window)(layer.x[:, :8])
