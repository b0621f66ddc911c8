"""What is put aside judges; answers that change count whatever their type; a loss must keep clear of the budget."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from pumice.data import open_dataset
from pumice.measure import pick_runtime
from pumice.model import infer_shapes
from pumice.quantize.context import QuantizeContext
from pumice.quantize.target import Target
from pumice_quant_mixed import Mixed
from pumice_quant_mixed.verification import Parts, _divergences, _expected_losses, _log_probabilities, _told, verified

HEADER = '<ir_version: 10, opset_import: ["" : 21]> g (float[N,24] x) => '
LOGITS = "(float[N,9] y) { y = MatMul(x, w) }"
ANSWERS = "(int64[N,1] y) { z = MatMul(x, w) y = ArgMax <axis=1> (z) }"


def network(text, noise=0.0):
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((24, 9))
    weights += noise * rng.standard_normal(weights.shape)
    proto = onnx.parser.parse_model(HEADER + text)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weights.astype(np.float32), "w"))
    for node in proto.graph.node:
        node.name = node.output[0]
    return infer_shapes(ir.from_proto(proto))


def context(model, count=30, labels=False, **settings):
    rng = np.random.default_rng(1)
    feeds = [{"x": rng.standard_normal((1, 24)).astype(np.float32)} for _ in range(count)]
    return QuantizeContext(
        calibration=open_dataset(feeds, model), runtime=pick_runtime(), target=Target.named("ort-cpu"), **settings
    )


def test_a_third_of_the_samples_is_put_aside():
    parts = Parts.of(context(network(LOGITS)).calibration)
    assert (parts.aside.count(), parts.fitted.count()) == (10, 20)


@pytest.mark.parametrize("text", [LOGITS, ANSWERS])
def test_more_noise_uses_up_the_budget_whatever_the_type_of_the_answers(text):
    model = network(text)
    around = context(model, max_drop=0.05)
    found = [verified(model, network(text, noise), Parts.of(around.calibration), around) for noise in (0.0, 1e-3, 1.0)]
    assert [verdict.kept for verdict in found] == [True, True, False]
    assert found[0].loss == pytest.approx(0.0, abs=1e-9)


def test_a_budget_of_noise_is_kept_whatever_else_may_be_lost():
    model = network(LOGITS)
    rough, mild = network(LOGITS, 0.1), network(LOGITS, 1e-4)
    around = context(model, max_drop=0.5, noise=1e-4)
    assert [verified(model, changed, Parts.of(around.calibration), around).kept for changed in (rough, mild)] == [
        False,
        True,
    ]
    freely = context(model, max_drop=0.5)
    assert verified(model, rough, Parts.of(freely.calibration), freely).kept


def test_the_account_tells_what_was_judged_and_on_how_many_samples():
    around = context(network(LOGITS))
    Mixed(smallest=1).quantize(network(LOGITS), around)
    (line,) = [entry.reason for entry in around.ledger if entry.node == "model"]
    assert "standard error" in line
    assert "judged on 10 samples put aside for it" in line or "judged on 30 samples in all" in line


def test_a_model_that_answers_with_whole_numbers_has_a_curve_to_choose_from():
    around = context(network(ANSWERS), count=60, max_drop=1e-6)
    changed = Mixed(smallest=1).quantize(network(ANSWERS), around)
    assert any(entry.reason.startswith("mixed precision: the share of other answers") for entry in around.ledger)
    assert verified(network(ANSWERS), changed, Parts.of(around.calibration), around).loss == 0.0


def test_the_expected_loss_is_what_a_network_that_is_right_as_often_as_it_says_loses():
    rng = np.random.default_rng(2)
    logits = 3.0 * rng.standard_normal((200_000, 5))
    noisy = logits + 0.5 * rng.standard_normal(logits.shape)
    before, after = _log_probabilities(logits), _log_probabilities(noisy)
    right = np.exp(before)
    every = np.arange(len(right))
    lost = right[every, logits.argmax(1)] - right[every, noisy.argmax(1)]
    assert _expected_losses(before, after).mean() == pytest.approx(lost.mean(), rel=0.2)


@pytest.mark.parametrize(("kind", "counts"), [(np.int64, [0.0, 1.0]), (np.float32, None)])
def test_answers_as_long_as_their_sample_are_compared_where_they_are_whole_numbers(kind, counts):
    before = [np.ones((1, width), kind) for width in (5, 7)]
    told = _told(before, [before[0], 2 * before[1]])
    assert told is None if counts is None else list(told[1]) == counts


def test_probabilities_and_their_logits_tell_the_same():
    logits = np.random.default_rng(3).standard_normal((50, 4))
    softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(_log_probabilities(softmax), _log_probabilities(logits), atol=1e-12)
    assert not _divergences(_log_probabilities(softmax), _log_probabilities(logits)).round(12).any()
