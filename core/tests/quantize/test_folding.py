import numpy as np
import onnx_ir as ir
import pytest

from pumice.model import add_initializer, replace_input
from pumice.quantize.folding import folded_into_producers, read_by_none_but

CHANNELS = np.array([0.5, 2.0, 8.0]).reshape(3, 1, 1)
LAST = np.array([0.5, 2.0, 8.0, 1.0])
NUMBERS = {"k": np.float32(3.0), "c": (3, 1, 1), "g": (4,), "h": (4,), "full": (2, 3, 5, 4)}


def model_of(lab, body):
    text = f"(float[2,3,5,4] x) => (float[2,3,5,4] y) {{ {body} }}"
    used = {name: value for name, value in NUMBERS.items() if f", {name}" in body or f"({name}" in body}
    return lab.build(text, **used)


def value(model, name):
    return next(v for node in model.graph for v in node.outputs if v.name == name)


def fold(model, name, factor, may_change=lambda value: True):
    found = folded_into_producers(value(model, name), factor, may_change)
    for known in found or ():
        replace_input(known.node, known.index, add_initializer(model, "folded", known.array))
    return found is not None


@pytest.mark.parametrize(
    ("body", "factor"),
    [
        ("v = Mul (x, k)  y = Identity (v)", CHANNELS),
        ("v = Mul (c, x)  y = Identity (v)", CHANNELS),
        ("v = Div (x, k)  y = Identity (v)", CHANNELS),
        ("v = Mul (x, full)  y = Identity (v)", CHANNELS),
        ("a = Mul (x, k)  v = Add (a, c)  y = Identity (v)", CHANNELS),
        ("a = Div (x, c)  v = Sub (k, a)  y = Identity (v)", CHANNELS),
        ("a = Mul (x, g)  b = Add (a, h)  v = Sub (b, k)  y = Identity (v)", LAST),
        ("n = Neg (x)  r = Mul (n, g)  a = Mul (x, r)  v = Add (a, h)  y = Identity (v)", LAST),
        ("n = Neg (x)  r = Mul (n, g)  v = Div (r, x)  y = Identity (v)", LAST),
        ("v = LayerNormalization (x, g, h)  y = Identity (v)", LAST),
        ("v = LayerNormalization (x, g)  y = Identity (v)", LAST),
    ],
)
def test_folding_is_multiplying(lab, body, factor):
    model, feeds = model_of(lab, body), lab.normal(2, 3, 5, 4)
    wanted = lab.outputs(model, feeds).reshape(-1, 2, 3, 5, 4) * factor
    operators = [node.op_type for node in model.graph]
    assert fold(model, "v", factor)
    assert [node.op_type for node in model.graph] == operators
    np.testing.assert_allclose(lab.outputs(model, feeds).reshape(wanted.shape), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("body", "factor"),
    [
        ("v = Relu (x)  y = Identity (v)", CHANNELS),
        ("v = Mul (x, x)  y = Identity (v)", CHANNELS),
        ("v = Div (k, x)  y = Identity (v)", CHANNELS),  # the quotient of a constant
        ("v = Add (x, k)  y = Identity (v)", CHANNELS),  # x is the caller's
        ("a = Mul (x, k)  v = Add (a, c)  y = Add (v, a)", CHANNELS),  # `a` is read elsewhere, too
        ("v = Mul (x, g)  y = Identity (v)", CHANNELS),  # 4 and 3 numbers would become 12
        ("u = Erf (x)  a = Mul (x, u)  v = Mul (a, k)  y = Identity (v)", CHANNELS),  # the end of a GELU
        ("u = Erf (x)  a = Mul (u, k)  v = Mul (x, a)  y = Identity (v)", CHANNELS),  # written the other way round
        ("a = Mul (x, g)  v = Mul (a, a)  y = Identity (v)", LAST),  # a square takes the root of the factor
        ("v = LayerNormalization (x, g, h)  y = Identity (v)", CHANNELS),
        ("v = LayerNormalization <axis=2> (x, full)  y = Identity (v)", LAST),
    ],
)
def test_what_takes_more_than_constants_is_left_alone(lab, body, factor):
    assert not fold(model_of(lab, body), "v", factor)


def test_a_value_that_must_not_change_is_not_folded_through(lab):
    model = model_of(lab, "a = Mul (x, k)  v = Add (a, c)  y = Identity (v)")
    assert not fold(model, "v", CHANNELS, may_change=lambda inner: inner.name != "a")


def test_constants_that_a_caller_may_replace_are_left_alone(lab):
    model = model_of(lab, "v = Mul (x, c)  y = Identity (v)")
    model.graph.inputs.append(model.graph.initializers["c"])
    assert isinstance(model.graph.initializers["c"], ir.Value)
    assert not fold(model, "v", CHANNELS)


def test_a_value_whose_shape_alone_others_read_is_read_by_none_but_the_layers(lab):
    model = lab.build("(float[2,3] x) => (float[2,3] y, int64[2] s) { v = Neg (x)  y = Exp (v)  s = Shape (v) }")
    assert read_by_none_but(value(model, "v"), {model.graph[1]})
    assert not read_by_none_but(value(model, "v"), set())
    assert not read_by_none_but(value(model, "y"), set())
