"""Kernels of training against core's gradients: at every level, at odd sizes, and what is handed back to core."""

import numpy as np
import pytest

from pumice.ops import core_table
from pumice.ops.record import Node
from pumice.train import optimizers
from pumice.train.optimizers import Optimizer
from pumice_cpu import train as functions
from pumice_cpu.kernels import train

VJPS = {(kernel.domain, kernel.op_type): kernel for kernel in train.KERNELS if kernel.part == "vjp"}


def node_of(op_type, *, domain="", opset=21, **attributes):
    return Node(op_type=op_type, domain=domain, opset=opset, attributes=attributes)


def both(node, inputs, dy, wanted=None):
    """The gradients of the kernel and of core, for the same results."""
    op = core_table().resolve(node.domain, node.op_type, node.opset)
    outputs = op.forward(node, *inputs)
    wanted = wanted or [x.dtype.kind == "f" for x in inputs]
    grads = [dy, *[None] * (len(outputs) - 1)]
    found = VJPS[node.domain, node.op_type].run(node, inputs, outputs, grads, wanted)
    return found, op.vjp(node, inputs, outputs, grads, wanted)


def agree(found, wanted, tolerance=2e-5):
    assert len(found) == len(wanted)
    for have, want in zip(found, wanted, strict=True):
        if want is not None and have is not None:
            assert have.shape == want.shape
            np.testing.assert_allclose(have, want, rtol=tolerance, atol=tolerance * max(1.0, np.abs(want).max()))


@pytest.fixture(autouse=True)
def nothing_is_small(monkeypatch):
    monkeypatch.setattr(train, "SMALL", 1)


def floats(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("op_type", ["Relu", "Sigmoid", "Tanh", "Erf", "Gelu"])
def test_pointwise_gradients(level, gave, rng, op_type):
    for count in (1, 7, 33, 20_001):
        agree(*both(node_of(op_type), [4 * floats(rng, count)], floats(rng, count)))
    gave("train_slope", "scalar", "avx2", "avx512", "neon")


@pytest.mark.parametrize("bounds", [(-0.5, 1.0), (0.0, None), (None, 6.0)])
def test_clip_passes_the_gradient_between_its_bounds(level, rng, bounds):
    given = [None if b is None else np.float32(b).reshape(()) for b in bounds]
    inputs = [2 * floats(rng, 999), *given]
    agree(*both(node_of("Clip"), inputs, floats(rng, 999), [True, False, False]), tolerance=0)


@pytest.mark.parametrize("shape", [(3, 5, 7, 9), (2, 3, 50), (70, 33), (4, 8, 28, 28)])
def test_batch_normalisation_in_training(level, rng, shape):
    x, (scale, bias, mean) = 3 * floats(rng, *shape) + 5, floats(rng, 3, shape[1])
    inputs = [x, scale, bias, mean, np.abs(floats(rng, shape[1]))]
    node = node_of("BatchNormalization", training_mode=1, epsilon=1e-3, momentum=0.8)
    op = core_table().resolve("", node.op_type, 21)
    (forward,) = [kernel for kernel in train.KERNELS if kernel.part == "forward"]
    agree(forward.run(node, *inputs), op.forward(node, *inputs))
    agree(*both(node, inputs, floats(rng, *shape)), tolerance=1e-4)


@pytest.mark.parametrize("columns", [1, 3, 32, 96, 2049])
def test_layer_normalisation(level, rng, columns):
    inputs = [floats(rng, 5, 7, columns), floats(rng, columns), floats(rng, columns)]
    agree(*both(node_of("LayerNormalization", epsilon=1e-2), inputs, floats(rng, 5, 7, columns)), tolerance=1e-4)


@pytest.mark.parametrize("columns", [1, 10, 49, 128])
def test_softmax(level, rng, columns):
    agree(*both(node_of("Softmax"), [floats(rng, 3, 5, columns)], floats(rng, 3, 5, columns)))


@pytest.mark.parametrize(
    "attributes",
    [
        {"kernel_shape": [2, 2], "strides": [2, 2]},
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
        {"kernel_shape": [2, 3], "dilations": [2, 1], "pads": [0, 1, 1, 1]},
    ],
)
def test_the_gradient_of_a_maximum_goes_to_its_first_place(rng, threads, attributes):
    x = np.rint(2 * floats(rng, 3, 4, 9, 11))  # with ties
    node = node_of("MaxPool", **attributes)
    y = core_table().resolve("", "MaxPool", 21).forward(node, x)[0]
    agree(*both(node, [x], floats(rng, *y.shape)), tolerance=1e-6)


@pytest.mark.parametrize(
    ("op_type", "shapes"),
    [
        ("Add", ((6, 50, 9), (9,))),
        ("Add", ((6, 50, 9), (6, 1, 9))),
        ("Mul", ((6, 50, 9), (50, 9))),
        ("Mul", ((50, 9), (6, 50, 9))),
        ("Div", ((6, 50, 9), ())),
    ],
)
def test_broadcast_operands_get_sums(rng, op_type, shapes):
    inputs = [floats(rng, *shape) for shape in shapes]
    dy, wanted = floats(rng, 6, 50, 9), [True, op_type != "Div"]
    agree(*both(node_of(op_type), inputs, dy, wanted), tolerance=1e-5)


@pytest.mark.parametrize(
    "shapes",
    [
        ((8, 300, 12), (12, 17)),
        ((2, 3, 20, 12), (2, 3, 12, 9)),
        ((2, 3, 20, 12), (3, 12, 9)),
        ((37, 12), (12, 5)),
    ],
)
def test_matrix_products(level, rng, shapes):
    inputs = [floats(rng, *shape) for shape in shapes]
    agree(*both(node_of("MatMul"), inputs, floats(rng, *shapes[0][:-1], shapes[1][-1])), tolerance=1e-4)


@pytest.mark.parametrize("flips", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_gemm(level, rng, flips):
    a, b = floats(rng, *(20, 12)[:: -1 if flips[0] else 1]), floats(rng, *(12, 9)[:: -1 if flips[1] else 1])
    node = node_of("Gemm", transA=flips[0], transB=flips[1])
    agree(*both(node, [a, b, floats(rng, 9)], floats(rng, 20, 9)), tolerance=1e-4)


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_quantization_lets_the_gradient_through_inside_its_range(level, rng, axis, dtype):
    x = 4 * floats(rng, 5, 6, 37)
    scale = rng.uniform(0.01, 0.03, x.shape[axis]).astype(np.float32)
    zero = rng.integers(0, 9, scale.shape).astype(dtype)
    node = node_of("QuantizeLinear", axis=axis)
    agree(*both(node, [x, scale, zero], floats(rng, *x.shape)), tolerance=1e-4)
    (q,) = core_table().resolve("", "QuantizeLinear", 21).forward(node, x, scale, zero)
    node = node_of("DequantizeLinear", axis=axis)
    agree(*both(node, [q, scale, zero], floats(rng, *x.shape), [True, True, False]), tolerance=1e-4)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_updates_are_those_of_core(level, gave, rng, name, monkeypatch):
    numbers = Optimizer(name=name, decay=0.1, count=3)._numbers(0.1, 0.01)
    held = [floats(rng, 333, 7), floats(rng, 7, 333).T, floats(rng, 333, 7), np.abs(floats(rng, 333, 7))]
    monkeypatch.setattr(optimizers, "FUSED", {})
    core = Optimizer(name=name, decay=0.1, count=3, moments={"w": [v.copy() for v in held[2:]]})
    core._adaptive("w", whole := held[0].copy(), held[1], 0.1, 0.01)
    functions.adaptive(*held, **numbers)
    agree([held[0], *held[2:]], [whole, *core.moments["w"]], tolerance=1e-6)
    gave("train_adaptive", "scalar", "avx2", "avx512", "neon")


def test_updates_of_other_types_are_left_to_core(rng):
    numbers = Optimizer(name="adam", count=1)._numbers(0.0, 0.01)
    whole = [floats(rng, 9).astype(np.float64) for _ in range(4)]
    assert functions.adaptive(*whole, **numbers) is NotImplemented


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_a_number_that_is_not_finite_is_found(level, rng, bad):
    g = floats(rng, 70_001)
    assert functions.is_finite(g)
    assert functions.is_finite(np.full(70_001, 3e38, np.float32))  # whose sum is not
    g[50_000] = bad
    assert not functions.is_finite(g)


def test_one_scale_for_a_large_tensor(rng, threads):
    x, scale = 4 * floats(rng, 70_001), np.float32(0.02).reshape(())
    one, several = (
        functions.quantize_gradient(x, x, scale, None, (-128, 127), axis=1, threads=n) for n in (1, threads)
    )
    for a, b in zip(one, several, strict=True):
        np.testing.assert_array_equal(a, b)


def test_sums_do_not_depend_on_the_threads(rng, threads):
    x, dy, scale = floats(rng, 500, 96), floats(rng, 500, 96), floats(rng, 96)
    one, several = (functions.layer_norm_gradient(x, dy, scale, 1e-5, threads=n) for n in (1, threads))
    for a, b in zip(one, several, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("op_type", ["Relu", "Softmax", "LayerNormalization"])
def test_gradients_of_another_type_go_to_core(rng, op_type):
    x = floats(rng, 40, 100)
    inputs = [x, np.ones(100, np.float32), np.zeros(100, np.float32)] if op_type.startswith("Layer") else [x]
    found, wanted = both(node_of(op_type), inputs, floats(rng, 40, 100).astype(np.float64))
    agree(found, wanted)
