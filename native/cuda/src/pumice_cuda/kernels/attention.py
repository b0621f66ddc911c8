"""Attention that a graph spells out: MatMul, its scores scaled and masked, Softmax over the keys, MatMul.

Of four axes (batch, heads, rows, size) in float32, as they lie after a Transpose. Heads that are put side by side again
(Transpose, Reshape), multiplied by a vector and quantized dynamically are so in the same chain. Anything else is
computed node by node. A row whose keys are all masked by minus infinity is NaN, as it is there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pumice.ops.record import Kernel, Link, Outputs
from pumice_cuda import reference
from pumice_cuda.teams import aligned
from pumice_cuda.transfers import on_device, to_host

_LETTERS = {
    "Div": "d", "Mul": "f", "Add": "m", "Softmax": "x", "MatMul": "v", "Transpose": "t", "Reshape": "r",
    "DynamicQuantizeLinear": "q",
}  # fmt: skip
_SPELLING = re.compile("([df]?)(m?)xv(trf?q)?")
"""After the first product: scaled, masked, softmax, times the values; side by side, times a vector, quantized."""
SIDE_BY_SIDE = [0, 2, 1, 3]
"""The axes of heads that are put side by side, from (batch, heads, rows, size)."""
SOFTMAX_OF_ONE_AXIS = 13
"""Opset from which a Softmax is over its axis alone."""


def _attention(chain: Sequence[Link]) -> Callable[..., Outputs] | None:
    product, *tail = chain
    spelt = _SPELLING.fullmatch("".join(_LETTERS.get(link.node.op_type, "?") for link in tail))
    if product.node.domain or spelt is None:
        return None
    scaled, masked, quantized = map(bool, spelt.groups())
    *_, softmax, values = tail[: spelt.end(2) + 2]
    joining = tail[spelt.end(2) + 2 :]
    if values.at != 0 or not _over_keys(softmax) or not _are_joined(joining):
        return None
    known, found = (_other(tail[0]), _factor(tail[0])) if scaled else (None, 1.0)
    if found is None:
        return None
    factor = found

    def run(q: Any, k: Any, *rest: Any) -> Any:
        from pumice_cuda import attention as module

        given = list(rest)
        scale, mask = (given.pop(0) if present else None for present in (scaled, masked))
        v, *after = given
        if scale is not known or any(not on_device(x) or x.ndim != 4 for x in (k, v)) or q.ndim != 4:
            return NotImplemented
        keys, wanted = k.swapaxes(2, 3), (*q.shape[:3], k.shape[3])
        if not module.takes(q, keys, v) or (masked and not _broadcasts(mask, wanted)):
            return NotImplemented
        if not quantized:
            return (module.attention(q, keys, v, factor, mask),)
        joined, columns = (*after, None)[:2]
        if not _is_shape(joined, q.shape) or not _is_vector(columns, q.shape):
            return NotImplemented
        return module.quantized_attention(q, keys, v, factor, mask, columns)

    return run


def _are_joined(links: Sequence[Link]) -> bool:
    """Whether heads are put side by side, if anything is done with them."""
    if not links:
        return True
    transpose, reshape, *_ = (link.node for link in links)
    return list(transpose.get("perm", ())) == SIDE_BY_SIDE and links[1].at == 0 and not reshape.get("allowzero", 0)


def _is_shape(shape: Any, heads: tuple[int, ...]) -> bool:
    """Whether a Reshape of (batch, rows, heads, size) to such a shape makes rows of all heads of it."""
    batch, count, rows, size = heads
    if not isinstance(shape, np.ndarray) or shape.shape != (3,):
        return False
    allowed = ((batch, 0, -1), (rows, 0, -1), (count * size, -1))
    return all(given in values for given, values in zip(shape.tolist(), allowed, strict=True))


def _is_vector(columns: Any, heads: tuple[int, ...]) -> bool:
    """Whether factors are one for each column of all heads; None is."""
    if columns is None:
        return True
    fits = on_device(columns) and columns.shape == (heads[1] * heads[3],) and columns.dtype == np.float32
    return bool(fits and columns.flags.c_contiguous and aligned(columns))


def _factor(scaling: Link) -> float | None:
    """What scores are multiplied by; None if that is not one number that is known, or they are divided by zero."""
    divides, known = scaling.node.op_type == "Div", _other(scaling)
    if known is None or known.size != 1 or (divides and scaling.at != 0):
        return None
    value = float(np.asarray(to_host(known)).reshape(()))
    if not divides:
        return value
    return 1.0 / value if value else None


def _over_keys(softmax: Link) -> bool:
    return softmax.node.opset >= SOFTMAX_OF_ONE_AXIS and softmax.node.get("axis", -1) in (-1, 3)


def _other(link: Link) -> Any:
    """The constant beside what the chain hands on."""
    return link.constants[1 - link.at] if len(link.constants) == 2 else None


def _broadcasts(mask: Any, shape: tuple[int, ...]) -> bool:
    sizes = zip(mask.shape[::-1], shape[::-1], strict=False) if on_device(mask) else ()
    return on_device(mask) and mask.dtype == np.float32 and mask.ndim <= 4 and all(m in (1, s) for m, s in sizes)


KERNELS = (Kernel(op_type="MatMul", run=reference.forward, fuse=_attention, rank=5, rtol=1e-5, atol=1e-5),)
