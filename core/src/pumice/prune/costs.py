"""What a model costs, and what is left of it after a removal: counted from shapes, or measured on a runtime.

macs, params   counted a sample; dynamic sizes count as one
latency        the pruned and the whole model take turns in one process: the median of the ratios of all rounds
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from pumice.measure.latency import interleaved_latency, speedup
from pumice.model import clone
from pumice.ops.record import normal
from pumice.prune.groups import Cuts
from pumice.prune.proof import Feeds
from pumice.prune.wiring import Wired, Wiring
from pumice.registry import registry
from pumice.strategy import Runtime

if TYPE_CHECKING:
    import onnx_ir as ir

MEASURED_SECONDS = 0.5
"""Seconds that each of two models is timed for at most."""


@attrs.frozen(kw_only=True)
class Size:
    """What a model costs a sample."""

    macs: int
    params: int


def size(wiring: Wiring, cuts: Cuts) -> Size:
    """Multiply-accumulates and parameters after a removal."""
    left: dict[str, dict[int, int]] = {}
    for place, mask in cuts.items():
        kept = int((~mask).sum())
        if isinstance(place.axis, int):
            left.setdefault(place.value, {})[place.axis] = kept
        else:
            left.setdefault(place.value, {})[place.axis.axis] = kept // place.axis.cells

    def shape(value: Any) -> list[int] | None:
        if value is None or value.shape is None:
            return None
        sizes = [d if isinstance(d, int) and d >= 0 else 1 for d in value.shape]
        for axis, kept in left.get(str(value.name), {}).items():
            sizes[axis] = kept
        return sizes

    params = sum(
        math.prod(shape(value) or ())
        for value in wiring.model.graph.initializers.values()
        if value.dtype is not None and value.dtype.is_floating_point()
    )
    return Size(macs=sum(_macs(wired, shape) for wired in wiring.nodes), params=params)


def _macs(wired: Wired, shape: Callable[[Any], list[int] | None]) -> int:
    node = wired.site.node
    op = registry().ops.resolve(normal(node.domain), node.op_type, node.opset)
    if op is None or op.cost is None:
        return 0
    inputs, outputs = [shape(v) for v in wired.node.inputs], [shape(v) for v in wired.node.outputs]
    if any(v is not None and v.shape is None for v in (*wired.node.inputs, *wired.node.outputs)):
        return 0
    return op.cost(node, inputs, outputs).macs


def latency(whole: Wiring, pruned: ir.Model, feeds: Sequence[Feeds], runtime: Runtime, threads: int) -> float:
    """Time of the pruned model, relative to the whole one."""
    sessions = [runtime.open(model, threads=threads) for model in (clone(whole.model), pruned)]
    before, after = (lambda s=session: s.run(feeds[0]) for session in sessions)
    found = interleaved_latency({"whole": before, "pruned": after}, seconds=MEASURED_SECONDS)
    return 1.0 / speedup(found["whole"], found["pruned"]).median
