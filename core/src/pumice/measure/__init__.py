"""Measuring: accuracy with intervals, latency interleaved, memory, size; and two models against each other.

Every figure names the runtime that really ran, and its threads.
"""

from pumice.measure.accuracy import Evaluation, PairedTest, Score, evaluate, evaluate_many, mcnemar
from pumice.measure.choosing import ChosenMetrics, choose_metrics
from pumice.measure.comparison import Comparison, Side, compare, random_feeds
from pumice.measure.latency import Latency, Ratio, interleaved_latency, speedup
from pumice.measure.memory import PeakMemory, file_bytes, peak_memory
from pumice.measure.runtimes import as_session, pick_runtime

__all__ = [
    "ChosenMetrics",
    "Comparison",
    "Evaluation",
    "Latency",
    "PairedTest",
    "PeakMemory",
    "Ratio",
    "Score",
    "Side",
    "as_session",
    "choose_metrics",
    "compare",
    "evaluate",
    "evaluate_many",
    "file_bytes",
    "interleaved_latency",
    "mcnemar",
    "peak_memory",
    "pick_runtime",
    "random_feeds",
    "speedup",
]
