"""Diagnosis: where a compressed model lost precision, and where a model spends its bytes and its time.

`layer_errors` compares a compressed model with its original layer by layer; `recommendations` says in sentences what to
do about it; `diagnose` puts this and what calibration and other CPUs have to do with it into one record, with remedies
that `tried` measures; `analyse` looks at one model and says what would be worth compressing.
"""

from pumice.diagnose.advice import recommendations
from pumice.diagnose.analysis import Analysis, NodeCost, NodeTime, analyse
from pumice.diagnose.coverage import CoverageCurve
from pumice.diagnose.examination import Diagnosis, diagnose
from pumice.diagnose.layers import Histogram, LayerError, layer_errors
from pumice.diagnose.remedies import Remedy, Trial, remedies, tried

__all__ = [
    "Analysis",
    "CoverageCurve",
    "Diagnosis",
    "Histogram",
    "LayerError",
    "NodeCost",
    "NodeTime",
    "Remedy",
    "Trial",
    "analyse",
    "diagnose",
    "layer_errors",
    "recommendations",
    "remedies",
    "tried",
]
