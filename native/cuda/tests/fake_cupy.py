"""CuPy without a GPU: arrays that behave as CuPy's do where it matters, over NumPy.

An array refuses to meet NumPy's arrays, to become one in silence, and everything that CuPy lacks (asked of the real
`cupy`, which imports anywhere). Looking into an array from Python (`int(x)`, `x.item()`, `x.tolist()`, `bool(x)`) is
counted in `looks`: on a GPU each waits for everything before it.
"""

from __future__ import annotations

import types

import cupy as real
import ml_dtypes
import numpy as np

looks = []
"""Names of the ways in which Python looked into an array."""


class ndarray(np.lib.mixins.NDArrayOperatorsMixin):
    """A device array."""

    __module__ = "cupy"
    __array_priority__ = 100
    __cuda_array_interface__ = {"version": 3}

    def __init__(self, array):
        self._array = array
        self.device = types.SimpleNamespace(id=0)

    def __array__(self, *_args, **_kwargs):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **kwargs):
        if not hasattr(real, ufunc.__name__) or method != "__call__":
            raise TypeError(f"{ufunc.__name__}.{method} is not there")
        if out is not None:
            ufunc(*unwrapped(inputs), out=unwrapped(out), **dict(unwrapped(kwargs)))
            return out[0]
        return wrapped(ufunc(*unwrapped(inputs), **dict(unwrapped(kwargs))))

    def __array_function__(self, function, _types, args, kwargs):
        if not hasattr(_counterpart(function), function.__name__):
            return NotImplemented
        found = function(*unwrapped(args), **dict(unwrapped(kwargs)))
        if function is np.where and found.dtype == ml_dtypes.bfloat16:
            found = found.astype(np.float32)  # CuPy's has no kernel for bfloat16 and takes the next wider one
        return wrapped(found)

    def __getattr__(self, name):
        if name.startswith("__") or not hasattr(real.ndarray, name):
            raise AttributeError(f"'cupy.ndarray' object has no attribute '{name}'")
        if name in {"item", "tolist"}:
            looks.append(name)
        found = getattr(self._array, name)
        if name in {"shape", "dtype", "ndim", "size", "nbytes", "strides", "itemsize", "flags", "item", "tolist"}:
            return found
        if callable(found):
            return lambda *args, **kwargs: wrapped(found(*unwrapped(args), **dict(unwrapped(kwargs))))
        return wrapped(found)

    @property
    def data(self):
        return types.SimpleNamespace(ptr=self._array.ctypes.data)

    def astype(self, dtype, **options):
        return ndarray(self._array.astype(supported(dtype), **options))

    def __getitem__(self, index):
        return wrapped(self._array[unwrapped(index)])

    def __setitem__(self, index, value):
        self._array[unwrapped(index)] = unwrapped(value)

    def __len__(self):
        return len(self._array)

    def __iter__(self):
        return map(wrapped, self._array)

    def __int__(self):
        return self._looked("__int__")

    def __float__(self):
        return self._looked("__float__")

    def __bool__(self):
        return self._looked("__bool__")

    def __index__(self):
        return self._looked("__index__")

    def _looked(self, name):
        looks.append(name)
        return getattr(self._array, name)()


def wrapped(value):
    if isinstance(value, np.ndarray | np.generic):
        return ndarray(np.asarray(value))
    if isinstance(value, tuple | list) and any(isinstance(item, np.ndarray) for item in value):
        return type(value)(map(wrapped, value)) if type(value) in (tuple, list) else tuple(map(wrapped, value))
    return value


def unwrapped(value):
    if isinstance(value, ndarray):
        return value._array
    if isinstance(value, np.ndarray):
        raise TypeError(f"Unsupported type {type(value)}")
    if isinstance(value, dict):
        return {key: unwrapped(item) for key, item in value.items()}
    return type(value)(map(unwrapped, value)) if type(value) in (tuple, list) else value


def _counterpart(function):
    found = real
    for part in function.__module__.split(".")[1:]:
        found = getattr(found, part, None)
    return found


def supported(dtype):
    """The type, unless CuPy has none such."""
    dtype = np.dtype(dtype)
    if dtype.isbuiltin == 2 and dtype != ml_dtypes.bfloat16:  # 2: of another package than NumPy
        raise ValueError(f"Unsupported dtype {dtype}")
    return dtype


def asarray(value, dtype=None):
    """A copy of an array of either kind."""
    inner = value._array if isinstance(value, ndarray) else value
    found = np.array(inner, dtype=dtype)
    supported(found.dtype)
    return ndarray(found)


def asnumpy(value):
    return value._array.copy()


def _made(name):
    """NumPy's function of that name for device arrays, if CuPy has one."""
    if not hasattr(real, name):
        raise AttributeError(f"module 'cupy' has no attribute '{name}'")
    function = getattr(np, name)
    if isinstance(function, type) or not callable(function):
        return function
    return lambda *args, **kwargs: wrapped(function(*unwrapped(args), **dict(unwrapped(kwargs))))


class Stream:
    """A stream on which everything is done at once."""

    def __init__(self, *, non_blocking=False):
        self.non_blocking = non_blocking

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def synchronize(self):
        return None

    def is_capturing(self):
        return False


def no_memory():
    """Of a recording, which there is none of here."""
    raise MemoryError("none that is kept")


def module():
    """What stands for the module `cupy`."""
    fake = types.ModuleType("cupy")
    fake.ndarray, fake.asarray, fake.array, fake.asnumpy = ndarray, asarray, asarray, asnumpy
    fake.ogrid = type("ogrid", (), {"__getitem__": lambda self, slices: [ndarray(axis) for axis in np.ogrid[slices]]})()
    fake.lib = types.SimpleNamespace(
        stride_tricks=types.SimpleNamespace(
            as_strided=lambda x, shape, strides: wrapped(np.lib.stride_tricks.as_strided(x._array, shape, strides))
        )
    )
    fake.cuda = types.SimpleNamespace(
        Stream=Stream,
        Device=Stream,
        runtime=types.SimpleNamespace(getDevice=lambda: 0),
        get_current_stream=Stream,
        MemoryPool=no_memory,
    )
    fake.__getattr__ = _made
    return fake


def special():
    """What stands for `cupyx.scipy.special`."""
    from scipy import special as functions

    return types.SimpleNamespace(erf=lambda x: wrapped(functions.erf(unwrapped(x))))
