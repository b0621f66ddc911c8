"""The Plan's records of integer products and convolutions give core's integers, bit for bit; float ones come close."""

import ml_dtypes
import numpy as np
import pytest

from pumice.ops import core_table
from pumice.ops.record import Link, Node
from pumice_cuda.kernels import all_kernels

MS = "com.microsoft"
F, U, S = np.float32, np.uint8, np.int8


def node_of(op, domain="", **attributes):
    return Node(op_type=op, domain=domain, opset=1 if domain else 21, attributes=attributes, outputs=("y",))


def core(node):
    return core_table().resolve(node.domain, node.op_type, node.opset).forward


def record(node):
    (found,) = [kernel for kernel in all_kernels() if kernel.part == "forward" and kernel.fits(node)]
    return found


def levels(*shape, dtype=U):
    limits = np.iinfo(dtype)
    return np.random.default_rng(2).integers(limits.min, limits.max + 1, shape).astype(dtype)


def scales(n):
    return np.random.default_rng(3).uniform(1e-3, 4e-3, n).astype(F)


CONV = node_of("QLinearConv", pads=[1, 1, 1, 1])
STRIDED = node_of("QLinearConv", strides=[2, 2], pads=[0, 1, 1, 0], group=4)
CASES = [
    (node_of("MatMulInteger"), (levels(3, 5, 70), levels(70, 33, dtype=S), U(119))),
    (node_of("MatMulInteger"), (levels(5, 70), levels(70, 33), np.array([7], U), U(128))),
    (node_of("QLinearMatMul"), (levels(2, 9, 64), F(0.02), U(3), levels(64, 40, dtype=S), scales(40),
                                np.zeros(40, S), F(0.3), U(121))),
    (node_of("QLinearMatMul"), (levels(9, 31, dtype=S), F(0.02), S(-3), levels(31, 8, dtype=S), F(0.01), S(0),
                                F(0.07), S(5))),
    (node_of("QGemm", MS, transB=1), (levels(9, 64), F(0.02), U(3), levels(40, 64, dtype=S), F(0.01), S(0),
                                      levels(40, dtype=np.int32) // 4096, F(0.3), U(9))),
    (node_of("QGemm", MS, alpha=0.5), (levels(9, 64), F(0.02), U(3), levels(64, 40, dtype=S), scales(40),
                                       np.zeros(40, S))),
    (node_of("ConvInteger", pads=[1, 1, 1, 1]), (levels(2, 16, 7, 9), levels(32, 16, 3, 3, dtype=S), U(131))),
    (CONV, (levels(2, 64, 9, 7), F(0.02), U(131), levels(96, 64, 3, 3, dtype=S), scales(96), np.zeros(96, S), F(0.5),
            U(17), levels(96, dtype=np.int32) // 2**16)),
    (CONV, (levels(2, 64, 9, 7, dtype=S), F(0.02), S(0), levels(96, 64, 3, 3, dtype=S), scales(96), np.zeros(96, S),
            F(0.5), S(0))),
    (STRIDED, (levels(1, 12, 9, 7), F(0.02), U(131), levels(8, 3, 3, 3, dtype=S), F(0.004), S(0), F(0.1), U(17))),
    (node_of("QLinearConv", group=6), (levels(1, 6, 9, 7), F(0.02), U(1), levels(6, 1, 2, 2), F(0.004), U(128), F(0.1),
                                       U(17))),
]  # fmt: skip
IDS = [f"{node.op_type}-{i}" for i, (node, _) in enumerate(CASES)]


def placed(arrays):
    """As a plan holds constants: arrays on the GPU, numbers as NumPy's scalars."""
    import cupy

    return [cupy.asarray(a) if np.ndim(a) else a for a in arrays]


@pytest.mark.parametrize(("node", "arrays"), CASES, ids=IDS)
def test_integers_are_exact(node, arrays):
    kernel, there = record(node), placed(arrays)
    call = kernel.bind(node, [None, *there[1:]])
    assert call is not None
    have, want = call(node, *there), core(node)(node, *arrays)
    np.testing.assert_array_equal(have[0].get(), want[0])
    assert have[0].dtype == want[0].dtype


def test_a_zero_point_from_the_gpu_is_not_waited_for():
    import cupy

    node, (a, b, zero) = CASES[0]
    there, point = placed([a, b]), cupy.asarray(zero)
    call = record(node).bind(node, [None, there[1], None])
    np.testing.assert_array_equal(call(node, *there, point)[0].get(), core(node)(node, a, b, zero)[0])


def test_other_weights_than_the_constant_are_used():
    node, arrays = CASES[0]
    there = placed(arrays)
    call = record(node).bind(node, [None, *there[1:]])
    there[1] = there[1][::-1]
    want = core(node)(node, arrays[0], arrays[1][::-1], *arrays[2:])
    np.testing.assert_array_equal(call(node, *there)[0].get(), want[0])


def fused(links):
    (run,) = [found for k in all_kernels() if k.fuse and k.fits(links[0].node) and (found := k.fuse(links))]
    return run


@pytest.mark.parametrize("at", [0, 3])
@pytest.mark.parametrize("dtype", [U, S])
def test_levels_are_added_to_those_of_a_convolution_exactly(at, dtype):
    weights = (levels(96, 64, 3, 3, dtype=S), scales(96), np.zeros(96, S))
    convolution = (levels(2, 64, 9, 7), F(0.02), U(131), *weights, F(0.5), dtype(17))
    residual, addition = levels(2, 96, 9, 7, dtype=dtype), node_of("QLinearAdd", MS)
    own, beside, result = (F(0.5), dtype(17)), (F(0.37), dtype(90)), (F(0.61), dtype(3))
    (y,) = core(CONV)(CONV, *convolution)
    operands = (y, *own, residual, *beside) if at == 0 else (residual, *beside, y, *own)
    (want,) = core(addition)(addition, *operands, *result)
    constants, more = placed(convolution), [*operands, *result]
    links = [
        Link(node=CONV, constants=[None, *constants[1:]]),
        Link(node=addition, constants=[None if np.ndim(c) else c for c in more], at=at),
    ]
    more[3 - at] = placed([residual])[0]
    del more[at]
    (have,) = fused(links)(*constants, *more)
    np.testing.assert_array_equal(have.get(), want)


@pytest.mark.parametrize("tail", ["", "Add", "Add Add", "Add Gelu"])
def test_a_dynamic_product_is_finished_in_one_pass(tail, rng):
    import cupy

    from pumice_cuda.rows import map_elements

    a, b, zero = levels(3, 5, 70), levels(70, 48, dtype=S), U(119)
    scale, bias, residual = (rng.standard_normal(shape).astype(F) for shape in [48, 48, (3, 5, 48)])
    given = [cupy.asarray(a), cupy.asarray(b), cupy.asarray(np.asarray(zero))]
    product, names = node_of("MatMulInteger"), ["Cast", "Mul", *tail.split()]
    links = [Link(node=product, constants=[None, given[1], None])]
    links += [Link(node=node_of(n, **({"to": 1} if n == "Cast" else {})), constants=[None], at=0) for n in names]
    addends = [cupy.asarray(v) for v in (bias, residual)[: tail.count("Add")]]
    (have,) = fused(links)(*given, cupy.asarray(scale), *addends)
    want = core(product)(product, a, b, zero)[0].astype(F) * scale + sum(v.get() for v in addends)
    want = map_elements("gelu", cupy.asarray(want)).get() if tail.endswith("Gelu") else want
    np.testing.assert_allclose(have.get(), want, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize(("dtype", "most"), [(F, 1e-4), (np.float16, 4e-3), (ml_dtypes.bfloat16, 2e-2)])
@pytest.mark.parametrize("bound", [True, False])
def test_float_convolutions_are_close(dtype, most, bound):
    node = node_of("Conv", pads=[1, 1, 1, 1], strides=[2, 1])
    rng = np.random.default_rng(4)
    arrays = [rng.standard_normal(shape).astype(dtype) for shape in [(2, 24, 9, 7), (40, 24, 3, 3), (40,)]]
    kernel, there = record(node), placed(arrays)
    call = kernel.bind(node, [None, *there[1:]]) if bound else kernel.run
    (have,), (want,) = call(node, *there), core(node)(node, *(a.astype(F) for a in arrays))
    np.testing.assert_allclose(have.get().astype(F), want, rtol=most, atol=most)
