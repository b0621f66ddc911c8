"""What calibration asks of a tensor, as an operator of pumice's own, so that kernels may compute it."""

from __future__ import annotations

import numpy as np

from pumice.ops.record import Array, Node, Op, Outputs

BINS = 1 << 16


def _histogram(node: Node, x: Array) -> Outputs:
    """How many values have each pattern of upper 16 bits, int64 (65536,), and the least and the greatest value.

    Each pattern is a bfloat16 number. The extremes are NaN if there is one; x is float32 and not empty.
    """
    patterns = np.ascontiguousarray(x).reshape(-1).view(np.uint16)[1::2]
    return np.bincount(patterns, minlength=BINS), np.array([x.min(), x.max()], np.float32)


OPS = (Op("Histogram", domain="pumice", forward=_histogram),)
