"""What shows its progress is ended where it shows it, and says where."""

import math

import pytest

from pumice.errors import OutOfTime
from pumice.progress import Limited


def test_what_is_over_its_time_ends_where_it_tells_how_far_it_is_and_names_the_task():
    with pytest.raises(OutOfTime, match=r"it took more than the -1 s it had, at 'learn'"), Limited(-1.0).task("learn"):
        pytest.fail("it began though its time was over")


def test_what_has_time_goes_on():
    with Limited(math.inf).task("learn") as advance:
        advance(1000)
