"""ONNX's own node cases through the native runtime, whether they run natively, on reference kernels or both."""

from collections import defaultdict

import onnx_ir as ir
import pytest

from pumice.errors import UnsupportedOp
from pumice.ops.node_cases import RANDOM, collect, compare, value
from pumice_cpu.runtime.lower import table
from pumice_cpu.runtime.session import NativeSession

TYPES = sorted(op_type for domain, op_type in table() if not domain)
RTOL, ATOL = 1e-4, 1e-4


@pytest.fixture(scope="module")
def cases():
    found = defaultdict(list)
    for case in collect():
        kinds = {node.op_type for node in case.model.graph.node}
        natively = kinds & set(TYPES)
        if natively and kinds.isdisjoint(RANDOM):
            found[min(natively)].append(case)
    return found


@pytest.mark.parametrize("op_type", TYPES)
def test_cases_of_an_operator_pass(cases, op_type):
    for case in cases[op_type]:
        try:
            session = NativeSession(ir.from_proto(case.model), threads=1)
            for inputs, outputs in case.data_sets:
                feeds = {spec.name: value(data) for spec, data in zip(session.plan.inputs, inputs, strict=False)}
                results = session.run(feeds)
                for output, expected in zip(session.plan.output_names, outputs, strict=True):
                    rtol, atol = max(case.rtol, RTOL), max(case.atol, ATOL)
                    if results[output] is not None:
                        compare(results[output], value(expected), rtol=rtol, atol=atol)
        except UnsupportedOp:
            continue  # core refuses the case by name
