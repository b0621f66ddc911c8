"""Single weights made zero. A layer computes y = W x, and H = E[x x^T] are the second moments of its inputs.

magnitude   the smallest |w| go (Han et al., NeurIPS 2015)
wanda       the smallest |w| sqrt(H_jj) of every output go (Sun et al., ICLR 2024): a weight matters by what it adds
sparsegpt   the smallest w^2 / U_jj^2 go, U^T U = H^-1, a block of inputs at a time, and those still to come make up
            for what each takes away (Frantar and Alistarh, ICML 2023)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from pumice import Int, Need, Sparsifier, hookimpl, knob

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pumice.ops import Kernel
    from pumice.prune.sparsity import Pattern


@attrs.frozen(kw_only=True)
class Magnitude(Sparsifier):
    """The smallest weights become zero."""

    name = "magnitude"

    def sparsified(self, weights: NDArray[Any], moments: NDArray[Any] | None, pattern: Pattern) -> NDArray[Any]:
        return np.where(pattern.keep(np.abs(weights), whole=True), weights, 0.0)


@attrs.frozen(kw_only=True)
class Wanda(Sparsifier):
    """The weights that add least to each output become zero."""

    name = "wanda"
    needs = frozenset({Need.CALIBRATION})

    def sparsified(self, weights: NDArray[Any], moments: NDArray[Any] | None, pattern: Pattern) -> NDArray[Any]:
        lengths = 1.0 if moments is None else np.sqrt(np.diag(moments))
        return np.where(pattern.keep(np.abs(weights) * lengths), weights, 0.0)


@attrs.frozen(kw_only=True)
class SparseGpt(Sparsifier):
    """The weights that the others can make up for become zero, and the others do."""

    name = "sparsegpt"
    needs = frozenset({Need.CALIBRATION})
    block: int = knob(128, Int(8, 4096, log=True), help="inputs whose zeros are chosen together")

    def sparsified(self, weights: NDArray[Any], moments: NDArray[Any] | None, pattern: Pattern) -> NDArray[Any]:
        working, count = weights.copy(), weights.shape[1]
        upper = np.eye(count) if moments is None else np.linalg.cholesky(np.linalg.inv(moments)).T
        block = self.block - self.block % (pattern.run or 1)
        for start in range(0, count, block):
            stop = min(start + block, count)
            scores = (working[:, start:stop] / np.diag(upper)[start:stop]) ** 2
            keep = pattern.keep(scores, whole=True)
            for j in range(start, stop):
                lost = np.where(keep[:, j - start], 0.0, working[:, j])
                working[:, j] -= lost
                working[:, j + 1 :] -= np.outer(lost / upper[j, j], upper[j, j + 1 :])
        return working


@hookimpl
def pumice_sparsifiers() -> Iterator[type[Sparsifier]]:
    yield Magnitude
    yield Wanda
    yield SparseGpt


@hookimpl
def pumice_kernels() -> Iterator[Kernel]:
    from pumice_prune_sparse.products import MATMUL

    yield MATMUL
