"""Convolutions on a GPU against sums over shifted images in float64."""

import attrs
import numpy as np
import pytest

from pumice.ops.record import Node
from pumice.ops.window import Window
from pumice_cuda.conv import Conv
from pumice_cuda.epilogue import Epilogue, LevelSum
from pumice_cuda.gemm import AmpereTiling


@attrs.frozen(kw_only=True)
class Layer:
    images: int = 2
    size: tuple = (13, 11)
    channels: int = 64
    outputs: int = 96
    kernel: tuple = (3, 3)
    strides: tuple = (1, 1)
    dilations: tuple = (1, 1)
    pads: tuple = (1, 1, 1, 1)
    groups: int = 1

    @property
    def window(self):
        node = Node(
            op_type="Conv",
            attributes={"strides": list(self.strides), "dilations": list(self.dilations), "pads": list(self.pads)},
        )
        return Window.of(node, self.size, self.kernel)


LAYERS = [
    Layer(), Layer(kernel=(1, 1), pads=(0, 0, 0, 0)), Layer(kernel=(1, 1), pads=(0, 0, 0, 0), strides=(2, 2)),
    Layer(strides=(2, 2)), Layer(strides=(2, 1), dilations=(2, 3), pads=(2, 0, 1, 3)),
    Layer(channels=144, outputs=33, images=3), Layer(channels=16, kernel=(5, 3), pads=(2, 1, 2, 1)),
    Layer(channels=3, kernel=(7, 7), strides=(2, 2), pads=(3, 3, 3, 3), size=(30, 31), outputs=64),
    Layer(channels=64, outputs=64, groups=4), Layer(channels=12, outputs=20, groups=4),
    Layer(channels=32, outputs=32, groups=32), Layer(channels=7, outputs=7, groups=7, strides=(2, 1)),
    Layer(channels=6, outputs=12, groups=6), Layer(channels=128, outputs=256, size=(28, 28), images=5),
    Layer(channels=1, kernel=(3, 5), pads=(1, 2, 1, 2), outputs=70, size=(9, 131)),
    Layer(channels=4, kernel=(8, 8), pads=(2, 3, 1, 4), strides=(4, 4), size=(40, 37), outputs=24),
]  # fmt: skip
DEPTHWISE = [
    Layer(channels=40, outputs=40, groups=40), Layer(channels=36, outputs=36, groups=36, strides=(2, 2)),
    Layer(channels=44, outputs=44, groups=44, kernel=(5, 5), pads=(2, 2, 2, 2), strides=(1, 2), size=(9, 30)),
    Layer(channels=8, outputs=8, groups=8, kernel=(7, 7), pads=(3, 1, 0, 3), size=(17, 14)),
    Layer(channels=35, outputs=35, groups=35, strides=(3, 1)),
    Layer(channels=16, outputs=16, groups=16, dilations=(2, 3), pads=(2, 3, 2, 3)),
    Layer(channels=4, outputs=4, groups=4, kernel=(1, 9), pads=(0, 4, 0, 4)),
]  # fmt: skip


def exact(images, weights, layer, padding=0):
    import cupy

    w, (n, height, width, channels), each = layer.window, images.shape, len(weights) // layer.groups
    reach = [max(0, r) for r in w.reach]
    shape = (n, height + w.before[0] + reach[0], width + w.before[1] + reach[1], channels)
    padded = cupy.full(shape, float(padding))
    padded[:, w.before[0] : w.before[0] + height, w.before[1] : w.before[1] + width] = images.astype(np.float64)
    found = cupy.zeros((n, *w.output, len(weights)))
    for ty in range(w.kernel[0]):
        for tx in range(w.kernel[1]):
            y, x = ty * w.dilations[0], tx * w.dilations[1]
            rows = slice(y, y + (w.output[0] - 1) * w.strides[0] + 1, w.strides[0])
            columns = slice(x, x + (w.output[1] - 1) * w.strides[1] + 1, w.strides[1])
            taken = padded[:, rows, columns].reshape(n, *w.output, layer.groups, -1)
            for g in range(layer.groups):
                outputs = slice(g * each, (g + 1) * each)
                found[..., outputs] += taken[..., g, :] @ weights[outputs, ty, tx].astype(np.float64).T
    return found


def built(drawn, layer, dtype, **more):
    second = "int8" if dtype == "uint8" else dtype
    images = drawn((layer.images, *layer.size, layer.channels), dtype)
    weights = drawn((layer.outputs, *layer.kernel, layer.channels // layer.groups), second)
    return images, weights, Conv(weights, layer.window, groups=layer.groups, **more)


@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_sums_of_bytes_are_exact(drawn, layer):
    images, weights, conv = built(drawn, layer, "int8")
    assert (conv(images, Epilogue(output="int32")) == exact(images, weights, layer)).all()


@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_unsigned_images_continue_with_their_zero_point(drawn, layer):
    images, weights, conv = built(drawn, layer, "uint8", padding=117)
    assert (conv(images, Epilogue(output="int32")) == exact(images, weights, layer, 117)).all()


@pytest.mark.parametrize("layer", [LAYERS[3], LAYERS[7]], ids=repr)
def test_images_may_lie_in_any_layout(drawn, layer):
    import cupy

    images, weights, conv = built(drawn, layer, "int8")
    planes = cupy.moveaxis(cupy.ascontiguousarray(cupy.moveaxis(images, -1, 1)), 1, -1)
    assert (conv(planes, Epilogue(output="int32")) == exact(images, weights, layer)).all()


@pytest.mark.parametrize("layer", [LAYERS[0], LAYERS[3], LAYERS[4], LAYERS[5], LAYERS[6]], ids=repr)
def test_threads_and_the_copy_engine_gather_the_same(drawn, layer):
    import cupy

    images, _, conv = built(drawn, layer, "int8")
    outs = [cupy.empty((layer.images * np.prod(layer.window.output), layer.outputs), np.int32) for _ in range(2)]
    conv.copied(images, Epilogue(output="int32"), outs[0])
    conv.gathered(images, Epilogue(output="int32"), outs[1])
    assert (outs[0] == outs[1]).all()


@pytest.mark.parametrize("layer", [LAYERS[0], LAYERS[3], LAYERS[7], LAYERS[8], LAYERS[10], *DEPTHWISE], ids=repr)
@pytest.mark.parametrize(("dtype", "most"), [("float16", 1e-6), ("bfloat16", 1e-6), ("float32", 2e-3)])
def test_floats_lose_only_what_the_type_does(drawn, error, layer, dtype, most):
    images, weights, conv = built(drawn, layer, dtype)
    assert error(conv(images), exact(images, weights, layer)) < most


@pytest.mark.parametrize("layer", [LAYERS[0], LAYERS[4], LAYERS[7], LAYERS[9], LAYERS[11], LAYERS[13]], ids=repr)
def test_float32_is_kept_on_request(drawn, error, layer):
    images, weights, conv = built(drawn, layer, "float32", precision="float32")
    assert error(conv(images), exact(images, weights, layer)) < 1e-6


@pytest.mark.parametrize("layer", [LAYERS[0], LAYERS[4], LAYERS[8], LAYERS[13]], ids=repr)
@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("splits", [1, 2, 4])
def test_every_division_of_float32_is_close(drawn, error, layer, width, splits):
    import cupy

    images, weights, conv = built(drawn, layer, "float32", precision="float32")
    wanted = exact(images, weights, layer).reshape(-1, layer.outputs)
    out = cupy.empty(wanted.shape, np.float32)
    conv.gathered(images, Epilogue(), out, AmpereTiling(width=width, splits=splits))
    assert error(out, wanted) < 1e-6


@pytest.mark.parametrize("layer", DEPTHWISE, ids=repr)
def test_depthwise_windows_of_floats_finish_as_asked(drawn, error, layer):
    import cupy

    images, weights, conv = built(drawn, layer, "bfloat16")
    reference = exact(images, weights, layer)
    bias, residual = drawn((layer.outputs,), "float32"), drawn(reference.shape, "float32")
    found = conv(images, Epilogue(bias=bias, residual=residual, activation="clip", low=0.0))
    assert error(found, cupy.maximum(reference + bias + residual, 0)) < 1e-6


@pytest.mark.parametrize("layer", [LAYERS[0], LAYERS[1], LAYERS[8], LAYERS[10]], ids=repr)
def test_scales_residual_and_bounds_apply_to_bytes(drawn, rng, layer):
    import cupy

    images, weights, conv = built(drawn, layer, "int8")
    scale = cupy.asarray(rng.uniform(1e-4, 1e-3, layer.outputs).astype(np.float32))
    reference = exact(images, weights, layer)
    residual = drawn(reference.shape, "int8")
    added = LevelSum(level_factor=0.5, residual_factor=0.75, offset=4.0, residual_last=True)
    epilogue = Epilogue(
        output="int8", scale=scale, residual=residual, level_sum=added, activation="clip", low=0.0, zero=-9
    )
    level = cupy.minimum(cupy.rint(cupy.maximum(reference * scale, 0)) - 9, 127)
    wanted = cupy.clip(cupy.rint(level * 0.5 + residual * 0.75 + 4), -128, 127)
    off = cupy.abs(conv(images, epilogue) - wanted)
    assert float(off.max()) <= 1
    assert float((off > 0).mean()) < 1e-3
