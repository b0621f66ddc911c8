"""What shares a codebook: the budget is kept, and it goes where it takes off most noise."""

import itertools

import attrs
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from pumice.quantize.weight_matrices import weight_matrices
from pumice_quant_kmeans.importance import relative_to_weights
from pumice_quant_kmeans.sharing import BYTES, _hull, _ways, allocated

NETWORK = '<ir_version: 10, opset_import: ["" : 21]> g (float[N,40] x) => (float[N,9] y) { %s }'
LAYERS = "h = MatMul(x, uneven) k = MatMul(h, even) y = MatMul(k, last)"


@pytest.fixture
def matrices():
    """The outputs of the first differ by factors, those of the others do not."""
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(NETWORK % LAYERS)
    arrays = {name: rng.standard_normal(shape) for name, shape in (("uneven", (40, 24)), ("even", (24, 32)))}
    arrays["last"] = rng.standard_normal((32, 9))
    arrays["uneven"] *= 10.0 ** rng.uniform(-2, 0, 24)
    held = [onnx.numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()]
    proto.graph.initializer.extend(held)
    for node in proto.graph.node:
        node.name = node.input[1]
    return weight_matrices(iter(ir.from_proto(proto).graph))


def best(matrices, left):
    """The least noise of all choices of hull points within a budget, by exhaustion."""
    hulls = [_hull(_ways(m, 16, BYTES["int8"], 0, None)) for m in matrices]
    fitting = [choice for choice in itertools.product(*hulls) if sum(way.nbytes for way in choice) <= left]
    return min(sum(way.noise for way in choice) for choice in fitting)


@pytest.mark.parametrize("overhead", [0.1, 0.2, 0.5, 2.0])
def test_no_other_choice_within_the_budget_has_much_less_noise(matrices, overhead):
    chosen = allocated(matrices, 16, "int8", overhead, 0, {})
    ways = list(chosen.values())
    left = overhead * sum(np.prod(m.shape) for m in matrices) / 2
    assert sum(way.nbytes for way in ways) <= left
    assert sum(way.noise for way in ways) <= 1.3 * best(matrices, left)


def test_scales_go_first_to_the_layer_whose_outputs_differ_most(matrices):
    chosen = allocated(matrices, 16, "int8", 0.1, 0, {})
    assert [chosen[f"{name}:1"].codebook for name in ("uneven", "even")] == ["scaled", "tensor"]


def test_without_a_budget_each_layer_has_one_table(matrices):
    ways = allocated(matrices, 16, "int8", 0.0, 0, {}).values()
    assert {(way.codebook, way.entries) for way in ways} == {("tensor", 16)}


def test_what_the_network_heeds_most_gets_codes_of_eight_bits(matrices):
    weighed = {m.name: relative_to_weights(m) for m in matrices}
    weighed["even:1"] = attrs.evolve(weighed["even:1"], heed=1e4 * weighed["even:1"].heed)
    chosen = allocated(matrices, 16, "int8", 0.9, 0, weighed)
    assert {name: way.entries for name, way in chosen.items()} == {"uneven:1": 16, "even:1": 256, "last:1": 16}
