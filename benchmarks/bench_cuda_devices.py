"""Every case on the CPU, by the runtime `native`, and on the GPU, by `cuda`: outputs, latency, throughput and cost.

    python benchmarks/bench_cuda_devices.py [--only ID,ID] [--json FILE] [--picture FILE] [--seconds N]
    python benchmarks/bench_cuda_devices.py --pack FOLDER        # quantize here, measure nothing
    python benchmarks/bench_cuda_devices.py --packed FOLDER      # measure what is there, where the data need not be

A network runs as it is, in 8-bit integers by the defaults, and with layers in 8-bit integers, with weights of 4 bits
and in float32 by turns (`variants`). Latency is the median of a call with one sample, NumPy in and NumPy out;
throughput is of batches of 64, of fewer where the CPU would take longer than `--longest`, or of one feed where samples
cannot be joined (a stream). The CPU has the cores that the process may use, all for one call. Cost is that of a million
inferences in batches, from two prices an hour, that of the GPU and that of one core: the defaults are round figures in
dollars, no provider's. The picture has all three, a mark a network.

Outputs are those for calibration samples, the last of three runs, so that what is recorded is looked at:

  cpu off   the largest difference to ONNX Runtime's, over that output's largest value
  gpu off   the same of the GPU
  ort off   the same of ONNX Runtime itself without its optimizations, which rounds other last bits: where real numbers
            lie half-way between two integers, these decide

ONNX Runtime multiplies weights of 4 bits in floats here, as the file says, not by 8-bit integers as is its default.
A network that cannot be run has its error in the place of figures, and the exit code is 1. What was not replayed as a
CUDA graph, or left to the CPU, is said below the table.
"""

import argparse
import operator
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import variants
from models import Feed
from tables import Table, now, write_json

from pumice.errors import PumiceError
from pumice.measure import interleaved_latency, pick_runtime
from pumice.report.charts import Point, scatter
from pumice.strategy import Runtime

BATCH = 64
RUNS = 3
"""Of a shape on the GPU: operator by operator, recorded, replayed."""
ROUNDS = 5
"""Of batches that take the CPU longer than `SHORT` milliseconds."""
SHORT = 50.0
PANEL = 340, 240
"""Width and height of a chart of the picture."""
STYLE = ".axis { stroke: #888 } .before { fill: #c33 } .after { fill: #27c } text { font: 10px sans-serif }"
EXCEPTIONS = ("operator by operator", "on the CPU: ")
"""What the description of a session says of what is not replayed, or not on the GPU."""
COLUMNS = {
    "network": 22, "cpu ms": -8, "gpu ms": -8, "batch": -5, "cpu /s": -9, "gpu /s": -9, "ratio": -7, "cpu $/M": -8,
    "gpu $/M": -8, "cpu off": -8, "gpu off": -8, "ort off": -8,
}  # fmt: skip


@attrs.frozen(kw_only=True)
class Measured:
    """One network on both, by `cpu` and `gpu`."""

    name: str
    latency: Mapping[str, float]
    """Milliseconds of one sample."""
    batch: int
    throughput: Mapping[str, float]
    """Samples a second, in batches."""
    dollars: Mapping[str, float]
    """Of a million samples in batches."""
    off: Mapping[str, float]
    """Largest relative differences to ONNX Runtime, its own (`ort`) among them."""
    exception: str = ""
    """What is not replayed, or not on the GPU."""

    def cells(self) -> list[str]:
        ms, rate, cost = self.latency, self.throughput, self.dollars
        return [
            self.name, f"{ms['cpu']:.3f}", f"{ms['gpu']:.3f}", str(self.batch), f"{rate['cpu']:.0f}",
            f"{rate['gpu']:.0f}", f"{rate['gpu'] / rate['cpu']:.1f}", f"{cost['cpu']:.2g}", f"{cost['gpu']:.2g}",
            *(f"{self.off[key]:.1e}" for key in ("cpu", "gpu", "ort")),
        ]  # fmt: skip


@attrs.frozen(kw_only=True)
class Terms:
    """How networks are measured."""

    runtime: Runtime
    """What is held against the CPU."""
    cores: int
    prices: Mapping[str, float]
    """Dollars an hour."""
    seconds: float
    """For each runtime of a measurement."""
    longest: float
    """Seconds that a batch may take on the CPU."""


def main() -> int:
    """Print the table; 1 if a network failed, 2 without a GPU."""
    arguments = _parser().parse_args()
    names = arguments.only or variants.NAMES
    if arguments.pack:
        for name in names:
            variants.write(name, arguments.pack)
        return 0
    try:
        runtime = pick_runtime(arguments.runtime)
    except PumiceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    cores = len(os.sched_getaffinity(0))
    prices = {"cpu": arguments.core_hour * cores, "gpu": arguments.gpu_hour}
    terms = Terms(
        runtime=runtime, cores=cores, prices=prices, seconds=arguments.seconds, longest=arguments.longest
    )  # fmt: skip
    print(f"{_place(runtime)}; {cores} cores; {now()}\n")
    if arguments.packed:
        return table(arguments.packed, names, terms, arguments)
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            variants.write(name, Path(folder))
        return table(Path(folder), names, terms, arguments)


def table(folder: Path, names: Sequence[str], terms: Terms, arguments: argparse.Namespace) -> int:
    """Measure what a folder holds of some cases; 1 if a network failed."""
    rows, found, failed = Table(COLUMNS), list[Measured](), dict[str, str]()
    place = {"device": _place(terms.runtime), "cores": terms.cores, "prices": terms.prices}
    for name, kind, path, feeds in variants.read(folder, names):
        title = name if kind == "float32" else f"{name} {kind}"
        try:
            found.append(measured(title, path, feeds, terms))
            rows.row(found[-1].cells())
        except Exception as error:
            failed[title] = f"{type(error).__name__}: {error}"
            rows.row([title, *[""] * (len(COLUMNS) - 2), "failed"])
        if arguments.json:
            write_json(arguments.json, {**place, "networks": [attrs.asdict(m) for m in found], "failed": failed})
        if arguments.picture and found:
            arguments.picture.write_text(picture(found))
    print()
    for title, what in [*failed.items(), *((m.name, m.exception) for m in found if m.exception)]:
        print(f"- {title}: {what}")
    return 1 if failed else 0


def _place(runtime: Runtime) -> str:
    from pumice_cuda import device

    return str(device.examination()) if runtime.name == "cuda" else runtime.name


def measured(name: str, path: Path, feeds: variants.Feeds, terms: Terms) -> Measured:
    """Both runtimes in turns, one sample and a batch at a time."""
    opened = {"cpu": pick_runtime("native").open(path, threads=terms.cores), "gpu": terms.runtime.open(path)}
    off = differences(path, feeds.samples, {key: session.run for key, session in opened.items()})
    one = _times(opened, feeds.one, terms.seconds)
    count = _batch(one["cpu"], terms.longest) if feeds.axes else 1
    many = _times(opened, feeds.batch(count), terms.seconds)
    throughput = {key: count / many[key] * 1e3 for key in opened}
    return Measured(
        name=name,
        latency=one,
        batch=count,
        throughput=throughput,
        dollars={key: terms.prices[key] / 3600 / throughput[key] * 1e6 for key in opened},
        off=off,
        exception=_exception(opened["gpu"].description),
    )


def _times(opened: Mapping[str, Any], feed: Feed, seconds: float) -> dict[str, float]:
    """Milliseconds of a call."""
    calls = {key: lambda s=session: s.run(feed) for key, session in opened.items()}
    for call in calls.values():
        call()
    trial = interleaved_latency(calls, rounds=1, warmup=0.0)["cpu"].median
    rounds = ROUNDS if trial > SHORT else None
    times = interleaved_latency(calls, seconds=seconds, rounds=rounds, warmup=min(0.2, seconds))
    return {key: found.median for key, found in times.items()}


def _batch(milliseconds: float, longest: float) -> int:
    """The largest power of two up to `BATCH` that the CPU computes in time."""
    count = BATCH
    while count > 1 and count * milliseconds > longest * 1e3:
        count //= 2
    return count


def differences(path: Path, samples: Sequence[Feed], runs: Mapping[str, Callable[[Feed], Any]]) -> dict[str, float]:
    """The largest of every run to ONNX Runtime, and ONNX Runtime's own, as `ort`."""
    wanted, plain = onnxruntime_run(path), onnxruntime_run(path, optimized=False)
    found = dict.fromkeys((*runs, "ort"), 0.0)
    for feed in samples:
        want = wanted(feed)
        outputs = {"ort": plain(feed)}
        for key, run in runs.items():
            outputs[key] = [run(feed) for _ in range(RUNS)][-1]
        for key, output in outputs.items():
            found[key] = max(found[key], apart(output, want))
    return found


def onnxruntime_run(path: Path, *, optimized: bool = True) -> Callable[[Feed], dict[str, np.ndarray]]:
    """A file in ONNX Runtime, 4-bit weights multiplied in floats."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    options, levels = onnxruntime.SessionOptions(), onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda feed: dict(zip(names, session.run(None, dict(feed)), strict=True))


def apart(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> float:
    """The largest difference of an output, over its largest value; infinite where a shape, a type or a NaN differs."""
    worst = 0.0
    for name, want in wanted.items():
        have = found[name]
        if have.shape != want.shape or have.dtype != want.dtype:
            return float("inf")
        if want.size:
            want = want.astype(np.float64)
            distance = float(np.abs(have - want).max() / max(np.abs(want).max(), np.finfo(np.float32).tiny))
            worst = max(worst, float("inf") if np.isnan(distance) else distance)
    return worst


def _exception(description: str) -> str:
    places = [at for text in EXCEPTIONS if (at := description.find(text)) >= 0]
    return description[min(places) :] if places else ""


def picture(found: list[Measured]) -> str:
    """What the GPU takes, does and costs over the same of the CPU, side by side, all in powers of ten."""
    panels = [
        ("latency", "log10 of milliseconds", [m.latency for m in found], operator.lt),
        ("throughput", "log10 of samples a second", [m.throughput for m in found], operator.gt),
        ("cost", "log10 of dollars a million", [m.dollars for m in found], operator.lt),
    ]
    (width, height), drawings = PANEL, []
    for number, (what, unit, pairs, better) in enumerate(panels):
        points = [
            Point(
                x=float(np.log10(pair["cpu"])), y=float(np.log10(pair["gpu"])),
                kind="after" if better(pair["gpu"], pair["cpu"]) else "before", title=m.name,
            )
            for m, pair in zip(found, pairs, strict=True)
        ]  # fmt: skip
        drawing = str(scatter(points, f"CPU: {what}, {unit}", "GPU, the same", f"{what} of GPU and CPU"))
        place = f'x="{number * width}" width="{width}" height="{height}"'
        drawings.append(drawing.replace("<svg ", f"<svg {place} ", 1))
    size = f'viewBox="0 0 {len(panels) * width} {height}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{STYLE}</style>{"".join(drawings)}</svg>\n'


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=lambda text: text.split(","), metavar="ID,ID", help="these cases only")
    parser.add_argument("--pack", type=Path, metavar="FOLDER", help="write models and feeds there, and end")
    parser.add_argument("--packed", type=Path, metavar="FOLDER", help="measure what was written there")
    parser.add_argument("--json", type=Path, help="also write the table as JSON, as it grows")
    parser.add_argument("--picture", type=Path, help="write the picture there, as SVG")
    parser.add_argument("--runtime", default="cuda", help="what is held against the CPU")
    parser.add_argument("--seconds", type=float, default=0.5, help="for each runtime of a measurement")
    parser.add_argument("--longest", type=float, default=1.0, help="seconds that a batch may take on the CPU")
    parser.add_argument("--gpu-hour", type=float, default=3.0, help="price of an hour of the GPU")
    parser.add_argument("--core-hour", type=float, default=0.05, help="price of an hour of one core")
    return parser


if __name__ == "__main__":
    sys.exit(main())
