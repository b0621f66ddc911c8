"""Convolutions and products of floats with what follows them: which chains are one step, and what an epilogue is told.

The stand-in has no kernels: sums are NumPy's here, and an epilogue is what its formula says.
"""

import attrs
import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from scipy.special import erf

from pumice import chains
from pumice.ops.conv import convolve
from pumice.plan import compile_plan
from pumice_cuda import conv, device, gemm, products
from pumice_cuda.kernels import all_kernels, products as records
from pumice_cuda.placing import OnDevice

ACTIVATIONS = {
    "none": lambda v, e: v,
    "clip": lambda v, e: np.minimum(np.maximum(v, e.low), e.high),
    "gelu": lambda v, e: 0.5 * v * (1 + erf(v / np.sqrt(2))),
    "silu": lambda v, e: v / (1 + np.exp(-v)),
}


def finished(sums, epilogue):
    """As `epilogue` says, for sums with columns last."""
    own = {name: None if x is None else x._array for name, x in ((n, getattr(epilogue, n)) for n in TERMS)}
    v = sums.astype(np.float64) * (1 if own["scale"] is None else own["scale"])
    v += 0 if own["bias"] is None else own["bias"]
    v += 0 if own["residual"] is None else own["residual"].reshape(v.shape)
    return ACTIVATIONS[epilogue.activation](v, epilogue).astype(epilogue.output)


TERMS = ("scale", "bias", "residual")
TAKEN = {"Conv", "MatMul", "Gemm", "Swish"}
"""Operators whose kernels are asked; that of Swish alone makes core see one in a Sigmoid and a Mul."""


@pytest.fixture
def launched(gpu, monkeypatch):
    """Counts products and convolutions; nothing else may be asked of a chain's nodes."""
    calls = []

    def convolution(self, images, epilogue, out=None):
        calls.append(epilogue)
        x, w = np.moveaxis(images._array, -1, 1), np.moveaxis(self.weights._array, -1, 1)
        return gpu.asarray(finished(np.moveaxis(convolve(x, w, self.window, self.groups), 1, -1), epilogue))

    def product(a, b, epilogue, precision=None):
        calls.append(epilogue)
        b = b.matrix if isinstance(b, products.Right) else b
        return gpu.asarray(finished(a._array.astype(np.float32) @ b._array.astype(np.float32).T, epilogue))

    monkeypatch.setattr(conv.Conv, "__call__", convolution)
    monkeypatch.setattr(products, "finished", product)
    monkeypatch.setattr(products, "_parts", lambda matrix, second: matrix)
    monkeypatch.setattr(gemm, "gemm", product)
    monkeypatch.setattr(records, "MANY_RESULTS", 2 * 9 * 7)
    hopper = device.Gpu(name="fake", capability=(9, 0), memory=1 << 30, multiprocessors=1)
    monkeypatch.setattr(device, "gpu", lambda: hopper)
    return calls


def alone(*_):
    raise AssertionError("a chain was computed node by node")


def model(nodes, weights, shape, **feeds):
    """y of some nodes written "Operator input input -> output", with attributes after them."""
    made = []
    for text, attributes in nodes:
        inputs, _, output = text.partition(" -> ")
        op, *names = inputs.split()
        made.append(helper.make_node(op, names, [output], **attributes))
    types = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}
    given = {"x": shape, **{name: array.shape for name, array in feeds.items()}}
    kind = types[next(iter(weights.values())).dtype.name]
    graph = helper.make_graph(
        made, "g", [helper.make_tensor_value_info(name, kind, s) for name, s in given.items()],
        [helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )  # fmt: skip
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))


def planned(made):
    ours = [k for k in all_kernels() if k.op_type in TAKEN]
    kernels = sorted((attrs.evolve(k, available=lambda: None) for k in ours), key=lambda k: -k.rank)
    return compile_plan(made, placement=OnDevice(), kernels=kernels)


def check(gpu, made, feeds, steps, tolerance=1e-5):
    plan = planned(made)
    assert len(plan.program.fused) == steps
    (found,) = plan.run({name: gpu.asarray(x) for name, x in feeds.items()}).values()
    (want,) = compile_plan(made, kernels=()).run(feeds).values()
    assert found.dtype == want.dtype
    np.testing.assert_allclose(gpu.asnumpy(found), want, rtol=tolerance, atol=tolerance)


def drawn(rng, dtype, **shapes):
    made = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    return {name: (np.abs(x) + 0.5 if name == "var" else x).astype(dtype) for name, x in made.items()}


def name_of(nodes):
    return " ".join(text.split()[0] for text, _ in nodes)


CONV = ("Conv x w b -> s", {"pads": [1, 1, 1, 1]})
NORM = ("BatchNormalization s scale bias mean var -> n", {"epsilon": 1e-3})
CONVOLUTIONS = [
    [CONV, ("Relu s -> y", {})], [CONV, ("Clip s low high -> y", {})], [CONV, NORM, ("Relu n -> y", {})],
    [CONV, ("Add r s -> t", {}), ("Relu t -> y", {})], [CONV, NORM, ("Add n r -> t", {}), ("Clip t low -> y", {})],
    [CONV, ("Mul s column -> t", {}), ("Add t column -> u", {}), ("Div u six -> y", {})],
    [CONV, ("Sigmoid s -> t", {}), ("Mul s t -> y", {})], [CONV, NORM, ("Add r n -> y", {})],
]  # fmt: skip


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("nodes", CONVOLUTIONS, ids=name_of)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_convolution_takes_what_follows_it(gpu, launched, rng, monkeypatch, nodes, groups, dtype):
    monkeypatch.setattr(chains, "_one_by_one", lambda *_: alone)
    vectors = dict.fromkeys(["b", "scale", "bias", "mean", "var"], (6,))
    weights = drawn(rng, dtype, w=(6, 6 // groups, 3, 3), column=(6, 1, 1), **vectors)
    weights |= {"low": np.array(-0.5, dtype), "high": np.array(6, dtype), "six": np.array([6], dtype)}
    feeds = drawn(rng, dtype, x=(2, 6, 5, 7), r=(2, 6, 5, 7))
    nodes = [(nodes[0][0], {**nodes[0][1], "group": groups}), *nodes[1:]]
    made = model(nodes, weights, (2, 6, 5, 7), r=feeds["r"])
    check(gpu, made, feeds, 1, 1e-5 if dtype == "float32" else 5e-2)
    assert len(launched) == 1


PRODUCTS = [
    [("MatMul x w -> y", {})], [("MatMul x w -> s", {}), ("Add b s -> y", {})],
    [("MatMul x w -> s", {}), ("Add s b -> t", {}), ("Add r t -> y", {})],
    [("MatMul x w -> s", {}), ("Add s b -> t", {}), ("Gelu t -> y", {})],
    [("MatMul x w -> s", {}), ("Mul s b -> t", {}), ("Add t r -> u", {}), ("Relu u -> y", {})],
]  # fmt: skip


@pytest.mark.parametrize("nodes", PRODUCTS, ids=name_of)
def test_a_product_takes_what_follows_it(gpu, launched, rng, monkeypatch, nodes):
    monkeypatch.setattr(chains, "_one_by_one", lambda *_: alone)
    weights, feeds = drawn(rng, "float32", w=(5, 7), b=(7,)), drawn(rng, "float32", x=(2, 9, 5), r=(2, 9, 7))
    check(gpu, model(nodes, weights, (2, 9, 5), r=feeds["r"]), feeds, 1)
    assert len(launched) == 1


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_would_be_kept_twice_at_a_price_is_left_to_cublas(gpu, launched, rng, monkeypatch, dtype):
    monkeypatch.setattr(records, "LARGEST", 34)
    nodes = [("MatMul x w -> s", {}), ("Add s b -> y", {})]
    weights, feeds = drawn(rng, dtype, w=(5, 7), b=(7,)), drawn(rng, dtype, x=(2, 9, 5))
    check(gpu, model(nodes, weights, (2, 9, 5)), feeds, 2, 1e-5 if dtype == "float32" else 2e-2)
    assert not launched


@pytest.mark.parametrize("nodes", PRODUCTS, ids=name_of)
@pytest.mark.parametrize("deepest", [1, 4, 8, 12])
def test_a_deep_product_is_the_sum_of_stretches(gpu, launched, rng, monkeypatch, nodes, deepest):
    monkeypatch.setattr(chains, "_one_by_one", lambda *_: alone)
    monkeypatch.setattr(records, "DEEPEST", deepest)
    weights, feeds = drawn(rng, "float32", w=(23, 7), b=(7,)), drawn(rng, "float32", x=(2, 9, 23), r=(2, 9, 7))
    check(gpu, model(nodes, weights, (2, 9, 23), r=feeds["r"]), feeds, 1)
    assert len(launched) == {1: 6, 4: 6, 8: 3, 12: 2}[deepest]


@pytest.mark.parametrize(("rows", "depth", "count"), [(8, 5, 1), (8, 23, 0), (7, 5, 0)])
def test_few_results_are_multiplied_at_once_if_they_are_not_deep(gpu, launched, rng, monkeypatch, rows, depth, count):
    monkeypatch.setattr(records, "FEWEST_ROWS", 8)
    monkeypatch.setattr(records, "DEEPEST", 12)
    weights, feeds = drawn(rng, "float32", w=(depth, 7), b=(7,)), drawn(rng, "float32", x=(rows, depth))
    check(gpu, model([("MatMul x w -> s", {}), ("Add s b -> y", {})], weights, (rows, depth)), feeds, 1)
    assert len(launched) == count


def test_other_gpus_multiply_float32_by_cublas(gpu, launched, rng, monkeypatch):
    monkeypatch.setattr(device, "gpu", lambda: device.Gpu(name="", capability=(8, 0), memory=1, multiprocessors=1))
    weights, feeds = drawn(rng, "float32", w=(5, 7), b=(7,)), drawn(rng, "float32", x=(99, 5))
    check(gpu, model([("MatMul x w -> s", {}), ("Add s b -> y", {})], weights, (99, 5)), feeds, 1)
    assert not launched


@pytest.mark.parametrize("flip", [0, 1])
@pytest.mark.parametrize("terms", [(7,), (1, 7), (1,), ()], ids=str)
def test_a_gemm_takes_its_factors_and_what_follows_it(gpu, launched, rng, monkeypatch, flip, terms):
    monkeypatch.setattr(chains, "_one_by_one", lambda *_: alone)
    weights = drawn(rng, "float32", w=(7, 5) if flip else (5, 7), b=terms, **dict.fromkeys(VECTORS, (7,)))
    nodes = [("Gemm x w b -> s", {"alpha": 0.5, "beta": 2.0, "transB": flip}), NORM, ("Relu n -> y", {})]
    check(gpu, model(nodes, weights, (18, 5)), drawn(rng, "float32", x=(18, 5)), 1)
    assert len(launched) == 1


VECTORS = ("scale", "bias", "mean", "var")
LEFT = {
    "a term of another shape": ([("MatMul x w -> s", {}), ("Add s q -> y", {})], 1),
    "a term of more axes": ([("MatMul x w -> s", {}), ("Add s d -> y", {})], 1),
    "a normalisation of the second axis": ([("MatMul x w -> s", {}), NORM, ("Relu n -> y", {})], 3),
    "an activation before the residual": ([("MatMul x w -> s", {}), ("Relu s -> t", {}), ("Add t r -> y", {})], 2),
    "the other formula of GELU": ([("MatMul x w -> s", {}), ("Gelu s -> y", {"approximate": "tanh"})], 2),
    "a bound that is not known": ([("MatMul x w -> s", {}), ("ReduceMax r -> m", {"keepdims": 0}),
                                   ("Clip s m -> y", {})], 3),
    "sums that are read twice": ([("MatMul x w -> s", {}), ("Relu s -> t", {}), ("Softmax s -> u", {}),
                                  ("Add t u -> y", {})], 4),
}  # fmt: skip


@pytest.mark.parametrize("case", LEFT)
def test_what_an_epilogue_does_not_do_is_done_after_it(gpu, launched, rng, case):
    nodes, steps = LEFT[case]
    weights = drawn(rng, "float32", w=(5, 9), d=(1, 1, 1, 9), **dict.fromkeys(VECTORS, (9,)))
    feeds = drawn(rng, "float32", x=(2, 9, 5), r=(2, 9, 9), q=(9, 1))
    check(gpu, model(nodes, weights, (2, 9, 5), r=feeds["r"], q=feeds["q"]), feeds, steps)


def test_products_of_few_rows_and_replaced_weights_are_left_to_others(gpu, launched, rng):
    nodes = [("MatMul x w -> s", {}), ("Add s b -> y", {})]
    weights = drawn(rng, "float32", w=(5, 7), b=(7,))
    check(gpu, model(nodes, weights, (1, 3, 5)), drawn(rng, "float32", x=(1, 3, 5)), 1)
    plan, x = planned(model(nodes, weights, (2, 9, 5))), drawn(rng, "float32", x=(2, 9, 5))["x"]
    (found,) = plan.run({"x": gpu.asarray(x), "b": gpu.asarray(2 * weights["b"])}).values()
    np.testing.assert_allclose(gpu.asnumpy(found), x @ weights["w"] + 2 * weights["b"], rtol=1e-5, atol=1e-5)
    assert not launched


def test_networks_are_a_step_a_layer(gpu, launched):
    block = [
        ("Conv x w b -> s", {"pads": [1, 1, 1, 1]}), NORM, ("Relu n -> z", {}), ("Conv z w b -> p", {"pads": [1] * 4}),
        ("BatchNormalization p scale bias mean var -> q", {}), ("Add x q -> t", {}), ("Relu t -> y", {}),
    ]  # fmt: skip
    rng = np.random.default_rng(0)
    weights = drawn(rng, "float32", w=(6, 6, 3, 3), **dict.fromkeys(("b", *VECTORS), (6,)))
    check(gpu, model(block, weights, (2, 6, 5, 7)), drawn(rng, "float32", x=(2, 6, 5, 7)), 2)
    assert [e.residual is None for e in launched] == [True, False]
