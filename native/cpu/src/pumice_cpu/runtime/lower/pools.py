"""Pooling of images: levels channels last, real numbers as they lie."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pumice.ops.window import Window
from pumice.program import ABSENT, Step
from pumice_cpu import nhwc
from pumice_cpu.pooling import window_counts
from pumice_cpu.rows import REDUCTIONS
from pumice_cpu.runtime.compiler import Compiler
from pumice_cpu.runtime.lower.quantized import BYTES, MOST_AXES, result_channels_last

MAXIMUM, AVERAGE = 0, 1


def shape_fields(window: Window, channels: int, filters: int, groups: int) -> dict[str, Any]:
    """`struct pumice_conv_shape`, leading axes of length 1 added."""
    missing = MOST_AXES - len(window.size)

    def padded(values: tuple[int, ...], fill: int = 1) -> list[int]:
        return [fill] * missing + list(values)

    return {
        "channels": channels, "filters": filters, "groups": groups, "size": padded(window.size),
        "kernel": padded(window.kernel), "stride": padded(window.strides), "dilation": padded(window.dilations),
        "before": padded(window.before, 0), "output": padded(window.output),
    }  # fmt: skip


def _window(c: Compiler, step: Step) -> Window | None:
    x = step.inputs[0]
    rank = len(c.shape(x)) - 2
    if not 0 < rank <= MOST_AXES or len([s for s in step.outputs if s != ABSENT]) > 1:
        return None
    return Window.of(step.node, c.shape(x)[2:], step.node.attributes["kernel_shape"])


def max_pool(c: Compiler, step: Step) -> bool:
    window, (x,), y = _window(c, step), step.inputs, step.outputs[0]
    if window is None or not (c.is_float(x) or c.dtype(x) in BYTES):
        return False
    batch, channels = c.shape(x)[:2]
    shape = shape_fields(window, channels, channels, channels)
    if not c.is_float(x):
        signed = int(c.dtype(x) == np.int8)
        c.emit("pool_u8", result_channels_last(c, y), c.channels_last(x), shape=shape, is_signed=signed, batch=batch)
    elif _lies_last(c, x) and len(window.size) <= nhwc.MOST_AXES:
        c.emit("pool_nhwc", result_channels_last(c, y), c.view(x), shape=shape, batch=batch)
    else:
        c.emit("pool_f32", c.result(y), c.plain(x), shape=shape, what=MAXIMUM, batch=batch)
    return True


def _lies_last(c: Compiler, slot: int) -> bool:
    view = c.view(slot)
    return view.is_channels_last and not view.is_plain


def average_pool(c: Compiler, step: Step) -> bool:
    window, (x,), y = _window(c, step), step.inputs, step.outputs[0]
    if window is None or not c.is_float(x):
        return False
    batch, channels = c.shape(x)[:2]
    counts = np.ascontiguousarray(
        window_counts(window, bool(step.node.get("count_include_pad", 0))).reshape(-1), np.float32
    )
    shape = shape_fields(window, channels, channels, channels)
    c.emit("pool_f32", c.result(y), c.plain(x), shape=shape, what=AVERAGE, batch=batch, counts=counts)
    return True


def _global(what: int, reduction: str) -> Any:
    def lower(c: Compiler, step: Step) -> bool:
        (x,), y = step.inputs, step.outputs[0]
        if not c.is_float(x) or len(c.shape(x)) < 3:
            return False
        (batch, channels), columns = c.shape(x)[:2], math.prod(c.shape(x)[2:])
        if _lies_last(c, x):
            c.emit(
                "reduce", c.result(y), c.view(x), reduction=REDUCTIONS[reduction], outer=batch, reduced=columns,
                inner=channels,
            )  # fmt: skip
            return True
        c.emit("pool_rows", c.result(y), c.plain(x), what=what, rows=batch * channels, columns=columns)
        return True

    return lower


LOWERS = {
    ("", "MaxPool"): max_pool,
    ("", "AveragePool"): average_pool,
    ("", "GlobalAveragePool"): _global(AVERAGE, "mean"),
    ("", "GlobalMaxPool"): _global(MAXIMUM, "max"),
}
