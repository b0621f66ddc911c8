"""The plan of the arena: whatever the instructions, nothing that is alive is overwritten."""

import numpy as np
from hypothesis import given, strategies as st

from pumice_cpu.runtime.arena import ALIGNMENT, plan
from pumice_cpu.runtime.compiler import Instruction
from pumice_cpu.runtime.views import fresh


def made(sizes, readers):
    """Instruction i writes value i and reads earlier ones, the first of them in place."""
    values = [fresh((size,), np.uint8) for size in sizes]
    return [
        Instruction("map", (value, *earlier(values[:i], read)), (0,), {}, "", "", in_place=(1,) if i and read else ())
        for i, (value, read) in enumerate(zip(values, readers, strict=True))
    ]


def earlier(values, numbers):
    return [values[i] for i in sorted({n % len(values) for n in numbers})] if values else []


@given(st.lists(st.tuples(st.integers(1, 500), st.lists(st.integers(0, 30), max_size=3)), min_size=1, max_size=30))
def test_values_alive_at_once_lie_apart(drawn):
    instructions = made(*zip(*drawn, strict=True))
    offsets, size = plan(instructions)
    last = {v.root: i for i, instruction in enumerate(instructions) for v in instruction.operands}
    for i, instruction in enumerate(instructions):
        target = instruction.operands[0].root
        taken = instruction.operands[1].root if instruction.in_place else None
        alive = [i.operands[0].root for i in instructions[:i]]
        for root in (r for r in alive if last[r] >= i):
            apart = offsets[root] + root.nbytes <= offsets[target] or offsets[target] + target.nbytes <= offsets[root]
            handed_on = root is taken and last[root] == i and root.nbytes == target.nbytes
            assert apart or handed_on
    assert all(offset % ALIGNMENT == 0 and offset + root.nbytes <= size for root, offset in offsets.items())
