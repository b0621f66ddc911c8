import numpy as np
import pytest

from pumice.errors import PumiceError
from pumice.measure.metrics import Agreement, Mse, Top1
from pumice.model import add_initializer, clone, replace_input
from pumice.quantize.context import Drift
from pumice.quantize.guard import Verdict, judge, within_budget

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


class Harmful:
    """A builder that adds the damage of every layer that it may quantize to the first column."""

    def __init__(self, model, damage):
        self.model, self.damage, self.built = model, damage, 0

    def __call__(self, keep, context):
        self.built += 1
        total = 0.0
        for node in self.model.graph:
            if node.name not in self.damage:
                continue
            reason = keep(node)
            if reason is None:
                total += self.damage[node.name]
                context.ledger.applied("quantize", node.name, node.op_type, "quantized", mode="static")
            else:
                context.ledger.declined("quantize", node.name, node.op_type, reason)
        changed = clone(self.model)
        last = changed.graph.node("at_y")
        last.op_type = "Add"
        replace_input(last, 1, add_initializer(changed, "damage", np.array([total, 0, 0, 0], np.float32)))
        return changed


@pytest.fixture
def model(lab):
    return lab.build(TEXT)


def guarded(model, damage, context, **more):
    build = Harmful(model, damage)
    within_budget(model, build, context, **more)
    return build


def kept_in(ledger):
    return {entry.node for entry in ledger.of("quantize", "declined")}


def test_a_model_within_its_budget_is_built_once(lab, model):
    context = labelled(lab, model, metrics=(Top1(),))
    build = guarded(model, dict.fromkeys(LAYERS, 0.0), context)
    assert build.built == 1
    assert not kept_in(context.ledger)


def test_the_worst_layer_goes_back_and_the_ledger_says_which_and_why(lab, model):
    context = labelled(lab, model, metrics=(Top1(),))
    guarded(model, {**dict.fromkeys(LAYERS, 0.001), "at_h3": 9.0}, context)
    assert kept_in(context.ledger) == {"at_h3"}
    (entry,) = context.ledger.of("quantize", "declined")
    assert "returned to floating point: top1 lost 0.7" in entry.reason
    assert "the budget is 0.0100" in entry.reason
    assert "alone adds" in entry.reason
    assert len({entry.node for entry in context.ledger}) == len(context.ledger)


@pytest.mark.parametrize("bad", [1, 2, 3, 4, 5])
def test_no_more_layers_go_back_than_must(lab, model, bad):
    context = labelled(lab, model, metrics=(Top1(),))
    damage = {name: 9.0 if number < bad else 0.0 for number, name in enumerate(LAYERS)}
    guarded(model, damage, context)
    assert kept_in(context.ledger) == set(LAYERS[:bad])


def test_a_budget_that_no_layer_keeps_is_an_error_that_says_so(lab, model):
    context = labelled(lab, model, metrics=(Top1(),))
    with pytest.raises(PumiceError, match=r"rolled back: top1 lost 0\.\d+ on the calibration data.*raise max_drop"):
        guarded(model, dict.fromkeys(LAYERS, 9.0), context)
    assert not len(context.ledger)


def test_one_layer_that_breaks_the_budget_is_an_error(lab, model):
    with pytest.raises(PumiceError, match="rolled back"):
        guarded(model, {"at_h0": 9.0}, labelled(lab, model, metrics=(Top1(),)))


def test_layers_are_ranked_by_sketches(lab, model):
    context = labelled(lab, model, metrics=(Top1(),))
    sketch = Harmful(model, {**dict.fromkeys(LAYERS, 0.0), "at_h1": 9.0})
    build = guarded(model, {**dict.fromkeys(LAYERS, 0.0), "at_h1": 9.0}, context, sketch=sketch)
    assert sketch.built == len(LAYERS)
    assert build.built == 2


def shifted(model, amount, lab):
    return Harmful(model, {"at_h0": amount})(lambda node: None, lab.context(model, lab.normal(1, 4)))


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
