"""Maxima over the windows of images with channels last (`csrc/pooling.cu`).

y[n, y, x, c] = max of images[n, y s + t d - p, c] over the taps t inside the image
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from pumice_cuda.compiling import kernel
from pumice_cuda.conv import integers
from pumice_cuda.launching import blocks, launch
from pumice_cuda.teams import ACCESS, aligned, type_name

if TYPE_CHECKING:
    import cupy

    from pumice.ops.window import Window

THREADS = 256
_Window = integers(
    "_Window", "height", "width", "out_height", "out_width", "stride_y", "stride_x", "before_y", "before_x",
    "dilation_y", "dilation_x", "taps_y", "taps_x", "channels",
)  # fmt: skip


def max_pool(images: cupy.ndarray, window: Window) -> cupy.ndarray:
    """The maxima (n, *window.output, channels) of contiguous images (n, height, width, channels)."""
    import cupy

    count, channels = len(images), images.shape[3]
    out = cupy.empty((count, *window.output, channels), images.dtype)
    wide = math.gcd(channels, ACCESS // images.itemsize) if aligned(images, out) else 1
    pixels = count * math.prod(window.output)
    structure = _Window(
        *window.size, *window.output, *window.strides, *window.before, *window.dilations, *window.kernel, channels
    )
    code = kernel("pooling", f"max_pool<{type_name(images)}, {wide}>")
    launch(code, blocks(pixels * channels // wide, THREADS), THREADS, images, out, structure, np.int64(pixels))
    return out
