"""Pooling on a GPU against core's NumPy code."""

import cupy
import numpy as np
import pytest

from pumice.ops import core_table
from pumice.ops.record import Node
from pumice_cuda.kernels import all_kernels


def both(node, x):
    (record,) = [k for k in all_kernels() if k.part == "forward" and k.fits(node)]
    assert x.dtype.name in record.dtypes
    want = core_table().resolve("", node.op_type, node.opset).forward(node, x)
    return record.run(node, cupy.asarray(x))[0].get(), want[0]


def node_of(op, **attributes):
    return Node(op_type=op, opset=21, attributes=attributes, outputs=("y",))


WINDOWS = [
    {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
    {"kernel_shape": [2, 3], "dilations": [2, 1], "ceil_mode": 1, "strides": [3, 2]},
    {"kernel_shape": [2, 2], "auto_pad": "SAME_UPPER"},
]


@pytest.mark.parametrize("window", WINDOWS, ids=repr)
@pytest.mark.parametrize("channels", [64, 3])
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "uint8"])
def test_maxima_are_those_of_core(rng, window, channels, dtype):
    x = (rng.standard_normal((2, channels, 13, 11)) * 50).astype(dtype)
    np.testing.assert_array_equal(*both(node_of("MaxPool", **window), x))


def test_nan_is_the_maximum(rng):
    x = rng.standard_normal((1, 4, 6, 6)).astype(np.float32)
    x[0, 1, 2, 3] = np.nan
    np.testing.assert_array_equal(*both(node_of("MaxPool", kernel_shape=[3, 3]), x))


def test_means_are_over_all_pixels(rng):
    x = rng.standard_normal((3, 40, 7, 5)).astype(np.float32)
    np.testing.assert_allclose(*both(node_of("GlobalAveragePool"), x), rtol=1e-5, atol=1e-6)
