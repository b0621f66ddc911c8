"""Weights as rows of inputs: with what is observed of the inputs, every layer is a product of matrices."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from pumice.data import open_dataset
from pumice.measure import pick_runtime
from pumice.model import infer_shapes
from pumice.quantize.context import QuantizeContext
from pumice.quantize.target import Target
from pumice.quantize.weight_matrices import observe_inputs, weight_matrices

X = np.random.default_rng(0).standard_normal((4, 6, 8)).astype(np.float32)


def model(text, data=X, **weights):
    proto = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 21]> g (float{list(data.shape)} x) => {text}'
    )
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    for node in proto.graph.node:
        node.name = f"at_{node.output[0] or node.output[1]}"
    return infer_shapes(ir.from_proto(proto))


def draw(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def context(network, data=X):
    rows = [{"x": data}]
    return QuantizeContext(
        calibration=open_dataset(rows, network), runtime=pick_runtime(), target=Target.named("ort-cpu")
    )


CASES = {
    "MatMul": ("(float[4,6,5] y) { y = MatMul (x, w) }", {"w": draw(8, 5)}),
    "batched MatMul": ("(float[4,6,5] y) { y = MatMul (x, w) }", {"w": draw(4, 8, 5)}),
    "Conv": ("(float y) { y = Conv <group=2> (x, w) }", {"w": draw(4, 3, 3)}),
    "ConvTranspose": ("(float y) { y = ConvTranspose <group=2> (x, w) }", {"w": draw(6, 5, 3)}),
    "LSTM": (
        '(float y) { y, h, c = LSTM <hidden_size=3, direction="bidirectional"> (x, w, r) }',
        {"w": draw(2, 12, 8), "r": draw(2, 12, 3)},
    ),
    "Gather": ("(float y) { i = Cast <to=7> (x) y = Gather (w, i) }", {"w": draw(30, 4)}),
}


@pytest.mark.parametrize("name", CASES)
def test_rows_go_back_into_the_shape_of_the_constant(name):
    text, weights = CASES[name]
    matrices = weight_matrices(iter(model(text, **weights).graph))
    assert {matrix.value.name for matrix in matrices} == set(weights)
    for matrix in matrices:
        assert matrix.rows().shape == matrix.shape
        np.testing.assert_array_equal(matrix.restored(matrix.rows()), weights[matrix.value.name])


def test_the_rows_of_a_convolution_times_its_patches_are_its_output():
    network = model(*CASES["Conv"][:1], **CASES["Conv"][1])
    (matrix,) = weight_matrices(iter(network.graph))
    moments = observe_inputs(network, [matrix], context(network))[matrix]
    (output,) = pick_runtime().open(network).run({"x": X}).values()
    mean = np.einsum("gok,gk->go", matrix.rows(), moments.means()[0]).ravel()
    np.testing.assert_allclose(mean, output.mean(axis=(0, 2)), rtol=1e-4, atol=1e-5)


def test_the_recurrence_of_each_direction_multiplies_its_own_states():
    network = model(*CASES["LSTM"][:1], **CASES["LSTM"][1])
    inputs, recurrence = weight_matrices(iter(network.graph))
    found = observe_inputs(network, [inputs, recurrence], context(network))
    (states,) = pick_runtime().open(network, outputs=["y"]).run({"x": X}).values()
    np.testing.assert_allclose(found[recurrence].means()[0], states.mean(axis=(0, 2)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found[inputs].means()[0], X.reshape(-1, 8).mean(axis=0)[None], rtol=1e-4, atol=1e-6)


def test_weights_that_several_nodes_read_alike_are_one_matrix():
    network = model("(float y) { a = MatMul (x, w)  y = MatMul (a, w) }", w=draw(8, 8))
    (matrix,) = weight_matrices(iter(network.graph))
    assert [node.name for node, _ in matrix.readers] == ["at_a", "at_y"]
    assert observe_inputs(network, [matrix], context(network))[matrix].count == 2 * 24
