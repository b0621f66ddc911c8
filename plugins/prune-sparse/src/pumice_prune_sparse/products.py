"""Matrix products that skip zeros: y = x W for few rows x and a constant W of which most is zero.

W is kept as compressed sparse rows of its transpose: a product costs what is not zero instead of everything. Against
the dense kernels of pumice-cpu, on one and two threads, that wins at one row from 90% zeros on and never loses at up to
8 rows from 95% on (against OpenBLAS, `bench_pruning.py --only zeros`, one row still loses there on some machines).
Below SHARE zeros, beyond ROWS rows, and in small matrices, products stay dense.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pumice.ops.record import Forward, Kernel, Node, Outputs

SHARE = 0.95
"""Least share of zeros."""
ROWS = 8
"""Most rows."""
SMALLEST = 1 << 16
"""Elements of the smallest matrix."""


def bound(node: Node, constants: Sequence[Any]) -> Forward | None:
    """A product with the matrix that is constant and sparse enough; None if it is not."""
    dense = constants[1] if len(constants) > 1 else None
    if dense is None or dense.ndim != 2 or dense.size < SMALLEST or np.mean(dense == 0) < SHARE:
        return None
    from scipy.sparse import csr_array

    sparse = csr_array(np.ascontiguousarray(dense.T))

    def run(node: Node, x: Any, w: Any) -> Outputs:
        rows = x.reshape(-1, x.shape[-1])
        if w is not dense or len(rows) > ROWS or x.ndim < 2:
            return (np.matmul(x, w),)
        return (np.ascontiguousarray((sparse @ rows.T).T).reshape(*x.shape[:-1], dense.shape[1]),)

    return run


def matmul(node: Node, x: Any, w: Any) -> Outputs:
    return (np.matmul(x, w),)


MATMUL = Kernel(op_type="MatMul", rank=60, run=matmul, bind=bound)
