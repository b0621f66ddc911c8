"""Concat on the GPU: what a recording may hold."""

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from pumice_cuda.runtime.strategy import CudaRuntime


@pytest.mark.parametrize("count", [8, 9, 40])
def test_a_model_that_joins_many_arrays_is_recorded(rng, count):
    parts = ", ".join(f"p{i}" for i in range(count))
    moved = " ".join(f"p{i} = Add(x, x)" if i % 2 else f"p{i} = Neg(x)" for i in range(count))
    proto = onnx.parser.parse_model(f"""<ir_version: 10, opset_import: ["" : 21]>
        agraph (float[N, 3] x) => (float[N, M] y) {{ {moved} y = Concat<axis = 1>({parts}) }}""")
    opened = CudaRuntime().open(ir.from_proto(proto))
    for _ in range(4):
        x = rng.standard_normal((5, 3)).astype(np.float32)
        want = np.concatenate([x + x if i % 2 else -x for i in range(count)], axis=1)
        np.testing.assert_array_equal(opened.run({"x": x})["y"], want)
    assert "operator by operator" not in opened.description
