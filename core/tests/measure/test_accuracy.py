import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings, strategies as st
from onnx import numpy_helper, parser
from scipy import stats

from pumice.data import open_dataset
from pumice.errors import DataError, ModelError
from pumice.measure import evaluate, evaluate_many, mcnemar
from pumice.measure.accuracy import Score, interval
from pumice.measure.metrics import Mse, Top1
from pumice.measure.plan_runtime import ReferenceRuntime
from pumice.model import clone
from pumice.strategy import Metric

REFERENCE = ReferenceRuntime()


def test_a_model_is_scored_by_its_labels(model, data):
    found = evaluate(model, data, runtime=REFERENCE)
    assert found["top1"].mean == 0.9
    assert found.primary is found["top1"]
    assert found.samples == 200
    assert "NumPy" in found.description


def test_the_scores_do_not_depend_on_the_batch(model, noisy, data):
    metrics = ["top1", "agreement", "relative-error", "cosine"]
    options = dict(reference=model, runtime=REFERENCE)
    # cosine compares with the original where labels are class numbers
    one, many = (evaluate(noisy, data, metrics, batch_size=size, **options) for size in (1, 64))
    for name in metrics:
        np.testing.assert_allclose(one[name].scores, many[name].scores, rtol=1e-4)


def test_fidelity_compares_with_the_reference(model, noisy, data, weight):
    found = evaluate(noisy, data[0], reference=model, runtime=REFERENCE)
    assert list(found.scores) == ["agreement", "cosine"]
    assert 0.5 < found["agreement"].mean < 1
    assert "no labels" in found.notes[0]


def test_the_reference_itself_gets_no_fidelity(model, noisy, data):
    found = evaluate_many({"a": model, "b": noisy}, data, reference="a", runtime=REFERENCE)
    assert list(found["a"].scores) == ["top1"]
    assert list(found["b"].scores) == ["top1", "agreement"]


def test_outputs_that_a_tool_renamed_are_matched_by_position(model, data):
    from pumice.model import clone

    renamed = clone(model)
    renamed.graph.outputs[0].name = "other"
    assert evaluate(renamed, data[0], ["agreement"], reference=model, runtime=REFERENCE)["agreement"].mean == 1


def test_fidelity_without_a_reference_is_refused(model, data):
    with pytest.raises(DataError, match="give it as the reference"):
        evaluate(model, data[0], runtime=REFERENCE)
    with pytest.raises(DataError, match="'agreement' compares with the original"):
        evaluate(model, data, ["top1", "agreement"], runtime=REFERENCE)


def test_nan_from_a_model_is_refused(model, data):
    class Broken:
        description = "a broken runtime"

        def run(self, feeds):
            return {"logits": np.full((len(feeds["x"]), 4), np.nan, np.float32)}

    with pytest.raises(ModelError, match=r"'logits' holds NaN \(a broken runtime\)"):
        evaluate(Broken(), open_dataset(data, model), ["top1"])


def test_a_limit_is_kept(model, data):
    assert evaluate(model, data, runtime=REFERENCE, limit=33).samples == 33


def test_a_limit_is_spread_over_the_data(model, data):
    in_order_of_class = np.argsort(data[1], kind="stable")
    whole = evaluate(model, (data[0], data[1]), ["top1"])["top1"].scores
    part = evaluate(model, (data[0][in_order_of_class], data[1][in_order_of_class]), ["top1"], limit=20)["top1"]
    np.testing.assert_array_equal(part.scores, whole[in_order_of_class][::10])


def test_outputs_without_an_axis_of_samples_are_one_score_a_sample():
    text = "g (float[6] x) => (float[4] y) { y = MatMul(x, w) }"
    proto = parser.parse_model('<ir_version: 10, opset_import: ["" : 21]>' + text)
    proto.graph.initializer.append(numpy_helper.from_array(np.ones((6, 4), np.float32), "w"))
    model = ir.from_proto(proto)
    found = evaluate(model, np.ones((9, 6), np.float32), ["cosine"], reference=clone(model))
    assert found["cosine"].samples == 9


def test_progress_counts_every_sample(model, data):
    from contextlib import contextmanager

    seen = []

    class Counting:
        @contextmanager
        def task(self, label, total=None):
            seen.append(total)
            yield seen.append

    evaluate(model, data, runtime=REFERENCE, batch_size=64, progress=Counting())
    assert seen == [200, 64, 64, 64, 8]


def test_memory_is_bounded_for_many_samples(model):
    """100,000 samples from a function: what stays is eight bytes a score."""
    import psutil

    def feeds():
        for i in range(100_000):
            if i % 10_000 == 0:
                resident.append(process.memory_info().rss)
            yield {"x": np.full((1, 6), i % 97, np.float32)}, i % 4

    process, resident = psutil.Process(), []
    found = evaluate(model, feeds, ["top1"], runtime=REFERENCE, batch_size=256)
    assert found.samples == 100_000
    assert max(resident[-10:]) - resident[-10] < 12_000_000


@settings(deadline=None)
@given(st.integers(0, 50), st.integers(1, 50))
def test_zero_one_scores_get_wilsons_interval(right, wrong):
    n, p, z = right + wrong, right / (right + wrong), stats.norm.ppf(0.975)
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = interval(np.array([1.0] * right + [0.0] * wrong))
    assert (low, high) == pytest.approx((centre - half, centre + half), abs=1e-9)


def test_other_scores_get_students_interval():
    scores = np.random.default_rng(0).standard_normal(30)
    expected = stats.t.interval(0.95, 29, scores.mean(), stats.sem(scores))
    assert interval(scores) == pytest.approx(expected)


def test_one_score_has_no_interval():
    assert np.isnan(interval(np.array([0.3]))).all()
    assert Score.of(Mse(), np.array([0.3])).to_json()["low"] is None


def of(metric: Metric, *scores: float) -> Score:
    return Score.of(metric, np.array(scores))


def test_mcnemar_counts_what_was_lost_and_gained():
    found = mcnemar(of(Top1(), 1, 1, 1, 1, 1, 1, 0, 0), of(Top1(), 0, 0, 0, 0, 0, 1, 1, 0))
    assert (found.lost, found.gained) == (5, 1)
    assert found.p == pytest.approx(stats.binomtest(1, 6).pvalue)
    assert found.difference == -0.5
    assert found.low < -0.5 < found.high


def test_losing_follows_the_direction_of_the_metric():
    found = mcnemar(of(Mse(), 0.1, 0.2, 0.3), of(Mse(), 0.2, 0.4, 0.2))
    assert (found.lost, found.gained) == (2, 1)
    assert found.name == "paired t"
    assert found.p == pytest.approx(stats.ttest_rel([0.2, 0.4, 0.2], [0.1, 0.2, 0.3]).pvalue)


def test_equal_scores_differ_by_chance_only():
    assert mcnemar(of(Top1(), 1, 0), of(Top1(), 1, 0)).p == 1.0


def test_scores_of_other_samples_cannot_be_paired():
    with pytest.raises(DataError, match="3 scores cannot be paired with 2"):
        mcnemar(of(Top1(), 1, 0, 1), of(Top1(), 1, 0))
