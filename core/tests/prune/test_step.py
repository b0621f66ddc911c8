"""The `prune` step in a run: targets, schedules, refusals and the account."""

import json

import attrs
import numpy as np
import pytest

import pumice
from pumice import ImportanceScorer, Recipe
from pumice.errors import DataError, KnobError, ModelError, NothingChanged
from pumice.model import constant, nodes
from pumice.prune import kept_indices
from pumice.steps import Prune
from pumice.testing.models import random_feeds, tiny_cnn, weightless


@attrs.frozen(kw_only=True)
class First(ImportanceScorer):
    """A stranger's scorer: the first channels matter least."""

    name = "first"

    def score(self, group, context):
        return np.arange(group.channels) + 1.0


@attrs.frozen(kw_only=True)
class Mean(ImportanceScorer):
    """Looks at activations and weights."""

    name = "mean"

    def score(self, group, context):
        assert context.weights(group).shape[0] == group.channels
        return np.abs(context.activations(group)).mean(axis=0)


@attrs.frozen(kw_only=True)
class Wrong(ImportanceScorer):
    name = "wrong"

    def score(self, group, context):
        return np.full(group.channels, np.nan)


def run(step, *more, data=None, model=None):
    return pumice.compress(model or tiny_cnn(), data, Recipe([step, *more]), measure=False)


def shapes(result):
    return {node.name: constant(node.inputs[1]).shape for node in nodes(result.model) if node.op_type == "Conv"}


def test_the_lowest_channels_go_and_the_account_says_so():
    result = run(Prune(scorer=First(), ratio=0.5))
    assert shapes(result) == {"conv_0": (8, 3, 3, 3), "conv_2": (8, 8, 3, 3)}
    assert kept_indices(result.model)["w1"][0] == list(range(8, 16))
    applied = {entry.node: entry for entry in result.ledger.of("prune", "applied")}
    assert "8 of 16 channels" in applied["conv_0"].reason
    assert applied["model"].details["error"] < 1e-5


def test_kept_indices_compose_over_two_steps():
    result = run(Prune(scorer=First(), ratio=0.5), Prune(scorer=First(), ratio=0.25))
    assert kept_indices(result.model)["w1"][0] == list(range(10, 16))


def test_kept_indices_survive_quantization():
    data = random_feeds(8, size=1)
    result = run(Prune(scorer=First(), ratio=0.5), pumice.Recipe.default().steps[0], data=data)
    assert kept_indices(result.model)["w1"][0] == list(range(8, 16))


@pytest.mark.parametrize("schedule", ["iterative", "cubic"])
def test_rounds_end_where_one_shot_does(schedule):
    assert shapes(run(Prune(scorer=First(), ratio=0.5, schedule=schedule, rounds=3)))["conv_2"] == (8, 8, 3, 3)


@pytest.mark.parametrize("of", ["macs", "params"])
def test_a_target_of_cost_is_reached_and_not_far_exceeded(of):
    result = run(Prune(scorer=First(), ratio=0.5, of=of))
    whole, left = result.ledger.of("prune", "applied")[-1].details["macs" if of == "macs" else "parameters"]
    assert 0.35 * whole < left <= 0.5 * whole


def test_what_a_layer_keeps_is_a_multiple():
    assert shapes(run(Prune(scorer=First(), ratio=0.3, multiple=4)))["conv_0"] == (12, 3, 3, 3)


def test_a_floor_holds():
    assert shapes(run(Prune(scorer=First(), ratio=0.9, floor=6, least=0.0)))["conv_0"] == (6, 3, 3, 3)


def test_a_protected_layer_loses_nothing_and_nothing_changed_is_an_error():
    with pytest.raises(NothingChanged, match="the user protects it"):
        run(Prune(scorer=First(), protect=("conv_*",)))


def test_a_model_without_weights_is_refused():
    with pytest.raises(NothingChanged, match="prune"):
        run(Prune(scorer=First()), model=weightless())


def test_a_pattern_that_names_nothing_is_refused():
    with pytest.raises(KnobError, match="the pattern 'covn_0' names no layer"):
        run(Prune(scorer=First(), protect=("covn_0",)))


def test_a_scorer_of_activations_needs_data():
    with pytest.raises(DataError, match="calibration data"):
        run(Prune(scorer=Mean()))


def test_a_scorer_sees_activations_and_weights():
    result = run(Prune(scorer=Mean(), ratio=0.5), data=random_feeds(8, size=1))
    assert shapes(result)["conv_0"] == (8, 3, 3, 3)


def test_scores_that_are_no_numbers_are_refused():
    with pytest.raises(ModelError, match="'wrong' must give 16 finite scores"):
        run(Prune(scorer=Wrong()))


def test_least_squares_brings_outputs_closer():
    data, model = random_feeds(32, size=1), tiny_cnn()
    reference = pumice.compress(model, data, Recipe([Prune(scorer=First(), ratio=0.5)]), measure=False)
    recovered = run(Prune(scorer=First(), ratio=0.5, recover="least-squares"), data=data)
    assert distance(recovered, data) < 0.7 * distance(reference, data)


def distance(result, data):
    """Root mean square of what the outputs lost."""
    from pumice.plan import compile_plan

    plans = [compile_plan(model) for model in (result.original, result.model)]
    found = [[plan.run(feed)["logits"] for feed in data] for plan in plans]
    return float(np.sqrt(np.mean((np.concatenate(found[0]) - np.concatenate(found[1])) ** 2)))


def test_the_same_run_gives_the_same_bytes():
    from pumice.testing.models import serialized

    assert serialized(run(Prune(scorer=First())).model) == serialized(run(Prune(scorer=First())).model)


def test_the_account_is_json():
    json.dumps(run(Prune(scorer=First())).to_json()["ledger"])
