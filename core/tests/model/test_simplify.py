"""Every rule fires where it should, keeps the outputs, and refuses where its algebra does not hold."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx_ir as ir
import pytest

from pumice.ledger import Ledger
from pumice.model import constant, load, simplify, size


def simplified(path):
    model, ledger = load(path), Ledger()
    changed = simplify(model, ledger)
    assert changed == bool(ledger.of("simplify", "applied"))
    return model, ledger


def operators(model):
    return [node.op_type for node in model.graph]


def positive(rng, *shape):
    return rng.uniform(0.5, 1.5, shape).astype(np.float32)


BN = "BatchNormalization(t, gamma, beta, mean, var)"
BN_PARAMETERS = ("gamma", "beta", "mean", "var")
IMAGE = "float[N,4,5,5] x"
FOLDS = {
    "BN into Conv": (IMAGE, "t = Conv(x, w)  y = " + BN, dict(w=(6, 4, 3, 3)), ["Conv"]),
    "BN into grouped Conv with bias": (
        IMAGE, "t = Conv<group = 2>(x, w, b)  y = " + BN,
        dict(w=(6, 2, 3, 3), b=(6,)), ["Conv"],
    ),
    "BN into padded Conv": (IMAGE, "t = Conv<pads = [1, 1, 1, 1]>(x, w)  y = " + BN, dict(w=(6, 4, 3, 3)), ["Conv"]),
    "BN into ConvTranspose": (IMAGE, "t = ConvTranspose(x, w)  y = " + BN, dict(w=(4, 6, 2, 2)), ["ConvTranspose"]),
    "BN into grouped ConvTranspose": (
        IMAGE, "t = ConvTranspose<group = 2>(x, w, b)  y = " + BN,
        dict(w=(4, 3, 2, 2), b=(6,)), ["ConvTranspose"],
    ),
    "BN into Gemm": (
        "float[N,4] x", "t = Gemm<alpha = 0.5, beta = 2.0>(x, w, b)  y = " + BN,
        dict(w=(4, 6), b=(6,)), ["Gemm"],
    ),
    "BN into Gemm with transB": ("float[N,4] x", "t = Gemm<transB = 1>(x, w)  y = " + BN, dict(w=(6, 4)), ["Gemm"]),
    "BN into MatMul": ("float[N,4] x", "t = MatMul(x, w)  y = " + BN, dict(w=(4, 6)), ["Gemm"]),
    "BN after MatMul and Add": (
        "float[N,4] x", "u = MatMul(x, w)  t = Add(b, u)  y = " + BN,
        dict(w=(4, 6), b=(6,)), ["Gemm"],
    ),
    "bias Add into Conv": (IMAGE, "t = Conv(x, w)  y = Add(t, b)", dict(w=(6, 4, 3, 3), b=(1, 6, 1, 1)), ["Conv"]),
    "scalar Add into Conv": (IMAGE, "t = Conv(x, w)  y = Add(b, t)", dict(w=(6, 4, 3, 3), b=()), ["Conv"]),
    "Sub, Mul, Div into Conv": (
        IMAGE, "t = Conv(x, w)  u = Sub(t, b)  v = Mul(s, u)  y = Div(v, d)",
        dict(w=(6, 4, 3, 3), b=(6, 1, 1), s=(6, 1, 1), d=(1, 6, 1, 1)), ["Conv"],
    ),
    "subtraction from a constant": (
        IMAGE, "t = Conv(x, w)  y = Sub(b, t)",
        dict(w=(6, 4, 3, 3), b=(6, 1, 1)), ["Conv"],
    ),
    "Mul into MatMul of sequences": (
        "float[N,5,4] x", "t = MatMul(x, w)  y = Mul(t, s)",
        dict(w=(4, 6), s=(6,)), ["MatMul"],
    ),
    "bias Add into MatMul": ("float[N,4] x", "t = MatMul(x, w)  y = Add(t, b)", dict(w=(4, 6), b=(1, 6)), ["Gemm"]),
    "Add stays on MatMul of sequences": (
        "float[N,5,4] x", "t = MatMul(x, w)  y = Add(t, b)",
        dict(w=(4, 6), b=(6,)), ["MatMul", "Add"],
    ),
    "Add along a spatial axis stays": (
        IMAGE, "t = Conv(x, w)  y = Add(t, b)",
        dict(w=(6, 4, 3, 3), b=(3,)), ["Conv", "Add"],
    ),
    "Add that broadens stays": (
        "float[4,4] x", "t = MatMul(x, w)  y = Add(t, b)",
        dict(w=(4, 6), b=(2, 1, 6)), ["MatMul", "Add"],
    ),
    "BN of a sequence stays": (
        "float[N,6,4] x", "t = MatMul(x, w)  y = " + BN,
        dict(w=(4, 6)), ["MatMul", "BatchNormalization"],
    ),
    "division of a constant stays": (
        IMAGE, "t = Conv(x, w)  y = Div(b, t)",
        dict(w=(6, 4, 3, 3), b=(6, 1, 1)), ["Conv", "Div"],
    ),
    "a Gemm matrix C stays": (
        "float[3,4] x", "t = Gemm(x, w, c)  y = Add(t, b)",
        dict(w=(4, 6), c=(3, 6), b=(6,)), ["Gemm", "Add"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FOLDS)
def test_channel_arithmetic_folds_into_the_layer_or_stays(stored, run, rng, case):
    declared, body, shapes, expected = FOLDS[case]
    if "gamma" in body:
        shapes = shapes | dict.fromkeys(BN_PARAMETERS, (6,))
    path = stored(f"g ({declared}) => (float y) {{ {body} }}", **{k: positive(rng, *v) for k, v in shapes.items()})
    model, ledger = simplified(path)
    assert operators(model) == expected
    shape = [{"N": 3}.get(d, d) for d in map(str, load(path).graph.inputs[0].shape)]
    x = positive(rng, *map(int, shape))
    np.testing.assert_allclose(run(model, x=x)[0], run(path, x=x)[0], rtol=2e-5, atol=1e-5)
    assert model.graph.outputs[0].name == "y"
    assert len(ledger.of("simplify", "applied")) == len(load(path).graph) - len(expected)


HARD = dict(three=np.float32(3), zero=np.float32(0), six=np.float32(6))


@pytest.mark.parametrize(("body", "constants", "expected"), [
    ("a = Add(x, three)  b = Clip(a, zero, six)  c = Mul(x, b)  y = Div(c, six)", HARD, ["HardSwish"]),
    ("a = Add(three, x)  b = Clip(a, zero, six)  c = Mul(b, x)  y = Div(c, six)", HARD, ["HardSwish"]),
    ("a = Add(x, three)  b = Clip(a, zero, six)  c = Div(b, six)  y = Mul(c, x)", HARD, ["HardSwish"]),
    ("a = Add(x, three)  b = Clip(a, zero, six)  c = Div(b, six)  y = Mul(c, x)",
     HARD | dict(three=np.float32(2)), ["Add", "Clip", "Div", "Mul"]),
    ("a = Add(x, three)  b = Clip(a, zero, six)  c = Mul(x, b)  y = Div(c, six)",
     HARD | dict(three=np.full((1, 1, 1, 1), 3, np.float32)), ["Add", "Clip", "Mul", "Div"]),
    ("a = Add(x, three)  b = Clip(a, zero, six)  c = Mul(z, b)  y = Div(c, six)  z = Neg(x)",
     HARD, ["Add", "Clip", "Neg", "Mul", "Div"]),
])  # fmt: skip
def test_hard_swish_in_parts_becomes_one_operator(stored, run, rng, body, constants, expected):
    parts = sorted(body.split("  "), key=lambda part: part[0] != "z")
    path = stored(f"g (float[2,3,4] x) => (float y) {{ {'  '.join(parts)} }}", **constants)
    model, _ = simplified(path)
    assert sorted(operators(model)) == sorted(expected)
    x = rng.uniform(-5, 5, (2, 3, 4)).astype(np.float32)
    np.testing.assert_allclose(run(model, x=x)[0], run(path, x=x)[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("h = GlobalAveragePool(x)  p = Mul(x, h)  y = Add(x, p)", ["GlobalAveragePool", "Add", "Mul"]),
        ("h = GlobalAveragePool(x)  p = Mul(h, x)  y = Add(p, x)", ["GlobalAveragePool", "Add", "Mul"]),
        ("h = Neg(x)  p = Mul(h, x)  y = Add(p, x)", ["Neg", "Mul", "Add"]),
        ("h = GlobalAveragePool(x)  p = Mul(h, x)  n = Neg(p)  s = Add(p, x)  y = Add(s, n)",
         ["GlobalAveragePool", "Mul", "Neg", "Add", "Add"]),
    ],
)  # fmt: skip
def test_a_smaller_factor_is_taken_out_of_a_sum(stored, run, rng, body, expected):
    path = stored(f"g (float[2,3,4,4] x) => (float y) {{ {body} }}")
    model, _ = simplified(path)
    assert operators(model) == expected
    x = positive(rng, 2, 3, 4, 4)
    np.testing.assert_allclose(run(model, x=x)[0], run(path, x=x)[0], rtol=1e-6)


INTO_THE_NEXT = {
    "a scalar product": ("t = Mul(s, r)", dict(s=()), ["Relu", "Conv"]),
    "a quotient along the channels": ("t = Div(r, s)", dict(s=(4, 1, 1)), ["Relu", "Conv"]),
    "a sum without padding": ("t = Add(r, s)", dict(s=(4, 1, 1)), ["Relu", "Conv"]),
    "a normalisation without padding": (
        "t = " + BN.replace("(t,", "(r,"), dict.fromkeys(BN_PARAMETERS, (4,)), ["Relu", "Conv"],
    ),
    "a sum under padding stays": ("t = Add(r, s)", dict(s=()), ["Relu", "Add", "Conv"]),
    "a product before a sum that stays": (
        "u = Mul(r, s)  t = Add(u, c)", dict(s=(4, 1, 1), c=()), ["Relu", "Add", "Conv"],
    ),
    "a quotient of a constant stays": ("t = Div(s, r)", dict(s=()), ["Relu", "Div", "Conv"]),
    "a product along rows stays": ("t = Mul(r, s)", dict(s=(5, 1)), ["Relu", "Mul", "Conv"]),
    "the factor of a GELU stays": (
        "u = Erf(r)  v = Mul(r, u)  t = Mul(v, s)", dict(s=()), ["Relu", "Erf", "Mul", "Mul", "Conv"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("case", INTO_THE_NEXT)
def test_channel_arithmetic_folds_into_the_convolution_after_it(stored, run, rng, case, groups):
    body, shapes, expected = INTO_THE_NEXT[case]
    pads = "[1, 1, 1, 1]" if "stays" in case or "product" in case else "[0, 0, 0, 0]"
    text = f"g ({IMAGE}) => (float y) {{ r = Relu(x)  {body}  y = Conv<pads = {pads}, group = {groups}>(t, w, b) }}"
    constants = {k: positive(rng, *v) for k, v in (shapes | dict(w=(6, 4 // groups, 3, 3), b=(6,))).items()}
    path = stored(text, **constants)
    model, _ = simplified(path)
    assert operators(model) == expected
    x = positive(rng, 2, 4, 5, 5)
    np.testing.assert_allclose(run(model, x=x)[0], run(path, x=x)[0], rtol=2e-5, atol=1e-5)


def test_what_others_read_too_is_not_folded_into_the_next(stored, rng):
    text = f"g ({IMAGE}) => (float y, float z) {{ r = Relu(x)  t = Mul(r, s)  y = Conv(t, w)  z = Neg(t) }}"
    model, _ = simplified(stored(text, w=positive(rng, 6, 4, 3, 3), s=positive(rng)))
    assert operators(model) == ["Relu", "Mul", "Conv", "Neg"]


def test_a_folded_weight_keeps_its_name(stored, rng):
    path = stored(
        f"g ({IMAGE}) => (float y) {{ t = Conv(x, w)  y = Mul(t, s) }}",
        w=positive(rng, 6, 4, 1, 1),
        s=positive(rng, 6, 1, 1),
    )
    model, _ = simplified(path)
    assert [value.name for value in model.graph[0].inputs] == ["x", "w", "w_bias"]


def test_a_shared_weight_is_not_rescaled_and_the_ledger_says_why(stored, rng):
    text = f"g ({IMAGE}) => (float y, float z) {{ t = Conv(x, w)  y = Mul(t, s)  z = Conv(x, w) }}"
    model, ledger = simplified(stored(text, w=positive(rng, 6, 4, 1, 1), s=positive(rng, 6, 1, 1)))
    assert operators(model) == ["Conv", "Mul", "Conv"]
    assert [entry.reason for entry in ledger] == [
        "not folded into Conv 'Conv_0': the weight is shared with another node"
    ]


@pytest.mark.parametrize("body", [
    "y = Conv(x, w)  z = Mul(y, s)",
    "t = Conv(x, w)  y = Mul(t, s)  z = Relu(t)",
    "t = Conv(x, w)  y = Mul(t, t)  z = Mul(y, s)",
])  # fmt: skip
def test_a_layer_that_others_read_is_left_alone(stored, rng, body):
    text = f"g ({IMAGE}) => (float y, float z) {{ {body} }}"
    model, _ = simplified(stored(text, w=positive(rng, 6, 4, 1, 1), s=positive(rng, 6, 1, 1)))
    assert operators(model) == [part.split("(")[0].split("= ")[1] for part in body.split("  ")]


def test_a_fold_that_would_overflow_half_precision_is_declined(stored, rng):
    text = "g (float16[1,4] x) => (float16[1,6] y) { t = MatMul(x, w)  y = Mul(t, s) }"
    weights = dict(w=np.full((4, 6), 300, np.float16), s=np.full(6, 300, np.float16))
    model, ledger = simplified(stored(text, **weights))
    assert operators(model) == ["MatMul", "Mul"]
    assert "leaves the range of its type" in ledger.of("simplify", "declined")[0].reason


def test_half_precision_folds_are_computed_in_double(stored, rng):
    text = "g (float16[1,4] x) => (float16[1,6] y) { t = Gemm(x, w)  y = " + BN + " }"
    weights = {k: positive(rng, 6).astype(np.float16) for k in ("gamma", "beta", "mean", "var")}
    w = positive(rng, 4, 6).astype(np.float16)
    model, _ = simplified(stored(text, w=w, **weights))
    exact = w.astype(float) * weights["gamma"] / np.sqrt(weights["var"].astype(float) + 1e-5)
    np.testing.assert_array_equal(constant(model.graph.initializers["w"]), exact.astype(np.float16))


SHAPE = np.array([2, 3, 4])
BOUNDS = dict(c=np.float32(-0.5), d=np.float32(0.5))
REWRITES = {
    "x times 1": ("y = Mul(x, c)", dict(c=np.float32(1)), ["Identity"], "neutral constant"),
    "x plus 0": ("t = Add(c, x)  y = Relu(t)", dict(c=np.float32(0)), ["Relu"], "neutral constant"),
    "x minus 0": ("t = Sub(x, c)  y = Relu(t)", dict(c=np.float32(0)), ["Relu"], "neutral constant"),
    "x over 1": ("t = Div(x, c)  y = Relu(t)", dict(c=np.float32(1)), ["Relu"], "neutral constant"),
    "Dropout": ("t, m = Dropout(x)  y = Relu(t)", {}, ["Relu"], "constant folding"),
    "Identity": ("t = Identity(x)  y = Relu(t)", {}, ["Relu"], "hands its input on"),
    "Cast to the same type": ("t = Cast<to = 1>(x)  y = Relu(t)", {}, ["Relu"], "constant folding"),
    "Transpose by identity": ("t = Transpose<perm = [0, 1, 2]>(x)  y = Relu(t)", {}, ["Relu"], "transposes"),
    "Transpose and back": (
        "t = Transpose<perm = [1, 2, 0]>(x)  u = Transpose<perm = [2, 0, 1]>(t)  y = Relu(u)",
        {}, ["Relu"], "transposes",
    ),
    "Reshape to the same shape": ("t = Reshape(x, c)  y = Relu(t)", dict(c=SHAPE), ["Relu"], "constant folding"),
    "Reshape of a Reshape": (
        "t = Reshape(x, c)  y = Reshape(t, d)",
        dict(c=np.array([6, 4]), d=np.array([12, 2])), ["Reshape"], "reshape of a reshape",
    ),
    "Expand to the same shape": ("t = Expand(x, c)  y = Relu(t)", dict(c=SHAPE), ["Relu"], "constant folding"),
    "Unsqueeze twice": (
        "t = Unsqueeze(x, c)  y = Unsqueeze(t, d)",
        dict(c=np.array([0]), d=np.array([1])), ["Unsqueeze"], "unsqueeze",
    ),
    "Relu twice": ("t = Relu(x)  y = Relu(t)", {}, ["Relu"], "activations"),
    "Relu after Clip": ("t = Clip(x, c, d)  y = Relu(t)", BOUNDS, ["Clip"], "activations"),
    "Clip twice": ("t = Clip(x, c)  y = Clip(t, , d)", BOUNDS, ["Clip"], "activations"),
    "Clip after Relu": ("t = Relu(x)  y = Clip(t, c, d)", BOUNDS, ["Clip"], "activations"),
    "constants only": (
        "t = Add(c, c)  u = Sqrt(t)  y = Mul(x, u)",
        dict(c=np.full(4, 8, np.float32)), ["Mul"], "constant folding",
    ),
    "the shape of a static value": ("s = Shape(x)  t = Reshape(x, s)  y = Relu(t)", {}, ["Relu"], "constant folding"),
}  # fmt: skip


@pytest.mark.parametrize("case", REWRITES)
def test_each_rewrite_fires_and_keeps_the_outputs(stored, run, rng, case):
    body, constants, expected, reason = REWRITES[case]
    path = stored(f"g (float[2,3,4] x) => (float y) {{ {body} }}", **constants)
    model, ledger = simplified(path)
    assert operators(model) == expected
    assert all(reason in entry.reason for entry in ledger.of("simplify", "applied"))
    x = rng.standard_normal((2, 3, 4), np.float32)
    np.testing.assert_array_equal(run(model, x=x)[0], run(path, x=x)[0])


def test_a_cast_up_and_down_again_vanishes(stored, run):
    path = stored("g (float16[3] x) => (float16 y) { t = Cast<to = 1>(x)  u = Cast<to = 10>(t)  y = Relu(u) }")
    model, _ = simplified(path)
    assert operators(model) == ["Relu"]
    x = np.array([-1, 0.1, 70], np.float16)
    np.testing.assert_array_equal(run(model, x=x)[0], run(path, x=x)[0])


def test_a_cast_that_loses_digits_stays(stored):
    path = stored("g (float[3] x) => (float y) { t = Cast<to = 10>(x)  y = Cast<to = 1>(t) }")
    assert operators(simplified(path)[0]) == ["Cast", "Cast"]


@pytest.mark.parametrize(("mode", "value"), [("constant", 1.0), ("reflect", 0.0)])
def test_padding_that_a_convolution_cannot_do_stays(stored, rng, mode, value):
    text = f'g (float[1,2,5,5] x) => (float y) {{ t = Pad<mode = "{mode}">(x, p, c)  y = Conv(t, w) }}'
    pads = np.array([0, 0, 1, 1, 0, 0, 1, 1])
    path = stored(text, p=pads, c=np.float32(value), w=positive(rng, 3, 2, 3, 3))
    assert operators(simplified(path)[0]) == ["Pad", "Conv"]


def test_a_rewritten_node_keeps_its_name(stored):
    text = "g (float[2,6] x) => (float y) { t = Reshape(x, c)  y = Reshape(t, d) }"
    model, ledger = simplified(stored(text, c=np.array([3, 4]), d=np.array([12])))
    assert [node.name for node in model.graph] == ["Reshape_1"]
    assert [(entry.node, entry.reason.split(":")[0]) for entry in ledger] == [
        ("Reshape_0", "removed"),
        ("Reshape_1", "rewritten"),
    ]


def test_padding_moves_into_the_convolution(stored, run, rng):
    text = "g (float[1,2,5,5] x) => (float y) { t = Pad(x, p)  y = Conv(t, w) }"
    path = stored(text, p=np.array([0, 0, 1, 2, 0, 0, 1, 0]), w=positive(rng, 3, 2, 3, 3))
    model, ledger = simplified(path)
    assert operators(model) == ["Conv"]
    assert any("padding moved" in entry.reason for entry in ledger)
    x = positive(rng, 1, 2, 5, 5)
    np.testing.assert_allclose(run(model, x=x)[0], run(path, x=x)[0], rtol=1e-6)


def test_a_neutral_constant_that_changes_the_shape_stays(stored):
    path = stored("g (float[1,4] x) => (float y) { y = Mul(x, c) }", c=np.ones((3, 4), np.float32))
    assert operators(simplified(path)[0]) == ["Mul"]


def test_folding_never_makes_the_model_larger(stored):
    text = "g (float[512,512] x) => (float y) { t = Expand(c, s)  y = Add(x, t) }"
    model, _ = simplified(stored(text, c=np.ones((1, 1), np.float32), s=np.array([512, 512])))
    assert operators(model) == ["Expand", "Add"]
    assert size(model).total < 100


def test_quantized_weights_stay_quantized(stored):
    text = "g (float[1,64] x) => (float y) { t = DequantizeLinear(q, s)  y = MatMul(x, t) }"
    model, _ = simplified(stored(text, q=np.ones((64, 64), np.int8), s=np.float32(0.1)))
    assert operators(model) == ["DequantizeLinear", "MatMul"]


def test_large_equal_matrices_are_shared_and_vectors_are_not(stored, rng):
    big, small = positive(rng, 512, 512), np.ones(512, np.float32)
    body = "a = MatMul(x, w)  b = Relu(a)  c = MatMul(b, v)  d = Add(c, p)  e = Relu(d)  y = Add(e, q)"
    path = stored(f"g (float[1,3,512] x) => (float y) {{ {body} }}", w=big, v=big.copy(), p=small, q=small.copy())
    model, ledger = simplified(path)
    assert size(model).total == 512 * 512 * 4 + 2 * 512 * 4
    assert any("shares the equal initializer 'w'" in entry.reason for entry in ledger)


def test_a_second_run_changes_nothing(stored, rng):
    path = stored(
        f"g ({IMAGE}) => (float y) {{ t = Conv(x, w)  u = Add(t, b)  y = Relu(u) }}",
        w=positive(rng, 6, 4, 3, 3),
        b=positive(rng, 6, 1, 1),
    )
    model, _ = simplified(path)
    again = Ledger()
    assert not simplify(model, again)
    assert not len(again)
    assert not any(key.startswith("pkg.") for node in model.graph for key in node.metadata_props)
    assert isinstance(model, ir.Model)


HEADS = "s = Shape(x)  n = Gather(s, i)  u = Unsqueeze(n, i)"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("s = Shape(x)  d = Gather(s, one)  f = Cast<to = 1>(d)  y = Mul(x, f)", ["Mul"]),
        ("s = Shape<start = 1>(x)  d = Gather(s, i)  f = Cast<to = 1>(d)  y = Mul(x, f)", ["Mul"]),
        (f"{HEADS}  f = Cast<to = 1>(u)  y = Mul(x, f)", ["Shape", "Gather", "Unsqueeze", "Cast", "Mul"]),
        (f"{HEADS}  c = Concat<axis = 0>(u, two, two, three)  y = Reshape(x, c)", ["Reshape"]),
        (f"{HEADS}  c = Concat<axis = 0>(u, six, two)  y = Reshape(x, c)", ["Reshape"]),
        (f"{HEADS}  c = Concat<axis = 0>(u, rest)  y = Reshape(x, c)",
         ["Shape", "Gather", "Unsqueeze", "Concat", "Reshape"]),
        (f"{HEADS}  c = Concat<axis = 0>(u, six, u, two)  a = Tile(x, t)  y = Reshape(a, c)",
         ["Shape", "Gather", "Unsqueeze", "Concat", "Tile", "Reshape"]),
    ],
)  # fmt: skip
def test_shapes_that_are_known_or_follow_from_the_size_are_not_computed(stored, run, rng, body, expected):
    numbers = dict(i=0, one=1, two=[2], three=[3], six=[6], rest=[-1], t=[3, 1, 1])
    used = {name: np.array(value) for name, value in numbers.items() if f"{name})" in body or f"{name}," in body}
    path = stored(f"g (float[N,4,3] x) => (float y) {{ {body} }}", **used)
    model, _ = simplified(path)
    assert sorted(operators(model)) == sorted(expected)
    x = positive(rng, 3, 4, 3)
    np.testing.assert_array_equal(run(model, x=x)[0], run(path, x=x)[0])


def test_threads_simplify_side_by_side():
    import onnx

    text = """<ir_version: 10, opset_import: ["" : 21]> g (float[1,2,6,6] x) => (float[1,2,6,6] y) {
        p = Constant <value = int64[8] {0, 0, 1, 1, 0, 0, 1, 1}> ()
        a = Pad (x, p)  y = Conv <kernel_shape = [3, 3]> (a, w) }"""
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((2, 2, 3, 3), np.float32), "w"))

    def operators(_):
        model = ir.from_proto(proto)
        simplify(model)
        return [node.op_type for node in model.graph]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(operators, range(64))) == [["Conv"]] * 64
