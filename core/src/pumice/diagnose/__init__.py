"""Diagnosis: where a compressed model lost precision, and where a model spends its bytes and its time.

`layer_errors` compares a compressed model with its original layer by layer; `recommendations` says in sentences what to
do about it; `analyse` looks at one model and says what would be worth compressing.
"""

from pumice.diagnose.advice import recommendations
from pumice.diagnose.analysis import Analysis, NodeCost, NodeTime, analyse
from pumice.diagnose.layers import Histogram, LayerError, layer_errors

__all__ = [
    "Analysis",
    "Histogram",
    "LayerError",
    "NodeCost",
    "NodeTime",
    "analyse",
    "layer_errors",
    "recommendations",
]
