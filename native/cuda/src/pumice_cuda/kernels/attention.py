"""Attention that a graph spells out: MatMul, its scores scaled and masked, Softmax over the keys, MatMul.

Of four axes (batch, heads, rows, size) in float32, as they lie after a Transpose. Anything else is computed node by
node. A row whose keys are all masked by minus infinity is NaN, as it is there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pumice.ops.record import Kernel, Link, Outputs
from pumice_cuda import reference
from pumice_cuda.transfers import on_device, to_host

_LETTERS = {"Div": "s", "Mul": "s", "Add": "m", "Softmax": "x", "MatMul": "v"}
_SPELLING = re.compile("s?m?xv")
"""After the first product: scaled, masked, softmax, times the values."""
SOFTMAX_OF_ONE_AXIS = 13
"""Opset from which a Softmax is over its axis alone."""


def _attention(chain: Sequence[Link]) -> Callable[..., Outputs] | None:
    product, *tail = chain
    names = "".join(_LETTERS.get(link.node.op_type, "?") for link in tail)
    if product.node.domain or not _SPELLING.fullmatch(names) or tail[-1].at != 0 or not _over_keys(tail[-2]):
        return None
    scaled, masked = "s" in names, "m" in names
    known, found = (_other(tail[0]), _factor(tail[0])) if scaled else (None, 1.0)
    if found is None:
        return None
    factor = found

    def run(q: Any, k: Any, *rest: Any) -> Any:
        from pumice_cuda.attention import attention, takes

        scale, mask, v = (rest[0] if scaled else None), (rest[scaled] if masked else None), rest[-1]
        if scale is not known or any(not on_device(x) or x.ndim != 4 for x in (k, v)) or q.ndim != 4:
            return NotImplemented
        keys, wanted = k.swapaxes(2, 3), (*q.shape[:3], k.shape[3])
        if not takes(q, keys, v) or (masked and not _broadcasts(mask, wanted)):
            return NotImplemented
        return (attention(q, keys, v, factor, mask),)

    return run


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
