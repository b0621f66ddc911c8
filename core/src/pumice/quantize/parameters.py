"""Quantization parameters: how real numbers map to integers and back.

    q = saturate(round_half_even(x / scale) + zero_point)        x' = (q - zero_point) * scale

exactly as ONNX QuantizeLinear and DequantizeLinear define it, in float32. Zero is always representable exactly: padding
and ReLU produce it. `scale` and `zero_point` are scalars (per tensor) or vectors along `axis` (per channel).
"""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

SMALLEST_SCALE = np.float32(np.finfo(np.float32).tiny * 2**24)
"""Weights whose scale would be below this are zero."""
SMALLEST_STEP = np.float32(2.0**-64)
"""Activations whose scale would be below this are zero: its products with other scales are still normal numbers."""


@attrs.frozen(eq=False)
class QuantParams:
    """Scale and zero point, per tensor (`axis` None, shapes ()) or per channel (`axis`, shapes (channels,))."""

    scale: NDArray[np.float32]
    zero_point: NDArray[Any]
    axis: int | None = None

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.zero_point.dtype

    @property
    def limits(self) -> tuple[int, int]:
        """Smallest and largest integer of the type."""
        info = np.iinfo(self.dtype)
        return int(info.min), int(info.max)

    @property
    def range(self) -> tuple[float, float]:
        """Smallest and largest real number represented (per tensor)."""
        low, high = self.limits
        return float((low - int(self.zero_point)) * self.scale), float((high - int(self.zero_point)) * self.scale)

    def _along(self, vector: NDArray[Any], rank: int) -> NDArray[Any]:
        if self.axis is None:
            return vector
        shape = [1] * rank
        shape[self.axis] = -1
        return vector.reshape(shape)

    def quantize(self, values: NDArray[Any]) -> NDArray[Any]:
        """Integers of `dtype`, shape of `values`."""
        scale, zero = self._along(self.scale, values.ndim), self._along(self.zero_point, values.ndim)
        with np.errstate(over="ignore"):  # infinity saturates as well
            rounded = np.rint(values.astype(np.float32) / scale) + zero.astype(np.float32)
        return np.asarray(np.clip(rounded, *self.limits), self.dtype)

    def dequantize(self, integers: NDArray[Any]) -> NDArray[np.float32]:
        scale, zero = self._along(self.scale, integers.ndim), self._along(self.zero_point, integers.ndim)
        return np.asarray((integers.astype(np.int32) - zero.astype(np.int32)).astype(np.float32) * scale)

    def round_trip(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """What the values become by being quantized."""
        return self.dequantize(self.quantize(values))


def affine(low: float, high: float, dtype: np.dtype[Any] | type, *, symmetric: bool = False) -> QuantParams:
    """Per-tensor parameters that cover [low, high] and zero.

    Symmetric: zero point in the middle of the type (0 for signed, 128 for uint8), the range the larger of the two
    sides; signed symmetric leaves the lowest integer unused, so that x and -x map alike.
    """
    info = np.iinfo(dtype)
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    if symmetric:
        bound = max(-low, high)
        zero = 0 if info.min < 0 else (info.max + 1) // 2
        scale = np.float32(bound / (info.max - zero))
    else:
        scale = np.float32((high - low) / (int(info.max) - int(info.min)))
    if scale < SMALLEST_STEP:
        scale = np.float32(1.0)
    if not symmetric:
        zero = int(np.clip(np.rint(info.min - low / float(scale)), info.min, info.max))
    return QuantParams(np.asarray(scale, np.float32), np.asarray(zero, dtype))


def symmetric_per_channel(
    weights: NDArray[Any], axis: int | None, *, bits: int = 8, bound: NDArray[Any] | None = None
) -> QuantParams:
    """Symmetric int8 parameters for weights; `axis` None is per tensor.

    `bits` below 8 uses only part of the type ([-63, 63] for 7 bits): two products of a 7-bit weight and an 8-bit
    activation cannot overflow 16 bits on CPUs that add pairs there. `bound` overrides the largest magnitude covered.
    """
    if bound is None:
        others = tuple(d for d in range(weights.ndim) if d != axis) if axis is not None else None
        bound = np.abs(weights).max(axis=others) if weights.size else np.zeros(())
    scale = (np.asarray(bound, np.float64) / (2 ** (bits - 1) - 1)).astype(np.float32)
    scale = np.where(scale < SMALLEST_SCALE, np.float32(1.0), scale)
    return QuantParams(np.asarray(scale, np.float32), np.zeros(scale.shape, np.int8), axis)
