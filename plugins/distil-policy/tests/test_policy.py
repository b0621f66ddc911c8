import numpy as np
import pytest

from pumice.distil.loss import Target, TaughtBatch
from pumice.errors import DataError
from pumice.testing import LossContract
from pumice_distil_policy import OnPolicy
from pumice_distil_policy.generation import Samples

RNG = np.random.default_rng(4)
N, LENGTH, PROMPT, WORDS = 3, 6, 2, 4
STUDENT, TEACHER = RNG.standard_normal((2, N, LENGTH, WORDS))
TOKENS = RNG.integers(0, WORDS, (N, LENGTH))


def log_probabilities(scores):
    rows = scores - np.log(np.exp(scores).sum(axis=2, keepdims=True))
    return np.take_along_axis(rows[:, PROMPT - 1 : -1], TOKENS[:, PROMPT:, None], 2)[..., 0]


def drawn(student=STUDENT, share=0.3):
    own, other = log_probabilities(student), log_probabilities(TEACHER)
    return Samples(TOKENS, PROMPT, own, np.log((1 - share) * np.exp(own) + share * np.exp(other)))


def batch(samples=None, teacher=TEACHER):
    return TaughtBatch(targets={"y": Target(teacher)}, samples=samples or drawn())


class TestOnPolicy(LossContract):
    strategy = OnPolicy
    settings = {"clip": 10.0}

    def outputs(self):
        return {"y": STUDENT.copy()}

    def batch(self):
        return batch()


class TestTokenByToken(TestOnPolicy):
    settings = {"credit": 0.0, "reuse": 3}


def value(student=STUDENT, samples=None, **knobs):
    return OnPolicy(**knobs).value_and_grad({"y": student}, batch(samples))


def test_only_what_was_generated_is_learned_from():
    grad = value()[1]["y"]
    assert not grad[:, : PROMPT - 1].any()
    assert not grad[:, -1].any()
    assert grad[:, PROMPT - 1 : -1].any()


def test_a_student_that_equals_its_teacher_has_nothing_to_correct():
    loss, grads = OnPolicy().value_and_grad({"y": TEACHER}, batch(drawn(TEACHER)))
    assert loss == pytest.approx(0)
    np.testing.assert_allclose(grads["y"], 0, atol=1e-12)


def test_a_probability_that_has_moved_too_far_is_not_pushed_further():
    """The gradient of the credit is zero where the ratio has left its interval in the direction of the advantage."""
    old = drawn(STUDENT, share=0.0)
    moved = STUDENT.copy()
    np.put_along_axis(moved[:, PROMPT - 1 : -1], TOKENS[:, PROMPT:, None], 50.0, 2)
    near, far = (value(moved, old, clip=clip, credit=1.0)[0] for clip in (0.0, 10.0))
    assert near != far
    free = value(moved, old, clip=10.0, credit=1.0)[1]["y"] - value(moved, old, credit=0.0)[1]["y"]
    held = value(moved, old, clip=0.0, credit=1.0)[1]["y"] - value(moved, old, credit=0.0)[1]["y"]
    assert np.abs(held).sum() <= np.abs(free).sum()


def test_what_follows_counts_by_its_mean_whatever_the_length():
    from pumice_distil_policy import _advantage

    rewards = np.array([[5.0, 1.0, 1.0, 1.0], [5.0, 3.0, 3.0, 3.0]])
    np.testing.assert_allclose(_advantage(rewards), [[-1, -1, -1, 0], [1, 1, 1, 0]])


def test_without_samples_it_is_refused():
    with pytest.raises(DataError, match="nothing that the student generated"):
        OnPolicy().value_and_grad({"y": STUDENT}, TaughtBatch(targets={"y": Target(TEACHER)}))
