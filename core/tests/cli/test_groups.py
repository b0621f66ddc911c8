import json

import numpy as np
import pytest
from click.testing import CliRunner

from pumice.cli.application import application
from pumice.cli.groups import describe
from pumice.model import save
from pumice.prune import Member, Place
from pumice.testing.models import tiny_cnn


@pytest.fixture
def file(tmp_path):
    save(tiny_cnn(), tmp_path / "model.onnx")
    return str(tmp_path / "model.onnx")


def test_groups_are_printed_with_their_members_and_what_blocks_others(file):
    text = CliRunner().invoke(application, ["inspect", "--groups", file]).output
    assert "conv_0  16 channels, root c1[1]" in text
    assert "w2 axis 1: 0-15" in text
    assert "blocked: 'logits' is an output of the graph" in text


def test_groups_come_as_json(file):
    found = json.loads(CliRunner().invoke(application, ["inspect", "--groups", "--json", file]).output)
    assert [group["channels"] for group in found["groups"]] == [16]
    assert {"value": "w3", "axis": 1, "channels": "0-15"} in found["groups"][0]["members"]


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ([0, 1, 2, 3], "0-3"),
        ([-1, -1, 0, 1], "0-1 from position 2 of 4"),
        ([0, 0, 1, 1], "0-1, each 2 in a row"),
        ([0, 1, 0, 1], "0-1, 2 times over"),
        ([0, -1, 1, 1], "2 channels at 3 of 4 positions"),
    ],
)
def test_an_index_map_is_put_into_words(index, words):
    assert describe(Member(Place("w", 0), np.array(index), weight=True, reader=False)) == words
