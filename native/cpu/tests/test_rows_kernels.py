"""The Plan's pointwise, row and quantization records: ONNX's own node cases with no array too small for C, and what is
handed back to core."""

import numpy as np
import onnx_ir as ir
import pytest

from pumice.ops.node_cases import collect, compare, value
from pumice.ops.record import Node
from pumice.plan import compile_plan
from pumice_cpu import native
from pumice_cpu.kernels import rows

RECORDS = {(kernel.domain, kernel.op_type, kernel.since): kernel for kernel in rows.KERNELS}
TYPES = sorted({kernel.op_type for kernel in rows.KERNELS if not kernel.domain})


@pytest.fixture(scope="module")
def cases():
    found = {op_type: [] for op_type in TYPES}
    for case in collect():
        for op_type in {node.op_type for node in case.model.graph.node} & set(TYPES):
            found[op_type].append(case)
    return found


@pytest.mark.parametrize("name", ["scalar", native.levels()[-1]])
@pytest.mark.parametrize("op_type", TYPES)
def test_node_cases_pass_however_small(cases, monkeypatch, op_type, name):
    monkeypatch.setattr(rows, "SMALL", 1)
    rtol = max(k.rtol for k in rows.KERNELS if k.op_type == op_type)
    with native.using_level(name):
        for case in cases[op_type]:
            plan = compile_plan(ir.from_proto(case.model), kernels=rows.KERNELS)
            for given, expected in case.data_sets:
                results = plan.run({spec.name: value(data) for spec, data in zip(plan.inputs, given, strict=False)})
                for output, want in zip(plan.output_names, expected, strict=True):
                    if results[output] is not None:
                        compare(results[output], value(want), rtol=max(case.rtol, rtol), atol=max(case.atol, 1e-6))


def run(op_type, *arrays, domain="", since=1, opset=21, **attributes):
    return RECORDS[domain, op_type, since].run(
        Node(op_type=op_type, domain=domain, opset=opset, attributes=attributes), *arrays
    )


def test_quantization_matches_core_bit_for_bit(level, rng):
    x = rng.standard_normal((64, 100)).astype(np.float32)
    scale, zero = rng.uniform(0.01, 0.1, 64).astype(np.float32), rng.integers(-9, 9, 64).astype(np.int8)
    node = Node(op_type="QuantizeLinear", opset=21, attributes={"axis": 0})
    (q,) = run("QuantizeLinear", x, scale, zero, since=10, axis=0)
    np.testing.assert_array_equal(q, rows._core(node, x, scale, zero)[0])
    (back,) = run("DequantizeLinear", q, scale, zero, since=10, axis=0)
    np.testing.assert_array_equal(back, (q.astype(np.float32) - zero[:, None]) * scale[:, None])


def test_dynamic_quantization_matches_core_bit_for_bit(level, rng):
    x = rng.standard_normal((64, 100)).astype(np.float32)
    have = run("DynamicQuantizeLinear", x, since=11)
    for ours, theirs in zip(have, rows._core(Node(op_type="DynamicQuantizeLinear", opset=21), x), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_residual_and_norm_together(level, rng):
    x, skip = (rng.standard_normal((2, 30, 64)).astype(np.float32) for _ in range(2))
    scale, beta, bias = (rng.standard_normal(64).astype(np.float32) for _ in range(3))
    node = Node(op_type="SkipLayerNormalization", domain="com.microsoft", outputs=("y", "", "", "sum"))
    have = RECORDS["com.microsoft", "SkipLayerNormalization", 1].run(node, x, skip, scale, beta, bias)
    want = rows._core(node, x, skip, scale, beta, bias)
    for i in (0, 3):
        np.testing.assert_allclose(have[i], want[i], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_softmax_of_an_axis_in_the_middle(axis, rng):
    x = rng.standard_normal((13, 14, 15)).astype(np.float32)
    (have,) = run("Softmax", x, since=13, axis=axis)
    np.testing.assert_allclose(have.sum(axis), 1, rtol=1e-5)


def test_operands_that_do_not_merge_go_to_numpy(rng):
    a, b = np.ones((2, 1, 30, 1, 50), np.float32), np.ones((1, 2, 30, 3, 1), np.float32)
    (have,) = run("Add", a, b)
    assert have.shape == (2, 2, 30, 3, 50)
    np.testing.assert_array_equal(have, 2)
