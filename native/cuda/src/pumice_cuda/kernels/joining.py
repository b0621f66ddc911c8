"""Concat of many arrays, each copied to its place: CuPy hands more than eight of them to one kernel, whose list of
addresses it copies from the CPU, which no recording may do.
"""

from __future__ import annotations

from typing import Any

from pumice.ops.record import Array, Kernel, Node, Outputs
from pumice_cuda import reference

AT_ONCE = 8


def _concat(node: Node, *arrays: Array) -> Outputs:
    import cupy

    first, axis = arrays[0], node.get("axis", 0) % max(arrays[0].ndim, 1)
    shapes = {(*x.shape[:axis], *x.shape[axis + 1 :]) for x in arrays}
    if len(arrays) <= AT_ONCE or len(shapes) > 1 or any(x.dtype != first.dtype for x in arrays):
        return reference.forward(node, *arrays)
    length = sum(x.shape[axis] for x in arrays)
    joined: Any = cupy.empty((*first.shape[:axis], length, *first.shape[axis + 1 :]), first.dtype)
    before: tuple[slice, ...] = (slice(None),) * axis
    at = 0
    for x in arrays:
        joined[(*before, slice(at, at + x.shape[axis]))] = x
        at += x.shape[axis]
    return (joined,)


KERNELS = (Kernel(op_type="Concat", since=4, run=_concat, rtol=0.0, atol=0.0),)
