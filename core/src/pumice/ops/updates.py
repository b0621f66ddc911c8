"""Updates of weights that a plugin computes faster, by the name of the arrays' namespace; light, so that a plugin may
enter its own where it enters its kernels. The mathematics is that of `pumice.train.optimizers`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

FUSED: dict[str, Callable[..., object]] = {}
"""What moves w, p and q in place by adam or adamw in one pass: `fused(w, g, p, q, **numbers)`, which returns
NotImplemented for arrays that it does not take."""
FINITE: dict[str, Callable[[Any], bool]] = {}
"""A quicker way to tell whether all elements of an array are finite."""
