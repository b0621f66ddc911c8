"""ONNX's own node cases on the GPU, two of every operator and all of those that have a kernel here.

An operator that has a kernel here runs on the GPU, by it or by CuPy, unless the case is about a type that no GPU
computes with (4-bit integers, 8-bit floats), or one of `ON_THE_CPU`.
"""

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest

from pumice.errors import UnsupportedOp
from pumice.ops import core_table
from pumice.ops.node_cases import RANDOM, collect, compare, value
from pumice.plan import compile_plan
from pumice_cuda.kernels import all_kernels
from pumice_cuda.placing import OnDevice
from pumice_cuda.transfers import is_movable, to_device, to_host

KERNELS = tuple(all_kernels())
OURS = {kernel.op_type for kernel in KERNELS}
ON_THE_CPU = {"test_reduce_max_empty_set", "test_reduce_max_empty_set_bool", "test_reduce_min_empty_set"}
"""The extremes of nothing: CuPy's `max` and `min` take no value to begin with."""


def chosen():
    """By the operators of a case, so that a failure names them."""
    seen, found = Counter(), {}
    for case in collect():
        types = tuple(sorted({node.op_type for node in case.model.graph.node}))
        seen[types] += 1
        if (seen[types] <= 2 or OURS.intersection(types)) and RANDOM.isdisjoint(types):
            found.setdefault(types if len(types) == 1 else ("several",), []).append(case)
    return found


CASES = chosen()


@pytest.mark.parametrize("types", sorted(CASES), ids=lambda types: types[0])
def test_cases_pass(types):
    rtol = max([1e-4, *(k.rtol for k in KERNELS if k.op_type in types)])
    atol = max([1e-5, *(k.atol for k in KERNELS if k.op_type in types)])
    fallen = {}
    for case in CASES[types]:
        placement = OnDevice()
        try:
            plan = compile_plan(ir.from_proto(case.model), ops=core_table(), kernels=KERNELS, placement=placement)
        except UnsupportedOp:
            continue  # core refuses the case by name, wherever it runs
        for inputs, outputs in case.data_sets:
            given = [value(data) for data in inputs]
            there = [to_device(x) if isinstance(x, np.ndarray) else x for x in given]
            results = plan.run({spec.name: x for spec, x in zip(plan.inputs, there, strict=False)})
            wanted = [value(data) for data in outputs]
            for name, expected in zip(plan.output_names, wanted, strict=True):
                have = to_host(results[name])
                compare(have, expected, rtol=max(case.rtol, rtol), atol=max(case.atol, atol))
            known = all(is_movable(x) for x in (*given, *wanted) if isinstance(x, np.ndarray))
            if known and case.name not in ON_THE_CPU:
                fallen |= {(case.name, op): why for op, why in placement.fallen.items() if op in OURS}
    assert not fallen
