from pumice.testing import QuantizerContract
from pumice_quant_int4 import Int4


class TestInt4(QuantizerContract):
    strategy = Int4


class TestInt4WithoutZeroPoints(QuantizerContract):
    strategy = Int4
    settings = {"symmetric": True, "block": 0, "form": "dequantize"}
    sqnr_db = 12.0


class TestInt4ByHalfQuadraticSplitting(QuantizerContract):
    strategy = Int4
    settings = {"scales": "hqq", "rounding": "nearest", "form": "nbits", "block": 16}
    sqnr_db = 12.0


class TestThreeBitsToTheNearest(QuantizerContract):
    strategy = Int4
    settings = {"bits": 3, "scales": "minmax", "rounding": "nearest"}
    sqnr_db = 5.0
