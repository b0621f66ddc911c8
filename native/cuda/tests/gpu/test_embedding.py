"""Rows of a quantized table, against NumPy, and the chain that looks them up."""

import cupy
import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from pumice.plan import compile_plan
from pumice_cuda import embedding
from pumice_cuda.placing import OnDevice

GRAPH = """<ir_version: 10, opset_import: ["" : 21]>
agraph (int8[50, 36] table, float[50, 1] scales, int64[N, T] x) => (float[N, T, 36] y) {
    rows = Gather <axis = 0> (table, x)
    factor = Gather <axis = 0> (scales, x)
    wide = Cast <to = 1> (rows)
    y = Mul(wide, factor)
}"""


@pytest.mark.parametrize("shape", [(1,), (3, 7), (2, 3, 100)], ids=str)
@pytest.mark.parametrize("index", ["int64", "int32"])
@pytest.mark.parametrize("level", ["int8", "uint8"])
@pytest.mark.parametrize("columns", [4, 36, 768])
def test_rows_are_those_of_the_table_times_their_factors(rng, shape, index, level, columns):
    limits = np.iinfo(level)
    table = rng.integers(limits.min, limits.max + 1, (50, columns)).astype(level)
    x, factor = rng.integers(-50, 50, shape).astype(index), rng.random((*shape, 1)).astype(np.float32)
    given = [cupy.asarray(a) for a in (table, x, factor)]
    assert embedding.takes(*given)
    np.testing.assert_array_equal(cupy.asnumpy(embedding.embed(*given)), table[x].astype(np.float32) * factor)


def test_a_graph_that_looks_up_and_dequantizes_does_so_at_once(rng):
    feeds = {
        "table": rng.integers(-128, 128, (50, 36)).astype(np.int8), "scales": rng.random((50, 1)).astype(np.float32),
        "x": rng.integers(0, 50, (3, 8)),
    }  # fmt: skip
    model = ir.from_proto(onnx.parser.parse_model(GRAPH))
    plan = compile_plan(model, placement=OnDevice())
    assert len(plan.program.fused) == 2
    found = plan.run({name: cupy.asarray(x) for name, x in feeds.items()})
    np.testing.assert_array_equal(cupy.asnumpy(found["y"]), compile_plan(model, kernels=()).run(feeds)["y"])
