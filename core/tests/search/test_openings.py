"""Where a search begins: the surest first."""

import pytest

from pumice.search import Space
from pumice.search.openings import singles
from pumice.strategy import Need
from pumice.testing.models import tiny_cnn

GIVEN = frozenset({Need.CALIBRATION, Need.GRADIENTS, Need.TEACHER, Need.TRAINING, Need.LABELS})


@pytest.fixture(scope="module")
def space():
    return Space.of(tiny_cnn(), GIVEN, {}, {})


def test_what_compress_does_by_itself_comes_first(space):
    recipes = [opening.proposal.recipe["step"] for opening in singles(space)]
    assert recipes[0][0]["use"] == "quantize"
    assert recipes[0][0]["quantizer"]["name"] == "int8"
    assert len({str(recipe) for recipe in recipes}) == len(recipes) > 3


def test_what_needs_least_is_tried_before_what_trains(space):
    names = [opening.proposal.values["quantize.quantizer"] for opening in singles(space)]
    assert names.index("kmeans") < names.index("adaround") < names.index("qat")
