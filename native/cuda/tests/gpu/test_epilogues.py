"""What every kernel of products and convolutions makes of its sums, in each type that it stores, against float64."""

import attrs
import cupy
import numpy as np
import pytest
from cupyx.scipy.special import erf

from pumice.ops.record import Node
from pumice.ops.window import Window
from pumice_cuda import gemm
from pumice_cuda.conv import Conv
from pumice_cuda.epilogue import Epilogue, LevelSum

ACTIVATIONS = {
    "none": lambda v: v,
    "clip": lambda v: cupy.maximum(v, 0),
    "gelu": lambda v: 0.5 * v * (1 + erf(v / np.sqrt(2))),
}
ROUNDED = {"float32": 1e-6, "float16": 1e-3, "bfloat16": 5e-3}
"""Of the norm."""
SUM = LevelSum(level_factor=0.75, residual_factor=0.5, offset=-3.0)
outputs = pytest.mark.parametrize("output", ["float32", "bfloat16", "int8"])
finishes = pytest.mark.parametrize(("activation", "with_residual"), [("none", False), ("clip", True), ("gelu", True)])


@pytest.fixture
def finish(drawn, error):
    """Holds what is stored of sums to `act((sum scale + bias) + residual)`, levels to those beside it."""

    def check(run, sums, output, activation, with_residual, spread):
        columns, act = sums.shape[-1], ACTIVATIONS[activation]
        scale = cupy.asarray(np.linspace(0.5 * spread, 1.5 * spread, columns).astype(np.float32))
        bias, residual = drawn(columns, "float32"), drawn(sums.shape, output) if with_residual else None
        least = 0.0 if activation == "clip" else -np.inf
        epilogue = Epilogue(output=output, scale=scale, bias=bias, activation=activation, low=least, zero=7)
        found = run(attrs.evolve(epilogue, residual=residual, level_sum=SUM))
        assert found.dtype.name == output
        v = sums * scale + bias
        if output in ROUNDED:
            wanted = act(v if residual is None else v + residual.astype(np.float64))
            assert error(found, wanted) < ROUNDED[output]
            return
        limits = np.iinfo(output).min, np.iinfo(output).max
        wanted = cupy.clip(cupy.rint(act(v)) + 7, *limits)
        if residual is not None:
            wanted = cupy.clip(cupy.rint(wanted * 0.75 + residual * 0.5 - 3), *limits)
        off = cupy.abs(found - wanted)
        assert float(off.max()) <= 1
        assert float((off > 0).mean()) < 1e-3  # a rounding in float32 beside a tie

    return check


@pytest.mark.parametrize("kernel", ["on_hopper", "on_ampere", "on_turing"])
@finishes
@outputs
def test_products_of_bytes_finish_their_sums(drawn, finish, kernel, output, activation, with_residual):
    a, b = drawn((77, 160), "int8"), drawn((200, 160), "int8")

    def run(epilogue):
        out = cupy.empty((77, 200), output)
        getattr(gemm, kernel)(gemm.readable(a), gemm.readable(b), epilogue, out)
        return out

    finish(run, a.astype(np.float64) @ b.astype(np.float64).T, output, activation, with_residual, 4e-4)


def layer(channels, outputs, kernel, stride=1, groups=1, size=(13, 11)):
    pads = [kernel // 2] * 4
    node = Node(op_type="Conv", attributes={"strides": [stride] * 2, "pads": pads})
    return Window.of(node, size, (kernel, kernel)), channels, outputs, groups


LAYERS = {
    "by the copy engine": layer(64, 96, 3), "by threads": layer(20, 33, 3), "in groups": layer(64, 48, 3, groups=4),
    "of one pixel": layer(64, 48, 1), "of every channel": layer(32, 32, 3, groups=32),
    "of first images": layer(3, 64, 7, stride=2, size=(30, 31)),
}  # fmt: skip


def exact(images, weights, window, groups):
    """Sums over shifted images."""
    (n, height, width, channels), (outputs, taps, _, each) = images.shape, weights.shape
    edge, stride, (down, across) = taps // 2, window.strides[0], window.output
    padded = cupy.zeros((n, height + 2 * edge, width + 2 * edge, channels))
    padded[:, edge : edge + height, edge : edge + width] = images.astype(np.float64)
    found = cupy.zeros((n, down, across, groups, outputs // groups))
    by_group = weights.astype(np.float64).reshape(groups, outputs // groups, taps, taps, each)
    for y, x in np.ndindex(taps, taps):
        rows, columns = (slice(s, s + (c - 1) * stride + 1, stride) for s, c in ((y, down), (x, across)))
        taken = padded[:, rows, columns].reshape(n, down, across, groups, each)
        found += cupy.einsum("nyxgc,goc->nyxgo", taken, by_group[:, :, y, x])
    return found.reshape(n, down, across, outputs)


@pytest.mark.parametrize("kind", LAYERS)
@finishes
@outputs
def test_convolutions_of_bytes_finish_their_sums(drawn, finish, kind, output, activation, with_residual):
    window, channels, outputs, groups = LAYERS[kind]
    images = drawn((2, *window.size, channels), "int8")
    weights = drawn((outputs, *window.kernel, channels // groups), "int8")
    conv = Conv(weights, window, groups=groups)
    spread = 0.005 / np.sqrt(weights[0].size)
    finish(
        lambda epilogue: conv(images, epilogue), exact(images, weights, window, groups), output, activation,
        with_residual, spread,
    )  # fmt: skip


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@finishes
def test_convolutions_of_floats_finish_their_sums(drawn, finish, kind, dtype, activation, with_residual):
    window, channels, outputs, groups = LAYERS[kind]
    images = drawn((2, *window.size, channels), dtype)
    weights = drawn((outputs, *window.kernel, channels // groups), dtype)
    conv = Conv(weights, window, groups=groups, precision="float32")
    spread = 1 / np.sqrt(weights[0].size)
    finish(
        lambda epilogue: conv(images, epilogue), exact(images, weights, window, groups), dtype, activation,
        with_residual, spread,
    )  # fmt: skip
