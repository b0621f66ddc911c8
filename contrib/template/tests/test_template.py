"""The contracts that pumice expects of a scorer and of a quantizer, and what is special about ours."""

import numpy as np

from pumice.model import constant, nodes
from pumice.testing import QuantizerContract, ScorerContract
from pumice_template import Int8Weights, Magnitude


class TestMagnitude(ScorerContract):
    strategy = Magnitude

    def test_a_larger_channel_matters_more(self):
        filters = np.array([[1, 1], [3, -4], [0, 0]], np.float32)
        assert self.scores(filters).tolist() == [2, 7, 0]


class TestInt8Weights(QuantizerContract):
    strategy = Int8Weights

    def test_no_weight_moves_by_more_than_half_a_step(self):
        for node in nodes(self.quantized()):
            if node.op_type == "DequantizeLinear":
                integers, scale = (constant(value) for value in node.inputs)
                assert integers.dtype == np.int8
                assert np.abs(integers).max() == 127
                assert (scale > 0).all()
