"""Every node case that ONNX ships: it passes or it is refused by name; a wrong answer fails."""

import pytest

from pumice.errors import UnsupportedOp
from pumice.ops.node_cases import Record, check, collect

CASES = collect()
REFUSED = frozenset(Record.load().refused)
FEWEST_PASSED = 1832


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.removeprefix("test_"))
def test_node_case(case):
    if case.name in REFUSED:
        with pytest.raises(UnsupportedOp, match=r"operator \w+ of domain [\w.]+, opset \d+, .* \(node '.+'\)"):
            check(case)
    else:
        check(case)


def test_the_recorded_counts_are_those_of_these_cases():
    assert Record.of(CASES, REFUSED) == Record.load()


def test_no_fewer_cases_pass_than_ever():
    assert Record.load().passed >= FEWEST_PASSED
