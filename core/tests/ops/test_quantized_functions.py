"""Integer operators of ONNX Runtime, bit for bit, over every level and any scale."""

import numpy as np
import onnx_ir as ir
import onnxruntime
from hypothesis import given, settings, strategies as st
from onnx import helper, numpy_helper

from pumice.plan import compile_plan

TYPES = st.sampled_from([np.uint8, np.int8])
SEEDS = st.integers(0, 2**32 - 1)
TIE = 1e-4
"""Of a step, which ONNX Runtime's exponentials of float32 are off by at most."""


def both(op_type, inputs, **attributes):
    """What ONNX Runtime and the plan compute of one operator of com.microsoft; its scalar inputs are constants."""
    node = helper.make_node(op_type, list(inputs), ["result"], domain="com.microsoft", **attributes)
    data = {name: array for name, array in inputs.items() if array.ndim}
    fed = [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in data.items()]
    held = [numpy_helper.from_array(np.asarray(array), name) for name, array in inputs.items() if not array.ndim]
    graph = helper.make_graph([node], "g", fed, [helper.make_empty_tensor_value_info("result")], held)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, data)[0], compile_plan(ir.from_proto(model)).run(data)["result"]


class Draw:
    """Random levels and parameters of one integer type."""

    def __init__(self, seed, dtype):
        self.rng, self.dtype, self.limits = np.random.default_rng(seed), dtype, np.iinfo(dtype)

    def levels(self, *shape):
        return self.rng.integers(self.limits.min, self.limits.max + 1, shape).astype(self.dtype)

    def parameters(self, name, low=0.001, high=0.2):
        return {f"{name}_scale": np.float32(self.rng.uniform(low, high)), f"{name}_zero": self.levels(1)[0]}


@settings(max_examples=30, deadline=None)
@given(SEEDS, TYPES, st.sampled_from([("QLinearSigmoid", {}), ("QLinearLeakyRelu", {"alpha": 0.1})]))
def test_functions_of_one_element(seed, dtype, kind):
    draw, (op_type, attributes) = Draw(seed, dtype), kind
    every = np.arange(draw.limits.min, draw.limits.max + 1).astype(dtype)
    parameters = draw.parameters("x") | draw.parameters("y", 0.002, 0.05)
    theirs, ours = (a.astype(int) for a in both(op_type, {"x": every} | parameters, **attributes))
    real = (every.astype(int) - int(parameters["x_zero"])) * np.float64(parameters["x_scale"])
    steps = (1 / (1 + np.exp(-real)) if op_type == "QLinearSigmoid" else real) / parameters["y_scale"]
    beside_a_tie = (op_type == "QLinearSigmoid") & (np.abs(steps % 1 - 0.5) < TIE)
    assert (np.abs(theirs - ours) <= beside_a_tie).all()


@settings(max_examples=50, deadline=None)
@given(
    SEEDS, TYPES, st.sampled_from([(1, 1), (2, 2), (2, 3), (3, 3)]), st.tuples(*[st.integers(1, 2)] * 2),
    st.booleans(), st.booleans(), st.booleans(), st.booleans(),
)  # fmt: skip
def test_average_pools(seed, dtype, kernel, strides, padded, include, ceil, last):
    draw = Draw(seed, dtype)
    parameters = draw.parameters("x")
    parameters |= draw.parameters("y", parameters["x_scale"] * 0.5, parameters["x_scale"] * 2)
    pads = [kernel[0] - 1, 0, 0, kernel[1] - 1] if padded else [0] * 4
    shape = (2, 7, 8, 3) if last else (2, 3, 7, 8)
    attributes = {"count_include_pad": int(include), "ceil_mode": int(ceil), "channels_last": int(last), "pads": pads}
    inputs = {"x": draw.levels(*shape)} | parameters
    found = both("QLinearAveragePool", inputs, kernel_shape=kernel, strides=strides, **attributes)
    np.testing.assert_array_equal(*found)


@settings(max_examples=50, deadline=None)
@given(SEEDS, TYPES, st.integers(2, 90), st.sampled_from([(13, -1), (13, 1), (13, 0), (11, 1), (11, 2)]))
def test_softmax(seed, dtype, count, kind):
    """Of two elements or more: of one, ONNX Runtime's overflows (its 1.0 comes out as 0)."""
    draw, (opset, axis) = Draw(seed, dtype), kind
    parameters = draw.parameters("x") | {"y_scale": np.float32(1 / 256), "y_zero": dtype(draw.limits.min)}
    shape = (3, count, 4) if axis == 1 else (4, 3, count)
    inputs = {"x": draw.levels(*shape)} | parameters
    np.testing.assert_array_equal(*both("QLinearSoftmax", inputs, opset=opset, axis=axis))


@settings(max_examples=30, deadline=None)
@given(SEEDS, TYPES, st.integers(1, 4), st.sampled_from([0, 1, -1]))
def test_concatenations(seed, dtype, count, axis):
    draw = Draw(seed, dtype)
    inputs = draw.parameters("y")
    for number in range(count):
        inputs |= {f"x{number}": draw.levels(3, 4)} | draw.parameters(f"x{number}")
    theirs, ours = both("QLinearConcat", inputs, axis=axis)
    np.testing.assert_array_equal(ours, theirs)


@settings(max_examples=30, deadline=None)
@given(SEEDS, TYPES, st.booleans())
def test_choices(seed, dtype, same):
    draw = Draw(seed, dtype)
    inputs = {"condition": draw.rng.random((3, 4)) < 0.5}
    for name in ("x", "y"):
        inputs |= {name: draw.levels(3, 4) | dtype(1)} | draw.parameters(name)
    inputs |= {f"z_{k}": inputs[f"x_{k}"] for k in ("scale", "zero")} if same else draw.parameters("z")
    theirs, ours = both("QLinearWhere", inputs)
    np.testing.assert_array_equal(ours, theirs)
