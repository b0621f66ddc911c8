"""Control flow: a node runs one of its graphs (If), or its body over and over (Loop, Scan).

Bodies see the values of the scopes around them; the plan binds these before the node runs, so that a graph attribute
is here simply a function of its inputs. The body of a Loop maps (iteration, condition, carried...) to (condition,
carried..., scanned...), that of a Scan (carried..., slices...) to (carried..., slices...). Scanned values are stacked.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from pumice.ops.record import Array, Node, Op, Outputs


def _if(node: Node, condition: Array) -> Outputs:
    branch = node.attributes["then_branch" if bool(np.asarray(condition).reshape(-1)[0]) else "else_branch"]
    return tuple(branch.run())


def _loop(node: Node, trips: Array | None = None, condition: Array | None = None, *carried: Any) -> Outputs:
    body, state = node.attributes["body"], list(carried)
    limit = None if trips is None else int(trips.reshape(-1)[0])
    going = True if condition is None else bool(np.asarray(condition).reshape(-1)[0])
    scanned: list[list[Array]] = [[] for _ in body.results[1 + len(state) :]]
    for i in itertools.count():
        if not going or (limit is not None and i >= limit):
            break
        results = body.run(np.array(i, dtype=np.int64), np.array(going), *state)
        going = bool(np.asarray(results[0]).reshape(-1)[0])
        state = results[1 : 1 + len(state)]
        for column, value in zip(scanned, results[1 + len(state) :], strict=True):
            column.append(value)
    return (*state, *map(_stack, scanned, body.results[1 + len(state) :]))


def _stack(values: list[Array], result: Any, axis: int = 0) -> Array:
    """The values along a new axis; of none, an empty array of the type and sizes that the body declares."""
    if values:
        return np.stack(values, axis=axis)
    sizes = [n if isinstance(n, int) else 0 for n in result.shape or ()]
    return np.zeros([0, *sizes], result.dtype or np.float32)


def _scan(node: Node, *inputs: Array) -> Outputs:
    body, scanned = node.attributes["body"], node.attributes["num_scan_inputs"]
    state, sequences = list(inputs[:-scanned]), inputs[-scanned:]
    results = body.results[len(state) :]
    axes_in = node.get("scan_input_axes") or [0] * scanned
    axes_out = node.get("scan_output_axes") or [0] * len(results)
    backwards_in = node.get("scan_input_directions") or [0] * scanned
    backwards_out = node.get("scan_output_directions") or [0] * len(results)
    slices = [np.moveaxis(x, a, 0)[:: -1 if b else 1] for x, a, b in zip(sequences, axes_in, backwards_in, strict=True)]
    columns: list[list[Array]] = [[] for _ in results]
    for step in zip(*slices, strict=True):
        outputs = body.run(*state, *step)
        state = outputs[: len(state)]
        for column, value in zip(columns, outputs[len(state) :], strict=True):
            column.append(value)
    ordered = [column[::-1] if b else column for column, b in zip(columns, backwards_out, strict=True)]
    return (*state, *map(_stack, ordered, results, axes_out))


OPS = (Op("If", forward=_if), Op("Loop", forward=_loop), Op("Scan", since=9, forward=_scan))
