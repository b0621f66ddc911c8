"""Convolutions and products of floats with what follows them, as one step of a plan, against core's NumPy."""

import cupy
import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from pumice import chains
from pumice.plan import compile_plan
from pumice_cuda.device import HOPPER
from pumice_cuda.kernels import products as records
from pumice_cuda.placing import OnDevice

TOLERANCE = {"float32": 2e-6, "float16": 3e-3}
"""Of the norm; core rounds to 16 bits after every node."""
CUT = 2e-5
"""What the matrix unit cuts off its sums, of the norm."""
VECTORS = ("b", "scale", "bias", "mean", "var")


@pytest.fixture(autouse=True)
def together(monkeypatch):
    """What is computed node by node after all is wrong here."""

    def alone(*_):
        raise AssertionError("a chain was computed node by node")

    monkeypatch.setattr(chains, "_one_by_one", lambda *_: alone)


def planned(nodes, weights, feeds):
    """(plan, reference) of nodes written "Operator input input -> output", with attributes after them."""
    made = []
    for text, attributes in nodes:
        inputs, _, output = text.partition(" -> ")
        op, *names = inputs.split()
        made.append(helper.make_node(op, names, [output], **attributes))
    kind = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}[feeds["x"].dtype.name]
    graph = helper.make_graph(
        made, "g", [helper.make_tensor_value_info(name, kind, [None] * x.ndim) for name, x in feeds.items()],
        [helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    model = ir.from_proto(proto)
    return compile_plan(model, placement=OnDevice()), compile_plan(model, kernels=())


def check(nodes, weights, feeds, more=0.0):
    plan, reference = planned(nodes, weights, feeds)
    assert len(plan.program.fused) == 1
    (want,) = reference.run(feeds).values()
    for layout in (cupy.asarray, cupy.asfortranarray):
        (found,) = plan.run({name: layout(cupy.asarray(x)) for name, x in feeds.items()}).values()
        assert found.dtype == want.dtype
        error = np.linalg.norm(cupy.asnumpy(found).astype(np.float64) - want) / np.linalg.norm(want.astype(np.float64))
        assert error < TOLERANCE[want.dtype.name] + more


def drawn(rng, dtype, **shapes):
    made = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    return {name: (np.abs(x) + 0.5 if name == "var" else x).astype(dtype) for name, x in made.items()}


NORM = ("BatchNormalization s scale bias mean var -> n", {"epsilon": 1e-3})
FOLLOWING = {
    "relu": [("Relu s -> y", {})],
    "clip": [("Clip s low high -> y", {})],
    "norm relu": [NORM, ("Relu n -> y", {})],
    "norm add": [NORM, ("Add n r -> y", {})],
    "add relu": [("Add r s -> t", {}), ("Relu t -> y", {})],
    "norm add clip": [NORM, ("Add n r -> t", {}), ("Clip t low high -> y", {})],
    "swish": [("Sigmoid s -> t", {}), ("Mul s t -> y", {})],
    "gelu": [("Gelu s -> y", {})],
}
LAYERS = {
    "of windows": (13, 11, 20, 35, 3, 1, 1), "of strides": (13, 11, 16, 24, 3, 2, 1),
    "of one pixel": (7, 9, 33, 17, 1, 1, 1), "of first images": (23, 21, 3, 19, 7, 2, 1),
    "in groups": (9, 10, 24, 36, 3, 1, 4), "of every channel": (13, 12, 36, 36, 3, 1, 36),
    "of wide ones": (9, 9, 35, 35, 5, 2, 35),
}  # fmt: skip
"""Height, width, channels, outputs, taps, stride, groups."""


@pytest.mark.parametrize("following", FOLLOWING)
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_convolution_takes_what_follows_it(rng, dtype, layer, following):
    height, width, channels, outputs, taps, stride, groups = LAYERS[layer]
    options = {"pads": [taps // 2] * 4, "strides": [stride] * 2, "group": groups}
    size = (-(-height // stride), -(-width // stride))
    shapes = dict.fromkeys(VECTORS, (outputs,))
    weights = drawn(rng, dtype, w=(outputs, channels // groups, taps, taps), **shapes)
    weights |= {"low": np.array(-0.5, dtype), "high": np.array(6, dtype)}
    feeds = drawn(rng, dtype, x=(3, channels, height, width), r=(3, outputs, *size))
    weights["w"] = (weights["w"] / np.sqrt(weights["w"][0].size)).astype(dtype)
    check([("Conv x w b -> s", options), *FOLLOWING[following]], weights, feeds)


hopper = pytest.mark.skipif(
    tuple(map(int, cupy.cuda.Device().compute_capability)) != HOPPER, reason="cuBLAS multiplies float32 elsewhere"
)
PRODUCTS = {
    "alone": [("MatMul x w -> y", {})],
    "term": [("MatMul x w -> s", {}), ("Add s b -> y", {})],
    "term relu": [("MatMul x w -> s", {}), ("Add b s -> t", {}), ("Relu t -> y", {})],
    "term gelu": [("MatMul x w -> s", {}), ("Add s b -> t", {}), ("Gelu t -> y", {})],
    "term residual": [("MatMul x w -> s", {}), ("Add s b -> t", {}), ("Add r t -> y", {})],
    "factor residual relu": [("MatMul x w -> s", {}), ("Mul s b -> t", {}), ("Add t r -> u", {}), ("Relu u -> y", {})],
}


@pytest.fixture(params=["many", "few"])
def results(request, monkeypatch):
    """Products of any size as those of many results, or of few."""
    monkeypatch.setattr(records, "MANY_RESULTS", 0 if request.param == "many" else 1 << 40)
    monkeypatch.setattr(records, "FEWEST_ROWS", 1)
    if request.param == "few":
        monkeypatch.setattr(records, "DEEPEST", 1 << 20)
    return request.param


@hopper
@pytest.mark.parametrize("following", PRODUCTS)
@pytest.mark.parametrize("shape", [(2, 17, 33, 35), (3, 77, 130, 200), (2, 128, 768, 256), (1, 16, 3072, 64)], ids=str)
def test_a_product_takes_what_follows_it(rng, results, shape, following):
    batch, rows, depth, columns = shape
    weights = drawn(rng, "float32", w=(depth, columns), b=(columns,))
    weights["w"] /= np.sqrt(depth).astype(np.float32)
    feeds = drawn(rng, "float32", x=(batch, rows, depth), r=(batch, rows, columns))
    check(PRODUCTS[following], weights, feeds, more=CUT if results == "many" else 0)


@hopper
@pytest.mark.parametrize("flip", [0, 1])
def test_a_gemm_takes_what_follows_it(rng, results, flip):
    weights = drawn(rng, "float32", w=(35, 130) if flip else (130, 35), **dict.fromkeys(VECTORS, (35,)))
    nodes = [("Gemm x w b -> s", {"alpha": 0.5, "beta": 2.0, "transB": flip}), NORM, ("Relu n -> y", {})]
    check(nodes, weights, drawn(rng, "float32", x=(77, 130)), more=CUT)
