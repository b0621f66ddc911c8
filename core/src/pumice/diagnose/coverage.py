"""Calibration coverage: how soon the ranges stop growing with the number of samples.

After n samples a value's range is r_n = max - min of what was seen; its share r_n / r_N of what all N samples show
rises to 1. Where the mean over all layers reaches ENOUGH before N, more samples would hardly change the ranges; where
it rises to the end, they would.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import attrs
import numpy as np
import onnx_ir as ir

from pumice.model import clone

if TYPE_CHECKING:
    from pumice.data import Dataset
    from pumice.strategy import Runtime

ENOUGH = 0.95


@attrs.frozen(kw_only=True)
class CoverageCurve:
    """Mean and least share of the final range, by the number of samples."""

    samples: tuple[int, ...]
    mean: tuple[float, ...]
    least: tuple[float, ...]

    @property
    def enough(self) -> int | None:
        """The fewest samples whose mean share is ENOUGH; None if only all of them are, so that more may be needed."""
        found = next((n for n, share in zip(self.samples, self.mean, strict=True) if share >= ENOUGH), None)
        return found if found is not None and found < self.samples[-1] else None

    def sentence(self) -> str:
        count = self.samples[-1] if self.samples else 0
        if self.enough is None:
            return f"The ranges still grow at the end of these {count} samples: calibrate with more."
        return f"{self.enough} of these {count} samples show {ENOUGH:.0%} of the ranges: there are enough."


def calibration_coverage(
    model: ir.Model, names: Sequence[str], dataset: Dataset, runtime: Runtime, limit: int
) -> CoverageCurve | None:
    """The curve of the named values of a model over at most `limit` samples; None without any."""
    if not names:
        return None
    session = runtime.open(clone(model), outputs=list(dict.fromkeys(names)))
    lows, highs = [], []
    for batch in dataset.batches(batch_size=1, limit=limit):
        found = [array for array in session.run(batch.feeds).values() if array.dtype.kind == "f" and array.size]
        lows.append([float(array.min()) for array in found])
        highs.append([float(array.max()) for array in found])
    if not lows:
        return None
    low, high = np.minimum.accumulate(np.array(lows)), np.maximum.accumulate(np.array(highs))
    width = np.maximum(high, 0.0) - np.minimum(low, 0.0)
    share = width / np.where(width[-1] > 0, width[-1], 1.0)
    counts = sorted({min(2**power, len(share)) for power in range(len(share).bit_length() + 1)})
    chosen = share[np.array(counts) - 1]
    return CoverageCurve(
        samples=tuple(counts), mean=tuple(chosen.mean(axis=1).tolist()), least=tuple(chosen.min(axis=1).tolist())
    )
