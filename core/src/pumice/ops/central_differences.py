"""Gradients by central differences in float64: what every `vjp` is held to.

For outputs y = f(x), fixed random dy, a direction v and L(x) = <dy, f(x)>, the product <vjp(dy), v> must equal the
derivative of L(x + t v) at t = 0, taken as (8 (L(h) - L(-h)) - (L(2h) - L(-2h))) / 12h, whose error falls with h^4. The
directions are unit vectors (all elements of a small input, a sample of a large one) and two dense random ones, which
see every element at once. The error is relative to the largest element of the gradient found.

Values that the `Vjp` says it does not read are replaced by NaN: one that reads them fails.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pumice.ops.record import Array, Forward, Node

STEP = 3e-6
ELEMENTS = 24


def in_float64(inputs: Sequence[Any]) -> list[Any]:
    """The inputs, floating point as float64."""
    return [x.astype(np.float64) if getattr(x, "dtype", np.dtype(int)).kind == "f" else x for x in inputs]


def gradient_error(forward: Forward, vjp: Any, node: Node, inputs: Sequence[Any]) -> float:
    """The largest error over all inputs along which gradient flows; 0 if there is none."""
    draws = np.random.default_rng(5)
    with np.errstate(all="ignore"):
        outputs = forward(node, *inputs)
        grads = [_cotangent(y, draws) if i < len(node.outputs) else None for i, y in enumerate(outputs)]
        wanted = [_flows(vjp, i, x) for i, x in enumerate(inputs)]
        if not any(wanted) or all(g is None for g in grads):
            return 0.0
        seen = _poisoned(inputs, getattr(vjp, "inputs", None)), _poisoned(outputs, getattr(vjp, "outputs", None))
        found = vjp(node, *seen, grads, wanted)
        assert len(found) == len(inputs), f"{len(found)} gradients for {len(inputs)} inputs"
        return max(_error(forward, node, inputs, grads, i, found[i], draws) for i, want in enumerate(wanted) if want)


def _cotangent(y: Any, draws: np.random.Generator) -> Array | None:
    y = np.asarray(y)
    return draws.standard_normal(y.shape) if y.dtype.kind == "f" else None


def _flows(vjp: Any, index: int, x: Any) -> bool:
    wrt = getattr(vjp, "wrt", None)
    return x is not None and x.dtype == np.float64 and x.size > 0 and (wrt is None or index in wrt)


def _poisoned(values: Sequence[Any], read: Sequence[int] | None) -> list[Any]:
    return [
        x if read is None or i in read or getattr(x, "dtype", None) != np.float64 else np.full(x.shape, np.nan)
        for i, x in enumerate(values)
    ]


def _error(
    forward: Forward, node: Node, inputs: Sequence[Any], grads: Sequence[Any], index: int, found: Any, draws: Any
) -> float:
    x = inputs[index]
    found = np.zeros_like(x) if found is None else np.asarray(found)
    assert found.shape == x.shape, f"the gradient of input {index} has shape {found.shape}, not {x.shape}"

    def loss(moved: Array) -> float:
        outputs = forward(node, *inputs[:index], moved, *inputs[index + 1 :])
        return sum(float((g * y).sum()) for g, y in zip(grads, outputs, strict=False) if g is not None)

    worst, scale = 0.0, float(np.abs(found).max())
    for direction in _directions(x, draws):
        one, two = (loss(x + t * direction) - loss(x - t * direction) for t in (STEP, 2 * STEP))
        numeric = (8 * one - two) / (12 * STEP)
        exact = float((found * direction).sum())
        scale = max(scale, abs(numeric) if np.count_nonzero(direction) == 1 else 0.0)
        worst = max(worst, abs(numeric - exact))
    return worst / max(scale, 1e-4)


def _directions(x: Array, draws: np.random.Generator) -> Iterator[Array]:
    for element in sorted(draws.permutation(x.size)[:ELEMENTS]):
        unit = np.zeros(x.shape)
        unit.reshape(-1)[element] = 1
        yield unit
    for _ in range(2):
        dense = draws.standard_normal(x.shape)
        yield dense / np.linalg.norm(dense)
