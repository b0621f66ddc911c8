"""Casts. Values are converted as C does, except that narrow floats may saturate and strings follow ONNX's spelling.

Float8 E4M3 and E5M2 clip to the largest finite value if `saturate` (the default), infinities included. E8M0 holds only
powers of two and rounds by `round_mode`. Floats become integers by truncation; four- and two-bit integers keep the low
bits of the truncated value. `BitCast` reinterprets bytes.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from pumice.ops.channels import UNARY
from pumice.ops.dtypes import NARROW_INTEGERS, is_float, numpy_dtype
from pumice.ops.record import STOP, Array, Arrays, Node, Op, Outputs, Vjp, Wanted, traffic

_TYPE_NAMES = {"FLOAT": "float32", "DOUBLE": "float64"}


def cast(x: Array, dtype: np.dtype[Any], saturate: bool = True, round_mode: str = "up") -> Array:
    if x.dtype == dtype:
        return x
    if dtype.kind == "O":
        return _to_text(x)
    if x.dtype.kind in "OSU":
        x = x.astype(np.float64) if dtype.kind not in "iu" else x.astype(np.int64)
    if dtype.name == "float8_e8m0fnu":
        return _to_power_of_two(x.astype(np.float32), saturate, round_mode)
    if dtype.name.startswith("float8") and saturate:
        limit = float(ml_dtypes.finfo(dtype).max)  # type: ignore[no-untyped-call]
        return np.clip(x.astype(np.float32), -limit, limit).astype(dtype)
    if dtype.name in NARROW_INTEGERS:
        return _to_narrow_integer(x, dtype)
    return x.astype(dtype)


def _to_text(x: Array) -> Array:
    """Shortest decimal that reads back as the same value of the source type."""
    return x.astype(np.str_).astype(object)


def _to_narrow_integer(x: Array, dtype: np.dtype[Any]) -> Array:
    """The low bits of the truncated value, so that 17 becomes 1 in four bits."""
    low, high = NARROW_INTEGERS[dtype.name]
    integers = x.astype(np.float32).astype(np.int64) if x.dtype.kind not in "iu" else x.astype(np.int64)
    return ((integers - low) % (high - low + 1) + low).astype(dtype)


def _to_power_of_two(x: Array, saturate: bool, round_mode: str) -> Array:
    """E8M0 stores only the exponent: 2^(e - 127), with 255 for NaN.

    The mantissa of |x| rounds to an exponent: `down` drops it, `up` takes the next power if any bit is set, `nearest`
    rounds half up.
    """
    bits = np.abs(x).view(np.uint32)
    exponent, mantissa = (bits >> 23).astype(np.int32), bits & 0x7FFFFF
    half = np.uint32(0x400000)
    above = mantissa >= half if round_mode == "nearest" else mantissa > 0
    rounded = exponent if round_mode == "down" else exponent + above
    ceiling = 254 if saturate else 255
    code = np.where(np.isnan(x), 255, np.minimum(rounded, ceiling)).astype(np.uint8)
    return code.view(ml_dtypes.float8_e8m0fnu)


def _cast(node: Node, x: Array) -> Outputs:
    to = node.attributes["to"]
    spelt = isinstance(to, str)  # as in opset 1 to 5
    dtype = np.dtype(_TYPE_NAMES.get(to, to.lower())) if spelt else numpy_dtype(to)
    return (cast(x, dtype, bool(node.get("saturate", 1)), node.get("round_mode", "up")),)


def _cast_like(node: Node, x: Array, target: Array) -> Outputs:
    return (cast(x, target.dtype, bool(node.get("saturate", 1)), node.get("round_mode", "up")),)


def _bit_cast(node: Node, x: Array) -> Outputs:
    return (np.ascontiguousarray(x).view(numpy_dtype(node.attributes["to"])).reshape(x.shape),)


def _cast_vjp(node: Node, inputs: Arrays, outputs: Arrays, grads: Arrays, wanted: Wanted) -> Arrays:
    """Rounding to another float type passes gradient on as it is; an integer has none."""
    flows = is_float(inputs[0].dtype) and is_float(outputs[0].dtype)
    return [grads[0].astype(inputs[0].dtype) if flows else None, *[None] * (len(inputs) - 1)]


_CAST_VJP = Vjp(_cast_vjp, wrt=(0,), inputs=(), outputs=())

OPS = (
    Op("Cast", forward=_cast, vjp=_CAST_VJP, cost=traffic, channels=UNARY),
    Op("CastLike", since=15, forward=_cast_like, vjp=_CAST_VJP, cost=traffic, channels=UNARY),
    Op("BitCast", since=26, forward=_bit_cast, vjp=STOP, cost=traffic),
)
