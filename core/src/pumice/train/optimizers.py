"""Optimizers: from the gradient g of a weight w to its next value, with learning rate r, step number k and decay d.

    sgd     v = m v + g + d w;        w -= r v        (nesterov: r (g + d w + m v))
    adam    p = b1 p + (1 - b1) g;  q = b2 q + (1 - b2) g^2;  u = (p / (1 - b1^k)) / (sqrt(q / (1 - b2^k)) + e)
            with d w in g;            w -= r u
    adamw   as adam without d w in g; w -= r (u + d w)                      (Loshchilov and Hutter, ICLR 2019)
    lamb    as adamw;                 w -= r |w| / |u + d w| (u + d w)      (You et al., ICLR 2020)

Only the weights named as decayed have d > 0. State is one array per weight and moment, in the weight's type; updates
are in place. Gradients may first be clipped to a common Euclidean norm.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import numpy as np

from pumice.ops.dtypes import wide
from pumice.ops.gradient import namespace, zeros
from pumice.ops.updates import FINITE, FUSED
from pumice.train.parameters import Parameters

OPTIMIZERS = ("sgd", "adam", "adamw", "lamb")
_EPSILON = 1e-8
_BLOCK = 1 << 16
PATIENCE = 1000
"""Good steps after which the loss scale is doubled."""


@attrs.define(kw_only=True)
class Optimizer:
    """One of `OPTIMIZERS` and its state."""

    name: str
    momentum: float = 0.9
    """Of sgd; the first decay rate of the others."""
    second: float = 0.999
    nesterov: bool = True
    decay: float = 0.0
    count: int = 0
    """Updates made."""
    moments: dict[str, list[Any]] = attrs.field(factory=dict)

    def update(self, parameters: Parameters, grads: Mapping[str, Any], rate: float) -> None:
        """Move every parameter in place."""
        self.count += 1
        step = self._sgd if self.name == "sgd" else self._adaptive
        for name, w in parameters.values.items():
            step(name, w, grads[name], self.decay if name in parameters.decayed else 0.0, rate)
            if name in parameters.masks:
                w *= parameters.masks[name]

    def _state(self, name: str, w: Any, count: int) -> list[Any]:
        return self.moments.setdefault(name, [zeros(w) for _ in range(count)])

    def _sgd(self, name: str, w: Any, g: Any, decay: float, rate: float) -> None:
        (v,) = self._state(name, w, 1)
        g = g + decay * w if decay else g
        v *= self.momentum
        v += g
        w -= rate * (g + self.momentum * v if self.nesterov else v)

    def _adaptive(self, name: str, w: Any, g: Any, decay: float, rate: float) -> None:
        p, q = self._state(name, w, 2)
        if self.name == "lamb":
            u = self._direction(w, g, p, q, decay)
            weight, length = norm([w]), norm([u])
            w -= rate * (weight / length if weight and length else 1.0) * u
            return
        fused = FUSED.get(namespace(w).__name__)
        if fused is not None and fused(w, g, p, q, **self._numbers(decay, rate)) is not NotImplemented:
            return
        for each_w, each_g, each_p, each_q in _blocks(w, g, p, q):
            each_w -= rate * self._direction(each_w, each_g, each_p, each_q, decay)

    def _numbers(self, decay: float, rate: float) -> dict[str, float]:
        inside = decay if self.name == "adam" else 0.0
        return {
            "momentum": self.momentum,
            "second": self.second,
            "first_share": 1 - self.momentum**self.count,
            "second_share": 1 - self.second**self.count,
            "epsilon": _EPSILON,
            "rate": rate,
            "inner_decay": inside,
            "outer_decay": decay - inside,
        }

    def _direction(self, w: Any, g: Any, p: Any, q: Any, decay: float) -> Any:
        """u, with the decay of adamw and lamb; moves the moments."""
        if self.name == "adam" and decay:
            g = g + decay * w
        p *= self.momentum
        p += (1 - self.momentum) * g
        q *= self.second
        q += (1 - self.second) * np.square(g)
        first, second = 1 - self.momentum**self.count, 1 - self.second**self.count
        u = (p / first) / (np.sqrt(q / second) + _EPSILON)
        if self.name != "adam" and decay:
            u += decay * w
        return u


def _blocks(w: Any, *others: Any) -> Iterator[tuple[Any, ...]]:
    """Views of equal parts of all arrays, small enough for what is computed on the way to stay in a CPU's cache."""
    if w.size <= _BLOCK or not isinstance(w, np.ndarray) or not w.flags.c_contiguous:
        yield w, *others
        return
    flat = [x.reshape(-1) for x in (w, *others)]
    for start in range(0, w.size, _BLOCK):
        yield tuple(x[start : start + _BLOCK] for x in flat)


def norm(arrays: Any) -> float:
    """The Euclidean norm of all elements of all arrays, summed in float64."""
    return math.sqrt(float(_squares(arrays)))


def _squares(arrays: Any) -> Any:
    return sum(np.square(a, dtype=np.float64).sum() for a in arrays)


def clip(grads: dict[str, Any], limit: float) -> dict[str, Any]:
    """Gradients scaled down together so that their common norm is at most `limit`; 0 is no limit."""
    if not limit:
        return grads
    squares = _squares(grads.values())
    if isinstance(squares, np.generic):
        length = math.sqrt(squares)
        return {name: g * (limit / length) for name, g in grads.items()} if length > limit else grads
    share = np.minimum(limit / np.sqrt(squares), 1.0)  # on a device, which is not waited for
    return {name: g * share.astype(g.dtype) for name, g in grads.items()}


@attrs.define(kw_only=True)
class LossScale:
    """Multiplies the loss so that small gradients survive narrow types; backs off when they overflow.

    Any infinity or NaN among the gradients halves the scale, and the step is left out; 1,000 good steps double it.
    """

    scale: float = 1.0
    dynamic: bool = False
    good: int = 0

    def unscaled(self, grads: dict[str, Any]) -> dict[str, Any] | None:
        """The gradients of the loss itself; None if they overflowed and the step should be left out."""
        if not all(map(_is_finite, grads.values())):
            self.scale, self.good = self.scale / 2, 0
            return None
        found = grads if self.scale == 1 else {name: wide(g) / self.scale for name, g in grads.items()}
        self.good += 1
        if self.dynamic and self.good >= PATIENCE:
            self.scale, self.good = self.scale * 2, 0
        return found


@attrs.define(kw_only=True)
class DeferredLossScale:
    """`LossScale` for a device that is not waited for: its numbers become arrays without axes there.

    What overflowed counts as a gradient of zero.
    """

    scale: Any = 1.0
    dynamic: bool = False
    good: Any = 0
    left_out: Any = 0

    def unscaled(self, grads: dict[str, Any]) -> dict[str, Any]:
        """The gradients of the loss itself, zeros if they overflowed; `grads` is emptied, to save memory."""
        fine = np.isfinite(sum(wide(g).sum() for g in grads.values()))
        found = {}
        for name in list(grads):
            g = wide(grads.pop(name))
            found[name] = np.where(fine, g / self.scale, 0).astype(g.dtype)
        self.left_out = self.left_out + (~fine).astype(np.int32)
        if self.dynamic:
            self.good = np.where(fine, self.good + 1, 0)
            grown = np.where(self.good >= PATIENCE, self.scale * 2, self.scale)
            self.scale = np.where(fine, grown, self.scale / 2).astype(np.float32)
            self.good = np.where(self.good >= PATIENCE, 0, self.good)
        return found


def _is_finite(g: Any) -> bool:
    """Infinities and NaN survive in a sum, which is quicker to take than to look at every element."""
    if (quicker := FINITE.get(namespace(g).__name__)) is not None:
        return quicker(g)
    with np.errstate(all="ignore"):
        return bool(np.isfinite(g.sum())) or bool(np.isfinite(g).all())
