"""Convolutions of images with channels last, as implicit products with a fused epilogue.

    out[n, y, x, o] = epilogue(sum over taps t and channels c of image[n, y s + t d - p, c] weight[o, t, c])

in which the image continues with `padding` outside (the zero point of quantized images). A window of one pixel is a
matrix product of the images as they lie. On Hopper the copy engine gathers windows (`csrc/conv_sm90.cu`), where
padding is zero and a pixel takes a multiple of 16 bytes; elsewhere, and in groups, threads do (`csrc/conv_sm80.cu`).
Where every channel has a window of its own, `csrc/conv_depthwise_floats.cu` or `csrc/conv_depthwise.cu` runs, and over
a network's first images of bytes, in whatever layout, `csrc/conv_stem.cu`. Types are as in `gemm`.
"""

from __future__ import annotations

import ctypes
import functools
import math
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from pumice.ops.window import Window
from pumice_cuda import device, tensor_maps
from pumice_cuda.compiling import kernel
from pumice_cuda.epilogue import PLAIN, Epilogue
from pumice_cuda.gemm import (
    AMPERE,
    AMPERE_SHARED,
    AMPERE_THREADS,
    ELEMENTS,
    PART_BYTES,
    STEP_BYTES,
    AmpereTiling,
    Precision,
    Tiling,
    Work,
    ampere_tiling,
    element,
    gemm,
    parts_of,
    tiling,
)
from pumice_cuda.launching import blocks, launch

if TYPE_CHECKING:
    import cupy

WIDEST_CORNER, WIDEST_STRIDE, WIDEST_TAP = 127, 8, 255
"""What a tensor map can say of a window."""
PIECE = 4
"""Bytes of channels that a thread gathers at least at a time."""
SPAN, THREADS = 4, 128
"""Pixels of a thread and threads of a block of the depthwise kernel."""
MOST_TOGETHER = 7
"""Taps across whose pixels a thread of it keeps."""
FLOATS_THREADS, FLOATS_SPAN, FLOATS_DOWN = 256, 2, 4
"""Threads of a block of the depthwise kernel of floats, pixels across of a thread, lines that threads make together."""
MANY_TAPS = 9
"""Above which a thread of it makes two lines, and else four."""
STEM_CHANNELS, STEM_TAPS, STEM_STRIDE = 4, 8, 4
"""At most, of the kernel for a network's first images."""
STEM_TILE, STEM_OUTPUTS, STEM_THREADS = (4, 64), 64, 256
"""Lines and pixels, outputs and threads of a block of it; as in csrc/conv_stem.cu."""


def integers(name: str, *fields: str, long: tuple[str, ...] = ()) -> type[ctypes.Structure]:
    """A structure of C's int, and of long long after them."""
    described = [*((field, ctypes.c_int) for field in fields), *((field, ctypes.c_longlong) for field in long)]
    return type(name, (ctypes.Structure,), {"_fields_": described})


_STEPS = ("stride_y", "stride_x", "before_y", "before_x", "dilation_y", "dilation_x")
_CopiedWindow = integers("_CopiedWindow", "out_height", "out_width", *_STEPS, "taps_x", "pieces")
_GatheredWindow = integers(
    "_GatheredWindow", "height", "width", "out_height", "out_width", *_STEPS, "taps_x", "taps", "pixel_bytes",
    "group_bytes", "group_columns",
)  # fmt: skip
_StemWindow = integers(
    "_StemWindow", "height", "width", "out_height", "out_width", "before_y", "before_x", "channels", "padding",
    long=("image_step", "channel_step", "line_step", "pixel_step"),
)  # fmt: skip
_DepthwiseWindow = integers(
    "_DepthwiseWindow", "height", "width", "out_height", "out_width", *_STEPS, "taps_y", "taps_x", "channels", "blocks",
    "padding",
)  # fmt: skip
_FloatsWindow = integers(
    "_FloatsWindow", "height", "width", "out_height", "out_width", "before_y", "before_x", "channels", "blocks",
    "pieces",
)  # fmt: skip


class Conv:
    """A convolution with its weights laid out once."""

    def __init__(
        self,
        weights: cupy.ndarray,
        window: Window,
        *,
        groups: int = 1,
        padding: int = 0,
        precision: Precision = "tf32",
    ) -> None:
        """Args:
            weights: (outputs, taps down, taps across, channels of a group); int8 for images of int8 and uint8.
            window: over images of one size, with two spatial axes.
            groups: into which channels and outputs are divided.
            padding: what integer images continue with outside.
            precision: of the products of float32.

        Raises:
            ValueError: the weights do not fit the window or the groups.
        """
        import cupy

        if weights.ndim != 4 or weights.shape[1:3] != window.kernel or weights.shape[0] % groups:
            raise ValueError(f"weights {list(weights.shape)} do not fit windows {window.kernel} in {groups} groups")
        self.weights = cupy.ascontiguousarray(weights)
        self.window, self.groups, self.padding, self.precision = window, groups, padding, precision

    def __call__(
        self, images: cupy.ndarray, epilogue: Epilogue = PLAIN, *, out: cupy.ndarray | None = None
    ) -> cupy.ndarray:
        """The images (n, height, width, channels) convolved, as (n, *window.output, outputs).

        Args:
            images: copied where they are not contiguous and the kernel wants them so.
            epilogue: with a residual of the result's shape.
            out: where to write, contiguous.

        Raises:
            ValueError: the images are of another size or type than the window and the weights.
        """
        import cupy

        self._check(images)
        shape = (len(images), *self.window.output, len(self.weights))
        if out is None:
            out = cupy.empty(shape, epilogue.output)
        if out.size == 0:
            return out
        rows = out.reshape(-1, shape[-1])
        if epilogue.residual is not None:
            epilogue = attrs.evolve(epilogue, residual=epilogue.residual.reshape(rows.shape))
        self._run(images, epilogue, rows)
        return out

    def _check(self, images: cupy.ndarray) -> None:
        second = "int8" if images.dtype.name == "uint8" else images.dtype.name
        channels = self.weights.shape[3] * self.groups
        if images.shape[1:] != (*self.window.size, channels) or self.weights.dtype.name != second:
            raise ValueError(
                f"images {images.dtype}{list(images.shape)} do not fit {self.groups} groups of weights "
                f"{self.weights.dtype}{list(self.weights.shape)} over {list(self.window.size)} pixels"
            )

    def _run(self, images: cupy.ndarray, epilogue: Epilogue, out: cupy.ndarray) -> None:
        import cupy

        channels, outputs = images.shape[3], len(self.weights)
        if self._is_stem and device.gpu().capability >= AMPERE:
            self.stem(images, epilogue, out)
            return
        images = cupy.ascontiguousarray(images)
        if self.groups == channels == outputs and self.weights.shape[3] == 1:
            self.depthwise(images, epilogue, out)
        elif self._is_product:
            pixels = images.reshape(-1, channels)
            gemm(pixels, self.weights.reshape(outputs, -1), epilogue, out=out, precision=self.precision)
        elif self._can_be_copied(images):
            self.copied(images, epilogue, out)
        else:
            self.gathered(images, epilogue, out)

    # --- by the copy engine -------------------------------------------------------------------------------------------

    @functools.cached_property
    def _is_product(self) -> bool:
        w = self.window
        return self.groups == 1 and w.taps == 1 and max(w.strides) == 1 and not w.padded and w.size == w.output

    def _can_be_copied(self, images: cupy.ndarray) -> bool:
        w = self.window
        exact = self.precision == "float32" and images.dtype.name == "float32"
        corners = (*w.before, *self._corner)
        tap = max(d * (k - 1) for d, k in zip(w.dilations, w.kernel, strict=True))
        return (
            device.gpu().capability == device.HOPPER and self.groups == 1 and self.padding == 0 and not exact
            and tensor_maps.describable(images) and max(map(abs, corners)) <= WIDEST_CORNER
            and max(w.strides) <= WIDEST_STRIDE and tap <= WIDEST_TAP
        )  # fmt: skip

    @functools.cached_property
    def _corner(self) -> tuple[int, ...]:
        """How far beyond the last pixel of each axis the last window may begin."""
        w = self.window
        last = zip(w.size, w.output, w.strides, w.before, strict=True)
        return tuple((o - 1) * s - p - (n - 1) for n, o, s, p in last)

    def copied(self, images: cupy.ndarray, epilogue: Epilogue, out: cupy.ndarray, chosen: Tiling | None = None) -> None:
        """By wgmma, windows fetched by the copy engine, into rows of `out` (n * lines * pixels, outputs), contiguous.

        The residual has the shape of `out`; `chosen` replaces what the model would take.
        """
        w, (m, n), processors = self.window, out.shape, device.gpu().multiprocessors
        pixel_bytes = images.shape[3] * images.itemsize
        pieces, parts = -(-pixel_bytes // STEP_BYTES), parts_of(pixel_bytes)
        steps = w.taps * pieces
        work = Work(m=m, n=n, steps=steps, parts=parts, finishing=epilogue.instructions, integers=images.itemsize == 1)
        t = chosen or tiling(work, processors)
        beside = epilogue.beside(out)
        options = (f"-DUSE_ELEMENT={ELEMENTS[images.dtype.name]}", *epilogue.macros, *t.macros(parts, beside))
        weights = self.weights.reshape(n, w.taps, images.shape[3])
        down, across = t.tiles(m, n)
        launch(
            kernel("conv_sm90", "conv", options=options), t.blocks(m, n, processors), t.threads,
            tensor_maps.windows(images, t.height, w.before, self._corner, w.strides, parts * PART_BYTES),
            tensor_maps.columns(weights, t.width, parts * PART_BYTES, beside),
            _CopiedWindow(*w.output, *self._steps, w.kernel[1], pieces), epilogue.structure(out),
            np.int32(down), np.int32(across), np.int32(steps), shared=t.shared, cluster=t.splits, overlaps=True,
        )  # fmt: skip

    @functools.cached_property
    def _steps(self) -> tuple[int, ...]:
        return (*self.window.strides, *self.window.before, *self.window.dilations)

    # --- by threads ---------------------------------------------------------------------------------------------------

    def gathered(
        self, images: cupy.ndarray, epilogue: Epilogue, out: cupy.ndarray, chosen: AmpereTiling | None = None
    ) -> None:
        """By mma.sync, windows fetched by threads; `out`, the residual and `chosen` as in `copied`."""
        w, size, outputs = self.window, images.itemsize, out.shape[1] // self.groups
        images = self._with_whole_pieces(images)
        weights = self._whole_weights
        group_bytes = weights.shape[3] * size
        access = next(bytes_ for bytes_ in (16, 8, PIECE) if group_bytes % bytes_ == 0)
        arguments = epilogue.structure(out)
        arguments.wide &= outputs * out.itemsize % 16 == 0 or self.groups == 1
        kind, shape = element(images, self.precision), (len(out), outputs)
        t = chosen or ampere_tiling(kind, epilogue, shape, w.taps * group_bytes, groups=self.groups)
        options = (f"-DUSE_ELEMENT={kind}", *epilogue.macros, f"-DUSE_ACCESS={access}", *t.macros)
        launch(
            kernel("conv_sm80", "conv", options=options), (*t.grid(*shape), self.groups), AMPERE_THREADS,
            images, weights, self._outside(images),
            _GatheredWindow(
                *w.size, *w.output, *self._steps, w.kernel[1], w.taps, images.shape[3] * size, group_bytes, outputs
            ),
            arguments, shared=AMPERE_SHARED, cluster=t.cluster,
        )  # fmt: skip

    @functools.cached_property
    def _whole_channels(self) -> int:
        """Channels of a group, filled up to whole pieces."""
        each = max(1, PIECE // int(self.weights.itemsize))
        return -(-int(self.weights.shape[3]) // each) * each

    @functools.cached_property
    def _whole_weights(self) -> cupy.ndarray:
        return _filled(self.weights, self._whole_channels)

    def _with_whole_pieces(self, images: cupy.ndarray) -> cupy.ndarray:
        """A copy whose groups end at whole pieces, if they do not. What is filled in meets weights of zero."""
        if self._whole_channels == self.weights.shape[3]:
            return images
        grouped = images.reshape(*images.shape[:3], self.groups, -1)
        return _filled(grouped, self._whole_channels).reshape(*images.shape[:3], -1)

    def _outside(self, images: cupy.ndarray) -> cupy.ndarray:
        """16 bytes for each thread of what is outside the images."""
        import cupy

        if not hasattr(self, "_padding"):
            self._padding = cupy.full(16 * AMPERE_THREADS // images.itemsize, self.padding, images.dtype)
        return self._padding

    # --- few channels -------------------------------------------------------------------------------------------------

    @functools.cached_property
    def _is_stem(self) -> bool:
        w = self.window
        return bool(
            self.weights.itemsize == 1 and self.groups == 1 and self.weights.shape[3] <= STEM_CHANNELS
            and max(w.kernel) <= STEM_TAPS and len({*w.strides}) == 1 and w.strides[0] <= STEM_STRIDE
            and max(w.dilations) == 1
        )  # fmt: skip

    def stem(self, images: cupy.ndarray, epilogue: Epilogue, out: cupy.ndarray) -> None:
        """Of bytes, by mma.sync, pixels of at most four channels read from wherever they lie; `out` as in `copied`."""
        w, columns = self.window, out.shape[1]
        options = (f"-DUSE_ELEMENT={element(images)}", f"-DUSE_ROWS={w.kernel[0]}", f"-DUSE_STRIDE={w.strides[0]}")
        tiles = (*(-(-n // each) for n, each in zip(w.output, STEM_TILE, strict=True)), len(images))
        by_image, by_line, by_pixel, by_channel = images.strides
        launch(
            kernel("conv_stem", "conv", options=(*options, *epilogue.macros)),
            (math.prod(tiles), -(-columns // STEM_OUTPUTS)), STEM_THREADS, images, self._stem_weights,
            _StemWindow(
                *w.size, *w.output, *w.before, images.shape[3], self.padding, by_image, by_channel, by_line, by_pixel
            ),
            epilogue.structure(out), overlaps=True,
        )  # fmt: skip

    @functools.cached_property
    def _stem_weights(self) -> cupy.ndarray:
        """As lanes read them: (blocks of 64, rows, blocks of 8, outputs, pixels of a half, halves, channels)."""
        import cupy

        outputs, rows, taps, channels = self.weights.shape
        whole = cupy.zeros((-(-outputs // STEM_OUTPUTS) * STEM_OUTPUTS, rows, STEM_TAPS, STEM_CHANNELS), np.int8)
        whole[:outputs, :, :taps, :channels] = self.weights
        return whole.reshape(-1, 8, 8, rows, 2, 4, STEM_CHANNELS).transpose(0, 3, 1, 2, 5, 4, 6).copy()

    # --- one window a channel -----------------------------------------------------------------------------------------

    def depthwise(self, images: cupy.ndarray, epilogue: Epilogue, out: cupy.ndarray) -> None:
        """Every channel with its own window; `out` as in `copied`."""
        w, channels = self.window, images.shape[3]
        if images.itemsize > 1 and max(w.dilations) == 1 and max(w.kernel) <= MOST_TOGETHER:
            self._depthwise_floats(images, epilogue, out)
            return
        each = 4 if channels % 4 == 0 else 1
        of_image = blocks(w.output[0] * -(-w.output[1] // SPAN) * (channels // each), THREADS)
        taps = self._taps_together
        options = (
            f"-DUSE_ELEMENT={element(images, 'float32')}", *epilogue.macros, f"-DUSE_CHANNELS={each}",
            f"-DUSE_TAPS={taps}", f"-DUSE_STRIDE={w.strides[1]}",
        )  # fmt: skip
        launch(
            kernel("conv_depthwise", "conv", options=options), of_image * len(images), THREADS, images,
            self._weights_by_word if each == 4 and images.itemsize == 1 else self._weights_by_tap,
            _DepthwiseWindow(*w.size, *w.output, *self._steps, *w.kernel, channels, of_image, self.padding),
            epilogue.structure(out), overlaps=True,
        )  # fmt: skip

    def _depthwise_floats(self, images: cupy.ndarray, epilogue: Epilogue, out: cupy.ndarray) -> None:
        w, channels = self.window, images.shape[3]
        each, lanes = (4, 8) if channels % 4 == 0 and images.data.ptr % (4 * images.itemsize) == 0 else (1, 32)
        lines = 4 if w.taps <= MANY_TAPS else 2
        down = blocks(w.output[0], FLOATS_DOWN) * FLOATS_DOWN // lines
        of_image = blocks(down * blocks(w.output[1], FLOATS_SPAN), FLOATS_THREADS // lanes)
        pieces = blocks(channels // each, lanes)
        options = (
            f"-DUSE_ELEMENT={element(images, 'float32')}", *epilogue.macros, f"-DUSE_CHANNELS={each}",
            f"-DUSE_LANES={lanes}", f"-DUSE_LINES={lines}", f"-DUSE_TAPS_Y={w.kernel[0]}",
            f"-DUSE_TAPS_X={w.kernel[1]}", f"-DUSE_STRIDE_Y={w.strides[0]}", f"-DUSE_STRIDE_X={w.strides[1]}",
        )  # fmt: skip
        launch(
            kernel("conv_depthwise_floats", "conv", options=options), of_image * pieces * len(images), FLOATS_THREADS,
            images, self._weights_by_tap,
            _FloatsWindow(*w.size, *w.output, *w.before, channels, of_image, pieces),
            epilogue.structure(out), overlaps=True,
        )  # fmt: skip

    @functools.cached_property
    def _taps_together(self) -> int:
        """Taps across that are neighbours, and not too many to keep their pixels."""
        across = self.window.kernel[1]
        return across if self.window.dilations[1] == 1 and across <= MOST_TOGETHER else 1

    @functools.cached_property
    def _weights_by_word(self) -> cupy.ndarray:
        """Of bytes: (pieces of taps, words of a piece, channels, four taps), zero behind the last tap of a piece."""
        channels, taps = len(self.weights), self._taps_together
        pieces = self.weights.reshape(channels, -1, taps)
        filled = _filled(pieces, -(-taps // 4) * 4)
        return filled.reshape(channels, pieces.shape[1], -1, 4).transpose(1, 2, 0, 3).copy()

    @functools.cached_property
    def _weights_by_tap(self) -> cupy.ndarray:
        import cupy

        return cupy.ascontiguousarray(self.weights.reshape(len(self.weights), -1).T)


def _filled(array: Any, last: int) -> Any:
    """The array with zeros up to a size of its last axis."""
    import cupy

    if array.shape[-1] == last:
        return array
    filled = cupy.zeros((*array.shape[:-1], last), array.dtype)
    filled[..., : array.shape[-1]] = array
    return filled
