"""The contracts themselves: core's own strategies keep them, and a strategy that breaks one is found out."""

import itertools
import typing

import attrs
import numpy as np
import pytest

import pumice.testing
from pumice.knobs import Choice, Int, knob
from pumice.registry import BASES
from pumice.strategy import ImportanceScorer, Loss, Metric, Need, Quantizer, Runtime, Searcher, Sparsifier
from pumice.testing import (
    LossContract,
    MetricContract,
    QuantizerContract,
    RuntimeContract,
    ScorerContract,
    SearcherContract,
    SparsifierContract,
)


def broken_promises(contract, strategy, **given):
    """Names of the tests of a contract that a strategy fails; that it is not installed does not count."""
    held = type("Held", (contract,), {"strategy": strategy, **given})()
    failed = []
    for name in sorted(name for name in dir(held) if name.startswith("test_")):
        try:
            getattr(held, name)()
        except Exception:
            failed.append(name.removeprefix("test_"))
    return [name for name in failed if name != "it_is_what_an_installed_plugin_provides"]


@attrs.frozen(kw_only=True)
class Right(Metric):
    """Share of right answers."""

    name = "right"
    needs = frozenset({Need.LABELS})

    def score(self, outputs, labels, reference):
        return (outputs["logits"].argmax(axis=1) == labels).astype(float)


class OneNumber(Right):
    def score(self, outputs, labels, reference):
        return super().score(outputs, labels, reference).mean()


class Ranked(Right):
    def score(self, outputs, labels, reference):
        return np.arange(len(labels), dtype=float)


class Destructive(Right):
    def score(self, outputs, labels, reference):
        outputs["logits"] *= 2
        return super().score(outputs, labels, reference)


def test_a_metric_that_keeps_its_contract_passes():
    assert broken_promises(MetricContract, Right) == []


@pytest.mark.parametrize(
    ("metric", "broken"),
    [
        (OneNumber, "every_sample_gets_one_finite_score"),
        (Ranked, "the_order_of_samples_does_not_matter"),
        (Ranked, "the_size_of_a_batch_does_not_matter"),
        (Destructive, "what_it_is_given_is_left_unchanged"),
    ],
)
def test_a_metric_that_breaks_its_contract_is_found_out(metric, broken):
    assert broken in broken_promises(MetricContract, metric)


@attrs.frozen(kw_only=True)
class Norm(ImportanceScorer):
    """The size of the weights."""

    name = "norm"
    norm: str = knob("l1", Choice("l1", "l2"), help="which norm")
    power: int = knob(1, Int(1, 3), help="exponent")

    def score(self, group, context):
        return np.abs(context.weights(group)).sum(axis=1) ** self.power


class Positional(Norm):
    def score(self, group, context):
        return np.arange(len(context.weights(group)))


class PerWeight(Norm):
    def score(self, group, context):
        return context.weights(group)


def test_a_scorer_that_keeps_its_contract_passes():
    assert broken_promises(ScorerContract, Norm, settings={"power": 2}) == []


def test_a_scorer_that_breaks_its_contract_is_found_out():
    assert broken_promises(ScorerContract, Positional) == ["the_order_of_channels_does_not_matter"]
    assert "every_channel_gets_one_finite_score" in broken_promises(ScorerContract, PerWeight)


def test_a_strategy_without_a_summary_or_that_can_be_changed_is_found_out():
    class Bare(ImportanceScorer):
        name = "bare"
        __module__ = "nowhere"
        __setattr__ = object.__setattr__

        def score(self, group, context):
            return np.ones(len(context.weights(group)))

    assert broken_promises(ScorerContract, Bare) == ["it_is_frozen", "it_says_in_one_line_what_it_does"]


@attrs.frozen(kw_only=True)
class Squared(Loss):
    """Half the squared distance."""

    name = "squared"

    def value_and_grad(self, outputs, batch):
        difference = outputs["logits"] - batch
        return float((difference**2).sum() / 2), {"logits": difference}


class WrongSlope(Squared):
    def value_and_grad(self, outputs, batch):
        value, gradients = super().value_and_grad(outputs, batch)
        return value, {"logits": 2 * gradients["logits"]}


def test_a_loss_is_checked_against_central_differences():
    given = {"batch": lambda self: np.zeros((4, 5))}
    assert broken_promises(LossContract, Squared, **given) == []
    assert broken_promises(LossContract, WrongSlope, **given) == ["the_gradient_is_that_of_central_differences"]


@attrs.frozen(kw_only=True)
class Halves(Quantizer):
    """Weights rounded to half precision, in place."""

    name = "halves"

    def quantize(self, model, context):
        import onnx_ir as ir

        for value in model.graph.initializers.values():
            value.const_value = ir.tensor(value.const_value.numpy().astype(np.float16).astype(np.float32))
        return model


def test_a_quantizer_that_changes_the_original_and_says_nothing_is_found_out():
    broken = broken_promises(QuantizerContract, Halves)
    assert "the_original_is_left_unchanged" in broken
    assert "every_node_has_a_line_in_the_ledger_and_some_are_applied" in broken
    assert "the_result_is_smaller" in broken
    assert "every_layer_can_be_excluded" in broken


@attrs.frozen(kw_only=True)
class Wrong(Runtime):
    """Answers zero."""

    name = "wrong"

    def open(self, model, *, outputs=None, threads=None):
        class Session:
            description = "zeros"

            def run(self, feeds):
                return {"logits": np.zeros((len(feeds["x"]), 5), np.float32)}

        return Session()


def test_a_runtime_that_answers_wrongly_is_found_out():
    broken = broken_promises(RuntimeContract, Wrong)
    assert "it_answers_as_the_reference_does" in broken
    assert "a_value_that_does_not_exist_is_refused_by_name" in broken
    assert "several_threads_may_run_one_session" not in broken


@attrs.frozen(kw_only=True)
class Counting(Searcher):
    """Bits counted down."""

    name = "counting"

    def propose(self, space, history):
        return space.default(("quantize",), {"quantize.bits.bits": 2 + len(history) % 7})


class Forgetful(Counting):
    def propose(self, space, history):
        proposal = super().propose(space, history)
        history.clear()
        return proposal


class Fickle(Counting):
    def propose(self, space, history):
        return space.default(("quantize",), {"quantize.bits.bits": next(NUMBERS)})


class Outside(Counting):
    def propose(self, space, history):
        return attrs.evolve(super().propose(space, history), values={"pipeline": "quantize > prune"})


NUMBERS = itertools.cycle((2, 3, 4, 5, 6))


def test_a_searcher_that_keeps_its_promises_passes():
    assert broken_promises(SearcherContract, Counting) == []


def test_a_searcher_that_edits_the_trials_is_found_out():
    given = {"history": lambda self: list(range(3))}
    assert "the_trials_are_left_unchanged" in broken_promises(SearcherContract, Forgetful, **given)


def test_a_searcher_whose_proposals_change_is_found_out():
    assert "the_same_trials_lead_to_the_same_proposal" in broken_promises(SearcherContract, Fickle)


def test_a_searcher_that_leaves_the_space_is_found_out():
    assert "what_it_proposes_lies_in_the_space" in broken_promises(SearcherContract, Outside)


@attrs.frozen(kw_only=True)
class Smallest(Sparsifier):
    """The smallest weights become zero."""

    name = "smallest"

    def sparsified(self, weights, moments, pattern):
        return np.where(pattern.keep(np.abs(weights)), weights, 0.0)


class Everywhere(Smallest):
    def sparsified(self, weights, moments, pattern):
        return np.where(np.abs(weights) > np.median(np.abs(weights)), weights, 0.0)


def test_a_sparsifier_that_keeps_its_promises_passes():
    assert broken_promises(SparsifierContract, Smallest) == []


def test_a_sparsifier_that_ignores_the_pattern_is_found_out():
    assert broken_promises(SparsifierContract, Everywhere) == ["the_pattern_holds"]


@pytest.mark.parametrize("kind", BASES)
def test_every_kind_of_strategy_has_a_contract(kind):
    held = [getattr(pumice.testing, name) for name in pumice.testing.__all__]
    assert [c for c in held if BASES[kind] in typing.get_args(getattr(c, "__orig_bases__", [None])[0])]


@pytest.mark.parametrize("name", pumice.testing.__all__)
def test_every_contract_can_be_imported_and_has_tests(name):
    contract = getattr(pumice.testing, name)
    assert [member for member in dir(contract) if member.startswith("test_")]


def test_a_contract_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'KernelContract'"):
        pumice.testing.KernelContract  # noqa: B018 - asking is the test
