from pumice.testing import QuantizerContract
from pumice_quant_int8 import Int8


class TestInt8(QuantizerContract):
    strategy = Int8


class TestInt8WithCalibratedRanges(QuantizerContract):
    strategy = Int8
    settings = {"activations": "static", "calibrator": "percentile", "symmetric": "yes"}


class TestInt8WeightsOnly(QuantizerContract):
    strategy = Int8
    settings = {"activations": "weights", "rounding": "nearest"}
