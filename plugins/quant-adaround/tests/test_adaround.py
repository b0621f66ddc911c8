"""Learning beats rounding to the nearest, makes up its mind, and sees what earlier layers did."""

import numpy as np
import pytest

import pumice
from pumice.data import open_dataset
from pumice.measure import pick_runtime
from pumice.plan import compile_plan
from pumice.quantize.context import QuantizeContext
from pumice.quantize.target import Target
from pumice.quantize.weight_matrices import weight_matrices
from pumice.testing.models import random_feeds, tiny_cnn
from pumice_quant_adaround import AdaRound
from pumice_quant_adaround.reconstruction import Block, LearnedScheme, SoftRounding, grid_of

KNOBS = {"bits": 3, "steps": 300, "smallest": 1}


def noise(quantizer):
    """At the outputs, on data that was not learned from."""
    model = tiny_cnn()
    step = {"use": "quantize", "quantizer": quantizer, "max_drop": 1.0}
    result = pumice.compress(model, random_feeds(32), {"step": [step]}, measure=False)
    exact, found = compile_plan(model), compile_plan(result.model)
    return sum(float(np.sum((exact.run(f)["logits"] - found.run(f)["logits"]) ** 2)) for f in random_feeds(8, seed=3))


def test_learned_rounding_loses_far_less_than_rounding_to_the_nearest():
    nearest = {"name": "int4", "bits": 3, "scales": "minmax", "rounding": "nearest", "smallest": 1}
    assert noise({"name": "adaround", **KNOBS}) < 0.3 * noise(nearest)


def test_weights_go_up_or_down_and_nowhere_else():
    model, knobs = tiny_cnn(), AdaRound(**KNOBS)
    context = QuantizeContext(
        calibration=open_dataset(random_feeds(8), model), runtime=pick_runtime(), target=Target.named("ort-cpu")
    )
    scheme = LearnedScheme.learned(model, knobs, context)
    assert scheme.known
    for matrix in weight_matrices(iter(model.graph)):
        if matrix.name in scheme.known:
            rounded = scheme.known[matrix.name]
            soft = SoftRounding.of(matrix, rounded.grid)
            low, high = rounded.grid.low, rounded.grid.high
            ways = [np.clip(soft.floor + up, low, high) for up in (0, 1)]
            assert ((rounded.codes == ways[0]) | (rounded.codes == ways[1])).all()


def test_soft_weights_begin_as_they_are_but_for_what_the_grid_clips():
    (matrix, *_) = weight_matrices(iter(tiny_cnn().graph))
    soft = SoftRounding.of(matrix, grid_of(AdaRound(), matrix, matrix.rows()))
    same = np.isclose(soft.weights(soft.up), matrix.restored(matrix.rows()), atol=1e-5)
    assert same.mean() > 0.9


@pytest.mark.parametrize("name", ["conv_0", "gemm_7"])
def test_a_block_computes_what_the_model_computes_there(name):
    model, feeds = tiny_cnn(), random_feeds(1)[0]
    block = Block.of(model.graph.node(name), model)
    taps = [*block.inputs, block.output]
    seen = {**feeds, **compile_plan(model, [t for t in taps if t not in feeds]).run(feeds)}
    found = block.plan().run({key: seen[key] for key in block.inputs})[block.output]
    np.testing.assert_allclose(found, seen[block.output], rtol=1e-5, atol=1e-5)
