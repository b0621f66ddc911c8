"""The choice is the best there is, and what it predicts is what is measured."""

import itertools

import attrs
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import pumice
from pumice.data import open_dataset
from pumice.measure import pick_runtime
from pumice.model import size
from pumice.quantize.context import QuantizeContext
from pumice.quantize.target import Target
from pumice.quantize.weight_matrices import weight_matrices
from pumice.testing.models import random_feeds, tiny_cnn
from pumice_quant_mixed import FORMATS, Mixed
from pumice_quant_mixed.choice import _pace, _shares, pareto
from pumice_quant_mixed.formats import bytes_of, rounded_to
from pumice_quant_mixed.sensitivity import by_gradient, by_measurement


@attrs.frozen(eq=False)
class Matrix:
    """A layer that is only weighed."""

    shape: tuple[int, int, int]
    op: str = "Gemm"


def layers_of(model):
    return {str(m.readers[0][0].name): [m] for m in weight_matrices(iter(model.graph))}


def context(model, **settings):
    return QuantizeContext(
        calibration=open_dataset(random_feeds(8), model),
        runtime=pick_runtime(),
        target=Target.named("ort-cpu"),
        **settings,
    )


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.integers(1, 4))
def test_every_point_of_the_curve_is_the_best_that_exhaustion_finds(seed, count):
    rng = np.random.default_rng(seed)
    layers = {f"layer{i}": [Matrix((1, int(rng.integers(1, 50)), int(rng.integers(1, 200))))] for i in range(count)}
    falling = {name: np.sort(rng.exponential(size=len(FORMATS) - 1))[::-1] for name in layers}
    noise = {(name, f): float(v) for name in layers for f, v in zip(FORMATS, [*falling[name], 0.0], strict=True)}
    cost = {(name, f): bytes_of(f, m) for name, (m,) in layers.items() for f in FORMATS}
    every = [list(zip(layers, combination, strict=True)) for combination in itertools.product(FORMATS, repeat=count)]
    for point in pareto(layers, FORMATS, noise):
        within = [
            sum(cost[item] for item in one)
            for one in every
            if sum(noise[item] for item in one) <= point.noise * (1 + 1e-9)
        ]
        assert point.cost <= min(within) * (1 + 1e-6) + 1e-6


def test_less_noise_costs_more_bytes():
    rng = np.random.default_rng(0)
    layers = {f"layer{i}": [Matrix((1, 32, 64 * (i + 1)))] for i in range(12)}
    noise = {(n, f): float(rng.exponential()) * 4.0**-i for n in layers for i, f in enumerate(FORMATS[:-1])}
    curve = pareto(layers, FORMATS, noise | {(name, "float32"): 0.0 for name in layers})
    assert [p.noise for p in curve] == sorted((p.noise for p in curve), reverse=True)
    assert [p.cost for p in curve] == sorted(p.cost for p in curve)
    assert curve[-1].noise == 0.0


def test_noise_by_gradient_is_noise_by_measurement():
    model = tiny_cnn()
    found = by_gradient(model, layers_of(model), ["int4", "bfloat16"], context(model))
    measured = by_measurement(model, layers_of(model), ["int4", "bfloat16"], context(model), 1)
    for key, expected in measured.items():
        assert 0.2 * expected < found[key] < 5.0 * expected
    logarithms = np.log([[found[key], measured[key]] for key in measured])
    assert np.corrcoef(logarithms.T)[0, 1] > 0.95


def test_weights_that_float16_cannot_hold_rule_it_out():
    model = tiny_cnn()
    (matrix,) = layers_of(model)["conv_0"]
    assert not np.isfinite(rounded_to("float16", matrix, matrix.rows() * 1e6)).all()
    layers = {"loud": [Matrix((1, 4, 64))]}
    noise = {("loud", "float16"): float("inf"), ("loud", "float32"): 0.0}
    assert [p.formats for p in pareto(layers, ["float16", "float32"], noise)] == [{"loud": "float32"}]


@pytest.mark.parametrize("share", [0.2, 0.4])
def test_a_size_budget_is_kept(share):
    model = tiny_cnn()
    step = {"use": "quantize", "quantizer": {"name": "mixed", "budget": "size", "size": share, "smallest": 1}}
    result = pumice.compress(model, random_feeds(8), {"step": [{**step, "max_drop": 1.0}]}, measure=False)
    held = {matrix.value.name for (matrix,) in layers_of(model).values()}
    weights = sum(n for name, n in size(model).initializers.items() if name in held)
    others = size(model).total - weights
    assert size(result.model).total - others <= share * weights + 400  # zero points and shapes


def test_a_tighter_accuracy_budget_costs_bytes_and_the_curve_is_told():
    model, sizes = tiny_cnn(), []
    for drop in (0.01, 0.00001):
        around = context(model, max_drop=drop)
        sizes.append(size(Mixed(smallest=1).quantize(model, around)).total)
        assert any("bytes and noise to choose from" in note for note in around.notes)
    assert sizes[0] < sizes[1]


def test_bytes_and_work_together_give_tables_few_bits_and_products_integers():
    table, product = Matrix((1, 5000, 64), op="Gather"), Matrix((1, 64, 512), op="MatMul")
    assert _pace("int8", [product]) < _pace("float16", [product]) < _pace("int4", [product])
    model = tiny_cnn()
    around = context(model)
    layers = layers_of(model)
    cost = _shares(model, layers, Mixed(minimise="both"), around)
    for name in layers:
        assert cost[name, "int8"] < cost[name, "uint8"] < cost[name, "float32"]
    assert sum(cost[name, "int8"] for name in layers) == pytest.approx(2.0)
    assert _pace("int4", [table]) == 1.0
    assert bytes_of("int4", table) < bytes_of("uint8", table) < bytes_of("float16", table)


def test_within_an_accuracy_budget_the_least_may_be_milliseconds():
    layers = {f"layer{i}": [Matrix((1, 8, 64))] for i in range(2)}
    noise = {(n, f): 1.0 if f == "int8" else 0.0 for n in layers for f in ("int8", "float32")}
    cost = {("layer0", "int8"): 1.0, ("layer1", "int8"): 3.0, ("layer0", "float32"): 2.0, ("layer1", "float32"): 2.0}
    (cheapest, *_) = pareto(layers, ["int8", "float32"], noise, cost)
    assert cheapest.formats == {"layer0": "int8", "layer1": "float32"}  # integers that are slower are not taken
    assert cheapest.cost == 3.0


@pytest.mark.parametrize("knobs", [{"budget": "latency", "latency": 0.9}, {"minimise": "latency"}])
def test_the_curve_of_milliseconds_is_told(knobs):
    around = context(tiny_cnn(), max_drop=1.0)
    Mixed(smallest=1, **knobs).quantize(tiny_cnn(), around)
    assert any("milliseconds and noise to choose from" in note for note in around.notes)


def test_a_format_that_does_not_exist_is_refused():
    assert "there is no format 'int5'" in Mixed(formats=("int5", "int8")).accepts(tiny_cnn())
