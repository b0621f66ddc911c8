"""8-bit convolution at every level against core's exact arithmetic: sums and levels must be equal."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from pumice.ops.conv import convolve
from pumice.ops.record import Node
from pumice.ops.window import Window
from pumice_cpu import native
from pumice_cpu.conv_u8 import ConvU8, Requantize
from pumice_cpu.native import NativeError

TILE_LEVELS = ("scalar", "avx2", "avx_vnni", "avx512", "avx512_vnni", "neon", "neon_dotprod", "i8mm")
DEEP_LEVELS = (*TILE_LEVELS, "amx")
EPILOGUE_LEVELS = ("scalar", "avx2", "avx512", "neon")


def window_of(size, kernel, stride=1, dilation=1, pad=0):
    rank = len(size)
    attributes = {"strides": [stride] * rank, "dilations": [dilation] * rank, "pads": [pad] * 2 * rank}
    return Window.of(Node(op_type="Conv", attributes=attributes), size, kernel)


class Layer:
    """A random convolution, its operands and what it should give."""

    def __init__(self, rng, channels, filters, window, *, groups=1, signed=False, widest=127, batch=1):
        info = np.iinfo(np.int8 if signed else np.uint8)
        self.dtype, self.window, self.groups, self.signed = info.dtype, window, groups, signed
        self.zero = int(rng.integers(info.min, info.max + 1))
        self.x = rng.integers(info.min, info.max + 1, (batch, *window.size, channels)).astype(info.dtype)
        self.w = rng.integers(-widest, widest + 1, (filters, channels // groups, *window.kernel)).astype(np.int16)
        self.bias = rng.integers(-999, 1000, filters).astype(np.int32)
        size = widest * 60 * np.sqrt(self.w[0].size)
        self.multiplier = (rng.uniform(0.5, 2, filters) / size).astype(np.float32)

    def packed(self):
        return ConvU8(self.w, self.window, groups=self.groups, bias=self.bias, zero_point=self.zero, signed=self.signed)

    def sums(self):
        levels = np.moveaxis(self.x.astype(np.float64) - self.zero, -1, 1)
        sums = convolve(levels, self.w.astype(np.float64), self.window, self.groups)
        return (np.moveaxis(sums, 1, -1) + self.bias).astype(np.int32)

    def how(self, **fields):
        return Requantize(multiplier=self.multiplier, zero_point=np.asarray(7, self.dtype), **fields)

    def levels(self, low=-np.inf, high=np.inf, residual=None, residual_multiplier=0.0, residual_zero_point=0):
        info = np.iinfo(self.dtype)
        value = self.sums().astype(np.float32) * self.multiplier
        if residual is not None:
            more = (residual.astype(np.float64) - residual_zero_point) * np.float64(np.float32(residual_multiplier))
            value = (value.astype(np.float64) + more).astype(np.float32)
        value = np.clip(value, np.float32(max(low, info.min - 7)), np.float32(min(high, info.max - 7)))
        return (np.rint(value) + 7).astype(self.dtype)


CASES = {
    "pointwise": (37, 65, ((7, 9), (1, 1)), {}),
    "pointwise, stride 2": (16, 24, ((9, 9), (1, 1), 2), {}),
    "3x3": (24, 40, ((14, 14), (3, 3), 1, 1, 1), {}),
    "3x3, stride 2, batch": (5, 33, ((9, 11), (3, 3), 2, 1, 1), {"batch": 3}),
    "3x3, dilation 2": (8, 9, ((9, 10), (3, 3), 1, 2, 2), {}),
    "5x5": (20, 16, ((8, 8), (5, 5), 1, 1, 2), {}),
    "7x7 of three channels": (3, 64, ((29, 29), (7, 7), 2, 1, 3), {}),
    "without padding": (40, 33, ((9, 9), (3, 3)), {}),
    "groups": (12, 24, ((7, 7), (3, 3), 1, 1, 1), {"groups": 3}),
    "one axis": (24, 9, ((31,), (5,), 2, 1, 2), {}),
    "three axes": (8, 20, ((4, 5, 6), (3, 3, 3), 1, 1, 1), {}),
    "depthwise 3x3": (70, 70, ((9, 20), (3, 3), 1, 1, 1), {"groups": 70, "batch": 2}),
    "depthwise 3x3, stride 2": (33, 33, ((12, 37), (3, 3), 2, 1, 1), {"groups": 33}),
    "depthwise 5x5": (65, 65, ((8, 9), (5, 5), 1, 1, 2), {"groups": 65}),
    "depthwise 7, dilation 2": (20, 20, ((40,), (7,), 1, 2, 6), {"groups": 20}),
    "depthwise, three axes": (9, 9, ((5, 6, 7), (3, 3, 3), 1, 1, 1), {"groups": 9}),
}


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_sums_and_levels_are_exact(rng, level, threads, name, signed):
    channels, filters, geometry, fields = CASES[name]
    layer = Layer(rng, channels, filters, window_of(*geometry), signed=signed, **fields)
    conv = layer.packed()
    np.testing.assert_array_equal(conv.sums(layer.x, threads=threads), layer.sums())
    np.testing.assert_array_equal(conv.levels(layer.x, layer.how(), threads=threads), layer.levels())


@pytest.mark.parametrize("channels", [8, 64])
def test_the_code_that_ran_is_that_of_the_level(rng, level, gave, channels):
    layer = Layer(rng, channels, 32, window_of((8, 8), (1, 1)))
    layer.packed().levels(layer.x, layer.how())
    if channels == 64:
        gave("conv_u8_deep_tile", *DEEP_LEVELS)
    else:
        gave("conv_u8_tile", *TILE_LEVELS)
    gave("conv_u8_requantize", *EPILOGUE_LEVELS)


def test_depthwise_code_is_that_of_the_level(rng, level, gave):
    layer = Layer(rng, 32, 32, window_of((8, 8), (3, 3), 1, 1, 1), groups=32)
    layer.packed().levels(layer.x, layer.how())
    gave("conv_u8_depthwise_tile", *TILE_LEVELS)


@pytest.mark.parametrize("widest", [127, 200, 255])
def test_weights_may_have_nine_bits(rng, level, widest):
    for groups in (1, 12):
        layer = Layer(rng, 12, 12, window_of((6, 7), (3, 3), 1, 1, 1), widest=widest, groups=groups)
        np.testing.assert_array_equal(layer.packed().sums(layer.x), layer.sums())


@pytest.mark.parametrize("filters", [7, 16, 20, 32, 45])
@pytest.mark.parametrize("signed", [False, True])
def test_residual_bounds_and_table(rng, level, filters, signed):
    for groups in (1, filters):
        layer = Layer(rng, filters, filters, window_of((5, 7), (3, 3), 1, 1, 1), signed=signed, groups=groups)
        info = np.iinfo(layer.dtype)
        residual = rng.integers(info.min, info.max + 1, (1, 5, 7, filters)).astype(layer.dtype)
        fields = {
            "low": -20.4,
            "high": 60.5,
            "residual": residual,
            "residual_multiplier": 0.37,
            "residual_zero_point": 2,
        }
        table = rng.permutation(256).astype(np.uint8).view(layer.dtype)
        have = layer.packed().levels(layer.x, layer.how(**fields, table=table))
        np.testing.assert_array_equal(have, table[layer.levels(**fields).view(np.uint8)])


def test_values_beyond_int32_saturate(rng, level):
    layer = Layer(rng, 8, 24, window_of((5, 5), (1, 1)))
    layer.multiplier = np.full(24, 1e8, np.float32)
    np.testing.assert_array_equal(layer.packed().levels(layer.x, layer.how()), layer.levels())


@pytest.mark.parametrize("offset", [1, 3, 17])
def test_pointers_need_no_alignment(rng, level, misaligned, offset):
    layer = Layer(rng, 24, 40, window_of((7, 9), (1, 1)))
    have = layer.packed().levels(misaligned(layer.x, offset), layer.how())
    np.testing.assert_array_equal(have, layer.levels())


def test_a_packed_layer_keeps_the_level_that_packed_it(rng):
    layer = Layer(rng, 64, 32, window_of((8, 8), (1, 1)))
    with native.using_level("scalar"):
        conv = layer.packed()
    np.testing.assert_array_equal(conv.sums(layer.x), layer.sums())


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_shape_is_exact_at_the_best_level(data):
    number = lambda low, high: data.draw(st.integers(low, high))
    groups = number(1, 3)
    channels, filters = groups * number(1, 40), groups * number(1, 40)
    size, kernel = (number(5, 17), number(5, 17)), (number(1, 4), number(1, 4))
    window = window_of(size, kernel, number(1, 3), 1, number(0, 2))
    rng = np.random.default_rng(number(0, 99))
    layer = Layer(rng, channels, filters, window, groups=groups, signed=data.draw(st.booleans()))
    np.testing.assert_array_equal(layer.packed().sums(layer.x, threads=2), layer.sums())


def test_what_does_not_fit_is_refused(rng):
    layer = Layer(rng, 8, 8, window_of((5, 5), (1, 1)))
    conv = layer.packed()
    with pytest.raises(NativeError, match=r"takes contiguous uint8 \(batch, \(5, 5\), 8\)"):
        conv.levels(layer.x[:, :4], layer.how())
    with pytest.raises(NativeError, match="takes contiguous uint8"):
        conv.sums(layer.x.view(np.int8))
    with pytest.raises(NativeError, match="overwrite an operand"):
        conv.levels(layer.x, layer.how(), out=layer.x)
    with pytest.raises(NativeError, match="residual"):
        conv.levels(layer.x, layer.how(residual=layer.x[:, :2], residual_multiplier=1.0))


def test_an_empty_batch_gives_an_empty_result(rng):
    layer = Layer(rng, 8, 8, window_of((5, 5), (3, 3)))
    assert layer.packed().levels(layer.x[:0], layer.how()).shape == (0, 3, 3, 8)
