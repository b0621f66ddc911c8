import attrs
import numpy as np
import pytest

from pumice.errors import BudgetExceeded, PluginError
from pumice.measure.budget import Drift, Verdict
from pumice.measure.metrics import Agreement, Mse, Top1
from pumice.model import add_initializer, clone, replace_input
from pumice.quantize.guard import judge, within_budget
from pumice.strategy import Quantizer

LAYERS = [f"at_h{n}" for n in range(6)]
TEXT = (
    "(float[N,4] x) => (float[N,4] y) { "
    + " ".join(f"h{n} = Identity ({'x' if n == 0 else f'h{n - 1}'})" for n in range(6))
    + " y = Identity (h5) }"
)


def labelled(lab, model, count=40, **settings):
    """Samples whose largest entry is their class: the model as it is makes no mistake."""
    rng = np.random.default_rng(0)
    feeds = [({"x": row[None]}, np.array([row.argmax()])) for row in rng.standard_normal((count, 4)).astype(np.float32)]
    return lab.context(model, feeds, **settings)


@attrs.frozen
class Harmful(Quantizer):
    """Adds the damage of every layer that it may quantize to the first column."""

    name = "harmful"
    damage: dict[str, float]
    rough: dict[str, float] | None = None
    """The damage of a draft."""
    calls: list[str] = attrs.field(factory=list)

    def quantize(self, model, context):
        self.calls.append("draft" if context.draft else "real")
        damage = self.rough if context.draft and self.rough else self.damage
        total = 0.0
        for node in model.graph:
            if node.name not in damage:
                continue
            reason = context.excluded(node)
            if reason is None:
                total += damage[node.name]
                context.ledger.applied("quantize", node.name, node.op_type, "quantized")
            else:
                context.ledger.declined("quantize", node.name, node.op_type, reason)
        changed = clone(model)
        last = changed.graph.node("at_y")
        last.op_type = "Add"
        replace_input(last, 1, add_initializer(changed, "damage", np.array([total, 0, 0, 0], np.float32)))
        return changed


@pytest.fixture
def model(lab):
    return lab.build(TEXT)


def guarded(model, damage, context, **more):
    quantizer = Harmful(damage, **more)
    within_budget(model, quantizer, context)
    return quantizer


def kept_in(ledger):
    return {entry.node for entry in ledger.of("quantize", "declined")}


def test_a_model_within_its_budget_is_built_once(lab, model):
    context = labelled(lab, model, metrics=(Top1(),))
    assert guarded(model, dict.fromkeys(LAYERS, 0.0), context).calls == ["real"]
    assert not kept_in(context.ledger)
    assert not context.notes


def test_the_worst_layer_goes_back_and_the_ledger_says_which_and_why(lab, model):
    context = labelled(lab, model, metrics=(Top1(),))
    guarded(model, {**dict.fromkeys(LAYERS, 0.001), "at_h3": 9.0}, context)
    assert kept_in(context.ledger) == {"at_h3"}
    (entry,) = context.ledger.of("quantize", "declined")
    assert "returned to floating point: top1 lost 0.7" in entry.reason
    assert "the budget is 0.0100" in entry.reason
    assert "alone adds" in entry.reason
    assert len({entry.node for entry in context.ledger}) == len(context.ledger)
    (note,) = context.notes
    assert note.startswith("1 layer was returned to floating point, because top1 lost 0.7")
    assert note.endswith("the budget is 0.0100: at_h3")


def test_all_that_went_back_are_named_in_the_note(lab, model):
    context = labelled(lab, model, metrics=(Top1(),))
    guarded(model, {**dict.fromkeys(LAYERS, 0.0), "at_h1": 9.0, "at_h4": 8.0}, context)
    (note,) = context.notes
    assert note.startswith("2 layers were returned to floating point")
    assert note.endswith(": at_h1, at_h4")


@pytest.mark.parametrize("bad", [1, 2, 3, 4, 5])
def test_no_more_layers_go_back_than_must(lab, model, bad):
    context = labelled(lab, model, metrics=(Top1(),))
    damage = {name: 9.0 if number < bad else 0.0 for number, name in enumerate(LAYERS)}
    guarded(model, damage, context)
    assert kept_in(context.ledger) == set(LAYERS[:bad])


def test_layers_go_back_for_a_budget_of_noise_though_the_accuracy_is_kept(lab, model):
    damage = {**dict.fromkeys(LAYERS, 1e-4), "at_h3": 0.02}
    within = labelled(lab, model, metrics=(Top1(),), max_drop=0.5)
    assert guarded(model, damage, within).calls == ["real"]
    context = labelled(lab, model, metrics=(Top1(),), max_drop=0.5, noise=1e-5)
    guarded(model, damage, context)
    assert kept_in(context.ledger) == {"at_h3"}
    assert "noise to signal" in context.notes[0]


def test_a_budget_that_no_layer_keeps_is_an_error_that_says_so(lab, model):
    context = labelled(lab, model, metrics=(Top1(),))
    with pytest.raises(BudgetExceeded, match=r"rolled back: top1 lost 0\.\d+ on the calibration data.*raise max_drop"):
        guarded(model, dict.fromkeys(LAYERS, 9.0), context)
    assert not len(context.ledger)


def test_one_layer_that_breaks_the_budget_is_an_error(lab, model):
    with pytest.raises(BudgetExceeded, match="rolled back"):
        guarded(model, {"at_h0": 9.0}, labelled(lab, model, metrics=(Top1(),)))


def test_layers_are_ranked_by_drafts(lab, model):
    context = labelled(lab, model, metrics=(Top1(),))
    damage = {**dict.fromkeys(LAYERS, 0.0), "at_h1": 9.0}
    rough = {**dict.fromkeys(LAYERS, 0.0), "at_h1": 9.0, "at_h5": 99.0}
    quantizer = guarded(model, damage, context, rough=rough)
    assert quantizer.calls == ["real", *["draft"] * len(LAYERS), "real", "real"]
    assert kept_in(context.ledger) == {"at_h5", "at_h1"}


def test_what_is_excluded_by_the_user_stays_so_while_layers_go_back(lab, model):
    context = labelled(lab, model, metrics=(Top1(),), exclude=("at_h2",))
    guarded(model, {**dict.fromkeys(LAYERS, 0.0), "at_h1": 9.0, "at_h2": 9.0}, context)
    assert {entry.node: "knob 'exclude'" in entry.reason for entry in context.ledger.of("quantize", "declined")} == {
        "at_h1": False,
        "at_h2": True,
    }


def test_layers_with_weights_are_ranked_and_not_what_lies_between(lab):
    text = "(float[N,4] x) => (float[N,4] y) { h0 = MatMul (x, w)  h1 = Relu (h0)  y = Identity (h1) }"
    model = lab.build(text, w=np.eye(4, dtype=np.float32))
    rng = np.random.default_rng(0)
    feeds = [({"x": row[None]}, np.array([row.argmax()])) for row in rng.random((40, 4)).astype(np.float32)]
    with pytest.raises(BudgetExceeded):
        guarded(model, {"at_h0": 9.0, "at_h1": 0.0}, lab.context(model, feeds, metrics=(Top1(),)))


def test_without_data_the_account_says_that_nothing_was_judged(lab, model):
    context = lab.context(model, None)
    assert guarded(model, {"at_h0": 9.0}, context).calls == ["real"]
    assert context.notes == ["what quantization cost was not judged: no data was given"]


@attrs.frozen
class Deaf(Harmful):
    """Does not ask what is excluded."""

    name = "deaf"

    def quantize(self, model, context):
        return super().quantize(model, attrs.evolve(context, exclude=(), kept={}))


@pytest.mark.parametrize("settings", [{"exclude": ("at_h0",)}, {"metrics": (Top1(),)}])
def test_a_quantizer_that_does_not_leave_excluded_nodes_alone_is_named(lab, model, settings):
    context = labelled(lab, model, **settings)
    with pytest.raises(PluginError, match=r"quantizer 'deaf' quantized node 'at_h0', which is excluded \("):
        within_budget(model, Deaf({**dict.fromkeys(LAYERS, 0.0), "at_h0": 9.0}), context)


@attrs.frozen
class Taciturn(Harmful):
    """Says nothing of what it leaves alone."""

    def quantize(self, model, context):
        changed = super().quantize(model, context)
        context.ledger.entries[:] = [entry for entry in context.ledger if entry.verdict == "applied"]
        return changed


def test_a_layer_that_went_back_has_its_line_even_if_the_quantizer_writes_none(lab, model):
    context = labelled(lab, model, metrics=(Top1(),))
    within_budget(model, Taciturn({**dict.fromkeys(LAYERS, 0.0), "at_h3": 9.0}), context)
    assert kept_in(context.ledger) == {"at_h3"}


def shifted(model, amount, lab):
    return Harmful({"at_h0": amount}).quantize(model, lab.context(model, lab.normal(1, 4)))


def test_few_samples_do_not_condemn(lab, model):
    one_in_eight = [({"x": np.eye(4, dtype=np.float32)[n % 4][None] + 1}, np.array([n % 4])) for n in range(8)]
    one_in_eight[0] = ({"x": np.array([[1.0, 1.1, 0, 0]], np.float32)}, np.array([1]))
    context = lab.context(model, one_in_eight, metrics=(Top1(),), max_drop=0.01)
    verdict = judge(model, shifted(model, 0.2, lab), context)
    assert verdict.loss == 0.125
    assert not verdict.exceeded


def test_without_labels_noise_that_changes_no_decision_is_harmless(lab, model):
    feeds = [{"x": np.array([[5.0, 0, 0, 0]], np.float32)}] * 16
    context = lab.context(model, feeds, metrics=(Agreement(),))
    assert not judge(model, shifted(model, 3.0, lab), context).exceeded


def test_without_labels_decisions_and_noise_together_are_too_much(lab, model):
    context = lab.context(model, lab.normal(1, 4, count=32), metrics=(Agreement(),))
    assert judge(model, shifted(model, 9.0, lab), context).exceeded


def test_an_error_without_an_upper_end_counts_relative_to_what_it_was(lab, model):
    rng = np.random.default_rng(0)
    rows = 1000 * rng.standard_normal((32, 4)).astype(np.float32)
    feeds = [({"x": row[None]}, row[None] + 100) for row in rows]
    context = lab.context(model, feeds, metrics=(Mse(),))
    assert not judge(model, shifted(model, 0.5, lab), context).exceeded
    assert judge(model, shifted(model, -50.0, lab), context).exceeded


def test_outputs_that_are_nan_are_too_much(lab, model):
    for metrics in ((), (Agreement(),)):
        context = lab.context(model, lab.normal(1, 4), metrics=metrics)
        assert judge(model, shifted(model, np.nan, lab), context).exceeded
    assert Verdict(measure="top1", loss=np.nan, budget=0.1, error=0.0).exceeded


def test_infinities_of_the_original_are_no_noise():
    drift = Drift()
    drift.update({"y": np.array([[-np.inf, 1.0, 2.0]])}, {"y": np.array([[-np.inf, 1.0, 2.0]])})
    assert drift.ratio == 0.0
    drift.update({"y": np.array([[-np.inf, 1.0, 2.0]])}, {"y": np.array([[-np.inf, 1.0, np.nan]])})
    assert drift.ratio == np.inf


def test_drift_counts_changed_decisions():
    drift = Drift()
    drift.update({"y": np.array([[0.0, 1.0], [0.0, 1.0]])}, {"y": np.array([[0.0, 1.0], [1.0, 0.0]])})
    assert drift.agreement == 0.5
    assert Drift().agreement == 1.0


@pytest.mark.parametrize("count", [1, 2, 50])
def test_noise_on_a_single_number_counts_against_its_spread_over_the_samples(count):
    drift = Drift()
    for number in range(1, count + 1):
        drift.update({"y": np.array([[number]], np.float32)}, {"y": np.array([[1.1 * number]], np.float32)})
    assert 0.005 < drift.ratio < 0.2
