from pumice.testing import QuantizerContract
from pumice_quant_mixed import Mixed


class TestMixed(QuantizerContract):
    strategy = Mixed
    settings = {"smallest": 1}


class TestMixedWithinASize(QuantizerContract):
    strategy = Mixed
    settings = {"budget": "size", "size": 0.3, "formats": ["int4", "bfloat16", "float32"], "sensitivity": "measured"}
    sqnr_db = 10.0
