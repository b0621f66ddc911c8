"""The update of adam and adamw on a GPU: one pass that reads w, g, p and q once and writes w, p and q.

    p = b1 p + (1 - b1) g;  q = b2 q + (1 - b2) g^2;  w -= r ((p / s1) / (sqrt(q / s2) + e) + d w)

in float32, with d w in g instead for adam. Numbers are arguments of the kernel: it is compiled once.
"""

from __future__ import annotations

import functools
from typing import Any

NUMBERS = (
    "momentum", "second", "first_share", "second_share", "epsilon", "rate", "inner_decay", "outer_decay",
)  # fmt: skip
_SOURCE = """
T d = g + inner_decay * w;
p = momentum * p + (1 - momentum) * d;
q = second * q + (1 - second) * d * d;
w -= rate * ((p / first_share) / (sqrt(q / second_share) + epsilon) + outer_decay * w);
"""


def adaptive(w: Any, g: Any, p: Any, q: Any, **numbers: float) -> None:
    """Move a weight and its moments in place.

    Args:
        w: the weight, a CuPy array.
        g: its gradient, of the same shape and type, as the moments.
        p: the mean of the gradients so far.
        q: the mean of their squares.
        numbers: those of `NUMBERS`.
    """
    _kernel()(g, *(w.dtype.type(numbers[name]) for name in NUMBERS), w, p, q)


@functools.cache
def _kernel() -> Any:
    import cupy

    scalars = ", ".join(f"T {name}" for name in NUMBERS)
    return cupy.ElementwiseKernel(f"T g, {scalars}", "T w, T p, T q", _SOURCE, "pumice_adaptive")
