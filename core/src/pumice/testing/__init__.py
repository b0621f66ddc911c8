"""Contract tests that plugins inherit: five lines hold a strategy to everything that pumice expects of its kind.

    from pumice.testing import QuantizerContract
    from pumice_quant_int8 import Int8

    class TestInt8(QuantizerContract):
        strategy = Int8

pytest collects the inherited tests. Each contract names what a subclass must give (always `strategy`) and what it may
replace (`settings`, the model, the data). A failing assertion says what was expected of the plugin.
"""

import importlib
from typing import TYPE_CHECKING, Any

_HOME = {
    "DatasetReaderContract": "pumice.testing.dataset",
    "DistillationLossContract": "pumice.testing.distillation",
    "ExporterContract": "pumice.testing.exporter",
    "LossContract": "pumice.testing.loss",
    "MetricContract": "pumice.testing.metric",
    "OpContract": "pumice.ops.contract",
    "QuantizerContract": "pumice.testing.quantizer",
    "RuntimeContract": "pumice.testing.runtime",
    "ScorerContract": "pumice.testing.scorer",
    "SearcherContract": "pumice.testing.searcher",
    "SparsifierContract": "pumice.testing.sparsifier",
    "StrategyContract": "pumice.testing.strategy",
}
__all__ = [
    "DatasetReaderContract",
    "DistillationLossContract",
    "ExporterContract",
    "LossContract",
    "MetricContract",
    "OpContract",
    "QuantizerContract",
    "RuntimeContract",
    "ScorerContract",
    "SearcherContract",
    "SparsifierContract",
    "StrategyContract",
]

if TYPE_CHECKING:
    from pumice.ops.contract import OpContract
    from pumice.testing.dataset import DatasetReaderContract
    from pumice.testing.distillation import DistillationLossContract
    from pumice.testing.exporter import ExporterContract
    from pumice.testing.loss import LossContract
    from pumice.testing.metric import MetricContract
    from pumice.testing.quantizer import QuantizerContract
    from pumice.testing.runtime import RuntimeContract
    from pumice.testing.scorer import ScorerContract
    from pumice.testing.searcher import SearcherContract
    from pumice.testing.sparsifier import SparsifierContract
    from pumice.testing.strategy import StrategyContract


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'pumice.testing' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME[name]), name)
