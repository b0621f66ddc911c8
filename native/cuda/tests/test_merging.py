"""Products rewritten for a GPU: fewer of them, and the same numbers."""

from collections import Counter

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from pumice.model import add_initializer, clone
from pumice.plan import compile_plan
from pumice_cuda.runtime.merging import merge_products

DEPTH, WIDTHS = 12, {"q": 8, "k": 8, "v": 5}
HEAD = """<ir_version: 10, opset_import: ["" : 21]>
agraph (float[N, 12] x) => (float q, float k, float v) {
    a, s, z = DynamicQuantizeLinear(x)
"""
PRODUCT = """
    {0}i = MatMulInteger(a, {0}w, z)
    {0}f = Cast <to = 1> ({0}i)
    {0}t = Mul({scales})
    {out} = Mul({0}f, {0}t)
"""


def network(rng, *, biased=frozenset(), scales="s, {0}c"):
    """Three products of one matrix, some with a bias."""
    body = "".join(
        PRODUCT.format(name, scales=scales.format(name), out=f"{name}p" if name in biased else name)
        + (f"    {name} = Add({name}p, {name}b)\n" if name in biased else "")
        for name in WIDTHS
    )
    model = ir.from_proto(onnx.parser.parse_model(HEAD + body + "}"))
    values = {value.name: value for node in model.graph for value in node.inputs if value is not None}
    for name, width in WIDTHS.items():
        constants = {
            "w": rng.integers(-127, 128, (DEPTH, width)).astype(np.int8), "c": rng.random(width).astype(np.float32),
            "b": rng.standard_normal(width).astype(np.float32),
        }  # fmt: skip
        for key, array in constants.items():
            if name + key in values:
                values[name + key].replace_all_uses_with(add_initializer(model, f"known/{name}{key}", array))
    return model


def merged(model):
    result = clone(model)
    merge_products(result)
    return result, Counter(node.op_type for node in result.graph)


@pytest.mark.parametrize("scales", ["s, {0}c", "{0}c, s"])
@pytest.mark.parametrize(
    ("biased", "products"), [(set(), 1), ({"q", "k", "v"}, 1), ({"v"}, 2)], ids=["none", "all", "one"]
)
def test_products_of_one_matrix_become_one_and_give_the_same(rng, biased, products, scales):
    model = network(rng, biased=biased, scales=scales)
    result, kinds = merged(model)
    assert kinds["MatMulIntegerToFloat"] == products
    assert not kinds["MatMulInteger"] + kinds["Cast"] + kinds["Add"]
    feeds = {"x": rng.standard_normal((7, DEPTH)).astype(np.float32)}
    want, found = (compile_plan(m, kernels=()).run(feeds) for m in (model, result))
    for name, value in want.items():
        np.testing.assert_array_equal(found[name], value)


def test_what_is_asked_for_inside_a_product_stays(rng):
    model = network(rng)
    model.graph.outputs.append(next(node.outputs[0] for node in model.graph if node.op_type == "MatMulInteger"))
    _, kinds = merged(model)
    assert (kinds["MatMulInteger"], kinds["MatMulIntegerToFloat"]) == (1, 1)


def test_a_scale_that_no_quantization_gives_is_left_alone(rng):
    _, kinds = merged(network(rng, scales="x, {0}c"))
    assert kinds["MatMulInteger"] == 3


@pytest.mark.parametrize(
    ("biased", "reshaped", "products"),
    [("", "qkv", 1), ("qkv", "qkv", 1), ("v", "qkv", 2), ("qkv", "qk", 2), ("qkv", "q", 3)],
)
def test_products_of_floats_that_are_divided_into_heads_become_one(rng, biased, reshaped, products):
    body = "".join(
        f"{name}p = MatMul(x, {name}w)\n" + (f"{name}s = Add({name}b, {name}p)\n" if name in biased else "")
        + f"{name} = {'Reshape' if name in reshaped else 'Sum'}({name}{'s' if name in biased else 'p'}"
        + (", shape)\n" if name in reshaped else ")\n")
        for name in WIDTHS
    )  # fmt: skip
    text = f"""<ir_version: 10, opset_import: ["" : 21]>
    agraph (float[N, 3, 12] x) => (float q, float k, float v) <int64[4] shape = {{0, 0, 1, -1}}> {{ {body} }}"""
    model = ir.from_proto(onnx.parser.parse_model(text))
    values = {value.name: value for node in model.graph for value in node.inputs if value is not None}
    for name, width in WIDTHS.items():
        for key, shape in (("w", (DEPTH, width)), ("b", (width,))):
            if name + key in values:
                array = rng.standard_normal(shape).astype(np.float32)
                values[name + key].replace_all_uses_with(add_initializer(model, f"known/{name}{key}", array))
    result, kinds = merged(model)
    assert kinds["MatMul"] == products
    feeds = {"x": rng.standard_normal((7, 3, DEPTH)).astype(np.float32)}
    want, found = (compile_plan(m, kernels=()).run(feeds) for m in (model, result))
    for name, value in want.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-5)
