"""Chains: several steps that one kernel computes at once.

A convolution with its normalisation, residual and activation, a matrix product with its bias: between them lies memory
that is written and read again for nothing. Starting from each step in order, a kernel with `fuse` is offered the step,
then the step with the only reader of its result, and so on; it takes the longest chain that it can compute. A value may
vanish inside a chain only if nothing else reads it: no other step, no subgraph, no caller. The chain stands where its
last step stood, when all that its steps read is there. `composites` come first, so that a GELU spelt in five nodes is
one link.

Fusing changes no meaning: arrays that the kernel cannot take after all (another type, a residual of another shape) are
computed one step after the other, as they would have been.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import attrs

from pumice.composites import recognised
from pumice.dispatch import handled
from pumice.ops import OpTable
from pumice.ops.record import Forward, Kernel, Link, Node, Outputs, Placement
from pumice.program import ABSENT, Step

LONGEST = 9
"""Links of a chain at most."""


def fuse(
    steps: Sequence[Step],
    template: Sequence[Any],
    keep: set[int],
    kernels: Sequence[Kernel],
    table: OpTable,
    placement: Placement | None = None,
) -> list[Step]:
    """The steps with chains in the place of what they cover, in order.

    Args:
        steps: one a node.
        template: constants by slot, else None.
        keep: slots whose values are asked for.
        kernels: those available, the highest rank first.
        table: the operators known.
        placement: the device that the steps run on; None means the CPU.
    """
    steps = recognised(steps, template, keep, kernels, table, placement)
    fusing = [kernel for kernel in kernels if kernel.fuse is not None]
    if not fusing:
        return list(steps)
    readers = _only_readers(steps, keep)
    taken: set[int] = set()
    placed: dict[int, Step] = {}
    for index, step in enumerate(steps):
        if index in taken:
            continue
        chain = _chain(step, index, steps, readers, taken)
        length, fused = _longest([steps[i] for i in chain], template, fusing)
        taken.update(chain[:length])
        placed[chain[length - 1]] = fused or step
    return [placed[index] for index in sorted(placed)]


def _only_readers(steps: Sequence[Step], keep: set[int]) -> dict[int, int]:
    """By slot, the index of the step that alone reads it, once."""
    reads = Counter(slot for step in steps for slot in (*step.inputs, *step.captures))
    reads.update(keep)
    return {slot: i for i, step in enumerate(steps) for slot in step.inputs if slot != ABSENT and reads[slot] == 1}


def _chain(step: Step, index: int, steps: Sequence[Step], readers: dict[int, int], taken: set[int]) -> list[int]:
    """Indices of the steps that follow each other from this one."""
    found = [index]
    while len(found) < LONGEST and not step.captures and [slot for slot in step.outputs if slot] == [step.outputs[0]]:
        following = readers.get(step.outputs[0])
        if following is None or following in taken or steps[following].captures:
            break
        found.append(following)
        step = steps[following]
    return found


def _longest(chain: Sequence[Step], template: Sequence[Any], kernels: Sequence[Kernel]) -> tuple[int, Step | None]:
    """How many of these steps a kernel takes over, and the one step that they become; (1, None) if none does."""
    links = [_link(step, before, template) for step, before in zip(chain, [None, *chain], strict=False)]
    for kernel in (k for k in kernels if k.fits(chain[0].node)):
        best: tuple[int, Step | None] = (1, None)
        for length in range(1, len(chain) + 1):
            assert kernel.fuse is not None
            run = kernel.fuse(links[:length])
            if run is not None:
                best = length, _fused(chain[:length], links, kernel, run)
        if best[1] is not None:
            return best
    return 1, None


def _link(step: Step, before: Step | None, template: Sequence[Any]) -> Link:
    at = -1 if before is None else step.inputs.index(before.outputs[0])
    return Link(node=step.node, constants=[template[slot] for slot in step.inputs], at=at)


def _fused(chain: Sequence[Step], links: Sequence[Link], kernel: Kernel, run: Callable[..., Outputs]) -> Step:
    """One step in the place of the last, reading what all of them read from outside."""
    outside = [
        slot
        for step, link in zip(chain, links, strict=False)
        for position, slot in enumerate(step.inputs)
        if position != link.at
    ]
    call = _whole(run, kernel, _one_by_one(chain, links))
    return attrs.evolve(chain[-1], call=call, inputs=tuple(outside), vjp=None)


def _whole(run: Callable[..., Outputs], kernel: Kernel, otherwise: Callable[..., Outputs]) -> Forward:
    dtypes = handled(kernel)

    def call(node: Node, *arrays: Any) -> Outputs:
        results = run(*arrays) if arrays[0].dtype in dtypes else NotImplemented
        return otherwise(*arrays) if results is NotImplemented else results

    return call


def _one_by_one(chain: Sequence[Step], links: Sequence[Link]) -> Callable[..., Outputs]:
    parts = [(step.call, step.node, link.at, len(step.inputs)) for step, link in zip(chain, links, strict=False)]

    def run(*arrays: Any) -> Outputs:
        rest, results = list(arrays), tuple[Any, ...]()
        for call, node, at, count in parts:
            own = [results[0] if position == at else rest.pop(0) for position in range(count)]
            results = tuple(call(node, *own))
        return results

    return run
