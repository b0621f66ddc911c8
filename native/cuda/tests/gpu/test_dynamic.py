"""DynamicQuantizeLinear together with what comes before it: the integers of doing one after the other."""

import cupy
import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from pumice.model import add_initializer
from pumice.ops.quantize import dynamic_parameters, quantize
from pumice.plan import compile_plan
from pumice_cuda import dynamic
from pumice_cuda.epilogue import RANGED_COLUMNS, Epilogue, ranges_shape
from pumice_cuda.gemm import on_ampere, on_hopper, readable
from pumice_cuda.placing import OnDevice
from pumice_cuda.quantize import dynamic_quantize
from pumice_cuda.rows import layer_norm

SHAPES = [(128, 768), (2500, 768), (3, 7, 36), (5, 4100), (1, 4)]
CHAIN = """<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
agraph (uint8[M, 100] a, float s, uint8 z) => (uint8[M, 68] q, float t, uint8 y) {
    p = com.microsoft.MatMulIntegerToFloat(a, b, s, scales, z, , bias)
    g = Gelu(p)
    m = Mul(g, factor)
    q, t, y = DynamicQuantizeLinear(m)
}"""


def drawn(rng, *shape):
    return cupy.asarray(rng.standard_normal(shape).astype(np.float32))


def same(found, wanted):
    for have, want in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(cupy.asnumpy(have), cupy.asnumpy(want))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_factors_before_quantization(rng, shape):
    x, factor = drawn(rng, *shape), drawn(rng, shape[-1])
    assert dynamic.takes(x, factor)
    same(dynamic.times(x, factor), dynamic_quantize(x * factor))
    same(dynamic.times(x), dynamic_quantize(x))


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("shape", SHAPES[:4], ids=str)
def test_normalisation_before_quantization(rng, shape, biased):
    x, scale, bias = drawn(rng, *shape), drawn(rng, shape[-1]), drawn(rng, shape[-1]) if biased else None
    q, s, z = dynamic.layer_norm(x, scale, bias, 1e-5)
    wanted = dynamic_quantize(layer_norm(x, scale, bias, 1e-5, columns=shape[-1])[0])
    np.testing.assert_allclose(float(s), float(wanted[1]), rtol=1e-6)
    assert int(cupy.abs(q.astype(np.int32) - wanted[0]).max()) <= 1  # the order of a sum moves a value past a tie
    assert int(z) == int(wanted[2])


@pytest.mark.parametrize("run", [on_ampere, on_hopper])
@pytest.mark.parametrize(("m", "n", "k"), [(128, 768, 64), (77, 132, 40), (300, 516, 528), (1, 4, 16)])
@pytest.mark.parametrize("activation", ["none", "gelu"])
def test_a_product_notes_the_range_of_what_it_stores(rng, run, m, n, k, activation):
    a, b = (cupy.asarray(rng.integers(-128, 128, shape).astype(np.int8)) for shape in ((m, k), (n, k)))
    ranges, y = cupy.full(ranges_shape(m, n), np.nan, np.float32), cupy.full((m, n), np.nan, np.float32)
    scale, by, factor = cupy.abs(drawn(rng, n)) * 1e-3, cupy.asarray(np.float32(0.5)), drawn(rng, n)
    epilogue = Epilogue(scale=scale, scale_by=by, factor=factor, ranges=ranges, activation=activation)
    run(readable(a), readable(b), epilogue, y)
    sums = (a.astype(np.float64) @ b.astype(np.float64).T) * scale.astype(np.float64) * 0.5
    want = cupy.asnumpy(sums)
    if activation == "gelu":
        from scipy.special import erf

        want = want * 0.5 * (1 + erf(want / np.sqrt(2)))
    np.testing.assert_allclose(cupy.asnumpy(y), want * cupy.asnumpy(factor), rtol=1e-5, atol=1e-5)
    assert float(ranges[..., 0].min()) == min(0.0, float(y.min()))
    assert float(ranges[..., 1].max()) == max(0.0, float(y.max()))


def chain(rng, **given_constants):
    """A plan on the GPU of CHAIN, and one of core's reference."""
    model = ir.from_proto(onnx.parser.parse_model(CHAIN))
    constants = {
        "b": rng.integers(-127, 128, (100, 68)).astype(np.int8), "scales": rng.random(68).astype(np.float32) * 1e-3,
        "bias": rng.standard_normal(68).astype(np.float32), "factor": rng.random(68).astype(np.float32) + 0.5,
        **given_constants,
    }  # fmt: skip
    given = {value.name: value for node in model.graph for value in node.inputs if value is not None}
    for name, array in constants.items():
        given[name].replace_all_uses_with(add_initializer(model, f"known/{name}", array))
    plan = compile_plan(model, placement=OnDevice())
    assert len(plan.program.fused) == 1
    return plan, compile_plan(model, kernels=())


def drawn_feeds(rng, rows):
    return {"a": rng.integers(0, 256, (rows, 100)).astype(np.uint8), "s": np.float32(0.02), "z": np.uint8(111)}


@pytest.mark.parametrize("rows", [1, 37, 3000])
def test_a_chain_from_a_product_to_levels(rng, rows):
    (plan, reference), feeds = chain(rng), drawn_feeds(rng, rows)
    want = reference.run({k: np.asarray(v) for k, v in feeds.items()})
    found = plan.run({k: cupy.asarray(v) for k, v in feeds.items()})
    np.testing.assert_allclose(float(found["t"]), float(want["t"]), rtol=1e-5)
    assert np.abs(cupy.asnumpy(found["q"]).astype(int) - want["q"]).max() <= 1


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("rows", [1, 37, 3000])
@pytest.mark.parametrize("where", ["bias", "factor"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_give_what_core_gives(rng, rows, where, value):
    odd = np.ones(68, np.float32)
    odd[67] = value
    (plan, reference), feeds = chain(rng, **{where: odd}), drawn_feeds(rng, rows)
    want = reference.run({k: np.asarray(v) for k, v in feeds.items()})
    found = plan.run({k: cupy.asarray(v) for k, v in feeds.items()})
    np.testing.assert_allclose(float(found["t"]), float(want["t"]), rtol=1e-5)
    assert int(found["y"]) == int(want["y"])
    assert np.abs(cupy.asnumpy(found["q"]).astype(int) - want["q"]).max() <= 1


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("shape", SHAPES[:4], ids=str)
def test_one_nan_among_normalised_rows_and_among_factors(rng, shape):
    x, scale = drawn(rng, *shape), drawn(rng, shape[-1])
    x.reshape(-1)[-3] = np.nan
    found, times = dynamic.layer_norm(x, scale, None, 1e-5), dynamic.times(x, scale)
    normalised = layer_norm(x, scale, None, 1e-5, columns=shape[-1])[0]
    for have, values in ((found, normalised), (times, x * scale)):
        scale_of, zero_of = dynamic_parameters(cupy.asnumpy(values))
        assert (float(have[1]), int(have[2])) == (float(scale_of), int(zero_of)) == (1.0, 0)
        want = quantize(cupy.asnumpy(values), scale_of, zero_of, np.dtype(np.uint8))
        assert np.abs(cupy.asnumpy(have[0]).astype(int) - want).max() <= 1


@pytest.mark.parametrize("run", [on_ampere, on_hopper])
@pytest.mark.parametrize(("m", "n"), [(128, 768), (77, 132), (1, 4)])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_product_notes_one_value_that_is_no_number(rng, run, m, n, value):
    a, b = (cupy.asarray(rng.integers(-128, 128, shape).astype(np.int8)) for shape in ((m, 64), (n, 64)))
    ranges, y = cupy.full(ranges_shape(m, n), 7, np.float32), cupy.empty((m, n), np.float32)
    bias = cupy.zeros(n, np.float32)
    bias[n // 2] = value
    run(readable(a), readable(b), Epilogue(scale=cupy.ones(1, np.float32), bias=bias, ranges=ranges), y)
    least, greatest = (cupy.asnumpy(ranges)[:, n // 2 // RANGED_COLUMNS, i] for i in (0, 1))
    np.testing.assert_array_equal(greatest, np.full(len(greatest), value, np.float32))
    assert (np.isnan(least) == np.isnan(value)).all()
