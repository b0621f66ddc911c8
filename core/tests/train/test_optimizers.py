"""Optimizers against their formulas, clipping, masks, decay groups, schedules, loss scaling."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from pumice.train.optimizers import LossScale, Optimizer, clip, norm
from pumice.train.parameters import Parameters
from pumice.train.schedules import SCHEDULES, factor

W, G = np.array([[1.0, -2.0], [0.5, 3.0]]), np.array([[0.1, -0.2], [0.3, 0.0]])


def parameters(decayed=("w",), masks=None):
    return Parameters({"w": W.copy()}, frozenset(decayed), masks or {}, (), {"w": W.dtype})


def after(steps, decayed=("w",), masks=None, **options):
    held, optimizer = parameters(decayed, masks), Optimizer(**options)
    for _ in range(steps):
        optimizer.update(held, {"w": G}, 0.1)
    return held.values["w"]


def test_sgd_with_momentum():
    np.testing.assert_allclose(after(2, name="sgd", momentum=0.9, nesterov=False), W - 0.1 * G - 0.1 * 1.9 * G)


def test_sgd_with_nesterov_looks_ahead():
    np.testing.assert_allclose(after(2, name="sgd", momentum=0.9), W - 0.1 * 1.9 * G - 0.1 * (G + 0.9 * 1.9 * G))


def test_sgd_decays_through_the_gradient():
    np.testing.assert_allclose(after(1, name="sgd", momentum=0.0, decay=0.5), W - 0.1 * (G + 0.5 * W))


def test_the_first_step_of_adam_is_the_rate_along_the_signs():
    np.testing.assert_allclose(after(1, name="adam"), W - 0.1 * np.sign(G), rtol=1e-6)


def test_adamw_decays_apart_from_the_gradient():
    np.testing.assert_allclose(after(1, name="adamw", decay=0.5), W - 0.1 * (np.sign(G) + 0.5 * W), rtol=1e-6)


def test_lamb_moves_in_proportion_to_the_length_of_the_weight():
    moved = after(1, name="lamb") - W
    assert norm([moved]) == pytest.approx(0.1 * norm([W]))


def test_what_is_not_decayed_is_not():
    np.testing.assert_array_equal(after(3, (), name="adamw", decay=0.5), after(3, (), name="adamw"))


def test_masked_elements_stay_zero():
    mask = np.array([[0.0, 1.0], [1.0, 1.0]])
    assert after(3, masks={"w": mask}, name="adamw", decay=0.1)[0, 0] == 0


@given(st.floats(1e-3, 10))
def test_clipped_gradients_keep_their_direction_and_are_no_longer_than_allowed(limit):
    found = clip({"a": G, "b": 2 * W}, limit)
    assert norm(found.values()) <= limit * (1 + 1e-9) or norm(found.values()) == norm([G, 2 * W])
    np.testing.assert_allclose(found["a"] * norm([G, 2 * W]), G * norm(found.values()), rtol=1e-9)


def test_an_overflow_halves_the_scale_and_leaves_the_step_out():
    scale = LossScale(scale=8.0, dynamic=True)
    assert scale.unscaled({"w": np.array([1.0, np.inf])}) is None
    assert scale.scale == 4
    np.testing.assert_array_equal(scale.unscaled({"w": np.array([8.0])})["w"], [2.0])


def test_a_thousand_good_steps_double_the_scale():
    scale = LossScale(scale=2.0, dynamic=True)
    for _ in range(1000):
        scale.unscaled({"w": G})
    assert (scale.scale, scale.good) == (4.0, 0)


@pytest.mark.parametrize("schedule", SCHEDULES)
@given(step=st.integers(0, 999))
def test_a_rate_is_positive_and_never_above_its_highest(schedule, step):
    assert 0 < factor(schedule, step, 1000, 0) <= 1


@pytest.mark.parametrize(
    ("schedule", "at", "expected"),
    [("cosine", 500, 0.5), ("step", 499, 1.0), ("step", 500, 0.1), ("one-cycle", 300, 1.0), ("one-cycle", 0, 0.04)],
)
def test_schedules_pass_their_landmarks(schedule, at, expected):
    assert factor(schedule, at, 1000, 0) == pytest.approx(expected, abs=1e-6)


def test_warm_up_rises_in_proportion():
    assert [factor("constant", i, 100, 4) for i in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
