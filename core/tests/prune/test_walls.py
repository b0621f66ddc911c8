"""What may not change says why, and holds back only the channels that reach it."""

import numpy as np
import pytest

from pumice.errors import ModelError
from pumice.prune import find_groups, remove

from .structures import CONV, IMAGE, TAIL, Structure

CASES = {
    "an output of the graph": Structure("float[N,6] x", "y = MatMul(x, w)", {"w": (6, 5)}, {}),
    "compares the channels with each other": Structure(
        "float[N,6] x", "a = MatMul(x, w) b = Softmax(a) y = MatMul(b, v)", {"w": (6, 8), "v": (8, 5)}, {}
    ),
    "divides each channel by its neighbours": Structure(
        IMAGE, f"a = Conv<{CONV}>(x, w) z = LRN<size=3>(a) {TAIL}", {"w": (8, 3, 3, 3), "head": (8, 5)}, {}
    ),
    "depends on every one of them": Structure(
        "float[N,6] x", "a = MatMul(x, w) b = ReduceMax(a, one) y = MatMul(b, v)",
        {"w": (6, 8), "one": np.array([1], np.int64), "v": (1, 5)}, {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("reason", CASES)
def test_a_group_that_cannot_lose_channels_says_why(reason):
    found = find_groups(CASES[reason].model())
    assert not found.free
    assert any(reason in said for group in found.held for said in group.blockers)


def test_an_operator_without_a_rule_blocks():
    model = Structure(
        "float[N,6] x", "a = MatMul(x, w) b, c = TopK<axis=1>(a, k) y = MatMul(b, v)",
        {"w": (6, 8), "k": np.array([3], np.int64), "v": (3, 5)}, {},
    ).model()  # fmt: skip
    group = find_groups(model).held[0]
    assert list(group.blockers) == ["TopK has no channel rule (node 'topk_1')"]


def test_channels_that_reach_no_wall_stay_free():
    model = Structure(
        "float[N,6] x",
        "a = MatMul(x, w) b, c = Split<axis=1>(a, parts) d = Softmax(b) e = Concat<axis=1>(d, c) y = MatMul(e, v)",
        {"w": (6, 8), "parts": np.array([3, 5], np.int64), "v": (8, 5)}, {},
    ).model()  # fmt: skip
    (group,) = find_groups(model).free
    assert group.channels == 5
    assert sum(group.blockers.values()) == 3


def test_what_a_control_flow_body_reads_is_held():
    model = Structure(
        "float[N,6] x, bool q",
        "a = MatMul(x, w) b = If<then_branch = t () => (float[N,8] u) { u = Relu(a) }, "
        "else_branch = e () => (float[N,8] v) { v = Abs(a) }>(q) y = MatMul(b, v2)",
        {"w": (6, 8), "v2": (8, 5)}, {},
    ).model()  # fmt: skip
    reasons = [reason for group in find_groups(model).held for reason in group.blockers]
    assert any("control-flow body" in reason for reason in reasons)


def test_a_layer_is_never_left_empty():
    model = Structure("float[N,6] x", "a = MatMul(x, w) y = MatMul(a, v)", {"w": (6, 8), "v": (8, 5)}, {}).model()
    found = find_groups(model)
    with pytest.raises(ModelError, match=r"nothing of axis . of '.' would be left"):
        remove(found.wiring, found.free[0].cuts(range(8)))
