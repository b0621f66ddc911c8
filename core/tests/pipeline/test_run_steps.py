"""What the pipeline owes to every step, whoever wrote the quantizer: the guard, rolling back, a clean model."""

import attrs
import numpy as np
import pytest

import pumice
from pumice import Quantizer, Recipe
from pumice.errors import BudgetExceeded, KnobError, NothingChanged, PumiceError
from pumice.model import add_initializer, clone, constant, nodes, replace_input, weight_of
from pumice.steps import Quantize
from pumice.testing.models import random_feeds, tiny_cnn, weightless

LAYERS = [str(node.name) for node in tiny_cnn().graph if weight_of(node) is not None]


@attrs.frozen(kw_only=True)
class Stranger(Quantizer):
    """A plugin that knows nothing of budgets: it scales the weights of some layers, and leaves the old ones behind."""

    name = "stranger"
    factors: dict[str, float]

    def quantize(self, model, context):
        changed = clone(model)
        for node in changed.graph:
            factor, weight = self.factors.get(node.name), weight_of(node)
            if factor is None:
                context.ledger.skipped("quantize", node.name, node.op_type, "it has no weights")
            elif reason := context.excluded(node):
                context.ledger.declined("quantize", node.name, node.op_type, reason)
            else:
                scaled = add_initializer(changed, "scaled", constant(weight) * np.float32(factor))
                replace_input(node, node.inputs.index(weight), scaled)
                context.ledger.applied("quantize", node.name, node.op_type, "its weights were scaled")
        return changed


def factors(**others):
    return {**dict.fromkeys(LAYERS, 1.0), **others}


def compress(*steps, data=None, model=None, **more):
    data = random_feeds(16, size=1) if data is None else data
    return pumice.compress(model or tiny_cnn(), data, Recipe(steps), measure=False, **more)


GOOD = Quantize(quantizer=Stranger(factors=factors()))
ONE_BAD = Quantize(quantizer=Stranger(factors=factors(conv_2=-3.0)))
ALL_BAD = Quantize(quantizer=Stranger(factors=dict.fromkeys(LAYERS, -9.0)))


def test_a_strangers_quantizer_is_guarded():
    result = compress(ONE_BAD)
    (returned,) = result.ledger.of("quantize", "declined")
    assert returned.node == "conv_2"
    assert "returned to floating point: output fidelity" in returned.reason
    (note,) = [note for note in result.notes if "returned to floating point" in note]
    assert note.startswith("1 layer was returned")
    assert note.endswith(": conv_2")
    assert note in result.summary()
    for found, given in zip(nodes(result.model), nodes(tiny_cnn()), strict=True):
        np.testing.assert_array_equal(constant(weight_of(found)), constant(weight_of(given)))


def test_within_the_budget_nothing_is_said_of_it():
    result = compress(GOOD)
    assert not result.ledger.of("quantize", "declined")
    assert not any("returned" in note or "rolled back" in note for note in result.notes)


def test_without_data_the_account_says_that_nothing_was_judged():
    result = pumice.compress(tiny_cnn(), None, Recipe([ALL_BAD]), measure=False)
    assert "what quantization cost was not judged: no data was given" in result.notes


def test_a_recipe_whose_only_step_is_rolled_back_fails_and_says_why():
    with pytest.raises(BudgetExceeded, match=r"rolled back: output fidelity .* the budget is 0\.1000"):
        compress(ALL_BAD)


@pytest.mark.parametrize("steps", [(ALL_BAD, GOOD), (GOOD, ALL_BAD)])
def test_the_run_goes_on_without_a_step_that_is_rolled_back(steps):
    result, alone = compress(*steps), compress(GOOD)
    names = [[value.name for value in r.model.graph.initializers.values()] for r in (result, alone)]
    assert names[0] == names[1]
    rolled_back = [entry for entry in result.ledger.of("quantize", "declined") if entry.node == "model"]
    assert len(rolled_back) == 1
    assert "rolled back" in rolled_back[0].reason
    assert [note for note in result.notes if note.startswith("step 'quantize' was rolled back: ")]
    assert len(result.ledger.of("quantize")) == len(alone.ledger.of("quantize")) + 1


def test_a_step_that_changes_nothing_fails_even_after_one_that_did():
    with pytest.raises(NothingChanged, match="it has no weights"):
        compress(GOOD, Quantize(quantizer=Stranger(factors={})))


def test_what_nobody_reads_any_more_is_dropped_after_every_step():
    result = compress(GOOD)
    held = result.model.graph.initializers.values()
    assert all(value.uses() for value in held)
    assert len(held) == len(tiny_cnn().graph.initializers)


def test_a_pattern_that_matches_no_node_is_refused_with_the_nearest_name():
    with pytest.raises(KnobError, match="'conv2' of knob 'exclude' matches no node; did you mean 'conv_2'"):
        compress(attrs.evolve(GOOD, exclude=("conv2",)))


def test_what_the_user_excludes_stays_in_floating_point():
    result = compress(attrs.evolve(ONE_BAD, exclude=("conv_*",)))
    assert {entry.node for entry in result.ledger.of("quantize", "declined")} == {"conv_0", "conv_2"}
    assert not any("returned" in note for note in result.notes)


def test_a_model_without_layers_changes_nothing_and_says_why():
    with pytest.raises(NothingChanged, match=r"changed nothing in 'weightless': it has no weights \(2 nodes\); leave"):
        compress(GOOD, model=weightless(), data={"x": np.ones((8, 4), np.float32)})


@pytest.mark.parametrize("option", [{"threads": 0}, {"threads": 2.5}, {"seed": -1}])
def test_numbers_that_make_no_sense_are_refused(option):
    with pytest.raises(PumiceError, match=f"{next(iter(option))}=.* must be a whole number"):
        compress(GOOD, **option)
