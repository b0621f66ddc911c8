"""ONNX's own node cases for every operator that has a kernel here, at the best level and at the plainest."""

import onnx_ir as ir
import pytest

from pumice.errors import UnsupportedOp
from pumice.ops.node_cases import RANDOM, collect, compare, value
from pumice.plan import compile_plan
from pumice_cpu import native
from pumice_cpu.kernels import all_kernels

KERNELS = tuple(all_kernels())
TYPES = sorted({kernel.op_type for kernel in KERNELS if not kernel.domain})


@pytest.fixture(scope="module")
def cases():
    found = {op_type: [] for op_type in TYPES}
    for case in collect():
        for op_type in {node.op_type for node in case.model.graph.node} & set(TYPES):
            found[op_type].append(case)
    return found


def tolerances(op_type):
    ours = [kernel for kernel in KERNELS if kernel.op_type == op_type]
    return max(k.rtol for k in ours), max(k.atol for k in ours)


@pytest.mark.parametrize("name", ["scalar", native.levels()[-1]])
@pytest.mark.parametrize("op_type", TYPES)
def test_cases_pass_with_the_kernels_in_place(cases, op_type, name):
    rtol, atol = tolerances(op_type)
    with native.using_level(name):
        for case in cases[op_type]:
            random = not RANDOM.isdisjoint(node.op_type for node in case.model.graph.node)
            try:
                plan = compile_plan(ir.from_proto(case.model), kernels=KERNELS)
                for inputs, outputs in case.data_sets:
                    feeds = {spec.name: value(data) for spec, data in zip(plan.inputs, inputs, strict=False)}
                    results = plan.run(feeds)
                    for output, expected in zip(plan.output_names, outputs, strict=True):
                        if results[output] is not None:
                            near = {"rtol": max(case.rtol, rtol), "atol": max(case.atol, atol)}
                            compare(results[output], value(expected), random=random, **near)
            except UnsupportedOp:
                continue  # core refuses the case by name, whatever the kernels
