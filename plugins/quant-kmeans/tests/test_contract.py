from pumice.testing import QuantizerContract
from pumice_quant_kmeans import Coded, KMeans


class TestKMeans(QuantizerContract):
    strategy = KMeans


class TestPlainKMeans(QuantizerContract):
    strategy = KMeans
    settings = {"codebook": "tensor", "weighting": "none", "rounding": "nearest", "refit": False, "start": "linear"}
    sqnr_db = 12.0


class TestExactCodebooksOfOutputs(QuantizerContract):
    strategy = KMeans
    settings = {"codebook": "channel", "start": "exact", "table": "int8"}


class TestCodebooksOfGroups(QuantizerContract):
    strategy = KMeans
    settings = {"codebook": "group", "group": 40, "table": "bfloat16"}


class TestCodebooksByFisherInformation(QuantizerContract):
    strategy = KMeans
    settings = {"weighting": "fisher", "centroids": 8}
    sqnr_db = 10.0


class TestCoded(QuantizerContract):
    strategy = Coded
    settings = {"share": 1.0}
