"""ONNX element types as NumPy dtypes, and casts between them that saturate as ONNX says.

The codes are those of `TensorProto.DataType`. Types NumPy lacks come from ml_dtypes. A value stored in a narrow float
keeps `saturate(v) = clip(v, -max, max)` where the type's cast would overflow; NaN stays NaN where the type has one.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from pumice.ops.record import Array

NAMES = (
    "undefined float32 uint8 int8 uint16 int16 int32 int64 string bool float16 float64 uint32 uint64 complex64 "
    "complex128 bfloat16 float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz uint4 int4 float4_e2m1fn "
    "float8_e8m0fnu uint2 int2 float6_e2m3fn float6_e3m2fn"
).split()
"""Index = the code of the type in ONNX."""

STRING = NAMES.index("string")


def numpy_dtype(code: int) -> np.dtype[Any]:
    """The dtype of an ONNX type code; strings are object arrays."""
    name = NAMES[code]
    return np.dtype(object if name == "string" else getattr(ml_dtypes, name, None) or name)


_NARROW_FLOATS = frozenset(name for name in NAMES if name.startswith(("bfloat16", "float4_", "float6_", "float8_")))
NARROW_INTEGERS = {"int2": (-2, 1), "uint2": (0, 3), "int4": (-8, 7), "uint4": (0, 15)}


def is_float(dtype: np.dtype[Any]) -> bool:
    return dtype.kind == "f" or dtype.name in _NARROW_FLOATS


def integer_range(dtype: np.dtype[Any]) -> tuple[int, int]:
    """Smallest and largest value of an integer type, including those of two and four bits."""
    if dtype.name in NARROW_INTEGERS:
        return NARROW_INTEGERS[dtype.name]
    limits = np.iinfo(dtype)
    return int(limits.min), int(limits.max)


def wide(x: Array) -> Array:
    """The array in a type whose arithmetic is fast and accurate: narrow floats become float32."""
    return x.astype(np.float32) if x.dtype == np.float16 or x.dtype.name in _NARROW_FLOATS else x
