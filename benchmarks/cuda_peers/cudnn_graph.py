"""cuDNN's backend API: a computation is a graph of descriptors, each of some kind and with attributes.

The kinds here have the attributes that `cudnn.py` needs, under short names. The numbers are those of the enumerations
in the library's header `cudnn_graph.h`; the library is the one that PyTorch has loaded.
"""

import ctypes
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

FLOAT, INT8, INT32 = 0, 3, 4  # cudnnDataType_t
CROSS_CORRELATION = 1  # cudnnConvolutionMode_t
MULTIPLY, RELU = 1, 100  # cudnnPointwiseMode_t
BY_RULES, FALLBACK = 3, 2  # cudnnBackendHeurMode_t

_HANDLE, _POINTER, _DESCRIPTOR = (0, ctypes.c_void_p), (6, ctypes.c_void_p), (15, ctypes.c_void_p)
_TYPE, _FLAG, _INTEGER, _REAL = (1, ctypes.c_int), (2, ctypes.c_bool), (3, ctypes.c_int64), (4, ctypes.c_float)
_CONVOLUTION_MODE, _HEURISTIC_MODE, _POINTWISE_MODE = (7, ctypes.c_int), (8, ctypes.c_int), (14, ctypes.c_int)


class Kind(NamedTuple):
    number: int
    """cudnnBackendDescriptorType_t."""
    attributes: dict[str, tuple[int, tuple[int, Any]]]
    """cudnnBackendAttributeName_t, cudnnBackendAttributeType_t and what that is in C."""


TENSOR = Kind(17, {
    "alignment": (900, _INTEGER), "dtype": (901, _TYPE), "sizes": (902, _INTEGER), "strides": (903, _INTEGER),
    "name": (906, _INTEGER), "virtual": (907, _FLAG),
})  # fmt: skip
WINDOW = Kind(1, {
    "sums": (100, _TYPE), "mode": (101, _CONVOLUTION_MODE), "dilations": (102, _INTEGER), "strides": (103, _INTEGER),
    "after": (104, _INTEGER), "before": (105, _INTEGER), "rank": (106, _INTEGER),
})  # fmt: skip
CONVOLUTION = Kind(10, {
    "alpha": (700, _REAL), "beta": (701, _REAL), "window": (702, _DESCRIPTOR), "weights": (703, _DESCRIPTOR),
    "images": (704, _DESCRIPTOR), "out": (705, _DESCRIPTOR),
})  # fmt: skip
FUNCTION = Kind(0, {"mode": (0, _POINTWISE_MODE), "precision": (1, _TYPE)})
POINTWISE = Kind(13, {
    "function": (750, _DESCRIPTOR), "x": (751, _DESCRIPTOR), "factor": (752, _DESCRIPTOR), "out": (753, _DESCRIPTOR),
})  # fmt: skip
GRAPH = Kind(15, {"handle": (800, _HANDLE), "operations": (801, _DESCRIPTOR)})
HEURISTIC = Kind(4, {"mode": (200, _HEURISTIC_MODE), "graph": (201, _DESCRIPTOR), "proposals": (202, _DESCRIPTOR)})
PROPOSAL = Kind(3, {})
PLAN = Kind(5, {"handle": (400, _HANDLE), "proposal": (401, _DESCRIPTOR), "workspace": (402, _INTEGER)})
CALL = Kind(16, {"names": (1000, _INTEGER), "pointers": (1001, _POINTER), "workspace": (1003, _POINTER)})


def made(kind: Kind, **attributes: Sequence[Any]) -> Any:
    """A finished descriptor."""
    descriptor = created(kind)
    for name, values in attributes.items():
        number, (type_number, c_type) = kind.attributes[name]
        array = (c_type * len(values))(*values)
        do("cudnnBackendSetAttribute", descriptor, number, type_number, ctypes.c_int64(len(values)), array)
    do("cudnnBackendFinalize", descriptor)
    return descriptor


def created(kind: Kind) -> Any:
    """An empty one, to be filled by `read`."""
    descriptor = ctypes.c_void_p()
    do("cudnnBackendCreateDescriptor", kind.number, ctypes.byref(descriptor))
    return descriptor


def read(descriptor: Any, kind: Kind, name: str, room: Sequence[Any]) -> Sequence[Any]:
    """The values of an attribute, as many as there is room for; descriptors are filled in place."""
    number, (type_number, c_type) = kind.attributes[name]
    array, count = (c_type * len(room))(*room), ctypes.c_int64()
    size = ctypes.c_int64(len(room))
    do("cudnnBackendGetAttribute", descriptor, number, type_number, size, ctypes.byref(count), array)
    return array[: count.value]


def do(name: str, *arguments: Any) -> None:
    """Call the library; RuntimeError with its own words if it refuses."""
    if status := getattr(_library(), name)(*arguments):
        words = ctypes.create_string_buffer(512)
        _library().cudnnGetLastErrorString(words, ctypes.c_size_t(len(words)))
        raise RuntimeError(f"{name} answers {status}: {' '.join(words.value.decode(errors='replace').split())}")


@functools.cache
def handle() -> Any:
    found = ctypes.c_void_p()
    do("cudnnCreate", ctypes.byref(found))
    return found


@functools.cache
def _library() -> Any:
    return ctypes.CDLL("libcudnn.so.9")
