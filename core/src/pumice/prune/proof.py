"""The proof of a removal: the pruned model computes what the whole one does with the same channels masked.

A channel is masked where it is read: wherever an axis is summed over, the removed positions are multiplied by zero (in
a mean, the others by whole / kept, so that it is the mean over what is kept). Nodes whose statistics run over the axis
(layer and group normalisation) are a case of their own, for they look at every channel: the masked model computes them
over the kept channels, and what it puts in the place of the others nobody reads. That is the definition of a pruned
normalisation here: mean and variance of the channels that are left.

Both models run on the same data, and every output must agree to rounding: to TOLERANCE of its largest value in the
masked or the whole model, whichever is larger. Rounding errors are as large as the numbers that were added up, and
those have the whole model's size; where masking happens to cancel an output to nearly nothing, a measure by what is
left would call rounding an error. A wrong rule moves outputs by much more than that share of either.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pumice.errors import ModelError
from pumice.model import add_initializer, clone, fresh_name, infer_shapes, replace_input
from pumice.ops.channels import Port, Restricted, Summed
from pumice.prune.groups import Cuts, Mask
from pumice.prune.wiring import Wired, Wiring
from pumice.strategy import Runtime

TOLERANCE = 1e-4
"""Largest difference allowed, relative to the largest output of the masked or the whole model."""

Feeds = Mapping[str, NDArray[Any]]


@attrs.frozen(kw_only=True)
class Proof:
    """What was found."""

    error: float
    """Largest difference between pruned and masked, relative to the largest output."""
    effect: float
    """Largest difference between masked and whole, relative likewise: what the removal does before any recovery."""
    samples: int

    @property
    def holds(self) -> bool:
        return self.error <= TOLERANCE


def prove(wiring: Wiring, cuts: Cuts, pruned: ir.Model, feeds: Sequence[Feeds], runtime: Runtime) -> Proof:
    """Run the pruned, the masked and the whole model on the same feeds.

    Raises:
        ModelError: the pruned model computes something else than the masked one: it must not be used.
    """
    whole = _run(clone(wiring.model), feeds, runtime)
    expected = _run(masked(wiring, cuts), feeds, runtime)
    found = _run(pruned, feeds, runtime)
    error = max(map(_distance, found, expected, whole), default=0.0)
    effect = max(map(_distance, expected, whole, whole), default=0.0)
    proof = Proof(error=error, effect=effect, samples=len(feeds))
    if not proof.holds:
        raise ModelError(
            f"the pruned model differs from the masked one by {error:.2e} of its largest output, more than "
            f"{TOLERANCE:.0e}: an operator's channel rule is wrong; report it, and protect the layer meanwhile"
        )
    return proof


def _run(model: ir.Model, feeds: Sequence[Feeds], runtime: Runtime) -> list[Feeds]:
    """The outputs for each feed; one model is open at a time."""
    session = runtime.open(model)
    return [session.run(feed) for feed in feeds]


def masked(wiring: Wiring, cuts: Cuts) -> ir.Model:
    """The whole model with the channels cut masked where they are read."""
    model = clone(wiring.model)
    for node, wired in zip(list(model.graph), wiring.nodes, strict=True):
        restricted = {p for tie in wired.ties if isinstance(tie, Restricted) and (p := wired.place(tie.port)) in cuts}
        if restricted:
            _restrict(model, node, wired, cuts)
            continue
        for tie in wired.ties:
            place = wired.place(tie.port) if isinstance(tie, Summed) else None
            if isinstance(tie, Summed) and place is not None and place in cuts:
                _mask(model, node, tie, cuts[place], wired.site.rank(tie.port.slot))
    return infer_shapes(model)


def _mask(model: ir.Model, node: ir.Node, tie: Summed, cut: Mask, rank: int) -> None:
    value = node.inputs[tie.port.slot]
    assert value is not None
    assert isinstance(tie.port.axis, int)
    factor = len(cut) / int((~cut).sum()) if tie.mean else 1.0
    dtype = value.dtype.numpy() if value.dtype is not None else np.float32
    mask = np.where(cut, 0.0, factor).astype(dtype).reshape([-1 if i == tie.port.axis else 1 for i in range(rank)])
    product = _insert(model, node, "Mul", [value, add_initializer(model, f"{node.name}.mask", mask)], value)
    replace_input(node, tie.port.slot, product)


def _restrict(model: ir.Model, node: ir.Node, wired: Wired, cuts: Cuts) -> None:
    """Gather the kept channels of every operand, and put results back to their places (others get any value)."""
    for slot, value in enumerate(list(node.inputs)):
        for axis, cut in _cut_axes(wired, slot, cuts):
            assert value is not None
            kept = add_initializer(model, f"{node.name}.kept", np.flatnonzero(~cut))
            value = _insert(model, node, "Gather", [value, kept], value, axis=axis)
            replace_input(node, slot, value)
    for number, result in enumerate(list(node.outputs)):
        for axis, cut in _cut_axes(wired, ~number, cuts):
            back = add_initializer(model, f"{node.name}.back", np.maximum(np.cumsum(~cut) - 1, 0))
            readers = list(result.uses())
            whole = ir.Value(name=fresh_name(model, f"{result.name}.whole"), type=result.type)
            gather = ir.Node(
                "", "Gather", [result, back], attributes={"axis": ir.AttrInt64("axis", axis)}, outputs=[whole],
                name=fresh_name(model, f"{node.name}.put_back"),
            )  # fmt: skip
            assert node.graph is not None
            node.graph.insert_after(node, gather)
            for use in readers:
                use.node.replace_input_with(use.idx, whole)
            result.shape = None


def _cut_axes(wired: Wired, slot: int, cuts: Cuts) -> Iterable[tuple[int, Mask]]:
    for axis in range(wired.site.rank(slot)):
        place = wired.place(Port(slot, axis))
        if place is not None and place in cuts:
            yield axis, cuts[place]


def _insert(
    model: ir.Model, node: ir.Node, op_type: str, inputs: Sequence[ir.Value], like: ir.Value, axis: int | None = None
) -> ir.Value:
    """A new node in front of another, with a result of the type of `like`."""
    result = ir.Value(name=fresh_name(model, f"{node.name}.masked"), type=like.type)
    attributes = {} if axis is None else {"axis": ir.AttrInt64("axis", axis)}
    name = fresh_name(model, f"{node.name}.{op_type.lower()}")
    new = ir.Node("", op_type, inputs, attributes=attributes, outputs=[result], name=name)
    assert node.graph is not None
    node.graph.insert_before(node, new)
    return result


def _distance(ones: Feeds, others: Feeds, whole: Feeds) -> float:
    """The largest difference of any output, relative to that output's largest finite value, masked or whole."""
    worst = 0.0
    for name in others:
        one, other, scale = (np.asarray(outputs[name], np.float64) for outputs in (ones, others, whole))
        if one.shape != other.shape or not np.array_equal(np.isfinite(one), np.isfinite(other)):
            return float("inf")
        finite = np.isfinite(other)
        largest = max(float(np.abs(y[np.isfinite(y)]).max(initial=0.0)) for y in (other, scale)) or 1.0
        worst = max(worst, float(np.abs(one - other)[finite].max(initial=0.0)) / largest)
    return worst
