"""Pooling of images of the Plan: maxima over windows, and means over all pixels.

Results have ONNX's shape (n, channels, height, width) and lie in memory with channels last, as convolutions leave them.
"""

from __future__ import annotations

import functools
from typing import Any

from pumice.ops.record import Array, Kernel, Node, Outputs
from pumice.ops.window import Window
from pumice_cuda import reference

FLOATS = frozenset({"float32", "float16"})
TYPES = FLOATS | {"int8", "uint8"}


def _max_pool(node: Node, x: Array) -> Outputs:
    import cupy

    from pumice_cuda.kernels.conv import channels_last
    from pumice_cuda.pooling import max_pool

    if x.ndim != 4 or not x.size:
        return reference.forward(node, x)
    window = Window.of(node, x.shape[2:], node.attributes["kernel_shape"])
    return (cupy.moveaxis(max_pool(channels_last(x), window), -1, 1),)


def _has_one_output(node: Node) -> str | None:
    return "the indices are asked for" if node.wants(1) else None


def _global_average(node: Node, x: Array) -> Outputs:
    from pumice_cuda.kernels.conv import channels_last
    from pumice_cuda.rows import reduce

    if x.ndim != 4 or not x.size:
        return reference.forward(node, x)
    mean: Any = reduce("mean", channels_last(x), [1, 2], keepdims=False)
    return (mean[:, :, None, None],)


_record = functools.partial(Kernel, rtol=1e-5, atol=1e-6)

KERNELS = (
    _record(op_type="MaxPool", run=_max_pool, accepts=_has_one_output, dtypes=TYPES),
    _record(op_type="GlobalAveragePool", run=_global_average, dtypes=FLOATS),
)
