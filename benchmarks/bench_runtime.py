"""The native runtime against onnxruntime on the same files: CNNs, transformers and recurrent networks.

    python benchmarks/bench_runtime.py [--quick] [--json FILE] [--only ID,ID] [--threads 1,2]

Graphs of the real shapes with random weights, which is right for speed. Quantized files are onnxruntime's own: static
QDQ with u8 activations and s8 weights per channel for CNNs, dynamic for transformers and LSTMs. With four bits we
have a codebook of 16 values and a scale a column, onnxruntime its MatMulNBits in blocks of 32, and `error` says how
far these two are apart. Every file is run by onnxruntime with and without its SkipLayerNormalization fusion, which is
slower on some machines; the faster one counts. Runtimes take turns within one process; a time is the median, the
spread that of the ratio's 95% interval. `error` is the largest difference from onnxruntime, relative to the largest
output.
"""

import argparse
import logging
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import NormalDist
from typing import Any

import attrs
import numpy as np
from models import networks
from peers.cache import quantized
from peers.stock_onnxruntime import LINEAR, Variant
from tables import Table, measurement, write_json

from pumice.measure import interleaved_latency, pick_runtime, speedup

STATIC = Variant(id="ort static", mode="static")
DYNAMIC = Variant(id="ort dynamic", mode="dynamic", operators=LINEAR[1:])
LSTM = Variant(id="ort dynamic", mode="dynamic", operators=("LSTM",))
SIDE = 224
COLUMNS = {
    "case": 26,
    "threads": -7,
    "native ms": -9,
    "ort ms": -8,
    "ratio": -6,
    "spread": -6,
    "target": -6,
    "error": -8,
}
SECONDS, QUICK_SECONDS = 2.5, 1.0
Feed = dict[str, np.ndarray]


@attrs.frozen(kw_only=True)
class Compared:
    """One network, how it is quantized and what is fed."""

    id: str
    build: Callable[[Path], Path]
    feed: Callable[[np.random.Generator], Feed]
    quantize: Variant | str | None = None
    """A configuration of onnxruntime's quantizer, "codebook", or None for the float model."""
    target: float = 1.0
    mode: str = "exact"
    quick: bool = False


def _image(rng: np.random.Generator) -> Feed:
    return {"x": rng.standard_normal((1, 3, SIDE, SIDE)).astype(np.float32)}


def _tokens(count: int) -> Callable[[np.random.Generator], Feed]:
    return lambda rng: {"x": rng.integers(0, 1000, (1, count))}


def _sequence(batch: int) -> Callable[[np.random.Generator], Feed]:
    return lambda rng: {"x": rng.standard_normal((batch, 50, 256)).astype(np.float32)}


def _resnet50(path: Path) -> Path:
    return networks.resnet50(path)


def _half_resnet50(path: Path) -> Path:
    return networks.resnet50(path, base=32)


def _mobilenet(path: Path) -> Path:
    return networks.inverted_residuals(path, networks.MOBILENET_V2)


def _lite0(path: Path) -> Path:
    return networks.inverted_residuals(path, networks.EFFICIENTNET_LITE0)


def _minilm(path: Path) -> Path:
    return networks.bert(path, width=384, layers=6)


_CNN = {"feed": _image, "quantize": STATIC}
_FEW = {"build": networks.bert, "quantize": "codebook", "target": 1.5, "mode": "fast"}
_STATES = {"build": networks.states, "quantize": LSTM, "mode": "fast"}
_LONG = {"feed": _tokens(128), "quantize": DYNAMIC, "target": 1.25, "mode": "fast"}
CASES = (
    Compared(id="resnet50 int8", build=_resnet50, target=1.1, **_CNN),
    Compared(id="mobilenetv2 int8", build=_mobilenet, target=1.35, quick=True, **_CNN),
    Compared(id="efficientnet-lite0 int8", build=_lite0, target=1.35, **_CNN),
    Compared(id="half resnet50 int8", build=_half_resnet50, target=1.1, **_CNN),
    Compared(id="bert-base int8", build=networks.bert, **_LONG),
    Compared(id="minilm int8", build=_minilm, quick=True, **_LONG),
    Compared(id="bert-base int4 1 token", feed=_tokens(1), **_FEW),
    Compared(id="bert-base int4 16 tokens", feed=_tokens(16), **_FEW),
    Compared(id="lstm int8 batch 1", feed=_sequence(1), target=1.5, quick=True, **_STATES),
    Compared(id="lstm int8 batch 32", feed=_sequence(32), target=1.3, **_STATES),
    Compared(id="lstm float batch 1", build=networks.states, feed=_sequence(1)),
    Compared(id="resnet50 float", build=_resnet50, feed=_image),
    Compared(id="mobilenetv2 float", build=_mobilenet, feed=_image, quick=True),
    Compared(id="bert-base float", build=networks.bert, feed=_tokens(128)),
    Compared(id="minilm float", build=_minilm, feed=_tokens(128), quick=True),
)


def main() -> int:
    """Print the table; 1 if a case failed."""
    arguments = _parser().parse_args()
    logging.disable(logging.INFO)  # onnxruntime's quantizer tells every node
    seconds = QUICK_SECONDS if arguments.quick else SECONDS
    chosen = [c for c in CASES if (c.id in arguments.only if arguments.only else c.quick or not arguments.quick)]
    table, record = Table(COLUMNS), {"cases": [], "failures": []}
    for case in chosen:
        try:
            _measure(case, arguments.threads, seconds, table, record)
        except Exception as error:  # one case must not cost the others
            record["failures"].append({"case": case.id, "error": f"{type(error).__name__}: {error}"})
            table.row([case.id, *[""] * 6, type(error).__name__])
            print(f"{case.id}: {error}", file=sys.stderr)
        if arguments.json:
            write_json(arguments.json, record)
    return 1 if record["failures"] else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the smaller networks, a second each")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    parser.add_argument("--only", type=lambda text: text.split(","), help="only these cases")
    parser.add_argument("--threads", type=lambda text: [int(n) for n in text.split(",")], default=[1, 2])
    return parser


def _measure(case: Compared, threads: list[int], seconds: float, table: Table, record: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    feed = case.feed(rng)
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = _files(case, Path(folder), rng)
        for count in threads:
            row = _row(case, ours, theirs, feed, count, seconds)
            table.row(row.cells)
            record["cases"].append(row.measured)


def _files(case: Compared, folder: Path, rng: np.random.Generator) -> tuple[Path, Path]:
    """What we and what onnxruntime run: the same file, but for codebooks."""
    path = case.build(folder / "float.onnx")
    if isinstance(case.quantize, Variant):
        made = quantized(case.quantize, path, [case.feed(rng) for _ in range(4)])
        if made.error:
            raise RuntimeError(made.error)
        return made.path, made.path
    return (_codebooks(path, folder), _blocks_of_32(path, folder)) if case.quantize else (path, path)


def _codebooks(path: Path, folder: Path) -> Path:
    """Every matrix as Transpose(Gather(table, codes) * scale), the table that of normally distributed values."""
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(path)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    table = np.array([NormalDist().inv_cdf((i + 0.5) / 16) for i in range(16)], np.float32)
    nodes: list[Any] = []
    added = {"codebook": table}
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in stored:
            name = node.input[1]
            rows = numpy_helper.to_array(stored.pop(name)).T
            scale = rows.std(axis=1, keepdims=True)
            edges = (table[1:] + table[:-1]) / 2
            added |= {f"{name}.codes": np.searchsorted(edges, rows / scale).astype(np.int32), f"{name}.scale": scale}
            nodes.append(helper.make_node("Gather", ["codebook", f"{name}.codes"], [f"{name}.looked_up"]))
            nodes.append(helper.make_node("Mul", [f"{name}.looked_up", f"{name}.scale"], [f"{name}.rows"]))
            nodes.append(helper.make_node("Transpose", [f"{name}.rows"], [name], perm=[1, 0]))
        nodes.append(node)
    kept = [*stored.values(), *(numpy_helper.from_array(np.ascontiguousarray(a), n) for n, a in added.items())]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(kept)
    onnx.save(model, folder / "codebooks.onnx")
    return folder / "codebooks.onnx"


def _blocks_of_32(path: Path, folder: Path) -> Path:
    """Products with 8-bit activations (accuracy level 4)."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(onnx.load(path), block_size=32, is_symmetric=True, accuracy_level=4)
    quantizer.process()
    target = folder / "blocks.onnx"
    quantizer.model.save_model_to_file(str(target))
    return target


@attrs.frozen
class Row:
    """A line of the table, and of the record."""

    cells: list[str]
    measured: dict[str, Any]


def _row(case: Compared, own: Path, theirs: Path, feed: Feed, threads: int, seconds: float) -> Row:
    ours = pick_runtime({"name": "native", "mode": case.mode}).open(own, threads=threads)
    plain, unfused = _onnxruntime(theirs, threads), _onnxruntime(theirs, threads, "SkipLayerNormFusion")
    peers = {"ort": plain, "ort, no SkipLN": unfused}
    error = _error(ours.run(feed), peers["ort"](feed))
    calls: dict[str, Callable[[], Any]] = {"native": lambda: ours.run(feed)}
    calls |= {name: _call(run, feed) for name, run in peers.items()}
    found = interleaved_latency(calls, seconds=seconds)
    best = min(peers, key=lambda name: found[name].median)
    ratio = speedup(found[best], found["native"])
    spread = (ratio.certain_high - ratio.certain_low) / 2 / ratio.median
    cells = [
        case.id, str(threads), f"{found['native'].median:.3f}", f"{found[best].median:.3f}", f"{ratio.median:.2f}",
        f"{spread:.1%}", f"{case.target:.2f}", f"{error:.0e}",
    ]  # fmt: skip
    times = {name: found[name].median for name in peers}
    measured = measurement(
        f"{case.id}, {threads} threads", "ms", found["native"].median, times, spread=spread, higher_is_better=False
    )
    return Row(cells, measured | {"target": case.target, "error": error, "threads": threads})


def _call(run: Callable[[Feed], Any], feed: Feed) -> Callable[[], Any]:
    return lambda: run(feed)


def _onnxruntime(path: Path, threads: int, *disabled: str) -> Callable[[Feed], dict[str, np.ndarray]]:
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(
        str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=list(disabled)
    )
    names = [output.name for output in session.get_outputs()]
    return lambda feed: dict(zip(names, session.run(names, feed), strict=True))


def _error(have: Mapping[str, np.ndarray], want: Mapping[str, np.ndarray]) -> float:
    return max(float(np.abs(have[n] - want[n]).max() / max(float(np.abs(want[n]).max()), 1e-30)) for n in want)


if __name__ == "__main__":
    sys.exit(main())
