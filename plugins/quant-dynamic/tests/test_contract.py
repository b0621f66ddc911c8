from pumice.testing import QuantizerContract
from pumice_quant_dynamic import Dynamic


class TestDynamic(QuantizerContract):
    strategy = Dynamic


class TestDynamicToTheNearest(QuantizerContract):
    strategy = Dynamic
    settings = {"rounding": "nearest", "equalize": False, "recurrent": False}
