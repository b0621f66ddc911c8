"""What onnxruntime makes of a file on this machine: its latency, side by side with others, and the kernels it chose.

Latencies are compared only within one process and one run: every round calls each model once, or as often as fits in a
millisecond, one after the other, and the order turns with the rounds. A drift of the machine then meets all alike.
"""

import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from models import Feed

FEWEST_ROUNDS, MOST_ROUNDS = 7, 400
BURST_SECONDS = 1e-3
INTEGER_KERNELS = {
    "ConvInteger", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM",
    "QGemm", "QAttention", "QMoE", "QEmbedLayerNormalization",
}  # fmt: skip
FLOAT_LAYERS = {
    "Conv", "FusedConv", "ConvTranspose", "MatMul", "FusedMatMul", "Gemm", "FusedGemm", "LSTM", "GRU", "RNN",
}  # fmt: skip


@attrs.frozen
class Latency:
    """Milliseconds of one inference."""

    median: float
    lower: float
    """Lower quartile."""
    upper: float
    """Upper quartile."""

    @property
    def spread(self) -> float:
        """Half the distance of the quartiles, relative to the median."""
        return (self.upper - self.lower) / 2 / self.median


@attrs.frozen
class Kernels:
    """Nodes of the graph that onnxruntime executes, subgraphs included."""

    integer: int
    """Kernels that compute on integers: QLinear*, *Integer, QGemm and their like."""
    floating: int
    """Convolutions, matrix products and recurrent layers that still compute in float."""


def interleaved_latency(files: Mapping[str, Path], feed: Feed, seconds: float) -> dict[str, Latency]:
    """Latency of every file on one thread, in about `seconds` for all of them together."""
    sessions = {name: _session(path) for name, path in files.items()}
    inputs = dict(feed)
    once = {name: _warm(session, inputs) for name, session in sessions.items()}
    bursts = {name: max(1, round(BURST_SECONDS / took)) for name, took in once.items()}
    round_seconds = sum(bursts[name] * took for name, took in once.items())
    rounds = int(np.clip(seconds / round_seconds, FEWEST_ROUNDS, MOST_ROUNDS))
    times: dict[str, list[float]] = {name: [] for name in sessions}
    names = list(sessions)
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            times[name].append(_burst(sessions[name], inputs, bursts[name]))
    return {name: Latency(*_median_and_quartiles(found)) for name, found in times.items()}


def kernels(path: Path) -> Kernels:
    """Count the kernels of onnxruntime's fully optimized graph."""
    import onnx

    with tempfile.TemporaryDirectory() as work:
        optimized = Path(work) / "optimized.onnx"
        _session(path, optimized)
        graph = onnx.load(optimized).graph
    found = Counter(node.op_type for node in _nodes(graph))
    integer = sum(count for name, count in found.items() if name in INTEGER_KERNELS or name.startswith("QLinear"))
    return Kernels(integer, sum(found[name] for name in FLOAT_LAYERS))


def _session(path: Path, optimized: Path | None = None) -> Any:
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    if optimized:
        options.optimized_model_filepath = str(optimized)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _warm(session: Any, inputs: dict[str, np.ndarray]) -> float:
    """Seconds of one inference, after one that does not count."""
    session.run(None, inputs)
    return min(_burst(session, inputs, 1) for _ in range(2))


def _burst(session: Any, inputs: dict[str, np.ndarray], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        session.run(None, inputs)
    return (time.perf_counter() - start) / count


def _median_and_quartiles(seconds: list[float]) -> tuple[float, float, float]:
    median, lower, upper = np.percentile(seconds, [50, 25, 75]) * 1e3
    return float(median), float(lower), float(upper)


def _nodes(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in [attribute.g, *attribute.graphs]:
                yield from _nodes(inner)
