"""How the learning rate moves over the steps of a training.

With t the share of the steps done, in [0, 1):

    constant    1
    step        0.1 after half, 0.01 after three quarters
    cosine      (1 + cos(pi t)) / 2
    one-cycle   from 1/25 up to 1 over the first 30%, down to 1/10,000, both by cosine (Smith and Topin, 2019)

Warm-up rises in proportion over the first steps and multiplies whichever schedule follows.
"""

from __future__ import annotations

import math

SCHEDULES = ("constant", "step", "cosine", "one-cycle")
_RISE = 0.3


def factor(schedule: str, step: int, total: int, warmup: int) -> float:
    """What the base rate is multiplied by at a step (from 0) out of `total`."""
    rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
    return rise * _shape(schedule, step / max(1, total))


def _shape(schedule: str, t: float) -> float:
    if schedule == "step":
        return 1.0 if t < 0.5 else 0.1 if t < 0.75 else 0.01
    if schedule == "cosine":
        return _cosine(1.0, 0.0, t)
    if schedule == "one-cycle":
        return _cosine(0.04, 1.0, t / _RISE) if t < _RISE else _cosine(1.0, 1e-4, (t - _RISE) / (1 - _RISE))
    return 1.0


def _cosine(start: float, end: float, t: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * t)) / 2
