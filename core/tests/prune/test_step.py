"""The `prune` step in a run: targets, schedules, refusals and the account."""

import json

import attrs
import numpy as np
import onnx_ir as ir
import pytest

import pumice
from pumice import ImportanceScorer, Recipe
from pumice.errors import BudgetExceeded, DataError, KnobError, ModelError, NothingChanged, PluginError
from pumice.measure import pick_runtime
from pumice.model import constant, nodes
from pumice.prune import kept_indices, rounds
from pumice.prune.trials import Trial, Trials
from pumice.steps import Prune
from pumice.testing.models import random_feeds, tiny_cnn, weightless

from .structures import STRUCTURES


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


HALF = Prune(scorer=First(), ratio=0.5)


def run(step, *more, data=None, model=None, **options):
    return pumice.compress(model or tiny_cnn(), data, Recipe([step, *more]), measure=False, **options)


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
    result = run(Prune(scorer=First(), ratio=0.5), Prune(scorer=First(), ratio=0.25, multiple=1))
    assert kept_indices(result.model)["w1"][0] == list(range(10, 16))


def test_kept_indices_survive_quantization():
    data = random_feeds(8, size=1)
    result = run(Prune(scorer=First(), ratio=0.5), pumice.Recipe.default().steps[0], data=data)
    assert kept_indices(result.model)["w1"][0] == list(range(8, 16))


@pytest.mark.parametrize("schedule", ["iterative", "cubic"])
def test_rounds_end_where_one_shot_does(schedule):
    assert shapes(run(Prune(scorer=First(), ratio=0.5, schedule=schedule, rounds=3, multiple=1)))["conv_2"] == (
        8,
        8,
        3,
        3,
    )


@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_rounds_leave_a_multiple_and_do_not_miss_the_target(rounds):
    step = Prune(scorer=First(), ratio=0.4, schedule="cubic", rounds=rounds, multiple=4)
    assert shapes(run(step))["conv_0"] == (12, 3, 3, 3)


@pytest.mark.parametrize("of", ["macs", "params"])
def test_a_target_of_cost_is_reached_and_not_far_exceeded(of):
    result = run(Prune(scorer=First(), ratio=0.5, of=of, multiple=1))
    whole, left = result.ledger.of("prune", "applied")[-1].details["macs" if of == "macs" else "parameters"]
    assert 0.35 * whole < left <= 0.5 * whole


def test_what_a_layer_keeps_is_a_multiple():
    assert shapes(run(Prune(scorer=First(), ratio=0.3, multiple=4)))["conv_0"] == (12, 3, 3, 3)


def test_a_floor_holds():
    assert shapes(run(Prune(scorer=First(), ratio=0.9, floor=6, least=0.0, multiple=1)))["conv_0"] == (6, 3, 3, 3)


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

    assert serialized(run(HALF).model) == serialized(run(HALF).model)


def test_the_account_is_json():
    json.dumps(run(HALF).to_json()["ledger"])


# --- targets, budgets, runtimes ---------------------------------------------------------------------------------------


def test_a_measured_latency_is_a_target():
    result = run(Prune(scorer=First(), ratio=0.2, of="latency", multiple=1), model=tiny_cnn())
    assert sum(entry.details["before"] - entry.details["after"] for entry in groups(result)) > 0


def groups(result):
    return [entry for entry in result.ledger.of("prune", "applied") if "before" in entry.details]


def test_a_layer_keeps_what_the_kernels_of_the_runtime_like():
    class Wide(type(pick_runtime("reference"))):
        name = "wide"
        channel_multiple = 4

    result = pumice.compress(
        tiny_cnn(), None, Recipe([Prune(scorer=First(), ratio=0.3)]), runtime=Wide(), measure=False
    )
    assert shapes(result)["conv_0"] == (12, 3, 3, 3)


def test_a_channel_is_worth_its_score_by_what_it_costs():
    """The excitation works on one position, the convolution around it on sixty-four: alike, the dearer channels go."""
    step = Prune(scorer=First(), ratio=0.3, scope="global", multiple=1, least=0.0)
    model = STRUCTURES["squeeze and excite"].model()
    by_score, by_cost = (groups(run(attrs.evolve(step, by=by), model=model)) for by in ("score", "score-per-mac"))
    assert {entry.node for entry in by_score} == {"conv_0", "conv_2"}
    assert {entry.node for entry in by_cost} == {"conv_0"}


def test_a_channel_is_worth_its_score_by_the_time_it_takes(monkeypatch):
    """Where only the excitation takes time, its channels go."""
    step = Prune(scorer=First(), ratio=0.1, scope="global", multiple=1, least=0.0, by="score-per-time")
    model = STRUCTURES["squeeze and excite"].model()
    monkeypatch.setattr(rounds, "latency", lambda whole, pruned, *_: 0.5 if in_excitation(pruned) else 1.0)
    assert {entry.node for entry in groups(run(step, model=model))} == {"conv_2"}


def in_excitation(pruned):
    return constant(pruned.graph.initializers["w1"]).shape[0] < 4


def test_rounds_stop_before_the_budget_breaks():
    step = Prune(scorer=First(), ratio=0.9, schedule="iterative", rounds=8, max_drop=0.02, multiple=1)
    result = run(step, data=random_feeds(32, size=1))
    assert 16 > shapes(result)["conv_0"][0] > 2
    assert any("pruning stopped after" in note for note in result.notes)


def test_a_first_round_over_the_budget_is_rolled_back():
    step = Prune(scorer=First(), ratio=0.9, max_drop=0.001)
    with pytest.raises(BudgetExceeded, match="prune less"):
        run(step, data=random_feeds(32, size=1), metrics=["relative-error"])


def test_a_budget_needs_data():
    with pytest.raises(DataError, match="max_drop"):
        run(Prune(scorer=First(), ratio=0.5, max_drop=0.01))


def test_layers_compare_by_what_the_outputs_feel():
    data = random_feeds(32, size=1)
    step = Prune(scorer=First(), ratio=0.4, scope="global", multiple=1, least=0.0)
    plain, felt = (run(attrs.evolve(step, normalise=by), data=data) for by in ("mean", "outputs"))
    assert distance(felt, data) <= distance(plain, data)


# --- scorers that choose ----------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Last(ImportanceScorer):
    """The opposite of `First`."""

    name = "last"

    def score(self, group, context):
        return -np.arange(group.channels)


@attrs.frozen(kw_only=True)
class Best(ImportanceScorer):
    """Tries two."""

    name = "best"
    chooses = True

    def settled(self, trials):
        return trials.best((First(), Last()))


def test_a_scorer_that_chooses_takes_the_one_that_loses_least():
    """The first half of the channels hardly says anything."""
    model = tiny_cnn()
    for node in nodes(model):
        if node.op_type == "Conv":
            weight = constant(node.inputs[1]).copy()
            weight[:8] *= 0.01
            node.inputs[1].const_value = ir.tensor(weight, name=node.inputs[1].name)
    result = run(Prune(scorer=Best(), ratio=0.5), data=random_feeds(32, size=1), model=model)
    assert "first was chosen" in next(note for note in result.notes if "scorers tried" in note)


@attrs.frozen(kw_only=True)
class Memory(Best):
    """Remembers what it was given to try with."""

    seen: list = attrs.field(factory=list, eq=False)

    def settled(self, trials):
        pruned = trials.pruned
        remembering = attrs.evolve(trials, pruned=lambda one, data: self.seen.append(data) or pruned(one, data))
        self.seen.append(remembering.of(First()))
        return First()


def test_a_trial_is_recovered_and_judged_on_samples_that_it_was_not_fitted_to():
    data, memory = random_feeds(30, size=1), Memory()
    plain = run(Prune(scorer=First(), ratio=0.5), data=data)
    run(Prune(scorer=memory, ratio=0.5), data=data)
    fitted, trial = memory.seen
    assert fitted.count() == 20
    assert trial.noise < 0.7 * drift(plain, data)


def drift(result, data):
    """Noise-to-signal ratio of the outputs."""
    from pumice.measure.budget import Drift
    from pumice.plan import compile_plan

    found, plans = Drift(), [compile_plan(model) for model in (result.original, result.model)]
    for feed in data:
        found.update(*(plan.run(feed) for plan in plans))
    return found.ratio


def trial(scorer, loss, noise):
    return Trial(scorer=scorer, measure="top1", loss=loss, error=0.02, noise=noise)


@pytest.mark.parametrize(("lost", "chosen"), [(0.02, "last"), (0.2, "first")])
def test_among_losses_that_chance_explains_the_outputs_that_moved_least_win(lost, chosen, monkeypatch):
    told = {"first": trial(First(), 0.0, 0.5), "last": trial(Last(), lost, 0.1)}
    monkeypatch.setattr(Trials, "of", lambda self, scorer: told[scorer.name])
    assert Trials(None, None, None).best((First(), Last())).name == chosen


def test_of_trials_that_all_lost_everything_one_is_taken(monkeypatch):
    monkeypatch.setattr(Trials, "of", lambda self, scorer: trial(scorer, np.inf, np.inf))
    assert Trials(None, None, None).best((First(), Last())).name == "first"


def test_every_trial_has_its_line():
    ledger = run(Prune(scorer=Best(), ratio=0.5), data=random_feeds(16, size=1)).ledger
    tried = [entry for entry in ledger.of("prune") if entry.reason.startswith("tried")]
    assert {entry.node for entry in tried} == {"scorer first", "scorer last"}
    assert [entry.verdict for entry in tried].count("applied") == 1


@attrs.frozen(kw_only=True)
class Nobody(Best):
    def settled(self, trials):
        return trials.best((Wrong(),))


def test_where_no_scorer_works_the_reason_is_told():
    with pytest.raises(PluginError, match="could be chosen: importance scorer 'wrong'"):
        run(Prune(scorer=Nobody()), data=random_feeds(8, size=1))


def test_choosing_needs_data():
    with pytest.raises(DataError, match="choosing a scorer"):
        run(Prune(scorer=Best()))
