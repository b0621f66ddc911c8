"""Pooling of the Plan: MaxPool, AveragePool, GlobalAveragePool and GlobalMaxPool of floats, MaxPool of 8-bit levels."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from pumice.ops.pool import OPS as CORE
from pumice.ops.record import Array, Forward, Kernel, Node, Outputs
from pumice.ops.window import Window

MOST_AXES = 3
_NUMPY: dict[str, Forward] = {op.op_type: op.forward for op in CORE if op.forward is not None}
"""For images without a pixel and for more axes than the kernels have."""


def _runs_here(x: Array, window: Window) -> bool:
    return 0 < x.ndim - 2 <= MOST_AXES and x.size > 0 and min(window.output) > 0


@lru_cache(maxsize=512)
def _window(node: Node, size: tuple[int, ...]) -> Window:
    return Window.of(node, size, node.attributes["kernel_shape"])


def _max_pool(node: Node, x: Array) -> Outputs:
    from pumice_cpu import nhwc
    from pumice_cpu.pooling import max_pool, max_pool_levels

    window = _window(node, x.shape[2:])
    if not _runs_here(x, window):
        return _NUMPY["MaxPool"](node, x)
    if x.dtype == np.float32:
        turned = _channels_last(x)
        if turned is not None and x.ndim <= nhwc.MOST_AXES + 2:
            return (nhwc.first(nhwc.max_pool(turned, window)),)
        return (max_pool(x, window),)
    y = max_pool_levels(np.ascontiguousarray(np.moveaxis(x, 1, -1)), window)
    return (np.ascontiguousarray(np.moveaxis(y, -1, 1)),)


def _channels_last(x: Array) -> Array | None:
    """(batch, *size, channels) if that is how the image lies in memory, and not the other way."""
    from pumice_cpu.nhwc import last

    turned = last(x)
    return turned if turned.flags.c_contiguous and not x.flags.c_contiguous else None


def _without_indices(node: Node) -> str | None:
    return "it gives the indices of the maxima too" if node.wants(1) else None


def _average_pool(node: Node, x: Array) -> Outputs:
    from pumice_cpu.pooling import average_pool, window_counts

    window = _window(node, x.shape[2:])
    if not _runs_here(x, window):
        return _NUMPY["AveragePool"](node, x)
    return (average_pool(x, window, window_counts(window, bool(node.get("count_include_pad", 0)))),)


def _global_average(node: Node, x: Array) -> Outputs:
    from pumice_cpu.pooling import plane_means
    from pumice_cpu.rows import reduce

    turned = _channels_last(x) if x.size else None
    if turned is not None:
        means = reduce("mean", turned.reshape(len(x), -1, x.shape[1]), [1], keepdims=False)
        return (means.reshape(*x.shape[:2], *(1,) * (x.ndim - 2)),)
    return (plane_means(x),) if x.size else _NUMPY["GlobalAveragePool"](node, x)


def _global_max(node: Node, x: Array) -> Outputs:
    from pumice_cpu.pooling import plane_maxima

    return (plane_maxima(x),) if x.size else _NUMPY["GlobalMaxPool"](node, x)


_SUMS: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}

KERNELS = (
    Kernel(
        op_type="MaxPool", run=_max_pool, dtypes=frozenset({"float32", "uint8", "int8"}), accepts=_without_indices,
        rtol=0.0, atol=0.0,
    ),
    Kernel(op_type="AveragePool", run=_average_pool, **_SUMS),
    Kernel(op_type="GlobalAveragePool", run=_global_average, **_SUMS),
    Kernel(op_type="GlobalMaxPool", run=_global_max, rtol=0.0, atol=0.0),
)  # fmt: skip
