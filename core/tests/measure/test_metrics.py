import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import spatial

from pumice.errors import DataError
from pumice.measure.metrics import (
    Agreement,
    Cosine,
    Mse,
    RelativeError,
    SequenceAccuracy,
    TokenAccuracy,
    Top1,
    Top5,
)

RNG = np.random.default_rng(0)
LOGITS = RNG.standard_normal((40, 12)).astype(np.float32)
LABELS = RNG.integers(0, 12, 40)


def score(metric, outputs, labels=None, reference=None):
    outputs = outputs if isinstance(outputs, dict) else {"y": outputs}
    reference = reference if isinstance(reference, dict) or reference is None else {"y": reference}
    return metric.score(outputs, labels, reference or {})


def test_top1_is_the_share_of_largest_scores():
    np.testing.assert_array_equal(score(Top1(), LOGITS, LABELS), LOGITS.argmax(1) == LABELS)


def test_top5_agrees_with_sorting():
    best = np.argsort(-LOGITS, axis=1)[:, :5]
    np.testing.assert_array_equal(score(Top5(), LOGITS, LABELS), (best == LABELS[:, None]).any(1))


def test_equal_scores_are_settled_as_argmax_settles_them():
    assert score(Top1(), np.zeros((3, 4), np.float32), [0, 1, 2]).tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    "labels", [np.eye(12)[LABELS], LABELS[:, None], LABELS.astype(np.float32), LABELS.astype(np.int32)]
)
def test_labels_may_be_one_hot_a_column_or_floats(labels):
    np.testing.assert_array_equal(score(Top1(), LOGITS, labels), LOGITS.argmax(1) == LABELS)


def test_classes_may_lie_on_axis_1_as_in_segmentation():
    maps = RNG.standard_normal((5, 3, 4, 4)).astype(np.float32)
    labels = RNG.integers(0, 3, (5, 4, 4))
    np.testing.assert_allclose(score(Top1(), maps, labels), (maps.argmax(1) == labels).mean(axis=(1, 2)))


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_one_column_is_compared_with_the_threshold(shape):
    scores = np.array([0.2, 0.7, 0.6, 0.1], np.float32).reshape(shape)
    assert score(Top1(), scores, [0, 1, 0, 1]).tolist() == [1, 1, 0, 0]
    assert score(Top1(threshold=0.65), scores, [0, 1, 0, 1]).tolist() == [1, 1, 1, 0]


def test_the_output_that_fits_the_labels_is_found_or_named():
    outputs = {"state": np.zeros(40, np.float32), "hidden": np.zeros((40, 12), np.float32), "logits": LOGITS}
    np.testing.assert_array_equal(score(Top1(output="logits"), outputs, LABELS), LOGITS.argmax(1) == LABELS)
    np.testing.assert_array_equal(score(Top1(), outputs, LABELS), LABELS == 0)
    with pytest.raises(DataError, match="did you mean 'logits'"):
        score(Top1(output="logit"), outputs, LABELS)


def test_token_accuracy_leaves_ignored_positions_out():
    logits = np.eye(4, dtype=np.float32)[[[0, 1, 2], [3, 3, 3]]]
    labels = np.array([[0, 1, -100], [3, 0, 0]])
    np.testing.assert_allclose(score(TokenAccuracy(), logits, labels), [1.0, 1 / 3])
    np.testing.assert_allclose(score(SequenceAccuracy(), logits, labels), [1.0, 0.0])


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (None, "needs labels and the data has none"),
        (np.full(40, 12), "label 12 is none of the 12 classes"),
        (np.full(40, -1), "label -1 is none"),
        (np.array(["cat"] * 40), "number the classes"),
        (np.zeros((40, 3, 2), np.int64), "do not fit"),
    ],
)
def test_labels_that_cannot_be_used_are_told(labels, words):
    with pytest.raises(DataError, match=words):
        score(Top1(), LOGITS, labels)


def test_agreement_is_a_share_of_positions_and_the_worst_output_counts():
    first = np.eye(3, dtype=np.float32)[[[0, 1], [2, 2]]]
    second = np.eye(3, dtype=np.float32)[[[0, 1], [2, 0]]]
    assert score(Agreement(), second, reference=first).tolist() == [1.0, 0.5]
    both = score(Agreement(), {"a": first, "b": second}, reference={"a": first, "b": first})
    assert both.tolist() == [1.0, 0.5]


def test_agreement_of_integer_outputs_is_equality():
    assert score(Agreement(), np.array([1, 2, 3]), reference=np.array([1, 2, 4])).tolist() == [1, 1, 0]


def test_cosine_and_mse_agree_with_scipy():
    other = RNG.standard_normal(LOGITS.shape).astype(np.float32)
    expected = [1 - spatial.distance.cosine(a, b) for a, b in zip(LOGITS, other, strict=True)]
    np.testing.assert_allclose(score(Cosine(), LOGITS, reference=other), expected, rtol=1e-5)
    np.testing.assert_allclose(score(Cosine(), LOGITS, labels=other), expected, rtol=1e-5)
    np.testing.assert_allclose(score(Mse(), LOGITS, labels=other), ((LOGITS - other) ** 2).mean(1), rtol=1e-5)


def test_relative_error_is_the_norm_of_the_difference():
    other = LOGITS + np.float32(0.1)
    expected = np.linalg.norm(LOGITS - other, axis=1) / np.linalg.norm(LOGITS, axis=1)
    np.testing.assert_allclose(score(RelativeError(), other, reference=LOGITS), expected, rtol=1e-4)


@settings(deadline=None)
@given(st.floats(1e-30, 1e30))
def test_cosine_does_not_depend_on_scale(factor):
    scaled = LOGITS.astype(np.float64) * factor
    np.testing.assert_allclose(score(Cosine(), scaled, reference=LOGITS), 1.0, rtol=1e-9)


def test_zero_vectors_have_a_cosine_and_an_error():
    zero, one = np.zeros((1, 3), np.float32), np.ones((1, 3), np.float32)
    assert score(Cosine(), zero, reference=zero) == 1
    assert score(Cosine(), one, reference=zero) == 0
    assert score(RelativeError(), one, reference=zero) == pytest.approx(np.sqrt(3))


def test_masks_of_minus_infinity_do_not_spoil_fidelity():
    masked = LOGITS.copy()
    masked[:, 3] = -np.inf
    assert score(RelativeError(), masked, reference=masked).max() == 0
    np.testing.assert_allclose(score(Cosine(), masked, reference=masked), 1)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_every_floating_type_is_measured(dtype):
    narrow = LOGITS.astype(dtype)
    assert score(Agreement(), narrow, reference=LOGITS).mean() > 0.9
    assert score(RelativeError(), narrow, reference=LOGITS).max() < 0.01
    assert score(Top1(), narrow, narrow.astype(np.float32).argmax(1)).mean() == 1


def test_models_that_answer_in_other_shapes_are_refused():
    with pytest.raises(DataError, match="do not answer alike"):
        score(Agreement(), LOGITS[:, :5], reference=LOGITS)


def test_outputs_without_items_do_not_count():
    full, empty = np.ones((2, 3), np.float32), np.zeros((2, 0), np.float32)
    for metric in (Agreement(), Cosine(), RelativeError()):
        both = {"y": full, "z": empty}
        np.testing.assert_array_equal(metric.score(both, None, both), metric.score({"y": full}, None, {"y": full}))
        with pytest.raises(DataError, match="no output that holds anything"):
            metric.score({"z": empty}, None, {"z": empty})


def test_fidelity_without_a_common_output_is_refused():
    with pytest.raises(DataError, match="share no output"):
        score(RelativeError(), {"a": LOGITS}, reference={"b": LOGITS})
