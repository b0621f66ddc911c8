"""Signal to quantization noise, in decibels: 10 log10(sum x^2 / sum (x - y)^2).

Every 6.02 dB is one bit of precision. float32 itself resolves about 150 dB, so `EXACT` stands for no error at all.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

EXACT = 200.0


def sqnr(signal: float, noise: float) -> float | None:
    """From summed squares; None if there is no signal to compare with, or it is not finite."""
    if not (math.isfinite(signal) and math.isfinite(noise)):
        return None
    if noise <= 0.0:
        return EXACT
    if signal <= 0.0:
        return None
    return round(min(10.0 * math.log10(signal / noise), EXACT), 3)


def sqnr_of(exact: NDArray[Any], approximate: NDArray[Any]) -> float | None:
    """Of two arrays of one shape."""
    wide = exact.astype(np.float64)
    difference = wide - approximate.astype(np.float64)
    return sqnr(float(np.vdot(wide, wide)), float(np.vdot(difference, difference)))
