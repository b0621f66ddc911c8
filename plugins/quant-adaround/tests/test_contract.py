from pumice.testing import QuantizerContract
from pumice_quant_adaround import AdaRound


class TestAdaRound(QuantizerContract):
    strategy = AdaRound
    settings = {"steps": 20}


class TestThreeBits(QuantizerContract):
    strategy = AdaRound
    settings = {"bits": 3, "block": 16, "symmetric": True, "steps": 30}
    sqnr_db = 5.0
