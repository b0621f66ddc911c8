"""Weights as the kernels read them, packed once and shared by all programs of a session."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import attrs
import numpy as np

from pumice.ops.record import Array
from pumice.ops.window import Window
from pumice_cpu import arrays, gemm, lowbit, recurrent as layers, recurrent_u8
from pumice_cpu.conv_u8 import shape_struct
from pumice_cpu.lowbit import TableType
from pumice_cpu.native import NativeError, ffi, library
from pumice_cpu.nhwc import Product
from pumice_cpu.recurrent import Cell


@attrs.frozen(eq=False)
class Packed:
    """A handle of the library's, freed with the last reference, and how to make it again."""

    handle: Any = attrs.field(repr=False)
    kind: str
    """The function of this module that made it."""
    arguments: tuple[Any, ...] = attrs.field(repr=False)
    alive: Any = attrs.field(default=None, repr=False)


@attrs.define
class Packer:
    """What was packed already, by key."""

    made: dict[Hashable, Packed] = attrs.field(factory=dict)

    def get(self, key: Hashable, make: Callable[[], Packed]) -> Packed:
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]


def geometry(window: Window) -> tuple[tuple[int, ...], ...]:
    """All that tells one window from another; the key of a packed convolution has it."""
    return (window.size, window.kernel, window.strides, window.dilations, window.before, window.after, window.output)


def _window(shape: Sequence[Sequence[int]]) -> Window:
    names = ("size", "kernel", "strides", "dilations", "before", "after", "output")
    return Window(**dict(zip(names, map(tuple, shape), strict=True)))


def conv_u8(
    weights: Array, bias: Array | None, shape: Sequence[Sequence[int]], groups: int, zero_point: int, signed: bool
) -> Packed:
    """Weights (filters, channels / groups, *kernel) with their zero point off."""
    filters, each = weights.shape[:2]
    levels = np.ascontiguousarray(weights, np.int16)
    offsets = None if bias is None else np.ascontiguousarray(bias, np.int32)
    handle = library().pumice_conv_u8_create(
        shape_struct(_window(shape), each * groups, filters, groups), ffi().cast("int16_t *", levels.ctypes.data),
        arrays.pointer(offsets), zero_point, signed,
    )  # fmt: skip
    _refuse_null(handle)
    free = library().pumice_conv_u8_free
    return Packed(ffi().gc(handle, free), "conv_u8", (weights, bias, shape, groups, zero_point, signed))


def conv_f32(weights: Array, shape: Sequence[Sequence[int]], channels: int, groups: int, transposed: bool) -> Packed:
    """Weights as ONNX has them; `transposed` for ConvTranspose."""
    filters = weights.shape[1] * groups if transposed else weights.shape[0]
    reals = np.ascontiguousarray(weights, np.float32)
    handle = library().pumice_conv_f32_create(
        shape_struct(_window(shape), channels, filters, groups), transposed, arrays.pointer(reals)
    )
    _refuse_null(handle)
    free = library().pumice_conv_f32_free
    return Packed(ffi().gc(handle, free), "conv_f32", (weights, shape, channels, groups, transposed))


def nhwc(weights: Array, shape: Sequence[Sequence[int]], groups: int, whole: bool) -> Packed:
    """Weights (filters, channels / groups, *kernel) of images with channels last; `whole` operands are never split."""
    product = Product.of_convolution(weights, _window(shape), groups, whole=whole)
    return Packed(product.handle, "nhwc", (weights, shape, groups, whole), product)


def matrix(b: Array, product: gemm.Product) -> Packed:
    """B (k, n) of a matrix product."""
    packed = gemm.pack(b, product)
    return Packed(packed.handle, "matrix", (b, product))


def codebook(
    codes: Array, table: Array, scale: Array, offset: Array | None, group: int | None, table_type: TableType
) -> Packed:
    """4-bit weights, as `lowbit.pack` takes them."""
    packed = lowbit.pack(codes, table, scale, offset, group=group, table_type=table_type)
    return Packed(packed.handle, "codebook", (codes, table, scale, offset, group, table_type))


def recurrent(r: Array, split: bool) -> Packed:
    """R of an LSTM or GRU, as `recurrent.Gates` takes it."""
    packed = layers.Gates(r, split=split)
    return Packed(packed.handle, "recurrent", (r, split))


def gates(cell: Cell, r: Array, scale: Array, zero: Array | None) -> Packed:
    """8-bit recurrent weights, as `recurrent_u8.Gates` takes them."""
    packed = recurrent_u8.Gates(cell, r, scale, zero)
    return Packed(packed.handle, "gates", (cell, r, scale, zero))


def _refuse_null(handle: Any) -> None:
    if handle == ffi().NULL:
        raise NativeError("a convolution cannot be packed: its shapes do not fit each other; check them")
