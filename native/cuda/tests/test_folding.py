"""What is computed before kernels choose their nodes, and what is left to them."""

import ml_dtypes
import numpy as np
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from pumice.model import constant
from pumice.plan import compile_plan
from pumice.testing.models import random_feeds
from pumice_cuda.runtime.folding import fold_constants


def model_of(nodes, arrays, x=("N", 3, 5, 5)):
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    held = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, held)
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))


def operators(model):
    return [node.op_type for node in model.graph]


def test_weights_behind_arithmetic_are_constants_of_their_layer(rng):
    codes = rng.integers(0, 16, (4, 1, 27)).astype(ml_dtypes.uint4)
    nodes = [
        helper.make_node("Cast", ["codes"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["cast", "zero"], ["centred"]),
        helper.make_node("Mul", ["centred", "scale"], ["scaled"]),
        helper.make_node("Reshape", ["scaled", "shape"], ["w"]),
        helper.make_node("Conv", ["x", "w"], ["y"]),
    ]
    arrays = {
        "codes": codes, "zero": np.float32([[[7]]]), "scale": rng.uniform(0.1, 1, (4, 1, 1)).astype(np.float32),
        "shape": np.array([4, 3, 3, 3]),
    }  # fmt: skip
    model = model_of(nodes, arrays)
    x = {"x": rng.standard_normal((2, 3, 5, 5)).astype(np.float32)}
    want = compile_plan(model, kernels=()).run(x)["y"]
    fold_constants(model)
    assert operators(model) == ["Conv"]
    np.testing.assert_array_equal(compile_plan(model, kernels=()).run(x)["y"], want)


def test_weights_of_8_bits_keep_what_integer_operators_are_made_from(quantized):
    before = operators(quantized)
    model = quantized.clone()
    fold_constants(model)
    assert operators(model) == before
    (feeds,) = random_feeds(1)
    for name, want in compile_plan(quantized, kernels=()).run(feeds).items():
        np.testing.assert_array_equal(compile_plan(model, kernels=()).run(feeds)[name], want)


def test_weights_of_8_bits_in_blocks_which_no_integer_operator_takes_are_widened(rng):
    arrays = {
        "codes": rng.integers(-9, 9, (4, 2)).astype(np.int8), "scale": np.ones((2, 2), np.float32),
    }  # fmt: skip
    nodes = [
        helper.make_node("DequantizeLinear", ["codes", "scale"], ["w"], axis=0, block_size=2),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    model = model_of(nodes, arrays, x=("N", 4))
    fold_constants(model)
    (product,) = model.graph
    np.testing.assert_array_equal(constant(product.inputs[1]), arrays["codes"].astype(np.float32))


def test_a_constant_that_is_an_output_and_random_numbers_stay():
    nodes = [
        helper.make_node("RandomNormalLike", ["like"], ["noise"]), helper.make_node("Add", ["x", "noise"], ["sum"]),
        helper.make_node("Neg", ["like"], ["y"]),
    ]  # fmt: skip
    model = model_of(nodes, {"like": np.ones(5, np.float32)})
    fold_constants(model)
    assert operators(model) == ["RandomNormalLike", "Add", "Neg"]
