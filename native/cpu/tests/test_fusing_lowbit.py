"""Products by four-bit weights that the graph spells out: the codes are multiplied, never widened."""

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from pumice.plan import compile_plan
from pumice.registry import registry
from pumice_cpu import native
from pumice_cpu.fusing_lowbit import FEW_ROWS

CHAINS = {
    "one table": """i = Cast<to=6>(codes) v = Gather(table, i) w = Transpose<perm=[1,0]>(v) p = MatMul(x, w)
        y = Add(p, b)""",
    "a scale an output": """i = Cast<to=6>(codes) v = Gather(table, i) m = Mul(v, scale) w = Transpose<perm=[1,0]>(m)
        y = MatMul(x, w)""",
    "levels of a unit": """i = Cast<to=6>(codes) v = Gather(table, i) l = Cast<to=1>(levels) s = Mul(l, unit)
        m = Mul(v, s) w = Transpose<perm=[1,0]>(m) y = MatMul(x, w)""",
    "one scale": "i = Cast<to=6>(codes) v = Gather(table, i) w = Mul(v, unit) y = Gemm<transB=1>(x, w, b)",
    "a table of bytes": "t = Cast<to=1>(bytes) i = Cast<to=6>(codes) w = Gather(t, i) y = Gemm<transB=1>(x, w, b)",
    "a table an output": """i = Cast<to=6>(blocks) v = GatherElements<axis=2>(tables, i) w = Reshape(v, rows)
        y = Gemm<transB=1>(x, w, b)""",
    "affine": "w = DequantizeLinear<axis=0, block_size=32>(upright, steps, points) p = MatMul(x, w) y = Add(p, b)",
    "affine, signed": "w = DequantizeLinear<axis=1>(signed, step) y = MatMul(x, w)",
}


def weights(rng):
    codes, table = rng.integers(0, 16, (24, 64)), np.sort(rng.standard_normal(16)).astype(np.float32)
    return {
        "codes": codes.astype(np.uint8).astype(ml_dtypes.uint4),
        "blocks": codes[:, None].astype(np.uint8).astype(ml_dtypes.uint4),
        "upright": codes.T.astype(np.uint8).astype(ml_dtypes.uint4),
        "signed": (codes.T - 8).astype(np.int8).astype(ml_dtypes.int4),
        "table": table,
        "bytes": np.arange(-8, 8, dtype=np.int8),
        "tables": rng.standard_normal((24, 1, 16)).astype(np.float32),
        "rows": np.array([-1, 64]),
        "scale": rng.random((24, 1)).astype(np.float32),
        "levels": rng.integers(1, 256, (24, 1)).astype(np.uint8),
        "unit": np.full(1, 0.01, np.float32),
        "steps": rng.random((2, 24)).astype(np.float32),
        "points": rng.integers(0, 16, (2, 24)).astype(np.uint8).astype(ml_dtypes.uint4),
        "step": rng.random(24).astype(np.float32),
        "b": rng.standard_normal(24).astype(np.float32),
    }


def model(text, arrays):
    proto = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 21]> g (float[N,64] x) => (float[N,24] y) {{ {text} }}'
    )
    read = {name for node in proto.graph.node for name in node.input}
    found = ir.from_proto(proto)
    inputs = {v.name: v for node in found.graph for v in node.inputs if v is not None}
    for name in sorted(read & arrays.keys()):
        inputs[name].const_value = ir.tensor(arrays[name], name=name)
        found.graph.register_initializer(inputs[name])
    return found


@pytest.mark.parametrize("form", CHAINS)
@pytest.mark.parametrize("rows", [1, 5])
def test_codes_are_multiplied_and_never_widened(rng, form, rows):
    found, x = model(CHAINS[form], weights(rng)), rng.standard_normal((rows, 64)).astype(np.float32)
    truth = compile_plan(found, kernels=()).run({"x": x})["y"]
    plan = compile_plan(found, kernels=registry().kernels)
    native.forget_runs()
    for _ in range(2):
        np.testing.assert_allclose(plan.run({"x": x})["y"], truth, rtol=1e-4, atol=1e-4)
    assert bool(native.ran("lowbit_f32")) == (rows <= FEW_ROWS)  # many are multiplied by weights that were widened once


def test_what_is_fed_in_the_place_of_a_table_counts(rng):
    found, x = model(CHAINS["one table"], weights(rng)), rng.standard_normal((3, 64)).astype(np.float32)
    plan = compile_plan(found, kernels=registry().kernels)
    plan.run({"x": x})
    fed = {"x": x, "table": np.linspace(-1, 1, 16, dtype=np.float32)}
    np.testing.assert_allclose(plan.run(fed)["y"], compile_plan(found, kernels=()).run(fed)["y"], rtol=1e-4, atol=1e-4)
