"""Building blocks of gradients, for the `vjp` fields of the operator families.

With L the loss, a gradient has the shape of its array and holds dL/d(element). For y = f(x) pointwise,

    dx = dy f'(x)                  and where broadcasting repeated an element, its gradient is the sum over the copies.

An operator that only moves elements, y[i] = x[source(i)], is linear; its gradient adds every dy[i] to dx[source(i)].
Where source is not written out it is found by moving the numbers 1, 2, ... through the operator itself (0: no source).

Arrays keep their namespace: NumPy's functions dispatch on their arguments, so that CuPy arrays stay on their device,
and new arrays are made by `namespace(x)`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pumice.ops.record import Arrays, Forward, Node, Vjp, Wanted

SUMS: dict[str, Callable[..., Any]] = {}
"""What sums arrays of a namespace over axes; NumPy's protocol chooses elsewhere."""


def namespace(x: Any) -> Any:
    """The module whose functions make arrays like `x`: `numpy`, `cupy`."""
    return np if isinstance(x, np.ndarray | np.generic) else sys.modules[type(x).__module__.partition(".")[0]]


def sum_to(grad: Any, shape: Sequence[int]) -> Any:
    """The gradient of an array of `shape` that was broadcast to the shape of `grad`."""
    if grad.shape == tuple(shape):
        return grad
    lead = grad.ndim - len(shape)
    axes = [*range(lead), *(lead + i for i, n in enumerate(shape) if n == 1 and grad.shape[lead + i] != 1)]
    return SUMS.get(namespace(grad).__name__, np.sum)(grad, tuple(axes)).reshape(shape)


def of_input(derivative: Callable[..., Any]) -> Vjp:
    """dx = dy f'(x), with f'(x, **attributes)."""

    def run(node: Node, inputs: Arrays, outputs: Arrays, grads: Arrays, wanted: Wanted) -> Arrays:
        return (grads[0] * derivative(inputs[0], **_parameters(node)),)

    return Vjp(run, inputs=(0,), outputs=())


def of_output(derivative: Callable[..., Any]) -> Vjp:
    """dx = dy g(y), where f' is known as a function of y, with g(y, **attributes)."""

    def run(node: Node, inputs: Arrays, outputs: Arrays, grads: Arrays, wanted: Wanted) -> Arrays:
        return (grads[0] * derivative(outputs[0], **_parameters(node)),)

    return Vjp(run, inputs=(), outputs=(0,))


def _parameters(node: Node) -> dict[str, Any]:
    return {key: value for key, value in node.attributes.items() if key != "consumed_inputs"}


def linear(adjoint: Callable[..., Any], *, reads: tuple[int, ...] = ()) -> Vjp:
    """dx = adjoint(node, dy, *inputs) of an operator linear in its first input; `reads` are further inputs it needs."""

    def run(node: Node, inputs: Arrays, outputs: Arrays, grads: Arrays, wanted: Wanted) -> Arrays:
        return (adjoint(node, grads[0], *inputs), *[None] * (len(inputs) - 1))

    return Vjp(run, wrt=(0,), inputs=reads, outputs=())


def moved(forward: Forward) -> Vjp:
    """The gradient of an operator that moves the elements of its first input to its first output."""

    def run(node: Node, inputs: Arrays, outputs: Arrays, grads: Arrays, wanted: Wanted) -> Arrays:
        x, rest = inputs[0], inputs[1:]
        numbers = namespace(x).arange(1, x.size + 1).reshape(x.shape)
        source = forward(node, numbers, *rest)[0]
        return (gathered(grads[0], source, x), *[None] * len(rest))

    return Vjp(run, wrt=(0,), inputs=tuple(range(1, 8)), outputs=())


def gathered(grad: Any, source: Any, x: Any) -> Any:
    """The sum of `grad` over the elements with one source, in the shape of x; source 0 is none, 1 the first of x."""
    xp = namespace(grad)
    total = xp.bincount(source.reshape(-1), weights=grad.reshape(-1), minlength=x.size + 1)
    return total[1:].astype(grad.dtype).reshape(x.shape)


def add_rows(rows: Any, indices: Any, count: int) -> Any:
    """(count, ...) with row k of `rows` added at `indices[k]`, equal indices in the order of k."""
    xp = namespace(rows)
    total = xp.zeros((count, *rows.shape[1:]), rows.dtype)
    if not indices.size:
        return total
    order = xp.argsort(indices, kind="stable")
    ordered = indices[order]
    if xp is not np:
        return _run_sums(rows[order], ordered, count).astype(rows.dtype)
    first = xp.flatnonzero(xp.concatenate([xp.ones(1, bool), ordered[1:] != ordered[:-1]]))
    total[ordered[first]] = xp.add.reduceat(rows[order], first, axis=0)
    return total


def _run_sums(rows: Any, ordered: Any, count: int) -> Any:
    """The sums of the rows of each index, on a device that is not asked how many rows there are of which.

    They are differences of running sums, in float64 so that nothing of them is lost.
    """
    xp = namespace(rows)
    sums = xp.zeros((len(rows) + 1, *rows.shape[1:]), np.float64)
    sums[1:] = xp.cumsum(rows, axis=0, dtype=np.float64)
    wanted = xp.arange(count)
    ends = xp.searchsorted(ordered, wanted, side="right")
    return sums[ends] - sums[xp.searchsorted(ordered, wanted)]


def zeros(x: Any) -> Any:
    """Zeros of the shape and type of x."""
    return namespace(x).zeros(x.shape, x.dtype)


def kept(grad: Any, shape: Sequence[int], axes: Sequence[int]) -> Any:
    """`grad` of a reduction of an array of `shape` over `axes`, the reduced axes put back with size one."""
    return grad.reshape([1 if i in axes else n for i, n in enumerate(shape)])


def spread(grad: Any, shape: Sequence[int]) -> Any:
    """`grad` repeated to `shape`, without copying."""
    return namespace(grad).broadcast_to(grad, tuple(shape))
